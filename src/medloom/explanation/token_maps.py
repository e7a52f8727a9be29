"""What a network did with its tokens, on the grid that they came from: taps of one forward pass become arrays.

They show what was passed on, not why the answer was given: a token may be kept and change nothing, and what was dropped
may reach the answer through the package token, or through tokens that saw it before the cut. They have not been tested
as an explanation.

Shapes: B batch, N cells of a grid; a map is ``(rows, columns)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medloom.errors import ModelError

MODELS_WITH_MAPS = ("token_pruned", "token_pruned_resnet18", "dynamic_vit", "hatr", "hatr_conv2d", "hatr_resnet50")
"""Registered models that weigh or choose their tokens."""


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """The maps of one image.

    Attributes:
        weights: tap name (``token_score``, or ``token_weight.k`` for scale k) to ``(rows, columns)`` float32.
        kept: ``(rows, columns)`` of zeros and ones, the tokens that reached the end; None where none are dropped.
    """

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    kept: np.ndarray | None = None

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.weights) or self.kept is not None

    def kept_cells(self) -> list[list[int]] | None:
        """``[row, column]`` of every kept token, row-major; None where none are dropped."""
        return None if self.kept is None else np.argwhere(self.kept > 0).tolist()


def token_maps(taps: Mapping[str, Any], row: int = 0) -> TokenMaps:
    """The maps of one image of a batch; what has no grid (tokens of several scales in one sequence) is left out.

    Raises:
        ModelError: C508, a score or a weight is not finite.
    """
    weights = {
        name: tap.value[row].detach().float().cpu().numpy().reshape(tap.grid)
        for name, tap in sorted(taps.items())
        if tap.grid and (name == "token_score" or name.startswith("token_weight"))
    }
    for name, map_hw in weights.items():
        if not np.isfinite(map_hw).all():
            raise ModelError("C508", name, "the network's token weights are no numbers", "Train again")
    kept = taps.get("kept")
    if kept is None or not kept.grid:
        return TokenMaps(weights)
    return TokenMaps(weights, kept.value[row].detach().cpu().numpy().reshape(kept.grid).astype(np.uint8))
