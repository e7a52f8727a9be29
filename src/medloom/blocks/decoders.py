"""From coarse maps back to the input's grid: the parts that our segmenters' decoders are made of.

Maps of any extent are allowed: halving rounds up, doubling cuts off what is too much, so nothing has to be padded.

Shapes: B batch, C channels, K classes, S all spatial axes.

Reference: Ronneberger et al., U-Net, arXiv 1505.04597; Isensee et al., nnU-Net, arXiv 1904.08128 (instance norm, leaky
ReLU, deep supervision); Chen et al., TransUNet, arXiv 2102.04306 (cascaded upsampler).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.convolution import conv_bn_relu, convolution, normalisation, transposed


def crop_to(x_BCS: Tensor, size: Sequence[int]) -> Tensor:
    """The first cells of every axis, as many as ``size`` says."""
    for axis, extent in enumerate(size):
        if x_BCS.shape[axis + 2] != extent:
            x_BCS = x_BCS.narrow(axis + 2, 0, extent)
    return x_BCS


def upsample(x_BCS: Tensor, up: nn.Module, skip_BCS: Tensor) -> Tensor:
    """``up`` applied, cut to the grid of ``skip`` and put in front of its channels."""
    return torch.cat([crop_to(up(x_BCS), skip_BCS.shape[2:]), skip_BCS], dim=1)


def plain_unit(in_chans: int, out_chans: int, *, stride: tuple[int, ...], bias: bool) -> nn.Sequential:
    """Convolution of 3, instance norm, leaky ReLU of slope 0.01: ``(B, C, *S) -> (B, C', *ceil(S / stride))``."""
    dims = len(stride)
    layer = convolution(dims, in_chans, out_chans, 3, stride=stride, padding=1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, a=0.01)  # type: ignore[arg-type]
    if bias:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layer, normalisation("instance", dims, out_chans), nn.LeakyReLU(0.01, inplace=True))


def plain_stage(in_chans: int, out_chans: int, *, stride: tuple[int, ...], bias: bool) -> nn.Sequential:
    """Two plain units, the first of which strides: one level of an nnU-Net."""
    return nn.Sequential(
        plain_unit(in_chans, out_chans, stride=stride, bias=bias),
        plain_unit(out_chans, out_chans, stride=(1,) * len(stride), bias=bias),
    )


class PlainUp(nn.Module):
    """Transposed convolution, the skip beside it, two plain units: one level up in an nnU-Net.

    Args:
        in_chans: of the coarse map.
        out_chans: of the skip and of the result.
        stride: one per axis, as between the two maps.
        bias: of the two convolutions; the norm behind them makes it idle.
    """

    def __init__(self, in_chans: int, out_chans: int, *, stride: tuple[int, ...], bias: bool) -> None:
        super().__init__()
        self.up = transposed(len(stride), in_chans, out_chans, stride, bias=False)
        self.convs = plain_stage(2 * out_chans, out_chans, stride=(1,) * len(stride), bias=bias)

    def forward(self, x_BCS: Tensor, skip_BCS: Tensor) -> Tensor:
        """``(B, C, *S)`` and a finer ``(B, C', *S')`` to ``(B, C', *S')``."""
        return self.convs(upsample(x_BCS, self.up, skip_BCS))


class BilinearUp(nn.Module):
    """Doubled by interpolation, the skip beside it if there is one, two convolutions: one step of TransUNet's CUP."""

    def __init__(self, in_chans: int, skip_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(in_chans + skip_chans, out_chans, 3)
        self.conv2 = conv_bn_relu(out_chans, out_chans, 3)

    def forward(self, x_BCHW: Tensor, skip_BCHW: Tensor | None) -> Tensor:
        """``(B, C, H, W)`` and a skip ``(B, C'', 2H, 2W)`` to ``(B, C', 2H, 2W)``."""
        x_BCHW = F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=True)
        if skip_BCHW is not None:
            x_BCHW = torch.cat([x_BCHW, skip_BCHW], dim=1)
        return self.conv2(self.conv1(x_BCHW))


def deep_heads(channels: Mapping[int, int], num_classes: int, *, dims: int) -> nn.ModuleDict:
    """A 1x1 classifier for each coarser map that learns too, by its stride."""
    return nn.ModuleDict({str(s): convolution(dims, c, num_classes, 1) for s, c in channels.items()})


def deep_logits(heads: nn.ModuleDict, maps: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """``deep.S`` logits ``(B, K, *S)`` of the maps that have a head."""
    return {f"deep.{stride}": head(maps[int(stride)]) for stride, head in heads.items()}


def extent_at(size: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """How many cells each axis has behind all ``strides``, each rounding up."""
    for step in strides:
        size = [math.ceil(extent / s) for extent, s in zip(size, step)]
    return tuple(size)
