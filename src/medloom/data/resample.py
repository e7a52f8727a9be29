"""Linear resampling of volumes between two grids over the same field of view, in numpy, with bounded memory.

Voxels are cells: the outer faces of both grids coincide, so voxel i of n lies at (i + 0.5) m / n - 0.5 of m. Behind the
last centre the edge's value goes on. Where the new grid is coarser a Gaussian of (ratio - 1) / 2 voxels comes first, as
points picked from a fine grid would miss what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.ndimage import gaussian_filter1d

SLAB_VOXELS = 4_000_000
"""Voxels of the new grid that are worked on at a time: 16 MB of float32."""


def resample(values: np.ndarray, shape: tuple[int, ...], *, smooth: bool = True) -> np.ndarray:
    """``values`` on a grid of ``shape``, float32; the array itself where the shape is the same.

    Args:
        smooth: a Gaussian before coarsening; without it values are only interpolated.
    """
    out = values.astype(np.float32, copy=False)
    for axis in _cheapest_first(out.shape, shape):
        if out.shape[axis] != shape[axis]:
            if smooth:
                out = _smoothed(out, axis, shape[axis])
            out = _along(out, axis, shape[axis], 0, shape[axis])
    return out


def resample_argmax(planes: Iterable[np.ndarray], shape: tuple[int, ...], *, smooth: bool = True) -> np.ndarray:
    """Which of K arrays is largest after resampling, uint8 of ``shape``; of equals the first.

    One class is held at a time on the old grid, and one slab of it on the new one.
    """
    best = np.full(shape, -np.inf, dtype=np.float32)
    chosen = np.zeros(shape, dtype=np.uint8)
    rows = max(1, SLAB_VOXELS // max(1, int(np.prod(shape[1:]))))
    for position, plane in enumerate(planes):
        source = plane.astype(np.float32, copy=False)
        if smooth:
            for axis in range(source.ndim):
                source = _smoothed(source, axis, shape[axis])
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            slab = _along(source, 0, shape[0], start, stop)
            for axis in range(1, source.ndim):
                slab = _along(slab, axis, shape[axis], 0, shape[axis])
            larger = slab > best[start:stop]
            best[start:stop][larger] = slab[larger]
            chosen[start:stop][larger] = position
    return chosen


def _along(values: np.ndarray, axis: int, count: int, start: int, stop: int) -> np.ndarray:
    """Voxels ``start`` to ``stop`` of ``count`` along one axis."""
    have = values.shape[axis]
    if have == count:
        return values[(slice(None),) * axis + (slice(start, stop),)]
    at = np.clip((np.arange(start, stop) + 0.5) * (have / count) - 0.5, 0, have - 1)
    below = np.minimum(at.astype(np.int64), max(have - 2, 0))
    shape = [1] * values.ndim
    shape[axis] = -1
    share = (at - below).astype(np.float32).reshape(shape)
    out = np.take(values, below, axis=axis)
    step = np.take(values, np.minimum(below + 1, have - 1), axis=axis)
    step -= out
    step *= share
    out += step
    return out


def _smoothed(values: np.ndarray, axis: int, count: int) -> np.ndarray:
    ratio = values.shape[axis] / count
    if ratio <= 1:
        return values
    return np.asarray(gaussian_filter1d(values, (ratio - 1) / 2, axis=axis, mode="nearest"))


def _cheapest_first(old: tuple[int, ...], new: tuple[int, ...]) -> list[int]:
    """Axes that shrink before axes that grow: less to work on. Their order changes rounding alone."""
    return sorted(range(len(old)), key=lambda axis: new[axis] / old[axis])
