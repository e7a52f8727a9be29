"""Choosing tokens: scores from a feature map, the best k gathered, one package token for all the others.

Everything has a static shape: k is a Python number, fixed between two calls of ``set_keep``, so the pruned model is an
ordinary graph of top-k and gather, which every runtime has.

Shapes: B batch, D token width, h and w token grid, N tokens, K kept tokens, R the rest (N - K).

Reference: package token: Kong et al., SPViT, arXiv 2112.13890; plain top-k as a strong rule: Haurum et al.,
arXiv 2308.04657.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medloom.errors import UsageError

MULTIPLE = 8
"""Kept tokens come in multiples of this: matrix kernels like it, and neighbouring keep rates share a shape."""


class TokenScorer(nn.Module):
    """A score per cell of a feature map: 1x1 convolution, GELU, 3x3 convolution to one channel.

    It reads the features that the tokens are made of, so it sees context and costs almost nothing.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, max(dim // 4, 1), 1)
        self.act = nn.GELU()
        self.score = nn.Conv2d(max(dim // 4, 1), 1, 3, padding=1)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w) -> (B, N)``, row-major, any real number."""
        return self.score(self.act(self.reduce(x_BDhw))).flatten(1)


def check_keep(rate: float, name: str = "keep_rate") -> float:
    """A keep rate as a number in (0, 1].

    Raises:
        UsageError: U208, it is none.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 < rate <= 1.0:
        raise UsageError(
            "U208", f"option {name}", f"{rate!r} is not a share of the tokens", "Give a number above 0, at most 1"
        )
    return float(rate)


def keep_count(tokens: int, rate: float) -> int:
    """How many of ``tokens`` a rate keeps: the nearest multiple of 8, at least 8, never more than there are."""
    wanted = tokens * check_keep(rate)
    return tokens if rate == 1.0 else min(tokens, MULTIPLE * max(math.floor(wanted / MULTIPLE + 0.5), 1))


def ranked(score_BN: Tensor) -> Tensor:
    """Positions from the highest score to the lowest, ``(B, N)``."""
    return score_BN.topk(score_BN.shape[1], dim=1).indices


def gather_tokens(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """The tokens at those positions: ``(B, N, D), (B, K) -> (B, K, D)``."""
    return x_BND.gather(1, index_BK[:, :, None].expand(-1, -1, x_BND.shape[2]))


def package(x_BRD: Tensor, weight_BR: Tensor) -> Tensor:
    """One token for many: their mean under softmax of the weights, ``(B, R, D), (B, R) -> (B, 1, D)``."""
    return weight_BR.softmax(dim=1)[:, None] @ x_BRD


def split_tokens(x_BND: Tensor, score_BN: Tensor, k: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """The k best tokens, a package of the rest, and which were kept.

    Returns:
        ``(B, K, D)``; ``(B, 1, D)``, or None where nothing is left over; positions ``(B, K)``.
    """
    tokens = x_BND.shape[1]
    if k >= tokens:
        return x_BND, None, torch.arange(tokens, device=x_BND.device).expand(x_BND.shape[0], -1)
    order_BN = ranked(score_BN)
    kept_BK, rest_BR = order_BN[:, :k], order_BN[:, k:]
    return gather_tokens(x_BND, kept_BK), package(gather_tokens(x_BND, rest_BR), score_BN.gather(1, rest_BR)), kept_BK


def kept_mask(index_BK: Tensor, tokens: int) -> Tensor:
    """``(B, K)`` positions to ``(B, N)``: 1 where a token was kept, 0 elsewhere."""
    return torch.zeros(index_BK.shape[0], tokens, device=index_BK.device).scatter(1, index_BK, 1.0)


def straight_through(score_BK: Tensor) -> Tensor:
    """A factor that is one in value and carries the gradient of the sigmoid of the score, ``(B, K, 1)``."""
    gate_BK = score_BK.sigmoid()
    return (1.0 + gate_BK - gate_BK.detach())[:, :, None]
