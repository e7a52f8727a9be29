"""U-Net is MONAI's, SwinUNETR is MONAI; both under our contract."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from medloom.errors import ModelError, UsageError
from medloom.models.registry import create_model

DIMS = [4, 8, 16, 16]


def dynunet(spatial_dims: int, strides: list[Any]) -> torch.nn.Module:
    from monai.networks.nets.dynunet import DynUNet

    return DynUNet(
        spatial_dims=spatial_dims,
        in_channels=2,
        out_channels=3,
        kernel_size=[3] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=DIMS,
        norm_name=("INSTANCE", {"affine": True}),
    )


def in_order(network: Any) -> list[torch.Tensor]:
    """The weights of a DynUNet in the order in which a map meets them."""
    parts = []
    for block in (network.input_block, *network.downsamples, network.bottleneck):
        parts += [block.conv1, block.norm1, block.conv2, block.norm2]
    for up in network.upsamples:
        block = up.conv_block
        parts += [up.transp_conv, block.conv1, block.norm1, block.conv2, block.norm2]
    return [value for part in (*parts, network.output_block) for value in part.parameters()]


@pytest.mark.parametrize(
    ("spatial_dims", "steps", "size"),
    [
        (2, [[2, 2], [2, 2], [2, 2]], (24, 32)),
        (3, [[2, 2, 2], [2, 2, 2], [2, 2, 2]], (16, 24, 16)),
        (3, [[2, 2, 1], [2, 2, 2], [2, 2, 2]], (16, 24, 8)),
    ],
)
def test_unet_is_monais_weight_for_weight(spatial_dims: int, steps: list[Any], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = dynunet(spatial_dims, [[1] * spatial_dims, *steps]).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.1 * torch.randn_like(value))  # norms start as the identity
    ours = create_model(
        "unet" if spatial_dims == 2 else "unet_3d", num_classes=3, in_chans=2, image_size=size, dims=DIMS, strides=steps
    ).eval()
    values = in_order(theirs)
    assert [v.shape for v in values] == [p.shape for p in ours.parameters()]
    with torch.no_grad():
        for own, value in zip(ours.parameters(), values, strict=True):
            own.copy_(value)
        x_BCS = torch.randn(2, 2, *size)
        np.testing.assert_allclose(ours(x_BCS).numpy(), theirs(x_BCS).numpy(), atol=1e-5)


def test_deep_supervision_leaves_out_the_coarsest_level() -> None:
    model = create_model("unet", num_classes=2, dims=[4] * 5, image_size=32, deep_supervision=True)
    assert sorted(model.train_outputs(torch.randn(1, 3, 33, 32))) == ["deep.2", "deep.4", "logits"]
    heads = ("deep_heads.2", "deep_heads.4", "head")
    assert model.head_parameters() == tuple(f"{head}.{kind}" for head in heads for kind in ("weight", "bias"))


def test_C511_an_image_of_one_coarsest_cell_is_refused() -> None:
    with pytest.raises(ModelError, match=r"C511.*an image of 16x9 pixels leaves a single cell.*more than 16"):
        create_model("unet", num_classes=2, image_size=(16, 9))
    create_model("unet", num_classes=2, image_size=(17, 9), dims=[4, 4, 4, 4, 4])


def test_swin_unetr_is_monais_with_any_extent() -> None:
    torch.manual_seed(0)
    model = create_model("swin_unetr", num_classes=2, image_size=64, feature_size=12).eval()
    x_BCXYZ = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCXYZ), model.network(x_BCXYZ))
        assert model(x_BCXYZ[:, :, :40, :, 3:]).shape == (1, 2, 40, 32, 29)


def test_swin_unetr_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ModelError, match=r"C511.*more than 32"):
        create_model("swin_unetr", num_classes=2, image_size=32)
    with pytest.raises(UsageError, match=r"U208.*multiple of 12"):
        create_model("swin_unetr", num_classes=2, feature_size=20)


def test_U210_without_monai_the_extra_is_named_and_all_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(UsageError, match=r"U210.*monai.*pip install 'medloom\[volumes\]'"):
        create_model("swin_unetr", num_classes=2)
    create_model("unet_3d", num_classes=2, dims=DIMS)
