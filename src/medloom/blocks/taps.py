"""Named intermediates of a forward pass, with the grid that they live on.

A model that is given a dict as ``taps`` writes into it; without one it computes nothing extra and its attention is
the fused kernel. Explanation, token maps and distillation read taps; nothing registers hooks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Tap:
    """One intermediate.

    Attributes:
        value: ``(B, D, *grid)`` for feature maps, ``(B, P + N, D)`` for tokens, ``(B, H, P + N, P + N)`` for
            attention, ``(B, N)`` for token weights; ``N`` is the product of ``grid``, row-major.
        grid: spatial layout of the positions; empty where there is none. A model with several token scales
            writes one tap per scale, so that each has one grid.
        prefix: P, the tokens before the grid tokens (CLS, register, distillation).
    """

    value: Tensor
    grid: tuple[int, ...] = ()
    prefix: int = 0


Taps = dict[str, Tap]


def token_tap(x_BND: Tensor, *, grid: tuple[int, ...], prefix: int) -> Tap:
    """Tokens with their grid, or without one where some of them were dropped or merged on the way."""
    whole = x_BND.shape[1] == prefix + math.prod(grid)
    return Tap(x_BND, grid=grid if whole else (), prefix=prefix)
