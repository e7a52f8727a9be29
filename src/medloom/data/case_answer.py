"""From a stored case to the network's answer, the one way of training, evaluation, export parity and serving.

An image goes through the network whole, a volume through windows that overlap. What the network is, torch or ONNX, is
the caller's: it comes as a function from windows to logits.

Shape suffixes: B windows of a call, C channels, K classes, S spatial axes of a case, P axes of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medloom.data.preprocess import Preprocess
from medloom.data.sliding import Answer, Progress, slab_axis, slide_slabs
from medloom.data.volume_preprocess import VolumePreprocess

WINDOWS = 2
"""Windows of a call: more only cost memory on a CPU."""


@dataclass(frozen=True)
class Windows:
    """How a case is cut up and answered.

    Attributes:
        patch: voxels per axis of a window; None for images, which are answered whole.
        overlap: share of a window that its neighbour sees too.
        mirror: average the answers to a case and its mirror images: of an image the one that swaps left and right, of
            a volume's windows those along every axis.
    """

    patch: tuple[int, ...] | None = None
    overlap: float = 0.5
    mirror: bool = False


def answer_case(
    pixels_CS: np.ndarray,
    preprocess: Preprocess | VolumePreprocess,
    windows: Windows,
    classes: int,
    answer: Answer,
    progress: Progress | None = None,
) -> np.ndarray:
    """``(K, *S)`` float32 logits of one case on the grid of the model.

    Args:
        pixels_CS: as the preprocessing leaves a case and ``case_cache`` holds it: uint8 of an image (channels first),
            uint16 of a volume.
        classes: K, with the background.
        progress: called with the windows done and the windows in all.
    """
    if isinstance(preprocess, Preprocess):
        return _whole(pixels_CS, preprocess, windows, answer)
    out = np.empty((classes, *pixels_CS.shape[1:]), dtype=np.float32)
    axis, slabs = answer_slabs(pixels_CS, preprocess, windows, classes, answer, progress)
    for start, slab_KS in slabs:
        at = [slice(None)] * out.ndim
        at[axis + 1] = slice(start, start + slab_KS.shape[axis + 1])
        out[tuple(at)] = slab_KS
    return out


def answer_slabs(
    pixels_CS: np.ndarray,
    preprocess: VolumePreprocess,
    windows: Windows,
    classes: int,
    answer: Answer,
    progress: Progress | None = None,
) -> tuple[int, Iterator[tuple[int, np.ndarray]]]:
    """The same of a volume piece by piece, for those who need not hold all of it.

    Returns:
        The spatial axis along which slabs come, and the slabs ``(start, logits_KS)``, in order and without gaps.
    """
    if windows.patch is None:
        raise ValueError("a volume is answered through windows: give the patch")
    x_CS, inside = padded(preprocess.normalise(np.asarray(pixels_CS)), windows.patch, preprocess)
    axis = slab_axis(x_CS.shape[1:])
    slabs = slide_slabs(
        x_CS,
        answer,
        patch=windows.patch,
        classes=classes,
        overlap=windows.overlap,
        batch=WINDOWS,
        mirror=windows.mirror,
        progress=progress,
    )
    return axis, _cut(slabs, axis, inside)


def padded(
    x_CS: np.ndarray, patch: Sequence[int], preprocess: VolumePreprocess
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """A case at least as large as a window, in the middle of its lowest value; and where in it the case is.

    Training patches have the same around a case that ends; the zeros that sliding windows are padded with are the mean.
    """
    lacking = [max(0, p - n) for p, n in zip(patch, x_CS.shape[1:])]
    before = [n // 2 for n in lacking]
    inside = tuple(slice(b, b + n) for b, n in zip(before, x_CS.shape[1:]))
    if not any(lacking):
        return x_CS, inside
    lowest = float(preprocess.normalise(np.zeros(1, dtype=np.uint16))[0])
    width = [(0, 0), *((b, n - b) for b, n in zip(before, lacking))]
    return np.pad(x_CS, width, constant_values=lowest), inside


def _whole(pixels_CHW: np.ndarray, preprocess: Preprocess, windows: Windows, answer: Answer) -> np.ndarray:
    x_1CHW = preprocess.normalise(np.ascontiguousarray(np.moveaxis(pixels_CHW, 0, -1))[None])
    if not windows.mirror:
        return np.asarray(answer(x_1CHW)[0])
    mirrored_1CHW = np.ascontiguousarray(x_1CHW[..., ::-1])
    return np.asarray(np.float32(0.5) * (answer(x_1CHW)[0] + answer(mirrored_1CHW)[0, :, :, ::-1]))


def _cut(
    slabs: Iterator[tuple[int, np.ndarray]], axis: int, inside: tuple[slice, ...]
) -> Iterator[tuple[int, np.ndarray]]:
    """Slabs of the padded case without the padding."""
    for start, slab_KS in slabs:
        kept = list(inside)
        low = max(inside[axis].start, start)
        high = min(inside[axis].stop, start + slab_KS.shape[axis + 1])
        if high > low:
            kept[axis] = slice(low - start, high - start)
            yield low - inside[axis].start, np.ascontiguousarray(slab_KS[(slice(None), *kept)])
