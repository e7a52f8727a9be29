"""ConvNeXt with DeiT: both halves are the published ones, weight for weight and answer for answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medloom.blocks.taps import Taps
from medloom.blocks.tokens import to_tokens
from medloom.errors import ModelError, UsageError
from medloom.models import convnext_deit
from medloom.models.convnext_deit import DeiTHead, spaced
from medloom.models.registry import count_parameters, create_model
from medloom.models.timm_networks import load_timm
from medloom.models.weights import load_weights

SMALL: dict[str, Any] = {"trunk": "convnext_atto", "embed_dim": 192, "num_heads": 3, "depth": 4}


def build(**changes: Any) -> nn.Module:
    options = {"num_classes": 2, "in_chans": 3, "image_size": 64, **SMALL, **changes}
    return create_model("convnext_deit", **options).eval()


def scrambled(name: str, **options: Any) -> Any:
    """timm's network with weights that nothing starts from."""
    network = load_timm().create_model(name, **options).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


def saved(network: nn.Module, path: Path) -> Path:
    save_file(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 81_689_346),
        ({"depth": 6}, 71_042_562),
        ({"depth": 4}, 67_493_634),
        ({"tap": 4}, 109_272_706),
        ({"tap": 4, "depth": 4}, 95_076_994),
        ({"adapter_norm": True}, 81_689_346 + 2 * 512),
    ],
)
def test_parameter_counts(options: dict[str, Any], count: int) -> None:
    assert count_parameters("convnext_deit", **options) == count


def test_a_deit_loads_into_the_head_unchanged_and_answers_the_same_tokens_the_same() -> None:
    deit = scrambled("deit_small_patch16_224", num_classes=5)
    head = DeiTHead(num_classes=5, grid=(14, 14), embed_dim=384, depth=12, num_heads=6).eval()
    state = {name: value for name, value in deit.state_dict().items() if not name.startswith("patch_embed.")}
    head.load_state_dict(state, strict=True)
    tokens_BND = torch.randn(2, 196, 384)
    with torch.no_grad():
        wanted_BK = deit.forward_head(deit.norm(deit.blocks(deit._pos_embed(tokens_BND))))
        torch.testing.assert_close(head(tokens_BND, (14, 14)), wanted_BK, atol=1e-5, rtol=0)


def test_the_trunk_is_the_published_one_up_to_its_third_stage(tmp_path: Path) -> None:
    convnext = scrambled("convnext_atto", num_classes=7)
    model = build()
    fresh = model.deit.cls_token.clone()
    notices = load_weights(model, saved(convnext, tmp_path / "convnext.safetensors"))
    behind = sum(name.startswith(("stages.3", "head")) for name in convnext.state_dict())
    assert notices == (
        f"weights have timm's own names: the trunk, without {behind} tensors behind it",
        "the rest stays as it was: adapter, deit",
    )
    assert torch.equal(model.deit.cls_token, fresh)
    x_BCHW = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = convnext.forward_intermediates(x_BCHW, intermediates_only=True)[2]
        torch.testing.assert_close(model.trunk(x_BCHW), wanted, atol=1e-5, rtol=0)


def test_both_halves_come_from_two_files_one_after_the_other(tmp_path: Path) -> None:
    deit = scrambled("deit_tiny_patch16_224", img_size=64)
    model = build(in_chans=1, depth=12)
    load_weights(model, saved(scrambled("convnext_atto"), tmp_path / "convnext.safetensors"))
    trunk = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    notices = load_weights(model, saved(deit, tmp_path / "deit.safetensors"))
    assert notices == (
        "weights have DeiT's own names: all its blocks, without its patch embedding, without its classifier",
        "the rest stays as it was: adapter, deit.head, trunk",
    )
    assert all(torch.equal(trunk[name], value) for name, value in model.trunk.state_dict().items())
    taps: Taps = {}
    x_B1HW = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        model(x_B1HW, taps)
        x_BND = model.adapter(to_tokens(model.trunk(x_B1HW)))
        wanted_BND = deit.norm(deit.blocks(deit._pos_embed(x_BND)))
    torch.testing.assert_close(taps["tokens"].value, wanted_BND, atol=1e-5, rtol=0)


def test_a_shallower_head_takes_evenly_spaced_blocks_and_positions_follow_the_grid(tmp_path: Path) -> None:
    deit = scrambled("deit_tiny_patch16_224", num_classes=2)
    model = build(depth=4)
    notices = load_weights(model, saved(deit, tmp_path / "deit.safetensors"))
    assert "blocks 0, 4, 7, 11 of 12, without its patch embedding" in notices[0]
    assert notices[2] == "deit.pos_embed converted from 1x197x192 to 1x17x192"
    for ours, theirs in enumerate((0, 4, 7, 11)):
        assert torch.equal(model.deit.blocks[ours].mlp.fc1.weight, deit.blocks[theirs].mlp.fc1.weight)
    assert torch.equal(model.deit.head.weight, deit.head.weight), "the classes are as many"


def test_blocks_are_spaced_evenly() -> None:
    assert spaced(12, 12) == tuple(range(12))
    assert spaced(12, 6) == (0, 2, 4, 7, 9, 11)
    assert spaced(12, 1) == (11,)
    with pytest.raises(UsageError, match=r"U208.*have 4 blocks, not 12"):
        spaced(4, 12)


def test_C505_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(load_timm().create_model("resnet10t"), tmp_path / "resnet.safetensors")
    with pytest.raises(ModelError) as refused:
        load_weights(build(), path)
    assert refused.value.code == "C505"


def test_pretrained_fills_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = load_timm()
    make = timm.create_model
    asked: list[str] = []

    def published(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.extend([name] * pretrained)
        return make(name, **options)

    monkeypatch.setattr(timm, "create_model", published)
    model = build(pretrained=True)
    assert asked == ["convnext_atto", "deit_tiny_patch16_224"]
    assert model.deit.pos_embed.shape == (1, 17, 192)
    assert set(convnext_deit._PUBLISHED_DEIT) == {192, 384, 768}


@pytest.mark.parametrize(
    ("trunk", "tap", "grid"),
    [("resnet18", 3, (6, 6)), ("resnet18", 4, (3, 3)), ("timm/efficientnet_b0", 3, (6, 6)), ("vit_tiny", 3, (6, 6))],
)
def test_any_trunk_of_maps_or_tokens(trunk: str, tap: int, grid: tuple[int, int]) -> None:
    model = build(trunk=trunk, tap=tap, image_size=96, depth=1, trunk_drop_path=0.0)
    taps: Taps = {}
    assert model(torch.rand(2, 3, 96, 96), taps).shape == (2, 2)
    assert taps["tokens"].grid == grid
    assert model.deit.pos_embed.shape[1] == 1 + grid[0] * grid[1]


def test_positions_follow_an_image_of_another_size() -> None:
    taps: Taps = {}
    build()(torch.rand(1, 3, 96, 64), taps)
    assert taps["tokens"].grid == (6, 4)


def test_stochastic_depth_rises_in_both_halves_and_zero_head_is_silent() -> None:
    model = build(drop_path=0.3, trunk_drop_path=0.2, zero_init_head=True)
    assert [block.drop_path.probability for block in model.deit.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    rates = [
        m.drop_prob for name, m in model.trunk.named_modules() if name.endswith("drop_path") and hasattr(m, "drop_prob")
    ]
    assert rates == sorted(rates)
    assert 0.1 < rates[-1] < 0.2, "the rate is that of a block in the middle of the whole network"
    x_BCHW = torch.rand(2, 3, 64, 64)
    assert not model(x_BCHW).any()

    def moved(x: Tensor) -> bool:
        return not torch.equal(model.train().trunk(x), model.eval().trunk(x))

    nn.init.ones_(model.trunk.network.stages[2].blocks[5].gamma)
    assert any(moved(x_BCHW) for _ in range(20))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tap": 2}, "Choose 3 (stride 16) or 4 (stride 32)"),
        ({"num_heads": 5}, "192 channels do not divide by 5"),
        ({"trunk": "vit_tiny", "tap": 4}, "no map of stride 32"),
        ({"embed_dim": 96, "pretrained": True}, "no DeiT is 96 wide"),
        ({"trunk": "densenet121"}, "drop_path_rate"),
    ],
)
def test_U208_what_cannot_be_asked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(**options)
    assert refused.value.code in ("U207", "U208")
    assert said in str(refused.value)
