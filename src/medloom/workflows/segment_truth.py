"""One case on the grid of its file: its truth, and what an answer to it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medloom.data.case_restore import Case as Opened
from medloom.data.case_restore import upright
from medloom.data.images import Image
from medloom.data.label_maps import picture_labels, volume_labels
from medloom.data.records import Dataset, Record
from medloom.data.volumes import canonical
from medloom.evaluation.case_table import Case
from medloom.evaluation.mean_shape import MeanShape
from medloom.evaluation.segmentation import score_case, units


@dataclass(frozen=True, eq=False)
class StoredCase:
    """What an answer is brought back to and judged on.

    Attributes:
        image: pixels ``(H, W)`` or ``(H, W, 3)``, or voxels ``(X, Y, Z)`` to the right, anterior and superior.
        labels: positions ``(H, W)`` or ``(X, Y, Z)``, likewise.
        spacing: mm of a pixel or voxel along those axes; None where it is not known of every image.
        file: the image, or the volume as it was read.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, ...] | None
    file: Opened


def stored_case(
    dataset: Dataset,
    record: Record,
    file: Opened,
    *,
    prefer: Literal["refuse", "sform", "qform"],
    max_megapixels: float,
) -> StoredCase:
    """The truth of one case beside its file.

    Args:
        prefer: which place of a NIfTI mask counts, as in ``VolumeConfig``.

    Raises:
        DataError: what reading the mask raises.
    """
    if isinstance(file, Image):
        height, width = file.pixels.shape[:2]
        labels = picture_labels(dataset, record, (height, width), max_megapixels)
        return StoredCase(file.pixels, labels, record.spacing, file)
    mask = volume_labels(dataset, record, file, prefer)
    # Judged upright, so that spacing and planes mean the same in every case.
    standing = canonical(file)
    return StoredCase(standing.array, upright(mask.array, file), standing.spacing, file)


def judged(
    record: Record,
    case: StoredCase,
    answer: np.ndarray,
    structures: int,
    tolerance: float,
    trivial: MeanShape | None = None,
) -> Case:
    """Every measure of one answer, positions on the grid of ``case.labels``."""
    values = score_case(
        case.labels,
        answer,
        structures,
        case.spacing,
        tolerance=tolerance,
        trivial_S=None if trivial is None else trivial.at(case.labels.shape),
    )
    distance, size = units(case.labels.ndim, case.spacing)
    return Case(record.id, record.patient, record.site, values, distance, size)
