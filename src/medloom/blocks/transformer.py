"""The pre-norm transformer block and a stack of them.

Shapes: B batch, N tokens (prefix tokens included), D width, H heads.

Reference: Dosovitskiy et al., An image is worth 16x16 words, arXiv 2010.11929; stochastic depth: Huang et al.,
arXiv 1603.09382.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medloom.blocks.attention import Attention
from medloom.blocks.taps import Tap, Taps


class DropPath(nn.Module):
    """Leaves a residual branch out for a random part of the batch, and scales the rest to keep the mean."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"drop path must lie in [0, 1), got {probability}")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...) -> (B, ...)``; identity in eval mode."""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3f}"


class MLP(nn.Module):
    """Linear, GELU, Linear, each followed by dropout; parameter names are timm's (``fc1``, ``fc2``)."""

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        """``(B, N, D) -> (B, N, D)``."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x_BND)))))


class AttentionBlock(nn.Module):
    """``x + attention(norm(x))``: a block without a feed-forward part."""

    def __init__(self, dim: int, *, num_heads: int, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads=num_heads, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def normed(self, x_BND: Tensor) -> Tensor:
        """What attention reads."""
        return self.norm(x_BND)

    def feed_forward(self, x_BND: Tensor) -> Tensor:
        """What follows attention: nothing here."""
        return x_BND

    def forward(self, x_BND: Tensor) -> Tensor:
        """``(B, N, D) -> (B, N, D)``."""
        return x_BND + self.drop_path(self.attn(self.norm(x_BND)))

    def forward_with_weights(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention ``(B, H, N, N)``."""
        update_BND, attention_BHNN = self.attn.forward_with_weights(self.norm(x_BND))
        return x_BND + self.drop_path(update_BND), attention_BHNN


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads=num_heads, dropout=dropout, head_dim=head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio), dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def normed(self, x_BND: Tensor) -> Tensor:
        """What attention reads."""
        return self.norm1(x_BND)

    def feed_forward(self, x_BND: Tensor) -> Tensor:
        """What follows attention."""
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))

    def forward(self, x_BND: Tensor) -> Tensor:
        """``(B, N, D) -> (B, N, D)``."""
        return self.feed_forward(x_BND + self.drop_path(self.attn(self.norm1(x_BND))))

    def forward_with_weights(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention ``(B, H, N, N)``."""
        update_BND, attention_BHNN = self.attn.forward_with_weights(self.norm1(x_BND))
        x_BND = x_BND + self.drop_path(update_BND)
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND))), attention_BHNN


def transformer_blocks(
    dim: int,
    *,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    dropout: float,
    drop_path: float,
    head_dim: int | None = None,
) -> nn.ModuleList:
    """``depth`` blocks; the drop-path rate grows linearly from 0 in the first to ``drop_path`` in the last."""
    return nn.ModuleList(
        Block(dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=rate, head_dim=head_dim)
        for rate in drop_path_rates(drop_path, depth)
    )


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates of stochastic depth that grow linearly from 0 in the first block to ``last`` in the last."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


class Runner(Protocol):
    """How tokens pass through a stack of blocks: all of them as in :func:`run_blocks`, or ever fewer."""

    def __call__(
        self, blocks: Iterable[nn.Module], x_BND: Tensor, taps: Taps | None, *, grid: tuple[int, ...], prefix: int
    ) -> Tensor: ...


def run_blocks(
    blocks: Iterable[nn.Module],
    x_BND: Tensor,
    taps: Taps | None,
    *,
    grid: tuple[int, ...],
    prefix: int,
    checkpoint_blocks: bool = False,
) -> Tensor:
    """Pass tokens through the blocks; with taps, write ``attention.0``, ``attention.1`` ... on the way.

    Args:
        checkpoint_blocks: in training keep the input of each block only, and compute the rest again on the way back:
            a third more time for a fraction of the memory, and the same numbers.
    """
    for i, block in enumerate(blocks):
        assert isinstance(block, Block | AttentionBlock)
        if taps is None and checkpoint_blocks and block.training and torch.is_grad_enabled():
            x_BND = checkpoint(block, x_BND, use_reentrant=False)
        elif taps is None:
            x_BND = block(x_BND)
        else:
            x_BND, attention_BHNN = block.forward_with_weights(x_BND)
            taps[f"attention.{i}"] = Tap(attention_BHNN, grid=grid, prefix=prefix)
    return x_BND


def init_transformer(module: nn.Module) -> None:
    """Truncated normal 0.02 for every linear weight, zero for every bias (ViT's rule); other layers are left alone."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
