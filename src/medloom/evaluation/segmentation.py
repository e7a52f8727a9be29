"""How well a mask fits the reference, per case and structure, in millimetres.

What an empty mask gives is where segmentation tables flatter. Here: both empty, and nothing is estimable (counted, in
no mean); one of the two empty, and Dice and surface Dice are 0 and both distances the diagonal of the image, so that
finding less never looks better. A structure that was missed, or invented, is also counted as such.

Shapes: S the spatial axes (two or three), K structures (without the background). Numpy and scipy alone.

References: Maier-Hein et al. 2024, Nat. Methods 21 (which metric answers what); Reinke et al. 2024, Nat. Methods 21
(empty masks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medloom.evaluation.surfaces import (
    diagonal,
    hausdorff,
    match_lesions,
    mean_surface_distance,
    surface_dice,
    surface_distances,
)

Array = np.ndarray

MEASURES = (
    "dice",
    "hd95",
    "nsd",
    "assd",
    "size_truth",
    "size_answer",
    "size_error",
    "size_error_relative",
    "lesions_found",
    "lesions_missed",
    "lesions_invented",
    "lesion_f1",
    "trivial_dice",
)
"""Every number of one case and one structure, in the order of the table."""


def units(axes: int, spacing: Sequence[float] | None) -> tuple[str, str]:
    """Of distances and of sizes: ``mm`` with ``ml`` or ``cm²``; pixels or voxels where no spacing is stated."""
    if spacing is None:
        return ("pixels", "pixels") if axes == 2 else ("voxels", "voxels")
    return "mm", "cm²" if axes == 2 else "ml"


def score_case(
    truth_S: Array,
    answer_S: Array,
    structures: int,
    spacing: Sequence[float] | None,
    *,
    tolerance: float = 2.0,
    trivial_S: Array | None = None,
) -> dict[str, Array]:
    """Every measure of every structure of one case.

    Args:
        truth_S, answer_S: positions in the classes, 0 for the background.
        structures: how many there are; positions 1 to ``structures``.
        spacing: mm of a voxel along each axis, or None: then distances are in pixels.
        tolerance: within which two surfaces agree, in the unit of the distances.
        trivial_S: what an answer without looking would be (``mean_shape``), judged by Dice alone.

    Returns:
        measure to ``(K,)`` float64, NaN where there is nothing to measure. Sizes are in ml (volumes), cm² (images),
        or in voxels where no spacing is stated; errors are answer minus truth, the relative one a share of the truth.

    Raises:
        ValueError: masks of unequal shape, or a spacing of another number of axes (a fault of the caller).
    """
    if truth_S.shape != answer_S.shape or (trivial_S is not None and trivial_S.shape != truth_S.shape):
        raise ValueError(f"masks of {truth_S.shape} and {answer_S.shape}")
    if spacing is not None and len(spacing) != truth_S.ndim:
        raise ValueError(f"{len(spacing)} spacings, {truth_S.ndim} axes")
    step = tuple(map(float, spacing)) if spacing is not None else (1.0,) * truth_S.ndim
    far = diagonal(truth_S.shape, step)
    # A thousand cubic millimetres are a millilitre; a hundred square ones a square centimetre.
    voxel = math.prod(step) / (1 if spacing is None else 100 if truth_S.ndim == 2 else 1000)
    boxes = [_boxes(mask, structures) for mask in (truth_S, answer_S)]
    out = {name: np.full(structures, np.nan) for name in MEASURES}
    for k in range(structures):
        box = _joint([b[k] for b in boxes])
        if box is None:
            truth = answer = np.zeros((0,) * truth_S.ndim, dtype=bool)
        else:
            truth, answer = truth_S[box] == k + 1, answer_S[box] == k + 1
        for name, value in compare_masks(truth, answer, step, tolerance=tolerance, far=far, voxel=voxel).items():
            out[name][k] = value
        if trivial_S is not None:
            out["trivial_dice"][k] = dice(truth_S == k + 1, trivial_S == k + 1)
    return out


def compare_masks(
    truth: Array,
    answer: Array,
    spacing: Sequence[float],
    *,
    tolerance: float,
    far: float,
    voxel: float = 1.0,
) -> dict[str, float]:
    """Every measure but the trivial one, of two bool masks.

    The masks may be cropped to the box that holds both, since what lies beyond counts as outside.

    Args:
        far: what stands for a distance where one of the two is empty.
        voxel: size of one voxel, in the unit that sizes are wanted in.
    """
    sizes = int(truth.sum()), int(answer.sum())
    found, missed, invented = match_lesions(truth, answer) if any(sizes) else (0, 0, 0)
    out = {
        "dice": dice(truth, answer),
        "size_truth": sizes[0] * voxel,
        "size_answer": sizes[1] * voxel,
        "size_error": (sizes[1] - sizes[0]) * voxel,
        "size_error_relative": (sizes[1] - sizes[0]) / sizes[0] if sizes[0] else math.nan,
        "lesions_found": float(found),
        "lesions_missed": float(missed),
        "lesions_invented": float(invented),
        "lesion_f1": 2 * found / (2 * found + missed + invented) if any(sizes) else math.nan,
    }
    if not any(sizes):
        return out | {"hd95": math.nan, "assd": math.nan, "nsd": math.nan}
    if not all(sizes):
        return out | {"hd95": far, "assd": far, "nsd": 0.0}
    distances = surface_distances(truth, answer, spacing)
    return out | {
        "hd95": hausdorff(distances),
        "assd": mean_surface_distance(distances),
        "nsd": surface_dice(distances, tolerance),
    }


def dice(truth: Array, answer: Array) -> float:
    """Twice the intersection over the sum of both; NaN where both are empty."""
    total = int(truth.sum()) + int(answer.sum())
    return 2 * int((truth & answer).sum()) / total if total else math.nan


def _boxes(mask: Array, structures: int) -> list[tuple[slice, ...] | None]:
    """The smallest box of each structure, None of one that is not there."""
    labels = mask if np.issubdtype(mask.dtype, np.signedinteger) or mask.dtype == np.uint8 else mask.astype(np.int64)
    found = ndimage.find_objects(labels, max_label=structures)
    return [*found, *[None] * (structures - len(found))]


def _joint(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...] | None:
    there = [b for b in boxes if b is not None]
    if not there:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*there))
