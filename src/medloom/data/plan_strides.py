"""Strides of a network for volumes of thick slices, and what they add to the memory of a training step.

An axis is not halved while its spacing is at least twice the finest, so that the voxels of deeper maps become as long
as they are wide; nor, while another can be, below four cells. The rule is nnU-Net's (Isensee et al., Nature Methods
18:203, 2021, supplement, network topology); how often a network halves is its own affair here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

APART = 2.0
LEAST_CELLS = 4
WINDOWED = ("maxvit_unet_3d_tiny", "maxvit_unet_3d_small")

BEHIND: dict[str, tuple[float, ...]] = {
    "unet_3d": (0.245, 0.057, 0.010, 0.001),
    "maxvit_unet_3d_tiny": (0.763, 0.471, 0.107, 0.025, 0.002),
    "maxvit_unet_3d_small": (0.842, 0.559, 0.132, 0.031, 0.003),
    "transunet_3d": (0.306, 0.134, 0.090, 0.080),
    "transunet_3d_tiny": (0.257, 0.073, 0.027, 0.015),
    "transunet_3d_small": (0.263, 0.080, 0.034, 0.022),
}
"""Of what a training step keeps, the share that lies behind each stride: measured at 32 cubed, 3 classes, as what comes
on top where that stride leaves one axis alone."""


def plan_strides(model: str, patch: Sequence[int], spacing: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """One stride per axis for every halving of a network, as its option ``strides`` takes them.

    Args:
        patch: voxels per axis.
        spacing: mm per axis.

    Returns:
        Nothing where every axis is halved every time: for nearly cubic voxels, and networks without the option.
    """
    if model not in BEHIND or max(spacing) < APART * min(spacing):
        return ()
    cells, length, strides = list(patch), list(spacing), []
    for _ in BEHIND[model]:
        large = [axis for axis, n in enumerate(cells) if n >= 2 * LEAST_CELLS]
        finest = min((length[axis] for axis in large), default=0.0)
        # Where none is large, a network that must halve halves what is longest.
        halved = [axis for axis in large if length[axis] < APART * finest] or [
            axis for axis, n in enumerate(cells) if n == max(cells)
        ]
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(cells))))
        cells = [math.ceil(n / s) for n, s in zip(cells, strides[-1])]
        length = [mm * s for mm, s in zip(length, strides[-1])]
    return tuple(strides)


def plan_window(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Cells per axis of the windows of attention: the smallest multiple of the coarsest map with at least four."""
    cells = list(patch)
    for step in strides:
        cells = [math.ceil(n / s) for n, s in zip(cells, step)]
    return tuple(n * math.ceil(LEAST_CELLS / n) for n in cells)


def stride_factor(model: str, strides: Sequence[Sequence[int]]) -> float:
    """How many times what a network with all its halvings keeps one with these strides keeps."""
    factor, cells = 1.0, 1.0
    for behind, step in zip(BEHIND.get(model, ()), strides):
        more = cells * math.prod(2 / s for s in step)
        factor += behind * (more - cells)
        cells = more
    return factor
