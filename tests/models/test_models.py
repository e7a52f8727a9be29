"""One contract for every registered classifier. A model is covered by being registered."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import golden
import numpy as np
import pytest
import torch
from torch import nn

from medloom.blocks.taps import Taps
from medloom.errors import ModelError
from medloom.machine import has_bfloat16
from medloom.models.registry import count_parameters, create_model, list_models, model_card

CLASSES = 3
CLASSIFIERS = list_models(task="classification")


@dataclass(frozen=True)
class Case:
    """Small enough for one core; everything else as registered."""

    sizes: tuple[int, int] = (64, 96)
    options: dict[str, Any] = field(default_factory=dict)
    fixed_size: bool = False
    heavy_export: bool = False
    heavy: bool = False
    """All of it in the long set: the larger sibling of a model that is in the short one."""
    gain: float = 1.0
    settle: bool = False
    """Batch norms take the statistics of fixed images, and gradients are asked of the model's own start: random biases
    may kill all of the two ReLU units of a gate."""


CASES = {name: Case() for name in CLASSIFIERS} | {
    "resnet50": Case(heavy_export=True),
    "densenet121": Case(gain=1.5, heavy_export=True),
    "efficientnet_b0": Case(gain=2.3, heavy_export=True),
    "convnext_base": Case(sizes=(32, 64), heavy_export=True),
    "coatnet_0": Case(fixed_size=True, heavy_export=True),
    "maxvit_tiny": Case(fixed_size=True, heavy_export=True),
    "vit_small": Case(sizes=(32, 48), heavy_export=True),
    "deit_small": Case(sizes=(32, 48), options={"distilled": True}, heavy_export=True),
    "vit_base": Case(sizes=(32, 48), heavy_export=True),
    "vit": Case(
        sizes=(32, 48),
        options={"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "pool": "map", "registers": 2},
    ),
    "hatr": Case(options={"trunk_stride": 16, "embed_dim": 128, "depth": 2}),
    "hatr_resnet50": Case(sizes=(96, 128), heavy_export=True),
    "coatnet_1": Case(fixed_size=True, heavy_export=True, heavy=True),
    "coatnet_2": Case(fixed_size=True, heavy_export=True, heavy=True),
    "convnext_deit": Case(sizes=(32, 64), heavy_export=True, heavy=True),
    "convnext_deit_tiny": Case(sizes=(32, 64), heavy_export=True),
    "convnext_deit_atto": Case(heavy_export=True),
    "token_pruned": Case(options={"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "second_keep": 0.5}),
    "token_pruned_resnet18": Case(),
    "dynamic_vit": Case(options={"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2, "keep_rate": 0.6}),
    "medvit_tiny": Case(settle=True, heavy_export=True),
    "medvit_small": Case(settle=True, heavy_export=True),
    "medvit_base": Case(settle=True, heavy_export=True),
    "medvit_large": Case(settle=True, heavy_export=True),
}


def build(name: str, *, in_chans: int = 3, size: int | None = None) -> nn.Module:
    case = CASES[name]
    return create_model(
        name, num_classes=CLASSES, in_chans=in_chans, image_size=size or case.sizes[0], **case.options
    ).eval()


def prepared(name: str) -> nn.Module:
    """The model with the weights that the recorded answers belong to."""
    model, case = golden.fill(build(name), CASES[name].gain), CASES[name]
    return golden.settle(model, case.sizes[0]) if case.settle else model


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.long) if CASES[n].heavy else n for n in CLASSIFIERS],
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> nn.Module:
    """Built once per model, and shared by the tests, which leave it as it was."""
    return prepared(name)


@pytest.fixture
def x_BCHW(name: str) -> torch.Tensor:
    return golden.images(3, CASES[name].sizes[0])


def test_parameter_count_is_the_published_one(name: str) -> None:
    assert count_parameters(name) == model_card(name)["parameters"]


@pytest.mark.parametrize("in_chans", [1, 3])
def test_two_sizes_one_and_three_channels(name: str, in_chans: int) -> None:
    small, large = CASES[name].sizes
    model = build(name, in_chans=in_chans)
    with torch.no_grad():
        assert model(golden.images(in_chans, small)).shape == (2, CLASSES)
        if CASES[name].fixed_size:
            with pytest.raises(ModelError, match="C511"):
                model(golden.images(in_chans, large))
            model = build(name, in_chans=in_chans, size=large)
        logits_BK = model(golden.images(in_chans, large))
    assert logits_BK.shape == (2, CLASSES)
    assert torch.isfinite(logits_BK).all()


def test_answers_are_the_recorded_ones(name: str, model: nn.Module, x_BCHW: torch.Tensor) -> None:
    recorded = np.array(json.loads(golden.FILE.read_text())[name])
    with torch.no_grad():
        np.testing.assert_allclose(model(x_BCHW).numpy(), recorded, atol=1e-4)
    assert np.abs(recorded[0] - recorded[1]).max() > 1e-3, "the answer does not depend on the image"


def test_taps_change_nothing(name: str, model: nn.Module, x_BCHW: torch.Tensor) -> None:
    taps: Taps = {}
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCHW, taps), model(x_BCHW), atol=1e-5, rtol=0)
    assert taps
    for key, tap in taps.items():
        positions = int(np.prod(tap.grid)) + tap.prefix
        if key.startswith(("features.", "embedding.")):
            assert tap.value.shape[2:] == tap.grid, key
        elif key.startswith("attention."):
            torch.testing.assert_close(tap.value.sum(-1), torch.ones(tap.value.shape[:-1]))
            assert not tap.grid or tap.value.shape[-1] == positions, key
        elif key.startswith("token_weight."):
            assert tap.value.shape == (2, positions), key
            assert ((tap.value > 0) & (tap.value < 1)).all()
        elif key == "kept":
            assert tap.value.shape == (2, positions)
            assert set(tap.value.unique().tolist()) == {0.0, 1.0}
        elif key == "token_score":
            assert tap.value.shape == (2, positions)
        elif key == "cross_attention":
            torch.testing.assert_close(tap.value.sum(-1), torch.ones(tap.value.shape[:-1]))
            assert tap.value.shape[-1] == positions
        else:
            assert key == "tokens"
            assert not tap.grid or tap.value.shape[1] == positions


def test_gradient_reaches_every_parameter(name: str, model: nn.Module, x_BCHW: torch.Tensor) -> None:
    if CASES[name].settle:
        torch.manual_seed(0)
        model = golden.settle(build(name), CASES[name].sizes[0])
    model.zero_grad(set_to_none=True)
    outputs = model.train_outputs(x_BCHW) if hasattr(model, "train_outputs") else {"logits": model(x_BCHW)}
    loss = sum(
        nn.functional.cross_entropy(output, torch.tensor([0, 2]))
        if output.ndim == 2
        else nn.functional.mse_loss(output, torch.full_like(output, 0.3))
        for output in outputs.values()
    )
    loss.backward()  # type: ignore[union-attr]
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.zero_grad(set_to_none=True)
    assert without == []


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU emulates bfloat16, which takes minutes")
def test_finite_in_bf16(name: str, model: nn.Module, x_BCHW: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits_BK = model(x_BCHW)
    logits_BK.float().square().mean().backward()
    assert torch.isfinite(logits_BK).all()
    broken = [key for key, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    model.zero_grad(set_to_none=True)
    assert broken == []


def test_saved_and_loaded_is_equal(name: str, model: nn.Module, x_BCHW: torch.Tensor) -> None:
    from safetensors.torch import load, save

    twin = build(name)
    twin.load_state_dict(load(save(model.state_dict())), strict=True)
    with torch.no_grad():
        assert torch.equal(twin(x_BCHW), model(x_BCHW))


def test_head_parameters_are_those_that_follow_the_classes(name: str, model: nn.Module) -> None:
    with torch.device("meta"):
        other = create_model(
            name, num_classes=CLASSES + 4, image_size=CASES[name].sizes[0], **CASES[name].options
        ).state_dict()
    changed = {key for key, value in model.state_dict().items() if value.shape != other[key].shape}
    assert changed == set(model.head_parameters())  # type: ignore[operator]


def test_onnx_gives_the_same_answers(name: str, model: nn.Module, x_BCHW: torch.Tensor) -> None:
    if CASES[name].heavy_export:
        pytest.skip("in the long set")
    check_export(model, x_BCHW)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("heavy", [name for name, case in CASES.items() if case.heavy_export])
def test_onnx_of_a_heavy_model_gives_the_same_answers(heavy: str) -> None:
    check_export(prepared(heavy), golden.images(3, CASES[heavy].sizes[0]))


def check_export(model: nn.Module, x_BCHW: torch.Tensor) -> None:
    """Export with two images, answer three: the batch must have stayed free."""
    import onnxruntime

    program = torch.onnx.export(
        model,
        (x_BCHW,),
        dynamo=True,
        opset_version=18,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    buffer = io.BytesIO()
    program.save(buffer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    more_BCHW = torch.cat([x_BCHW, x_BCHW[:1].flip(-1)])
    (answers_BK,) = session.run(None, {"image": more_BCHW.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answers_BK, model(more_BCHW).numpy(), atol=1e-4)
