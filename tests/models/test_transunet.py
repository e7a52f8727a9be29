"""TransUNet: the published parts, the weights that it takes, and what the published code could not do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medloom.blocks.convolution import StandardizedConv2d, pad_border
from medloom.errors import ModelError, UsageError
from medloom.models.registry import create_model
from medloom.models.standardized_resnet import StandardizedResNet
from medloom.models.timm_networks import create_network
from medloom.models.weights import adopt

TINY = {
    **{"units": [1, 1, 1], "width": 32, "embed_dim": 64, "depth": 1, "num_heads": 2},
    "decoder_dims": [32, 32, 16, 16, 16],
}
TINY_3D = {"dims": [8, 16, 32], "embed_dim": 32, "depth": 1, "num_heads": 2}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parts_have_the_published_sizes() -> None:
    """MODELS.md section 6: trunk, transformer with its last norm, decoder with the bridge."""
    with torch.device("meta"):
        model = create_model("transunet", num_classes=9)
    assert parameters(model.trunk) == 11_894_848
    assert parameters(model.blocks) + parameters(model.norm) == 85_056_000
    assert parameters(model.bridge) + parameters(model.decoder) == 7_387_200
    assert parameters(model.patch_embed) == 1024 * 768 + 768
    assert parameters(model.head) == 9 * 16 * 9 + 9
    assert model.trunk.channels == (64, 256, 512, 1024)


def test_weights_of_a_convolution_are_standardised() -> None:
    torch.manual_seed(0)
    layer = StandardizedConv2d(3, 5, 3, bias=False)
    weight = layer.weight.flatten(1)
    wanted = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    x_BCHW = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer(x_BCHW), torch.nn.functional.conv2d(x_BCHW, wanted.reshape(5, 3, 3, 3)))


def test_the_first_stage_lacks_a_row_where_its_skip_has_zeros() -> None:
    maps = StandardizedResNet(1, unit="basic", units=(1, 1, 1), width=32)(torch.randn(1, 1, 64, 96))
    assert [tuple(x.shape[2:]) for x in maps] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    assert not maps[1][..., -1, :].any()
    assert not maps[1][..., -1].any()
    assert maps[1][..., :-1, :-1].any()
    assert all(x[..., -1, :].any() for x in maps[2:])


def test_timms_names_are_translated_for_every_part_that_has_them() -> None:
    with torch.device("meta"):
        network = create_network("vit_base_r50_s16_224.orig_in21k", in_chans=3, image_size=(224, 224))
        model = create_model("transunet", num_classes=9)
    taken, told = model.translate(network.state_dict())
    own = model.state_dict()
    assert {key for key in own if key not in taken} == {k for k in own if k.startswith(("bridge", "decoder", "head"))}
    assert all(own[key].shape == value.shape for key, value in taken.items())
    assert "without class token" in told
    assert create_model("transunet", num_classes=9, **TINY).translate(network.state_dict()) is None, "all or nothing"


def test_published_positions_are_laid_out_row_by_row_and_resized() -> None:
    model = create_model("transunet", num_classes=2, image_size=64, **TINY)
    names = {("patch_embed.backbone." + k.removeprefix("trunk.")) if k.startswith("trunk.") else k: v
             for k, v in model.state_dict().items()}  # fmt: skip
    names["pos_embed"] = torch.arange(17.0)[None, :, None].expand(1, 17, 64)
    state = {k: v for k, v in names.items() if not k.startswith(("bridge", "decoder", "head", "position"))}
    adopt(model, state, "test")
    assert model.position_1Dhw[0, 5].tolist() == torch.arange(1.0, 17.0).reshape(4, 4).tolist()
    larger = create_model("transunet", num_classes=2, image_size=(64, 128), **TINY)
    assert any("position_1Dhw" in text for text in adopt(larger, state, "test"))
    with pytest.raises(ModelError, match="C505"):
        adopt(model, {"pos_embed": state["pos_embed"]}, "test")


@pytest.mark.parametrize("size", [(1, 1), (16, 40), (31, 17), (65, 64)])
def test_any_extent_is_answered(size: tuple[int, int]) -> None:
    """The published code wants multiples of 16, and a grid that fits."""
    model = create_model("transunet", num_classes=2, in_chans=1, image_size=64, **TINY).eval()
    with torch.no_grad():
        logits_BKHW = model(torch.randn(2, 1, *size))
    assert logits_BKHW.shape == (2, 2, *size)
    assert torch.isfinite(logits_BKHW).all()


def test_what_is_padded_is_the_border() -> None:
    x_BCS = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert pad_border(x_BCS, (2, 3)) is x_BCS
    assert pad_border(x_BCS, (3, 4))[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_border(x_BCS[..., None], (1, 2, 2)).shape == (1, 1, 2, 4, 2)


@pytest.mark.parametrize(("name", "options"), [("transunet", TINY), ("transunet_3d", TINY_3D)])
def test_positions_count_and_follow_the_grid(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dims = 3 if name.endswith("3d") else 2
    model = create_model(name, num_classes=2, in_chans=1, image_size=32, **options).eval()
    table = model.position_1Dxyz if dims == 3 else model.position_1Dhw

    def answer(size: int) -> Tensor:
        with torch.no_grad():
            return model(torch.ones(1, 1, *(size,) * dims))

    before, larger = answer(32), answer(48)
    with torch.no_grad():
        table.add_(torch.randn_like(table))
    assert (answer(32) - before).abs().max() > 1e-3
    assert (answer(48) - larger).abs().max() > 1e-3


def test_C511_a_volume_of_one_coarsest_cell_is_refused() -> None:
    with pytest.raises(ModelError) as refused:
        create_model("transunet_3d_tiny", num_classes=2, image_size=16)
    assert refused.value.code == "C511"
    assert "a volume of 16x16x16 voxels leaves a single cell" in str(refused.value)
    assert "more than 16" in refused.value.remedy


def test_thick_slices_keep_their_axis() -> None:
    strides = [[2, 2, 1], [2, 2, 2]]
    model = create_model("transunet_3d", num_classes=2, image_size=(32, 32, 8), strides=strides, **TINY_3D).eval()
    assert model.position_1Dxyz.shape[2:] == (8, 8, 4)
    with torch.no_grad():
        assert model(torch.randn(1, 1, 30, 27, 5)).shape == (1, 2, 30, 27, 5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("transunet", {"unit": "wide"}, "Choose bottleneck or basic"),
        ("transunet", {"units": [3, 4]}, "Give 3 whole numbers"),
        ("transunet", {"decoder_dims": [512, 256, 128, 64]}, "Give 5 whole numbers"),
        ("transunet", {"num_heads": 7}, "768 channels do not divide by 7"),
        ("transunet_3d", {"num_heads": 7}, "768 channels do not divide by 7"),
        ("transunet_3d", {"dims": [8]}, "two numbers"),
        ("transunet_3d", {"strides": [[2, 2, 2]]}, "Give 4 lists of 3 numbers"),
        ("transunet_3d", {"strides": [[1, 1, 1]] * 4}, "a 2 in each list"),
        ("transunet_3d", {"pretrained": True}, "no published weights"),
        ("transunet_small", {"pretrained": True}, "of the base size"),
    ],
)
def test_U208_what_cannot_be_built_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused, torch.device("meta"):
        create_model(name, num_classes=2, **options)
    assert refused.value.code == "U208"
    assert said in str(refused.value)
