"""Answers for images and volumes larger than what a network takes at once: windows that overlap, blended.

Windows are worked off along the longest axis, and what no later window can reach is handed out as a finished slab. So
the accumulator is as long as one window, whatever the length of the volume. Numpy alone: a bundle runs this without
torch.

Positions, padding and weights are those of the sliding window that the field uses (windows every
``patch * (1 - overlap)``, the last one moved back to end with the image; a Gaussian of an eighth of the window, never
below a thousandth, so that a corner that one window alone has seen keeps its answer), which a test compares with.

Shape suffixes: C channels, S spatial axes (two or three), K classes, B windows of a call, P axes of a window.

Reference: Isensee et al. 2021, Nat. Methods 18 (overlap, Gaussian weights, mirroring).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Array = np.ndarray
Answer = Callable[[Array], Array]
"""From float32 windows ``(B, C, *P)`` to logits ``(B, K, *P)``; the last call may have fewer windows."""

Progress = Callable[[int, int], None]
"""Called with the windows done and the windows in all."""

_SIGMA = 0.125
_LEAST_WEIGHT = 1e-3


def slide(
    x_CS: Array,
    answer: Answer,
    *,
    patch: Sequence[int],
    classes: int,
    overlap: float = 0.5,
    batch: int = 1,
    mirror: bool = False,
    progress: Progress | None = None,
    dtype: type = np.float32,
) -> Array:
    """Logits of a whole image or volume.

    Args:
        x_CS: float32, standardised; where it is smaller than the window, zeros (its mean) are put around it.
        answer: the network.
        patch: length of the window along each axis.
        classes: K, with the background.
        overlap: share of the window that its neighbour sees too.
        batch: windows per call.
        mirror: average the answers to a window and to its mirror images along every axis (4 or 8 calls for one).
        dtype: of the result; float16 halves its memory, sums are float32 in any case.

    Returns:
        ``(K, *S)``.

    Raises:
        ValueError: a window, overlap or answer that does not fit (a fault of the caller).
    """
    shape = x_CS.shape[1:]
    out = np.empty((classes, *shape), dtype=dtype)
    axis = slab_axis(shape)
    for start, slab_KS in slide_slabs(
        x_CS, answer, patch=patch, classes=classes, overlap=overlap, batch=batch, mirror=mirror, progress=progress
    ):
        at = [slice(None)] * out.ndim
        at[axis + 1] = slice(start, start + slab_KS.shape[axis + 1])
        out[tuple(at)] = slab_KS
    return out


def slide_labels(
    x_CS: Array,
    answer: Answer,
    *,
    patch: Sequence[int],
    classes: int,
    overlap: float = 0.5,
    batch: int = 1,
    mirror: bool = False,
    progress: Progress | None = None,
) -> Array:
    """The most probable class of each place, uint8 ``(*S)``; the logits of the whole are never held at once."""
    shape = x_CS.shape[1:]
    out = np.empty(shape, dtype=np.uint8)
    axis = slab_axis(shape)
    for start, slab_KS in slide_slabs(
        x_CS, answer, patch=patch, classes=classes, overlap=overlap, batch=batch, mirror=mirror, progress=progress
    ):
        at = [slice(None)] * out.ndim
        at[axis] = slice(start, start + slab_KS.shape[axis + 1])
        out[tuple(at)] = slab_KS.argmax(axis=0)
    return out


def slide_slabs(
    x_CS: Array,
    answer: Answer,
    *,
    patch: Sequence[int],
    classes: int,
    overlap: float = 0.5,
    batch: int = 1,
    mirror: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Array]]:
    """Finished slabs ``(start, logits_KS)`` along ``slab_axis``, in order and without gaps.

    Each slab is the caller's to keep. Arguments as in ``slide``.
    """
    _check(x_CS, patch, overlap, batch)
    shape, size = x_CS.shape[1:], tuple(map(int, patch))
    before = [max(p - n, 0) // 2 for p, n in zip(size, shape)]
    after = [max(p - n, 0) - b for p, n, b in zip(size, shape, before)]
    if any(before) or any(after):
        x_CS = np.pad(x_CS, [(0, 0), *zip(before, after)])
    whole, axis = x_CS.shape[1:], slab_axis(shape)
    network = mirrored(answer) if mirror else answer
    places = list(_places(whole, size, overlap, axis))
    weight_P = window_weights(size)
    ring = list(whole)
    ring[axis] = size[axis]
    sums_KS = np.zeros((classes, *ring), dtype=np.float32)
    weights_S = np.zeros(ring, dtype=np.float32)
    base = 0  # where along the axis the accumulator starts

    def finished(length: int) -> Iterator[tuple[int, Array]]:
        """The first ``length`` layers of the accumulator without padding; what is behind them moves up."""
        nonlocal base
        done = _along(axis, slice(0, length))
        slab_KS = sums_KS[(slice(None), *done)] / weights_S[done]
        low, high = max(base, before[axis]), min(base + length, before[axis] + shape[axis])
        if high > low:
            kept = [slice(b, b + n) for b, n in zip(before, shape)]
            kept[axis] = slice(low - base, high - base)
            yield low - before[axis], np.ascontiguousarray(slab_KS[(slice(None), *kept)])
        rest, moved = _along(axis, slice(length, None)), _along(axis, slice(0, size[axis] - length))
        emptied = _along(axis, slice(size[axis] - length, None))
        for array in (sums_KS, weights_S):
            front = (slice(None),) * (array.ndim - len(ring))
            array[(*front, *moved)] = array[(*front, *rest)].copy()
            array[(*front, *emptied)] = 0
        base += length

    for at in range(0, len(places), batch):
        group = places[at : at + batch]
        windows = np.stack([x_CS[(slice(None), *_window(place, size))] for place in group])
        logits_BKP = network(np.ascontiguousarray(windows, dtype=np.float32))
        if logits_BKP.shape != (len(group), classes, *size):
            raise ValueError(f"the network answered {logits_BKP.shape} to {windows.shape}")
        for place, logits_KP in zip(group, logits_BKP):
            if place[axis] > base:
                yield from finished(place[axis] - base)
            local = list(place)
            local[axis] -= base
            where = _window(tuple(local), size)
            sums_KS[(slice(None), *where)] += logits_KP * weight_P
            weights_S[where] += weight_P
        if progress is not None:
            progress(at + len(group), len(places))
    yield from finished(size[axis])


def slab_axis(shape: Sequence[int]) -> int:
    """The axis along which slabs are cut: the longest, the first of equal ones."""
    return int(np.argmax(shape))


def count_windows(shape: Sequence[int], patch: Sequence[int], overlap: float = 0.5) -> int:
    """How many windows an image of this shape needs."""
    return int(np.prod([len(_starts(max(n, p), p, overlap)) for n, p in zip(shape, patch)]))


def window_weights(patch: Sequence[int]) -> Array:
    """How much each place of a window counts, float32 ``(*P)``: a Gaussian around its centre, 1 there."""
    weight = np.ones((), dtype=np.float64)
    for length in patch:
        distance = np.arange(length) - (length - 1) / 2
        weight = np.multiply.outer(weight, np.exp(-0.5 * (distance / (_SIGMA * length)) ** 2))
    return np.maximum(weight, max(float(weight.min()), _LEAST_WEIGHT)).astype(np.float32)


def mirrored(answer: Answer) -> Answer:
    """The mean answer to windows and their mirror images, each turned back."""

    def average(x_BCP: Array) -> Array:
        axes = range(2, x_BCP.ndim)
        flips = [f for n in range(len(axes) + 1) for f in itertools.combinations(axes, n)]
        total = np.zeros((), dtype=np.float32)
        for flip in flips:
            total = total + np.flip(answer(np.ascontiguousarray(np.flip(x_BCP, flip))), flip)
        return total / np.float32(len(flips))

    return average


def _places(shape: Sequence[int], patch: Sequence[int], overlap: float, axis: int) -> Iterator[tuple[int, ...]]:
    """Starts of all windows, those that come first along ``axis`` first."""
    starts = [_starts(n, p, overlap) for n, p in zip(shape, patch)]
    others = [s for i, s in enumerate(starts) if i != axis]
    for first in starts[axis]:
        for rest in itertools.product(*others):
            yield (*rest[:axis], first, *rest[axis:])


def _starts(length: int, window: int, overlap: float) -> list[int]:
    step = window if length == window else max(int(window * (1 - overlap)), 1)
    count = -(-(length - window) // step) + 1
    return list(dict.fromkeys(min(i * step, length - window) for i in range(count)))


def _window(place: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(place, patch))


def _along(axis: int, cut: slice) -> tuple[slice, ...]:
    """An index that cuts one spatial axis and leaves those behind it whole."""
    return (*(slice(None),) * axis, cut)


def _check(x_CS: Array, patch: Sequence[int], overlap: float, batch: int) -> None:
    if len(patch) != x_CS.ndim - 1 or min(patch) < 1:
        raise ValueError(f"a window of {tuple(patch)} for an array of {x_CS.shape}")
    if not 0 <= overlap < 1 or batch < 1:
        raise ValueError(f"overlap {overlap}, batch {batch}")
