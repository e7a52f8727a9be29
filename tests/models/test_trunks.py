"""HATR on trunks of every kind, of maps and of tokens, by our names and by timm's; and the sizes that trunks refuse."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from medloom.blocks.taps import Taps
from medloom.errors import ModelError, UsageError
from medloom.models.registry import create_model
from medloom.models.timm_networks import TIMM_NAMES, load_timm
from medloom.models.weights import load_weights

SIZES = (28, 50, 64, 96, 128, 224, 256, 512)


@pytest.mark.parametrize(
    ("trunk", "channels"),
    [
        ("convnext_atto", 160),
        ("efficientnet_b0", 112),
        ("densenet121", 1024),
        ("coatnet_0", 384),
        ("maxvit_tiny", 256),
        ("vit_tiny", 192),
        ("timm/deit_tiny_patch16_224", 192),
    ],
)
def test_hatr_takes_trunks_of_maps_and_of_tokens(trunk: str, channels: int) -> None:
    torch.manual_seed(0)
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "dropout": 0.0, "drop_path": 0.0}
    model = create_model("hatr", num_classes=2, in_chans=1, image_size=64, trunk=trunk, trunk_stride=16, **small)
    assert model.trunk.channels == channels
    assert model.trunk.grid == (4, 4)
    taps: Taps = {}
    x_BCHW = torch.rand(2, 1, 64, 64)
    logits_BK = model.eval()(x_BCHW, taps)
    assert taps["token_weight.0"].grid == (3, 3)
    assert all(tap.grid for key, tap in taps.items() if key.startswith("features."))
    torch.testing.assert_close(model(x_BCHW), logits_BK, atol=1e-5, rtol=0)
    logits_BK[:, 0].sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_our_names_of_timms_networks_are_networks_of_timm() -> None:
    timm = load_timm()
    assert all(timm.is_model(name) for name in TIMM_NAMES.values())
    assert not any(timm.is_model(name) for name in TIMM_NAMES)


def test_weights_of_timm_go_into_the_trunk_of_a_hatr(tmp_path: Path) -> None:
    network = load_timm().create_model("resnet10t", num_classes=5)
    save_file(network.state_dict(), tmp_path / "resnet.safetensors")
    model = create_model("hatr", num_classes=2, in_chans=1, image_size=64, trunk="resnet10t", trunk_stride=16)
    behind = sum(name.startswith(("layer4", "fc")) for name in network.state_dict())
    told, rest, stem = load_weights(model, tmp_path / "resnet.safetensors")
    assert told == f"weights have timm's own names: the trunk, without {behind} tensors behind it"
    assert rest.startswith("the rest stays as it was: blocks, cls_position, cls_token, head, norm, reduce")
    assert "24x3x3x3 to 24x1x3x3" in stem
    assert torch.equal(model.trunk.network.layer3[0].conv1.weight, network.layer3[0].conv1.weight)


def test_a_trunk_without_stochastic_depth_says_so() -> None:
    for trunk, said in (("densenet121", "drop_path_rate"), ("conv2d", "no stochastic depth")):
        with pytest.raises(UsageError, match=said):
            create_model("hatr", num_classes=2, image_size=64, trunk=trunk, trunk_drop_path=0.1)


@pytest.mark.parametrize(
    ("name", "sizes"), [("coatnet_0", SIZES), ("coatnet_1", (28, 64)), ("coatnet_2", (50, 96)), ("maxvit_tiny", SIZES)]
)
def test_C511_a_size_that_cells_do_not_divide_is_refused_and_every_other_is_built(name: str, sizes: tuple[int]) -> None:
    for size in sizes:
        with torch.device("meta"):
            if size % 32 == 0:
                create_model(name, num_classes=2, in_chans=1, image_size=size)  # passes one black image through it
                continue
            with pytest.raises(ModelError) as refused:
                create_model(name, num_classes=2, in_chans=1, image_size=size)
        assert refused.value.code == "C511"
        assert f"{size}x{size}" in str(refused.value)
        assert "multiple of 32" in refused.value.remedy


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(["coatnet_0", "maxvit_tiny"]), height=st.integers(1, 160), width=st.integers(1, 160))
def test_C511_no_size_breaks_in_another_way(name: str, height: int, width: int) -> None:
    impossible = height % 32 or width % 32
    refusal = pytest.raises(ModelError, match="C511") if impossible else contextlib.nullcontext()
    with torch.device("meta"), refusal:
        create_model(name, num_classes=2, image_size=(height, width))
