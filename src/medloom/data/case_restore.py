"""The model's answer back on the grid of the file that it was asked about, for images and volumes alike.

Shapes: K classes, S spatial axes: (H, W) or (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from medloom.data.case_answer import Windows, answer_case, answer_slabs
from medloom.data.images import Image
from medloom.data.mask_geometry import planes_on_file, restore_mask
from medloom.data.preprocess import Preprocess
from medloom.data.resample import resample, resample_slabs
from medloom.data.sliding import Answer, Progress
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume, canonical

Grid = Preprocess | VolumePreprocess
Case = Image | Volume


def to_pixels(case: Case, grid: Grid) -> np.ndarray:
    """A case as ``case_cache`` stores it: ``(C, *S)`` uint8 of an image, uint16 of a volume.

    Raises:
        DataError: what the preprocessing refuses.
    """
    if isinstance(grid, Preprocess):
        assert isinstance(case, Image)
        return np.ascontiguousarray(np.moveaxis(grid.to_uint8(case), -1, 0))
    assert isinstance(case, Volume)
    return grid.to_uint16(case)


def restore_case(logits_KS: np.ndarray, grid: Grid, case: Case) -> np.ndarray:
    """Positions uint8 on the grid and in the order of the file, from logits on the grid of the model."""
    if isinstance(grid, Preprocess):
        assert isinstance(case, Image)
        return restore_mask(logits_KS, grid, _size(case))
    assert isinstance(case, Volume)
    return grid.restore(logits_KS, case)


def upright(positions: np.ndarray, case: Case) -> np.ndarray:
    """A mask in the order of the file with axes to the right, anterior and superior; of an image as it is."""
    return canonical(Volume(positions, case.affine)).array if isinstance(case, Volume) else positions


def answer_on_file(
    pixels_CS: np.ndarray,
    grid: Grid,
    case: Case,
    windows: Windows,
    classes: int,
    answer: Answer,
    progress: Progress | None = None,
) -> np.ndarray:
    """Positions uint8 on the grid and in the order of the file, from a case as ``to_pixels`` leaves it.

    The same as ``restore_case`` of ``answer_case``, but that the logits of a volume are never held as a whole.
    """
    if isinstance(grid, Preprocess):
        return restore_case(answer_case(pixels_CS, grid, windows, classes, answer), grid, case)
    assert isinstance(case, Volume)
    axis, slabs = answer_slabs(pixels_CS, grid, windows, classes, answer, progress)
    return restore_slabs(axis, slabs, grid, case)


def restore_slabs(
    axis: int, slabs: Iterable[tuple[int, np.ndarray]], grid: VolumePreprocess, volume: Volume
) -> np.ndarray:
    """``restore_case`` of a volume whose logits come in pieces ``(start, logits_KS)``, to the same voxels.

    However long the volume and however many its classes, no more than a piece of the logits is held.
    """
    standing = canonical(volume)
    positions = resample_slabs(slabs, axis, grid.grid(volume)[0], standing.shape)
    return np.ascontiguousarray(standing.to_stored(positions))


def planes(logits_KS: np.ndarray, grid: Grid, case: Case) -> Iterator[np.ndarray]:
    """The logits of one class after another, float32 on the grid and in the order of the file."""
    if isinstance(grid, Preprocess):
        assert isinstance(case, Image)
        yield from planes_on_file(logits_KS, grid, _size(case))
        return
    assert isinstance(case, Volume)
    standing = canonical(case)
    for plane in logits_KS:
        yield standing.to_stored(resample(plane, standing.shape, smooth=False))


def lead_at(logits_KS: np.ndarray, grid: Grid, case: Case, where_S: np.ndarray) -> np.ndarray:
    """By how much the most probable class leads the second, ``(M,)``, at the M places where ``where_S`` is true."""
    from scipy.special import softmax  # a third of a second that no answer with classes needs

    logits_MK = np.stack([plane[where_S] for plane in planes(logits_KS, grid, case)], axis=-1)
    second_M, first_M = np.partition(softmax(logits_MK.astype(np.float64), axis=-1), -2, axis=-1)[:, -2:].T
    return np.asarray(first_M - second_M)


def _size(image: Image) -> tuple[int, int]:
    height, width = image.pixels.shape[:2]
    return height, width
