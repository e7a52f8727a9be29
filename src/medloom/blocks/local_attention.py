"""Convolutional token mixing and feed-forward: the convolutional half of MedViT's blocks, and their down-sampling.

Parameter names are those of the published MedViT, so that its weights load.

Shapes: B batch, C channels, H and W map size.

Reference: Manzari et al., MedViT, arXiv 2302.09462, section 3; Li et al., Next-ViT, arXiv 2207.05501 (convolutional
attention); Li et al., LocalViT, arXiv 2104.05707 (feed-forward with a depthwise convolution); Hu et al., Squeeze-and-
excitation, arXiv 1709.01507.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, batch norm, ReLU: one step of the stem."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_chans)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))``."""
        return self.act(self.norm(self.conv(x_BCHW)))


class PatchProjection(nn.Module):
    """Halve the grid where asked to, change the width where it changes; nothing at all where neither is so.

    The pool averages over the cells that are there, so an odd last row or column counts fully.
    """

    def __init__(self, in_chans: int, out_chans: int, *, stride: int = 1) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
        changes = stride == 2 or in_chans != out_chans
        self.conv = nn.Conv2d(in_chans, out_chans, 1, bias=False) if changes else nn.Identity()
        self.norm = nn.BatchNorm2d(out_chans) if changes else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))``."""
        return self.norm(self.conv(self.pool(x_BCHW)))


class ConvAttention(nn.Module):
    """MHCA, "multi-head convolutional attention": a grouped 3x3 convolution per head, then a 1x1 across heads.

    It has no softmax and no weights that depend on the image; "attention" is the paper's word.
    """

    def __init__(self, dim: int, *, head_dim: int) -> None:
        super().__init__()
        self.group_conv3x3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim // head_dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.act = nn.ReLU(inplace=True)
        self.projection = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.projection(self.act(self.norm(self.group_conv3x3(x_BCHW))))


class SqueezeExcite(nn.Module):
    """A weight per channel from the means of all channels, through ``hidden`` units."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.Hardsigmoid())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x_BCHW * self.fc(x_BCHW.mean(dim=(2, 3)))[:, :, None, None]


class LocalFeedForward(nn.Module):
    """LFFN: widen, depthwise 3x3, channel weights, narrow; the residual connection is inside.

    Args:
        dim: C.
        ratio: hidden width over C. The channel weights pass through as many units as the ratio says: the published
            reduction is by C, not by 4 or 16.
    """

    def __init__(self, dim: int, *, ratio: int) -> None:
        super().__init__()
        hidden = dim * ratio
        self.conv = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            SqueezeExcite(hidden, hidden // dim),
            nn.Conv2d(hidden, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x_BCHW + self.conv(x_BCHW)
