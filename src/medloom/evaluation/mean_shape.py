"""The answer that needs no look at the image: where each structure lies in the training masks on average.

An empty answer would be the cheaper trivial one, and scores 0 by definition, so nothing could fail to beat it. A chest
film or a crop around an organ always shows the organ in much the same place: a mean shape reached 0.80 Dice on the
lungs of films of one hospital, 0.73 on those of another, 0.74 and 0.69 on the two parts of cropped hippocampi. Only
what a model adds to that was read from the image.

Shapes: S the spatial axes, G the axes of the common grid, N masks, K structures (without the background).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

GRID = {2: 96, 3: 32}
"""Points per axis on which masks of any size meet."""

_CUTS = tuple(round(0.05 * k, 2) for k in range(2, 13))


@dataclass(frozen=True, eq=False)
class MeanShape:
    """One mask for every image.

    Attributes:
        answer: uint8 positions on the common grid.
        cut: the share of the training masks that a point must be in; the one with the best Dice on these very masks.
    """

    answer: Array
    cut: float

    def at(self, shape: tuple[int, ...]) -> Array:
        """The mask for an image of this shape, uint8."""
        return _sampled(self.answer, shape)


def mean_shape(masks: Iterable[Array], structures: int) -> MeanShape:
    """Average masks of any size, each stretched over the common grid.

    Args:
        masks: positions ``(*S)``, all with two axes or all with three; at least one.
        structures: how many there are beside the background.

    Raises:
        ValueError: no masks.
    """
    small = [_sampled(mask, (GRID[mask.ndim],) * mask.ndim).astype(np.uint8) for mask in masks]
    if not small:
        raise ValueError("no masks")
    stack = np.stack(small).reshape(len(small), -1)
    share_KG = np.stack([(stack == k + 1).mean(axis=0) for k in range(structures)])
    inside_G, which_G = share_KG.sum(axis=0), share_KG.argmax(axis=0) + 1
    best, answer, cut = -1.0, np.zeros_like(which_G), _CUTS[-1]
    for candidate in _CUTS:
        tried = np.where(inside_G >= candidate, which_G, 0)
        score = _mean_dice(stack, tried, structures)
        if score > best:
            best, answer, cut = score, tried, candidate
    return MeanShape(answer.astype(np.uint8).reshape(small[0].shape), cut)


def _mean_dice(stack_NG: Array, answer_G: Array, structures: int) -> float:
    """Mean over masks and structures; a structure that is in neither counts in none."""
    scores = []
    for k in range(1, structures + 1):
        truth, tried = stack_NG == k, answer_G == k
        total = truth.sum(axis=1) + tried.sum()
        scores.append((2 * (truth & tried).sum(axis=1) / np.maximum(total, 1))[total > 0])
    joined = np.concatenate(scores)
    return float(joined.mean()) if len(joined) else 0.0


def _sampled(mask: Array, shape: tuple[int, ...]) -> Array:
    """The nearest point of ``mask`` for each point of a grid of ``shape`` stretched over it."""
    places = [((np.arange(new) + 0.5) * old / new).astype(np.int64) for old, new in zip(mask.shape, shape)]
    sampled: Array = mask[np.ix_(*places)]
    return sampled
