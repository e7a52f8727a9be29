"""DBCT: both presets' counts, its two branches, who asks whom, and any trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medloom.blocks.fusion import CrossAttention
from medloom.blocks.taps import Taps
from medloom.errors import ModelError, UsageError
from medloom.models.registry import count_parameters, create_model
from medloom.models.weights import load_weights

SMALL: dict[str, Any] = {
    "num_classes": 2,
    "in_chans": 1,
    "image_size": 32,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
}


@pytest.mark.parametrize(
    ("name", "counts"),
    [("dbct", (2_405_582, 2_405_582, 2_454_734)), ("dbct_keras", (2_411_470, 2_414_542, 2_448_334))],
)
def test_counts_of_the_slides(name: str, counts: tuple[int, ...]) -> None:
    for size, count in zip((64, 128, 224), counts):
        assert count_parameters(name, num_classes=14, in_chans=1, image_size=size) == count


@pytest.mark.parametrize(("query", "asking", "asked"), [("transformer", (4, 4), (8, 8)), ("cnn", (8, 8), (4, 4))])
def test_who_asks(query: str, asking: tuple[int, int], asked: tuple[int, int]) -> None:
    taps: Taps = {}
    model = create_model("dbct", **SMALL, query=query).eval()
    model(torch.rand(2, 1, 32, 32), taps)
    assert taps["tokens"].grid == asking
    assert taps["cross_attention"].grid == asked
    assert taps["cross_attention"].value.shape == (2, 2, asking[0] * asking[1], asked[0] * asked[1])
    assert taps["features.1"].value.shape == (2, 32, 8, 8)


def test_learned_positions_cost_what_they_are_and_follow_the_grid(tmp_path: Path) -> None:
    fixed, learned = (count_parameters("dbct", **SMALL, pos=pos) for pos in ("sincos", "learned"))
    assert learned - fixed == 4 * 4 * 16
    first = create_model("dbct", **SMALL, pos="learned").eval()
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    larger = create_model("dbct", **{**SMALL, "image_size": 64}, pos="learned").eval()
    assert [n for n in load_weights(larger, tmp_path / "w.safetensors") if "pos_embed" in n]
    x_BCHW = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(larger(x_BCHW), first(x_BCHW), atol=1e-5, rtol=0)


def test_fixed_positions_tell_places_apart() -> None:
    model = create_model("dbct", **SMALL).eval()
    torch.nn.init.zeros_(model.cross.proj.weight)  # type: ignore[union-attr, arg-type]
    taps: Taps = {}
    model(torch.ones(1, 1, 32, 32), taps)  # equal patches differ by their places only
    tokens_ND = taps["tokens"].value[0]
    assert torch.cdist(tokens_ND, tokens_ND).fill_diagonal_(9).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "trunk", "stride", "grid"),
    [
        ("dbct", "resnet18", 8, (8, 8)),
        ("dbct", "timm/convnext_atto", None, (2, 2)),
        ("dbct", "vit_tiny_patch16_224", None, (4, 4)),
        ("hatr", "vit_tiny_patch16_224", None, (4, 4)),
    ],
)
def test_any_trunk_of_maps_or_of_tokens(name: str, trunk: str, stride: int | None, grid: tuple[int, int]) -> None:
    options = {**SMALL, "image_size": 64, "trunk": trunk, "trunk_stride": stride}
    if name == "hatr":
        options["scales"] = [[1, 1]]
    model, taps = create_model(name, **options), Taps()
    logits_BK = model(torch.randn(2, 1, 64, 64))
    logits_BK.square().sum().backward()
    model.eval()(torch.randn(1, 1, 64, 64), taps)
    assert taps["cross_attention" if name == "dbct" else "tokens"].grid == grid
    # Some start at zero and hand no gradient on until they have moved; none is left out of the graph.
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize(
    "options",
    [
        {"pos": "none"},
        {"query": "both"},
        {"patch_size": 0},
        {"trunk_stride": 8},
        {"trunk": "resnet18", "trunk_stride": 7},
        {"pretrained": True},
        {"num_heads": 3},
    ],
)
def test_U208_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="U208"):
        create_model("dbct", **{**SMALL, **options})


def test_U206_an_unknown_trunk_names_near_ones() -> None:
    with pytest.raises(UsageError, match=r"U206.*resnet"):
        create_model("dbct", **SMALL, trunk="resnett18")


def test_C511_a_size_that_does_not_divide_into_patches() -> None:
    with pytest.raises(ModelError, match=r"C511.*multiple of 8"):
        create_model("dbct", **{**SMALL, "image_size": 36})
    with pytest.raises(ModelError, match="C511"):
        create_model("dbct", **SMALL)(torch.rand(1, 1, 40, 36))
    fixed = create_model("dbct", **{**SMALL, "image_size": 64}, trunk="vit_tiny_patch16_224").eval()
    with pytest.raises(ModelError, match="C511"):
        fixed(torch.rand(1, 1, 96, 96))


def test_cross_attention_fused_is_explicit() -> None:
    torch.manual_seed(0)
    layer, query_BND, context_BMD = (
        CrossAttention(8, num_heads=2, head_dim=6),
        torch.randn(2, 5, 8),
        torch.randn(2, 7, 8),
    )
    out_BND, attention_BHNM = layer.forward_with_weights(query_BND, context_BMD)
    torch.testing.assert_close(layer(query_BND, context_BMD), out_BND, atol=1e-6, rtol=0)
    assert attention_BHNM.shape == (2, 2, 5, 7)
    with pytest.raises(ValueError, match="heads"):
        CrossAttention(8, num_heads=3)
