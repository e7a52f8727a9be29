"""The trunk of TransUNet: a ResNet of standardised convolutions and group norms, cut at stride 16.

Parameter names are timm's (``resnetv2`` without pre-activation), so that the ImageNet-21k weights load. The pool behind
the stem has no padding, so the maps of the first stage lack their last row and column; where they serve as a skip,
zeros stand there. Both are as published.

Shapes: B batch, C channels, H and W image size.

Reference: Kolesnikov et al., Big transfer, arXiv 1912.11370; Chen et al., TransUNet, arXiv 2102.04306.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.convolution import StandardizedConv2d

UnitKind = Literal["bottleneck", "basic"]

_GROUPS = 32
_WIDER = 4


class StandardizedResNet(nn.Module):
    """Stem and three stages.

    Args:
        in_chans: C.
        unit: ``bottleneck`` (1x1, 3x3, 1x1, four times as wide outside) or ``basic`` (two 3x3).
        units: of the stages.
        width: channels of the stem, a multiple of 32; the stages double it.

    Attributes:
        channels: of the maps at strides 2, 4, 8 and 16.
    """

    def __init__(self, in_chans: int, *, unit: UnitKind, units: Sequence[int], width: int) -> None:
        super().__init__()
        wider = _WIDER if unit == "bottleneck" else 1
        self.channels = (width, *(width * wider * 2**i for i in range(len(units))))
        self.stem = nn.ModuleDict(
            {
                "conv": StandardizedConv2d(in_chans, width, 7, stride=2, padding=3, bias=False),
                "norm": nn.GroupNorm(_GROUPS, width, eps=1e-6),
            }
        )
        kind = Bottleneck if unit == "bottleneck" else BasicUnit
        self.stages = nn.ModuleList()
        for i, (before, dim, count) in enumerate(zip(self.channels, self.channels[1:], units)):
            blocks = [kind(dim if j else before, dim, stride=2 if i and not j else 1) for j in range(count)]
            self.stages.append(nn.ModuleDict({"blocks": nn.Sequential(*blocks)}))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """``(B, C, H, W)``, H and W multiples of 16, to maps at strides 2, 4, 8 and 16."""
        height, width = x_BCHW.shape[2:]
        x_BCHW = F.relu(self.stem["norm"](self.stem["conv"](x_BCHW)))
        maps = [x_BCHW]
        x_BCHW = F.max_pool2d(x_BCHW, 3, stride=2)
        for i, stage in enumerate(self.stages):
            x_BCHW = stage["blocks"](x_BCHW)  # type: ignore[index]
            stride = 4 * 2**i
            missing = (height // stride - x_BCHW.shape[2], width // stride - x_BCHW.shape[3])
            maps.append(F.pad(x_BCHW, (0, missing[1], 0, missing[0])) if any(missing) else x_BCHW)
        return maps


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1, a norm behind each; ReLU between and behind the sum."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: int) -> None:
        super().__init__()
        inner = out_chans // _WIDER
        self.conv1 = StandardizedConv2d(in_chans, inner, 1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, inner, eps=1e-6)
        self.conv2 = StandardizedConv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, inner, eps=1e-6)
        self.conv3 = StandardizedConv2d(inner, out_chans, 1, bias=False)
        self.norm3 = nn.GroupNorm(_GROUPS, out_chans, eps=1e-6)
        self.downsample = _projection(in_chans, out_chans, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))``."""
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = F.relu(self.norm2(self.conv2(y_BCHW)))
        return F.relu(_shortcut(self.downsample, x_BCHW) + self.norm3(self.conv3(y_BCHW)))


class BasicUnit(nn.Module):
    """Two 3x3, the first with the stride, a norm behind each; ReLU between and behind the sum."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = StandardizedConv2d(in_chans, out_chans, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, out_chans, eps=1e-6)
        self.conv2 = StandardizedConv2d(out_chans, out_chans, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, out_chans, eps=1e-6)
        self.downsample = _projection(in_chans, out_chans, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))``."""
        y_BCHW = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x_BCHW)))))
        return F.relu(_shortcut(self.downsample, x_BCHW) + y_BCHW)


def _projection(in_chans: int, out_chans: int, stride: int) -> nn.ModuleDict | None:
    """Where width or grid change: 1x1 convolution and a norm of each channel alone."""
    if stride == 1 and in_chans == out_chans:
        return None
    return nn.ModuleDict(
        {
            "conv": StandardizedConv2d(in_chans, out_chans, 1, stride=stride, bias=False),
            "norm": nn.GroupNorm(out_chans, out_chans),
        }
    )


def _shortcut(projection: nn.ModuleDict | None, x_BCHW: Tensor) -> Tensor:
    return x_BCHW if projection is None else projection["norm"](projection["conv"](x_BCHW))
