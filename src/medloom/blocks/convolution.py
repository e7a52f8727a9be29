"""Convolution with its normalisation and activation, in two and three dimensions: the units that CNNs are stacked from.

Shapes: B batch, C channels, H height, W width, S all spatial axes (H W, or X Y Z).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormKind = Literal["batch", "group", "instance"]

_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORMS: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_GROUPS = 8
_NARROW = 2


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` that computes in float32 on the CPU where some axis has one or two cells.

    There the bfloat16 kernel's gradient of the weights holds whatever lay in memory before (seen with torch 2.13: of 12
    steps on 2 x 2 x 2 cells up to 11 had gradients of 1e30; none on 3 or more). Such maps cost next to nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, X, Y, Z) -> (B, C', X', Y', Z')``."""
        if input.device.type != "cpu" or min(input.shape[2:]) > _NARROW or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


_CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: Conv3d}


def conv_bn_relu(in_chans: int, out_chans: int, kernel_size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU: ``(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))``.

    The convolution has no bias because the norm behind it brings one. Weights start by He's rule (fan out), which
    keeps the scale of the gradients from layer to layer.

    Reference: He et al., Delving deep into rectifiers, arXiv 1502.01852.
    """
    convolution = nn.Conv2d(in_chans, out_chans, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True))


def convolution(dims: int, in_chans: int, out_chans: int, kernel_size: int, **options: Any) -> nn.Module:
    """``nn.Conv2d`` or ``nn.Conv3d``; ``options`` are theirs."""
    return _CONVOLUTIONS[dims](in_chans, out_chans, kernel_size, **options)


def transposed(dims: int, in_chans: int, out_chans: int, stride: tuple[int, ...], *, bias: bool = True) -> nn.Module:
    """Transposed convolution whose kernel is its stride, so that every cell becomes a patch of its own."""
    return _TRANSPOSED[dims](in_chans, out_chans, stride, stride=stride, bias=bias)


def normalisation(kind: NormKind, dims: int, channels: int, *, eps: float = 1e-5) -> nn.Module:
    """Batch, group (8 groups) or instance norm, each with weight and bias.

    Group norm is what survives a batch of one and a map of one cell: batch norm then has no statistics, and instance
    norm would leave nothing of such a map.
    """
    if kind == "batch":
        return _BATCH_NORMS[dims](channels, eps=eps)
    if kind == "instance":
        return _INSTANCE_NORMS[dims](channels, eps=eps, affine=True)
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels, eps=eps)


def pad_strided(x_BCS: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Zeros as TensorFlow's ``same`` puts them around a kernel of 3 with stride 2: behind only where the axis is even.

    Axes of stride 1 are left to the convolution's own padding of one cell on either side.
    """
    if all(step == 1 for step in stride):
        return x_BCS
    pads: list[int] = []
    for extent, step in zip(reversed(x_BCS.shape[2:]), reversed(stride)):
        total = max((math.ceil(extent / step) - 1) * step + 3 - extent, 0) if step > 1 else 0
        pads += [total // 2, total - total // 2]
    return F.pad(x_BCS, pads)


def strided_padding(stride: tuple[int, ...]) -> tuple[int, ...]:
    """What a kernel of 3 pads itself behind :func:`pad_strided`."""
    return tuple(int(step == 1) for step in stride)


def pad_border(x_BCS: Tensor, multiples: tuple[int, ...]) -> Tensor:
    """Border cells repeated behind every axis until its multiple divides it; the same tensor where all do.

    A border of zeros would be an edge that the network sees, and would pull means down.
    """
    missing = [-extent % multiple for extent, multiple in zip(x_BCS.shape[2:], multiples)]
    if not any(missing):
        return x_BCS
    return F.pad(x_BCS, [n for extent in reversed(missing) for n in (0, extent)], mode="replicate")


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose weights have mean 0 and variance 1 for each output channel.

    Reference: Qiao et al., Weight standardization, arXiv 1903.10520; Kolesnikov et al., Big transfer, arXiv 1912.11370.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', H', W')``."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x_BCHW, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
