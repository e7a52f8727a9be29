"""RR-ViT and Hybrid RR-ViT: published counts, a decoder that puts every token where it came from, checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medloom.errors import ModelError, UsageError
from medloom.models.registry import count_parameters, create_model
from medloom.models.weights import load_weights

BOTH = ("rr_vit", "hybrid_rr_vit")
SMALL: dict[str, Any] = {"num_classes": 3, "in_chans": 2, "image_size": (16, 24), "embed_dim": 16, "num_heads": 2}


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, **{**SMALL, "depth": 2, **options})


@pytest.mark.parametrize(
    ("name", "counts"),
    [("rr_vit", (292_302, 316_878, 384_462)), ("hybrid_rr_vit", (4_458_334, 4_654_942, 5_195_614))],
)
def test_counts_of_the_slides(name: str, counts: tuple[int, ...]) -> None:
    for size, count in zip((64, 128, 224), counts):
        assert count_parameters(name, num_classes=14, in_chans=1, image_size=size) == count


def test_keras_counts_the_running_statistics_too() -> None:
    with torch.device("meta"):
        model = create_model("hybrid_rr_vit", num_classes=14, in_chans=1, image_size=64)
    running = sum(buffer.numel() for buffer in model.buffers() if buffer.ndim)
    assert 4_458_334 + running == 4_459_038


@pytest.mark.parametrize("name", BOTH)
def test_a_picture_of_the_size_of_the_input_in_0_to_1(name: str) -> None:
    model = small(name)
    for size in ((16, 24), (32, 16)):
        outputs = model.train_outputs(torch.randn(2, 2, *size))  # type: ignore[operator]
        assert outputs["logits"].shape == (2, 3)
        assert outputs["reconstruction"].shape == (2, 2, *size)
        assert ((outputs["reconstruction"] > 0) & (outputs["reconstruction"] < 1)).all()


@pytest.mark.parametrize("name", BOTH)
def test_both_ways_give_the_same_logits(name: str) -> None:
    model, x_BCHW = small(name).eval(), torch.randn(2, 2, 16, 24)
    with torch.no_grad():
        assert torch.equal(model.train_outputs(x_BCHW)["logits"], model(x_BCHW))  # type: ignore[operator]


def test_a_token_is_rebuilt_where_it_came_from() -> None:
    model = small("rr_vit").eval()
    for block in model.blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block.attn.proj.weight)  # tokens keep to themselves
    x_BCHW = torch.randn(1, 2, 16, 24)
    other = x_BCHW.clone()
    other[:, :, 8:16, 16:24] += 1.0
    with torch.no_grad():
        before, after = (model.train_outputs(x)["reconstruction"] for x in (x_BCHW, other))  # type: ignore[operator]
    changed = (before != after).any(dim=1)[0]
    assert changed[8:, 16:].all()
    assert changed.sum() == 64


def test_pixels_within_a_token_are_row_by_row_and_channel_by_channel() -> None:
    model = small("rr_vit").eval()
    nn.init.zeros_(model.decoder.weight)  # type: ignore[union-attr, arg-type]
    pattern_CPP = torch.linspace(-2, 2, 2 * 64).reshape(2, 8, 8)
    with torch.no_grad():
        model.decoder.bias.copy_(pattern_CPP.flatten())  # type: ignore[union-attr, operator]
        rebuilt = model.train_outputs(torch.randn(1, 2, 16, 24))["reconstruction"]  # type: ignore[operator]
    torch.testing.assert_close(rebuilt[0], pattern_CPP.sigmoid().repeat(1, 2, 3))


@pytest.mark.parametrize("name", BOTH)
def test_classification_leaves_the_decoder_alone(name: str) -> None:
    model = small(name).eval()
    nn.init.constant_(model.decoder.weight, float("nan"))  # type: ignore[union-attr, arg-type]
    x_BCHW = torch.randn(2, 2, 16, 24)
    assert torch.isfinite(model(x_BCHW)).all()
    assert model.train_outputs(x_BCHW)["reconstruction"].isnan().all()  # type: ignore[operator]


@pytest.mark.parametrize("name", BOTH)
def test_it_learns_to_rebuild(name: str) -> None:
    model = small(name)
    x_BCHW = torch.rand(2, 2, 16, 24)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        error = (model.train_outputs(x_BCHW)["reconstruction"] - x_BCHW).square().mean()  # type: ignore[operator]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", BOTH)
def test_checkpointed_blocks_give_the_same_gradients(name: str) -> None:
    x_BCHW, gradients = torch.randn(2, 2, 16, 24), []
    for checkpointed in (False, True):
        model = small(name, drop_path=0.5, checkpoint_blocks=checkpointed).train()
        torch.manual_seed(1)
        outputs = model.train_outputs(x_BCHW)  # type: ignore[operator]
        (outputs["logits"].square().sum() + outputs["reconstruction"].square().sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BOTH)
def test_checkpointed_blocks_keep_little(name: str) -> None:
    kept = []
    for checkpointed in (False, True):
        model, sizes = small(name, checkpoint_blocks=checkpointed).train(), []

        def pack(x: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(torch.randn(2, 2, 16, 24))
        kept.append(sum(sizes))
    assert kept[1] < 0.75 * kept[0]


def test_C511_a_size_that_does_not_divide_into_tokens() -> None:
    for name, size, remedy in (("rr_vit", 60, "multiple of 8"), ("hybrid_rr_vit", 30, "multiple of 4")):
        with pytest.raises(ModelError, match=f"C511.*{remedy}"):
            create_model(name, num_classes=2, image_size=size)
    with pytest.raises(ModelError, match="C511"):
        small("rr_vit")(torch.rand(1, 2, 20, 24))


def test_U208_a_width_that_the_heads_cannot_share() -> None:
    for name in BOTH:
        with pytest.raises(UsageError, match=r"U208.*heads"):
            small(name, num_heads=3)


@pytest.mark.parametrize("name", BOTH)
def test_weights_of_another_size_get_their_positions_interpolated(name: str, tmp_path: Path) -> None:
    first = small(name, image_size=16)
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    larger = small(name, image_size=32)
    notices = load_weights(larger, tmp_path / "w.safetensors")
    assert [n for n in notices if "pos_embed" in n]
    x_BCHW = torch.randn(1, 2, 32, 32)
    with torch.no_grad():  # as the small one has it when it is shown a large image
        torch.testing.assert_close(larger.eval()(x_BCHW), first.eval()(x_BCHW), atol=1e-5, rtol=0)
