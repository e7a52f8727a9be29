"""The golden inputs of a segmenter: what is recorded of them at export, and how every load judges itself by them.

Shapes: N inputs, K classes, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medloom.data.case_restore import Case, Grid, lead_at, restore_case
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume
from medloom.deployment.bundle_document import EDITED
from medloom.deployment.bundle_files import read_arrays
from medloom.deployment.bundle_folder import check_answers
from medloom.deployment.bundle_runtimes import TOLERANCE
from medloom.deployment.runtime import open_image
from medloom.deployment.segmenter import SegmentPipeline
from medloom.errors import DataError, ModelError

TIE = 2e-4
"""Where the two most probable classes are closer than this, either is right: float32 rounds otherwise elsewhere."""

GOLDEN_VALUES = 100_000
"""Logits of a golden input that are recorded at most; of larger ones every second, third ... along each axis."""


def golden_arrays(cases: Sequence[Case], logits_NKS: Sequence[np.ndarray], preprocess: Grid) -> dict[str, np.ndarray]:
    """What golden.npz holds: images ``(N, H, W[, 3])`` or one volume with its affine, logits and positions.

    Args:
        logits_NKS: the trained network's own answers on the grid of the model.
    """
    masks = np.stack([restore_case(z, preprocess, case) for z, case in zip(logits_NKS, cases, strict=True)])
    logits = np.stack([thinned(z) for z in logits_NKS])
    if isinstance(preprocess, VolumePreprocess):
        (volume,) = (case for case in cases if isinstance(case, Volume))
        return {"volume": volume.array, "affine": volume.affine, "logits": logits, "masks": masks}
    images = np.stack([case.pixels for case in cases if not isinstance(case, Volume)])
    return {"images": images, "logits": logits, "masks": masks}


def thinned(logits_KS: np.ndarray) -> np.ndarray:
    """The logits that are recorded: all, or evenly spaced ones of a large input."""
    step = 1
    while logits_KS.shape[0] * np.prod([-(-n // step) for n in logits_KS.shape[1:]]) > GOLDEN_VALUES:
        step += 1
    return np.ascontiguousarray(logits_KS[(slice(None), *(slice(None, None, step),) * (logits_KS.ndim - 1))])


def check_golden(
    place: Path, data: bytes, pipeline: SegmentPipeline, *, own: str = "", tolerance: float = TOLERANCE
) -> None:
    """The recorded inputs, through the whole path, must give the recorded answers.

    Args:
        own: ending of the names under which this runtime's answers are recorded.

    Raises:
        ModelError: C501, C502, C504, C505 the recorded arrays, C507 other answers, C508 answers that are no numbers.
    """
    arrays = read_arrays(place, data)
    expected, masks = arrays.get("logits" + own), arrays.get("masks" + own)
    tie = max(TIE, tolerance)  # coarser arithmetic ties sooner
    try:
        cases = _golden_cases(arrays, pipeline)
    except (KeyError, ValueError, TypeError):
        cases = []
    except DataError as problem:
        raise ModelError("C507", place, f"golden images are refused: {problem.problem}", EDITED) from None
    if expected is None or masks is None or not cases or expected.ndim < 2:
        raise ModelError("C505", place, "golden images and answers do not fit each other", EDITED)
    if len(expected) != len(cases) or len(masks) != len(cases) or expected.shape[1] != len(pipeline.classes):
        raise ModelError("C505", place, "golden images and answers do not fit the classes", EDITED)
    for k, case in enumerate(cases):
        try:
            logits_KS = pipeline.logits(case)
        except DataError as problem:
            raise ModelError("C507", place, f"golden images are refused: {problem.problem}", EDITED) from None
        found = thinned(logits_KS)
        if found.shape != expected[k].shape:
            told = f"golden images give answers of {found.shape}, and {expected[k].shape} are recorded"
            raise ModelError("C507", place, told, "Preprocessing changed: export again, or update medloom")
        # The largest of the case: behind a hundred layers a logit near 0 is rounded as coarsely as its neighbours.
        largest = float(np.abs(expected[k]).max(initial=0.0))
        check_answers(place, found, expected[k], largest, len(cases), tolerance, pipeline.runtime.name)
        differing = restore_case(logits_KS, pipeline.preprocess, case) != masks[k]
        if differing.any() and (lead_at(logits_KS, pipeline.preprocess, case, differing) > tie).any():
            told = f"the golden masks differ in {int(differing.sum())} places"
            raise ModelError("C507", place, told, "The way back to the file changed: export again, or update medloom")


def _golden_cases(arrays: Mapping[str, np.ndarray], pipeline: SegmentPipeline) -> list[Case]:
    if not pipeline.volumes:
        return [open_image(image, "golden") for image in arrays["images"]]
    volume, affine = arrays["volume"], arrays["affine"]
    if volume.ndim != 3 or affine.shape != (4, 4):
        raise ValueError("no volume")
    return [Volume(volume, affine.astype(np.float64))]
