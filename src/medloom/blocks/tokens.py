"""From images or feature maps to tokens, and the positions of those tokens.

Shapes: B batch, C channels, D token width, N tokens (without prefix), H and W image size, h and w token grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of an image as token vectors; the parameter name is timm's (``proj``)."""

    def __init__(self, in_chans: int, embed_dim: int, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, D, H / patch, W / patch)``."""
        return self.proj(x_BCHW)


def window_grid(size: tuple[int, int], kernel_size: int, stride: int) -> tuple[int, int]:
    """How many windows fit into a map of ``size`` without padding; 0 where the window is larger than the map."""
    h, w = ((extent - kernel_size) // stride + 1 if extent >= kernel_size else 0 for extent in size)
    return h, w


def to_tokens(x_BDhw: Tensor) -> Tensor:
    """``(B, D, h, w) -> (B, N, D)``, row-major."""
    return x_BDhw.flatten(2).transpose(1, 2)


def resize_positions(positions_1DS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Positions on another grid, in float32: bicubic on images, linear in volumes; the same tensor on the same grid."""
    if tuple(positions_1DS.shape[2:]) == tuple(grid):
        return positions_1DS
    if len(grid) == 3:
        resized = F.interpolate(positions_1DS.float(), size=grid, mode="trilinear", align_corners=False)
    else:
        resized = F.interpolate(positions_1DS.float(), size=grid, mode="bicubic", antialias=True, align_corners=False)
    return resized.to(positions_1DS.dtype)


def resize_position_table(
    table_1ND: Tensor, grid: tuple[int, int], *, old_grid: tuple[int, int], prefix: int
) -> Tensor:
    """The same for a flat table ``(1, prefix + N, D)``, whose first ``prefix`` rows belong to no place."""
    if tuple(grid) == tuple(old_grid):
        return table_1ND
    first, rest = table_1ND[:, :prefix], table_1ND[:, prefix:]
    maps = rest.transpose(1, 2).unflatten(2, old_grid)
    return torch.cat([first, to_tokens(resize_positions(maps, grid))], dim=1)


def sincos_positions(embed_dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions ``(1, N, D)``: half of the channels for the row, half for the column, sine and cosine each.

    Reference: Vaswani et al., arXiv 1706.03762, in two dimensions as in MoCo v3, arXiv 2104.02057.
    """
    if embed_dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {embed_dim}")
    frequencies = 10000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()[None]
