"""Inverted bottleneck with channel weights, in two and three dimensions: the convolution of a MaxViT block.

Parameter names are timm's, so that its MaxViT weights load. Shapes: B batch, C channels, S all spatial axes.

Reference: Tu et al., MaxViT, arXiv 2204.01697, section 3.3; Sandler et al., MobileNetV2, arXiv 1801.04381; Hu et al.,
Squeeze-and-excitation, arXiv 1709.01507.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.convolution import NormKind, convolution, normalisation, pad_border, pad_strided, strided_padding
from medloom.blocks.transformer import DropPath


class ChannelWeights(nn.Module):
    """A weight in (0, 1) for each channel, from the means of all channels through ``hidden`` SiLU units."""

    def __init__(self, channels: int, hidden: int, *, dims: int) -> None:
        super().__init__()
        self.fc1 = convolution(dims, channels, hidden, 1)
        self.fc2 = convolution(dims, hidden, channels, 1)

    def forward(self, x_BCS: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        mean_BC1 = x_BCS.mean(dim=tuple(range(2, x_BCS.ndim)), keepdim=True)
        return x_BCS * torch.sigmoid(self.fc2(F.silu(self.fc1(mean_BC1))))


class MBConv(nn.Module):
    """Norm, widen to four times the output, depthwise kernel of 3, channel weights, narrow; plus a shortcut.

    Args:
        in_chans: C.
        out_chans: C'.
        dims: spatial axes, 2 or 3.
        stride: one per axis, 1 or more; the map becomes ``ceil(extent / stride)``.
        norm: kind of all three norms.
        eps: of the norms.
        drop_path: probability of leaving the whole branch out.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        dims: int,
        stride: tuple[int, ...],
        norm: NormKind,
        eps: float = 1e-3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = 4 * out_chans
        self.stride = stride
        self.shortcut = Shortcut(in_chans, out_chans, stride)
        self.pre_norm = normalisation(norm, dims, in_chans, eps=eps)
        self.conv1_1x1 = convolution(dims, in_chans, hidden, 1, bias=False)
        self.norm1 = normalisation(norm, dims, hidden, eps=eps)
        self.conv2_kxk = convolution(
            dims, hidden, hidden, 3, stride=stride, padding=strided_padding(stride), groups=hidden, bias=False
        )
        self.norm2 = normalisation(norm, dims, hidden, eps=eps)
        self.se = ChannelWeights(hidden, out_chans // 4, dims=dims)
        self.conv3_1x1 = convolution(dims, hidden, out_chans, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCS: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C', *ceil(S / stride))``."""
        y_BCS = F.gelu(self.norm1(self.conv1_1x1(self.pre_norm(x_BCS))), approximate="tanh")
        y_BCS = F.gelu(self.norm2(self.conv2_kxk(pad_strided(y_BCS, self.stride))), approximate="tanh")
        return self.drop_path(self.conv3_1x1(self.se(y_BCS))) + self.shortcut(x_BCS)


class Shortcut(nn.Module):
    """The mean of the cells that become one, and another width where it changes; nothing at all where neither is so.

    At an odd end the mean is over the cells that are there.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride
        changes = in_chans != out_chans
        self.expand = convolution(len(stride), in_chans, out_chans, 1) if changes else nn.Identity()

    def forward(self, x_BCS: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C', *ceil(S / stride))``."""
        if any(step > 1 for step in self.stride):
            pool = F.avg_pool2d if len(self.stride) == 2 else F.avg_pool3d
            x_BCS = pool(pad_border(x_BCS, self.stride), self.stride)
        return self.expand(x_BCS)
