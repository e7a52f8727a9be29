"""Attention inside the cells of a partition, in two and three dimensions: blocks of neighbours, and wide grids.

A block holds the cells of one window. A grid takes every n-th cell along each axis, so that one group of cells spans
the whole map. Both cost the same and differ in nothing but who looks at whom. Maps that the window does not divide are
padded, and nobody looks at the padding.

Parameter names are timm's, so that its MaxViT weights load. Shapes: B batch, G groups, N cells of a group, H heads,
E width of one head, D channels, S all spatial axes.

Reference: Tu et al., MaxViT, arXiv 2204.01697, section 3.2; relative positions: Liu et al., Swin, arXiv 2103.14030, and
Swin V2, arXiv 2111.09883, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.attention import attend
from medloom.blocks.transformer import DropPath


def block_groups(x_BSD: Tensor, window: tuple[int, ...]) -> Tensor:
    """Neighbours together: ``(B, *S, D) -> (B * G, N, D)``; the window divides every axis."""
    return _split(x_BSD, [(extent // w, w) for extent, w in zip(x_BSD.shape[1:-1], window)], inner=1)


def block_map(x_GND: Tensor, window: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Back from :func:`block_groups`: ``(B * G, N, D) -> (B, *size, D)``."""
    return _join(x_GND, [(extent // w, w) for extent, w in zip(size, window)], inner=1)


def grid_groups(x_BSD: Tensor, window: tuple[int, ...]) -> Tensor:
    """Cells at equal distances together: ``(B, *S, D) -> (B * G, N, D)``; the window divides every axis."""
    return _split(x_BSD, [(w, extent // w) for extent, w in zip(x_BSD.shape[1:-1], window)], inner=0)


def grid_map(x_GND: Tensor, window: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Back from :func:`grid_groups`: ``(B * G, N, D) -> (B, *size, D)``."""
    return _join(x_GND, [(w, extent // w) for extent, w in zip(size, window)], inner=0)


@dataclass(frozen=True)
class Partition:
    """A way to put the cells of a map into groups, and the way back."""

    groups: Callable[[Tensor, tuple[int, ...]], Tensor]
    map: Callable[[Tensor, tuple[int, ...], tuple[int, ...]], Tensor]


BLOCK = Partition(block_groups, block_map)
GRID = Partition(grid_groups, grid_map)


class RelativePositions(nn.Module):
    """One number per head for each offset between two cells of a window, added to the attention logits.

    Args:
        window: cells per axis.
        num_heads: H.
    """

    def __init__(self, window: tuple[int, ...], *, num_heads: int) -> None:
        super().__init__()
        self.window = window
        table = torch.empty(num_heads, *(2 * w - 1 for w in window))
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        # Beside the weights, not among them: it follows from the window.
        self.register_buffer("index", offsets(window, window), persistent=False)
        self.index: Tensor

    def forward(self, window: tuple[int, ...]) -> Tensor:
        """Bias ``(H, N, N)``, row by query; a smaller window takes the small offsets of the table."""
        table = self.relative_position_bias_table
        index_NN = self.index if window == self.window else offsets(window, self.window, device=table.device)
        return table.flatten(1).index_select(1, index_NN.flatten()).unflatten(1, index_NN.shape)


class RelativePositionMLP(nn.Module):
    """The same number from an MLP on the logarithm of the offset, so that it holds for a window of any size.

    An axis counts ``sign(d) log2(1 + |d|) / 3``: the cell itself is 0, seven cells away is 1. Offsets are in cells and
    not, as in Swin V2, shares of the window, so that neighbours stay neighbours whatever the window.

    Args:
        window: cells per axis.
        num_heads: H.
        hidden_dim: width of the MLP.
    """

    def __init__(self, window: tuple[int, ...], *, num_heads: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(len(window), hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_heads))

    def forward(self, window: tuple[int, ...]) -> Tensor:
        """Bias ``(H, N, N)``, row by query."""
        weight = next(self.mlp.parameters())
        far = [torch.arange(1 - w, w, dtype=weight.dtype, device=weight.device) for w in window]
        log_A = [d.sign() * torch.log2(1 + d.abs()) / 3 for d in far]
        coordinates_MA = torch.stack(torch.meshgrid(*log_A, indexing="ij"), dim=-1).flatten(0, -2)
        bias_HM = self.mlp(coordinates_MA).T
        index_NN = offsets(window, window, device=weight.device)
        return bias_HM.index_select(1, index_NN.flatten()).unflatten(1, index_NN.shape)


Positions = Callable[..., nn.Module]
"""``positions(window, num_heads=H)``: a module from the window in use to its bias."""
POSITIONS: dict[str, Positions] = {"table": RelativePositions, "mlp": RelativePositionMLP}


def offsets(window: tuple[int, ...], table: tuple[int, ...], *, device: torch.device | None = None) -> Tensor:
    """Place ``(N, N)`` of each pair of cells (query, key) of ``window`` in the flat table made for ``table``."""
    index_NN = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for w, whole in zip(window, table):
        cell = torch.arange(w, device=device)
        axis = cell[None, :] - cell[:, None] + whole - 1
        index_NN = index_NN[:, None, :, None] * (2 * whole - 1) + axis[None, :, None, :]
        index_NN = index_NN.flatten(0, 1).flatten(1, 2)
    return index_NN


class GroupAttention(nn.Module):
    """Self-attention among the cells of each group, with relative positions."""

    def __init__(
        self, dim: int, *, window: tuple[int, ...], head_dim: int, dropout: float, positions: Positions
    ) -> None:
        super().__init__()
        self.num_heads = dim // head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rel_pos = positions(window, num_heads=self.num_heads)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x_GND: Tensor, window: tuple[int, ...], padding_GN: Tensor | None) -> Tensor:
        """``(B * G, N, D) -> (B * G, N, D)``; ``padding_GN`` is -inf at cells that are not there, else 0."""
        qkv = self.qkv(x_GND).unflatten(-1, (3, self.num_heads, -1))
        q_GHNE, k_GHNE, v_GHNE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.rel_pos(window)[None].to(q_GHNE.dtype)
        if padding_GN is not None:
            images = x_GND.shape[0] // padding_GN.shape[0]
            bias = (bias + padding_GN.to(bias.dtype)[:, None, None]).repeat(images, 1, 1, 1)
        x_GHNE = attend(q_GHNE, k_GHNE, v_GHNE, bias)
        # A copy of its own: the exporter lays attention with a bias out in another way than the kernel does.
        x_GNHE = x_GHNE.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return self.proj_drop(self.proj(x_GNHE.flatten(2)))


class PartitionAttention(nn.Module):
    """``x + attention(norm(x))`` inside the groups of a partition, then ``x + mlp(norm(x))``.

    Args:
        dim: D, a multiple of ``head_dim``.
        partition: ``BLOCK`` or ``GRID``.
        window: cells per axis of a block, or of a grid; on a smaller map, the map.
        head_dim: E.
        dropout: behind both projections.
        drop_path: stochastic depth of either branch.
        positions: what makes the relative positions, one of ``POSITIONS``.
    """

    def __init__(
        self,
        dim: int,
        *,
        partition: Partition,
        window: tuple[int, ...],
        head_dim: int = 32,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        positions: Positions = RelativePositions,
    ) -> None:
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"{dim} channels are no multiple of a head's {head_dim}")
        self.partition = partition
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = GroupAttention(dim, window=window, head_dim=head_dim, dropout=dropout, positions=positions)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = TanhMLP(dim, 4 * dim, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """``(B, *S, D) -> (B, *S, D)``."""
        x_BSD = x_BSD + self.drop_path(self._attention(self.norm1(x_BSD)))
        return x_BSD + self.drop_path(self.mlp(self.norm2(x_BSD)))

    def _attention(self, x_BSD: Tensor) -> Tensor:
        size = tuple(x_BSD.shape[1:-1])
        window = tuple(min(w, extent) for w, extent in zip(self.window, size))
        padded = tuple(math.ceil(extent / w) * w for extent, w in zip(size, window))
        padding_GN = None
        if padded != size:
            missing = [n for extent, whole in zip(reversed(size), reversed(padded)) for n in (0, whole - extent)]
            x_BSD = F.pad(x_BSD, [0, 0, *missing])
            there = F.pad(x_BSD.new_zeros(1, *size, 1), [0, 0, *missing], value=-math.inf)
            padding_GN = self.partition.groups(there, window)[..., 0]
        x_GND = self.attn(self.partition.groups(x_BSD, window), window, padding_GN)
        x_BSD = self.partition.map(x_GND, window, padded)
        for axis, extent in enumerate(size):
            x_BSD = x_BSD.narrow(axis + 1, 0, extent)
        return x_BSD


class TanhMLP(nn.Module):
    """Linear, GELU by the tanh formula that MaxViT was trained with, Linear; dropout behind each."""

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """``(..., D) -> (..., D)``."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x_BSD), approximate="tanh"))))


def _split(x_BSD: Tensor, pairs: list[tuple[int, int]], *, inner: int) -> Tensor:
    """Every axis in two; those at ``inner`` of the pairs become the cells of a group, the others the groups."""
    count = len(pairs)
    x = x_BSD.reshape(x_BSD.shape[0], *(part for pair in pairs for part in pair), x_BSD.shape[-1])
    groups, cells = ([1 + 2 * i + side for i in range(count)] for side in (1 - inner, inner))
    return x.permute(0, *groups, *cells, 2 * count + 1).flatten(0, count).flatten(1, count)


def _join(x_GND: Tensor, pairs: list[tuple[int, int]], *, inner: int) -> Tensor:
    count = len(pairs)
    x = x_GND.reshape(-1, *(pair[1 - inner] for pair in pairs), *(pair[inner] for pair in pairs), x_GND.shape[-1])
    first, second = ([1 + i + (count if side == inner else 0) for i in range(count)] for side in (0, 1))
    x = x.permute(0, *(axis for both in zip(first, second) for axis in both), 2 * count + 1)
    return x.reshape(-1, *(a * b for a, b in pairs), x.shape[-1])
