"""MedViT: counts, key pooling, moment exchange, sizes, export."""

from __future__ import annotations

from typing import Any

import golden
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import check_export
from torch import nn

from medloom.blocks.local_attention import PatchProjection
from medloom.blocks.moments import MomentExchange
from medloom.blocks.pooled_attention import PooledAttention
from medloom.blocks.taps import Taps
from medloom.errors import ModelError, UsageError
from medloom.models.medvit import LTB, MedViT
from medloom.models.registry import count_parameters, create_model
from medloom.training.optimizers import layers

SHALLOW: dict[str, Any] = {"depths": (1, 2, 2, 2), "num_classes": 3}
COUNTS = {
    "medvit_tiny": (25_526_674, 24_516_024),
    "medvit_small": (32_161_440, 31_150_790),
    "medvit_base": (45_430_972, 44_420_322),
    "medvit_large": (58_700_504, 57_689_854),
}


def shallow(size: int = 64, **options: Any) -> nn.Module:
    return golden.settle(golden.fill(MedViT(image_size=size, **SHALLOW, **options).eval()), 64)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_at_1000_and_14_classes(name: str) -> None:
    at_1000, at_14 = COUNTS[name]
    assert count_parameters(name, num_classes=1000) == at_1000
    assert count_parameters(name, num_classes=14) == at_14


def test_the_cut_down_size_of_two_blocks_a_stage() -> None:
    with torch.device("meta"):
        model = MedViT(num_classes=1000, depths=(2, 2, 5, 2))
    assert sum(p.numel() for p in model.parameters()) == 20_375_494


@torch.no_grad()
def test_keys_in_squares_are_another_network_on_the_same_weights() -> None:
    raster, grid = shallow(), shallow(pooling="grid")
    grid.load_state_dict(raster.state_dict())
    x_BCHW = golden.images(3, 64)
    assert (raster(x_BCHW) - grid(x_BCHW)).abs().max() > 1e-4


@pytest.mark.parametrize(("pooling", "neighbour"), [("raster", 2), ("grid", 4)])
@torch.no_grad()
def test_attention_to_a_key_is_shared_out_among_the_tokens_it_averages(pooling: Any, neighbour: int) -> None:
    torch.manual_seed(0)
    layer = PooledAttention(64, head_dim=32, reduction=2, pooling=pooling).eval()
    x_BDhw = torch.randn(2, 64, 4, 4)
    y_BDhw, attention_BHNN = layer.forward_with_weights(x_BDhw)
    torch.testing.assert_close(y_BDhw, layer(x_BDhw), atol=1e-5, rtol=0)
    torch.testing.assert_close(attention_BHNN.sum(-1), torch.ones(2, 2, 16))
    first = attention_BHNN[..., 0]  # token 0 is averaged with 1, 2, 3 of its row, or with 1, 4, 5 of its square
    assert torch.equal(first, attention_BHNN[..., neighbour])
    assert not torch.allclose(first, attention_BHNN[..., 6 - neighbour])


def test_taps_name_stages_and_attention_on_their_grids() -> None:
    taps: Taps = {}
    with torch.no_grad():
        create_model("medvit_tiny", num_classes=2, image_size=64).eval()(torch.rand(1, 3, 64, 64), taps)
    assert [taps[f"features.{i}"].grid for i in range(4)] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert [taps[f"attention.{i}"].grid for i in range(3)] == [(8, 8), (4, 4), (2, 2)]
    assert taps["tokens"].value.shape == (1, 4, 1024)


def test_stochastic_depth_grows_from_zero_and_is_shared_out_in_the_attention_blocks() -> None:
    with torch.device("meta"):
        model = create_model("medvit_large", num_classes=2)
        calm = create_model("medvit_large", num_classes=2, drop_path=0.0)
    assert model.features[0].drop_path.probability == 0.0
    assert model.features[-1].attention_drop_path.probability == pytest.approx(0.2 * 0.75)
    assert model.features[-1].convolution_drop_path.probability == pytest.approx(0.2 * 0.25)
    assert all(m.probability == 0.0 for m in calm.modules() if hasattr(m, "probability"))


def test_every_feed_forward_starts_with_living_channel_weights() -> None:
    torch.manual_seed(0)
    model = golden.settle(MedViT(image_size=64, **SHALLOW).eval(), 64)
    seen: list[int] = []
    for block in model.features:
        block.conv.conv[6].fc[0].register_forward_hook(lambda _m, _i, y: seen.append(int((y <= 0).all(0).sum())))
    with torch.no_grad():
        model(golden.images(3, 64))
    assert seen == [0] * len(model.features)


def test_moment_exchange_gives_every_map_the_moments_of_an_image_of_the_batch() -> None:
    torch.manual_seed(1)
    x_BCHW = torch.randn(6, 4, 8, 8) * torch.rand(6, 4, 1, 1) + torch.randn(6, 4, 1, 1)
    y_BCHW = MomentExchange(probability=1.0).train()(x_BCHW)
    before, after = x_BCHW.mean((2, 3)), y_BCHW.mean((2, 3))
    taken = torch.cdist(after, before).argmin(1)
    assert sorted(taken.tolist()) == list(range(6)), "a permutation of the batch"
    assert taken.tolist() != list(range(6))
    torch.testing.assert_close(after, before[taken], atol=1e-4, rtol=0)
    torch.testing.assert_close(y_BCHW.std((2, 3)), x_BCHW.std((2, 3))[taken], atol=5e-3, rtol=0)
    shapes = [(m - m.mean((2, 3), keepdim=True)) / m.std((2, 3), keepdim=True) for m in (x_BCHW, y_BCHW)]
    torch.testing.assert_close(*shapes, atol=2e-2, rtol=0)


def test_moment_exchange_happens_in_training_alone_to_half_of_the_images() -> None:
    torch.manual_seed(0)
    layer, x_BCHW = MomentExchange(), torch.randn(400, 2, 4, 4)
    assert torch.equal(layer.eval()(x_BCHW), x_BCHW)
    changed = (layer.train()(x_BCHW) != x_BCHW).any(dim=(1, 2, 3)).float().mean()
    assert 0.4 < changed < 0.6
    half = layer(x_BCHW.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(layer(x_BCHW[:1]), x_BCHW[:1])


def test_pmc_changes_training_and_not_the_answer() -> None:
    plain, exchanging = shallow(drop_path=0.0), shallow(drop_path=0.0, pmc=True)
    x_BCHW = golden.images(3, 64, count=8)
    with torch.no_grad():
        assert torch.equal(plain(x_BCHW), exchanging(x_BCHW))
        torch.manual_seed(0)
        assert not torch.allclose(plain.train()(x_BCHW), exchanging.train()(x_BCHW), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "line"}, "Choose raster or grid"),
        ({"drop_path": 1.0}, "below 1"),
        ({"pmc": 1}, "true or false"),
        ({"pretrained": True}, "no published weights"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match="U208") as refused, torch.device("meta"):
        create_model("medvit_small", num_classes=2, **options)
    assert said in str(refused.value)


@pytest.mark.parametrize("depths", [(3, 4, 5), (3, 1, 5, 3), (3, 4, 12, 3), (3, 4, "5", 3)])
def test_impossible_depths_are_refused(depths: Any) -> None:
    with pytest.raises(UsageError, match=r"U208.*a multiple of 5"):
        MedViT(num_classes=2, depths=depths)


def test_C511_an_image_too_small_for_its_keys_is_refused() -> None:
    for size in (24, (16, 40)):
        with pytest.raises(ModelError, match=r"C511.*at least 32"), torch.device("meta"):
            create_model("medvit_tiny", num_classes=2, image_size=size)
    with pytest.raises(ModelError, match=r"C511.*24x24"):
        shallow()(torch.rand(1, 3, 24, 24))


MODELS = {pooling: MedViT(image_size=64, pooling=pooling, **SHALLOW).eval() for pooling in ("raster", "grid")}


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from(["raster", "grid"]))
def test_any_size_gives_an_answer_or_C511(height: int, width: int, pooling: str) -> None:
    x_BCHW = torch.rand(1, 3, height, width)
    if pooling == "raster" and -(-height // 8) * -(-width // 8) < 16:  # or 4 at a sixteenth, which follows
        with pytest.raises(ModelError, match="C511"):
            MODELS[pooling](x_BCHW)
        return
    with torch.no_grad():
        assert torch.isfinite(MODELS[pooling](x_BCHW)).all()


@pytest.mark.parametrize("pooling", ["raster", pytest.param("grid", marks=pytest.mark.long)])
def test_the_exported_network_is_the_trained_one(pooling: str) -> None:
    size = 72  # odd grids, so pools that are cut
    model = shallow(size, pooling=pooling)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert min(float((layer.weight.detach() - 1).abs().max()) for layer in norms) > 0.05, "each counts"
    check_export(model, golden.images(3, size))


def test_stage_blocks_are_where_the_paper_puts_them() -> None:
    with torch.device("meta"):
        model = create_model("medvit_base", num_classes=2)
    places = [i for i, block in enumerate(model.features) if isinstance(block, LTB)]
    assert places == [6, 11, 16, 21, 26, 29]
    assert [type(b.patch_embed.pool).__name__ for b in model.features].count("AvgPool2d") == 3


def test_an_odd_last_column_counts_fully() -> None:
    layer = PatchProjection(32, 32, stride=2)
    assert torch.equal(layer.pool(torch.ones(1, 32, 3, 3)), torch.ones(1, 32, 2, 2))


def test_layers_are_stem_blocks_and_head() -> None:
    with torch.device("meta"):
        model = create_model("medvit_tiny", num_classes=2)
    blocks = model.parameter_blocks()
    assert blocks.keys() == dict(model.named_parameters()).keys()
    assert blocks["stem.3.conv.weight"] is blocks["norm.weight"] is blocks["proj_head.0.weight"] is None
    assert sorted({block for block in blocks.values() if block is not None}) == list(range(15))
    depth = layers(model)
    assert depth["stem.0.conv.weight"] == 0 < depth["features.0.mhca.norm.weight"] < depth["features.14.norm1.weight"]
    assert depth["norm.weight"] == depth["proj_head.0.weight"] == max(depth.values())
