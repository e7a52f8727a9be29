"""One contract for every registered segmenter, of images and of volumes. A model is covered by being registered.

Run this file to write ``golden_segmenters.json`` anew, or with names to write those alone; do so only when a change of
the answers is meant.
"""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from torch import nn

from medloom.blocks.taps import Taps
from medloom.machine import has_bfloat16
from medloom.models.registry import count_parameters, create_model, input_of, list_models, model_card, model_options

CLASSES = 3
SEGMENTERS = list_models(task="segmentation")
FILE = Path(__file__).with_name("golden_segmenters.json")


@dataclass(frozen=True)
class Case:
    """Small enough for one core; everything else as registered."""

    size: tuple[int, ...]
    odd: tuple[int, ...]
    """Extents that no stride divides."""
    options: dict[str, Any] = field(default_factory=dict)
    heavy_export: bool = False
    heavy: bool = False
    """All of it in the long set: the larger sibling of a model that is in the short one."""


IMAGE, VOLUME = ((48, 64), (57, 83)), ((48, 32, 40), (33, 40, 29))
CASES = {
    "unet": Case(*IMAGE, options={"dims": [8, 16, 32, 64]}),
    "unet_3d": Case(*VOLUME, options={"dims": [8, 16, 32, 64]}),
    "transunet": Case(
        *IMAGE,
        options={
            **{"units": [1, 2, 1], "width": 32, "embed_dim": 64, "depth": 2, "num_heads": 2},
            "decoder_dims": [64, 32, 32, 16, 16],
        },
    ),
    "transunet_small": Case(*IMAGE, heavy=True),
    "transunet_tiny": Case(*IMAGE, options={"width": 32}, heavy_export=True),
    "transunet_3d": Case(*VOLUME, options={"dims": [8, 16, 32, 64], "embed_dim": 64, "depth": 2, "num_heads": 2}),
    "transunet_3d_small": Case(*VOLUME, heavy=True),
    "transunet_3d_tiny": Case(*VOLUME, heavy_export=True),
    "maxvit_unet": Case(
        *IMAGE,
        options={"dims": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "stem_dim": 16, "skip_dim": 16, "decoder_depth": 1},
        heavy_export=True,
    ),
    "maxvit_unet_mini": Case(*IMAGE, heavy_export=True),
    "maxvit_unet_3d_tiny": Case(*VOLUME, heavy_export=True),
    "maxvit_unet_3d_small": Case(*VOLUME, heavy=True),
    "swin_unetr": Case((64, 32, 32), (64, 33, 29), options={"feature_size": 12}, heavy=True),
}


def build(name: str, *, in_chans: int | None = None, deep: bool = False) -> nn.Module:
    case = CASES[name]
    options = dict(case.options)
    if deep and "deep_supervision" in model_options(name):
        options["deep_supervision"] = True
    return create_model(name, num_classes=CLASSES, in_chans=in_chans, image_size=case.size, **options).eval()


def prepared(name: str) -> nn.Module:
    """The model with the weights that the recorded answers belong to."""
    return golden.fill(build(name))


def some(logits_BKS: torch.Tensor) -> np.ndarray:
    """Logits at a few places all over the map, ``(B, K, 5)``."""
    flat = logits_BKS.detach().flatten(2)
    return flat[..., torch.linspace(0, flat.shape[2] - 1, 5).long()].double().numpy()


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.long) if CASES[n].heavy else n for n in SEGMENTERS],
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> nn.Module:
    """Built once per model, and shared by the tests, which leave it as it was."""
    return prepared(name)


@pytest.fixture
def x_BCS(name: str) -> torch.Tensor:
    return golden.images(input_of(name)["in_chans"], CASES[name].size)


def test_parameter_count_is_that_of_the_card(name: str) -> None:
    assert count_parameters(name) == model_card(name)["parameters"]


@pytest.mark.parametrize("in_chans", [1, 3])
def test_any_size_one_and_three_channels(name: str, in_chans: int) -> None:
    model = build(name, in_chans=in_chans)
    with torch.no_grad():
        for size in (CASES[name].size, CASES[name].odd):
            logits_BKS = model(golden.images(in_chans, size))
            assert logits_BKS.shape == (2, CLASSES, *size)
            assert torch.isfinite(logits_BKS).all()


def test_answers_are_the_recorded_ones(name: str, model: nn.Module, x_BCS: torch.Tensor) -> None:
    recorded = np.array(json.loads(FILE.read_text())[name])
    np.testing.assert_allclose(some(model(x_BCS)), recorded, atol=1e-4)
    assert np.abs(recorded[0] - recorded[1]).max() > 1e-2, "the answer does not depend on the image"
    assert recorded.std(axis=2).min() > 1e-2, "the answer is the same everywhere"


def test_what_is_learnt_has_the_shape_of_its_stride(name: str) -> None:
    case = CASES[name]
    outputs = build(name, deep=True).train_outputs(golden.images(input_of(name)["in_chans"], case.odd))
    assert outputs.pop("logits").shape == (2, CLASSES, *case.odd)
    assert bool(outputs) == ("deep_supervision" in model_options(name))
    for key, deep_BKS in outputs.items():
        stride = int(key.removeprefix("deep."))
        assert stride in (2, 4, 8, 16)
        assert deep_BKS.shape == (2, CLASSES, *(math.ceil(extent / stride) for extent in case.odd))


def test_training_without_deep_supervision_learns_from_the_answer_alone(
    name: str, model: nn.Module, x_BCS: torch.Tensor
) -> None:
    with torch.no_grad():
        outputs = model.train_outputs(x_BCS)
        assert list(outputs) == ["logits"]
        assert torch.equal(outputs["logits"], model(x_BCS))


def test_taps_change_nothing(name: str, model: nn.Module, x_BCS: torch.Tensor) -> None:
    taps: Taps = {}
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCS, taps), model(x_BCS), atol=1e-5, rtol=0)
    assert len([key for key in taps if key.startswith("features.")]) >= 3
    for key, tap in taps.items():
        if key.startswith(("features.", "decoded.")):
            assert tap.value.shape[2:] == tap.grid, key
        elif key.startswith("attention."):
            torch.testing.assert_close(tap.value.sum(-1), torch.ones(tap.value.shape[:-1]))
            assert tap.value.shape[-1] == math.prod(tap.grid), key
        else:
            assert key == "tokens"
            assert tap.value.shape[1] == math.prod(tap.grid)


def test_gradient_reaches_every_parameter(name: str, x_BCS: torch.Tensor) -> None:
    model = golden.fill(build(name, deep=True))
    target = torch.randint(CLASSES, (2, *x_BCS.shape[2:]), generator=torch.Generator().manual_seed(0))
    loss = torch.zeros(())
    for logits_BKS in model.train_outputs(x_BCS).values():
        small = nn.functional.interpolate(target[:, None].float(), size=logits_BKS.shape[2:])[:, 0].long()
        loss = loss + nn.functional.cross_entropy(logits_BKS, small)
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_step_is_the_same_twice(name: str) -> None:
    """A resumed run owes the bytes of an uninterrupted one: no operation may lack a deterministic form."""
    x_BCS = golden.images(input_of(name)["in_chans"], CASES[name].odd)
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            torch.manual_seed(0)
            model = golden.fill(build(name, deep=True)).train()
            torch.stack([y.square().mean() for y in model.train_outputs(x_BCS).values()]).sum().backward()
            gradients.append([p.grad for p in model.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_a_batch_of_one_trains_in_three_dimensions(name: str) -> None:
    if input_of(name)["spatial_dims"] == 2:
        pytest.skip("images come in batches")
    model = build(name).train()
    model(golden.images(1, CASES[name].size, count=1)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU emulates bfloat16, which takes minutes")
def test_finite_in_bf16(name: str, model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits_BKS = model(golden.images(input_of(name)["in_chans"], CASES[name].odd))
    logits_BKS.float().square().mean().backward()
    assert torch.isfinite(logits_BKS).all()
    broken = [key for key, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    model.zero_grad(set_to_none=True)
    assert broken == []


def test_saved_and_loaded_is_equal(name: str, model: nn.Module, x_BCS: torch.Tensor) -> None:
    from safetensors.torch import load, save

    twin = build(name)
    twin.load_state_dict(load(save(model.state_dict())), strict=True)
    with torch.no_grad():
        assert torch.equal(twin(x_BCS), model(x_BCS))


def test_head_parameters_are_those_that_follow_the_classes(name: str) -> None:
    case = CASES[name]
    options = {**case.options, **({"deep_supervision": True} if "deep_supervision" in model_options(name) else {})}
    with torch.device("meta"):
        few, many = (create_model(name, num_classes=k, image_size=case.size, **options) for k in (2, 5))
    own, other = few.state_dict(), many.state_dict()
    assert {key for key, value in own.items() if value.shape != other[key].shape} == set(few.head_parameters())


def test_onnx_gives_the_same_answers(name: str, model: nn.Module) -> None:
    if CASES[name].heavy_export:
        pytest.skip("in the long set")
    check_export(model, golden.images(input_of(name)["in_chans"], CASES[name].odd, count=3))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("heavy", SEGMENTERS)
def test_onnx_of_every_model_gives_the_same_answers_at_any_size(heavy: str) -> None:
    for size in (CASES[heavy].size, CASES[heavy].odd):
        check_export(prepared(heavy), golden.images(input_of(heavy)["in_chans"], size, count=3))


def check_export(model: nn.Module, x_BCS: torch.Tensor) -> None:
    """Export with two images, answer three: the batch must have stayed free."""
    import onnxruntime

    program = torch.onnx.export(
        model,
        (x_BCS[:2],),
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
    (answers,) = session.run(None, {"image": x_BCS.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answers, model(x_BCS).numpy(), atol=1e-4)


def main(names: list[str]) -> None:
    answers = json.loads(FILE.read_text()) if names else {}
    for name in names or SEGMENTERS:
        with torch.no_grad():
            answers[name] = some(prepared(name)(golden.images(input_of(name)["in_chans"], CASES[name].size))).round(6)
        print(name, np.abs(answers[name]).mean(), answers[name].std(axis=2).min())
        answers[name] = answers[name].tolist()
    FILE.write_text(json.dumps(answers, indent=None).replace("]]], ", "]]],\n") + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
