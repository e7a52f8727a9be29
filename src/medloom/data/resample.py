"""Linear resampling of volumes between two grids over the same field of view, in numpy, with bounded memory.

Voxels are cells: the outer faces of both grids coincide, so voxel i of n lies at (i + 0.5) m / n - 0.5 of m. Behind the
last centre the edge's value goes on. Where the new grid is coarser a Gaussian of (ratio - 1) / 2 voxels comes first, as
points picked from a fine grid would miss what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

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


def resample_slabs(
    slabs: Iterable[tuple[int, np.ndarray]], axis: int, old: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """``resample_argmax(..., smooth=False)`` of K arrays that come in pieces; the same values, bit for bit.

    A piece, the layers before it that are still needed, and one class of them on the new grid are held at a time.

    Args:
        slabs: ``(start, values_KS)`` along ``axis``, in order and without gaps.
        axis: of the K arrays.
        old, shape: the whole grid of the pieces, and the new one.
    """
    chosen = np.zeros(shape, dtype=np.uint8)
    below, above = _neighbours(old[axis], shape[axis])
    held_KS, first, done = None, 0, 0
    for start, slab_KS in slabs:
        held_KS = slab_KS if held_KS is None else np.concatenate([held_KS, slab_KS], axis=axis + 1)
        ready = int(np.searchsorted(above, start + slab_KS.shape[axis + 1]))
        if ready > done:
            where = (slice(None),) * axis + (slice(done, ready),)
            best = np.full([ready - done if a == axis else n for a, n in enumerate(shape)], -np.inf, dtype=np.float32)
            for position, plane in enumerate(held_KS):
                part = plane.astype(np.float32, copy=False)
                for a, count in enumerate(shape):
                    if a == axis:
                        part = _along(part, a, count, done, ready, have=old[a], first=first)
                    else:
                        part = _along(part, a, count, 0, count)
                larger = part > best
                best[larger] = part[larger]
                chosen[where][larger] = position
            done = ready
        length = held_KS.shape[axis + 1]
        spent = length if done == shape[axis] else min(length, max(0, int(below[done]) - first))
        held_KS = held_KS[(slice(None),) * (axis + 1) + (slice(spent, None),)].copy()
        first += spent
    return chosen


def _neighbours(have: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``count`` new layers, the first and the last of ``have`` old ones that it is made of."""
    if have == count:
        return np.arange(count), np.arange(count)
    at = np.clip((np.arange(count) + 0.5) * (have / count) - 0.5, 0, have - 1)
    below = np.minimum(at.astype(np.int64), max(have - 2, 0))
    return below, np.minimum(below + 1, have - 1)


def _along(
    values: np.ndarray, axis: int, count: int, start: int, stop: int, *, have: int | None = None, first: int = 0
) -> np.ndarray:
    """Layers ``start`` to ``stop`` of ``count`` along one axis; ``values`` are those of ``have`` from ``first`` on."""
    have = values.shape[axis] if have is None else have
    if have == count:
        return values[(slice(None),) * axis + (slice(start - first, stop - first),)]
    at = np.clip((np.arange(start, stop) + 0.5) * (have / count) - 0.5, 0, have - 1)
    below = np.minimum(at.astype(np.int64), max(have - 2, 0))
    shape = [1] * values.ndim
    shape[axis] = -1
    share = (at - below).astype(np.float32).reshape(shape)
    out = np.take(values, below - first, axis=axis)
    step = np.take(values, np.minimum(below + 1, have - 1) - first, axis=axis)
    step -= out
    step *= share
    out += step
    return out


def _smoothed(values: np.ndarray, axis: int, count: int) -> np.ndarray:
    ratio = values.shape[axis] / count
    if ratio <= 1:
        return values
    from scipy.ndimage import gaussian_filter1d  # half a second that answers without volumes do not need

    return np.asarray(gaussian_filter1d(values, (ratio - 1) / 2, axis=axis, mode="nearest"))


def _cheapest_first(old: tuple[int, ...], new: tuple[int, ...]) -> list[int]:
    """Axes that shrink before axes that grow: less to work on. Their order changes rounding alone."""
    return sorted(range(len(old)), key=lambda axis: new[axis] / old[axis])
