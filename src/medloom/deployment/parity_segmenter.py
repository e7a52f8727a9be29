"""Does the exported network draw the masks that the trained one draws, from file to mask?

Shapes: B windows of a call, C channels, K classes, S spatial axes, P axes of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from medloom.config_segmentation import SegmentationConfig
from medloom.data.case_restore import Case, lead_at, restore_case, to_pixels
from medloom.deployment.bundle_clean import CleanAnswers, ask, noise
from medloom.deployment.bundle_golden import TIE
from medloom.deployment.parity import TOLERANCE, frozen
from medloom.deployment.segmenter import SegmentPipeline, Source
from medloom.errors import ExportError
from medloom.training.predict_cases import case_logits

BATCHES = {True: (1, 2, 3), False: (1, 2, 7)}
"""Windows of a call, for volumes and for images."""


def check_masks(
    model: nn.Module,
    pipeline: SegmentPipeline,
    cases: Sequence[Source],
    golden: Sequence[Case] = (),
    *,
    batches: Sequence[int] | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Compare the trained network with what will be served, from file to mask.

    One side is what training does (preprocessing, windows, the network in float32, the way back), the other is
    ``pipeline``. Probabilities are compared on the grid of the model, masks on the grid of the file: a place may have
    another class only where the two most probable classes are within ``bundle_golden.TIE`` of each other.

    Args:
        cases: real validation cases; ``golden`` ones are compared too.
        batches: numbers of windows that one call is tried with; default ``BATCHES``.

    Returns:
        ``cases, places, batches, max_probability_difference, mean_probability_difference, ties, flips``: places are
        pixels or voxels of the files, ties those that differ and may, flips those that differ and may not.

    Raises:
        ExportError: X602 a probability differs by more than ``tolerance``, or a place flips.
        DataError: a case cannot be read.
    """
    served = InProcess(pipeline, batches or BATCHES[pipeline.volumes])
    return _check(model, pipeline, (*cases, *golden), len(cases), served, tolerance)


def check_masks_clean(
    model: nn.Module,
    pipeline: SegmentPipeline,
    bundle: Path,
    runtime: str,
    cases: Sequence[Source],
    *,
    tolerance: float = TOLERANCE,
) -> tuple[dict[str, Any], dict[str, float]]:
    """As :func:`check_masks`, but a bundle on disk is asked, in a process of its own without torch.

    Args:
        pipeline: any of the same bundle: it reads the files for the trained network.

    Returns:
        The report, and milliseconds per window by batch size, measured in that process.

    Raises:
        ExportError: X602; what opening the bundle raises.
    """
    batches = BATCHES[pipeline.volumes]
    with ask(bundle, runtime, cases, batches, timed=(1, 2)) as clean:
        return _check(model, pipeline, cases, len(cases), Recorded(clean, batches), tolerance), clean.milliseconds


@dataclass(frozen=True)
class InProcess:
    """The pipeline here, asked case by case."""

    pipeline: SegmentPipeline
    batches: Sequence[int]

    def case(self, number: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
        return self.pipeline.logits(case), self.pipeline.positions(case)

    def windows(self, x_BCP: np.ndarray) -> np.ndarray:
        return self.pipeline.runtime.logits(x_BCP)


@dataclass(frozen=True)
class Recorded:
    """What the same pipeline said in another process."""

    clean: CleanAnswers
    batches: Sequence[int]

    def case(self, number: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
        return self.clean.case(number)

    def windows(self, x_BCP: np.ndarray) -> np.ndarray:
        return self.clean.windows(len(x_BCP))


def _check(
    model: nn.Module,
    pipeline: SegmentPipeline,
    cases: Sequence[Source],
    given: int,
    served: InProcess | Recorded,
    tolerance: float,
) -> dict[str, Any]:
    """The comparison; the first ``given`` of the cases are the caller's."""
    if not given:
        raise ValueError("parity needs at least one case")
    model, batches = frozen(model), served.batches
    worst, furthest, total, count, places, ties, flips = "", 0.0, 0.0, 0, 0, 0, 0
    for number, source in enumerate(cases):
        name = str(source) if not isinstance(source, np.ndarray | bytes) and number < given else f"case {number}"
        case = pipeline.open(source, name)
        expected_KS, (found_KS, found) = reference_masks(model, pipeline, case), served.case(number, case)
        off_KS = np.abs(softmax(expected_KS, axis=0) - softmax(found_KS, axis=0))
        reference = restore_case(expected_KS, pipeline.preprocess, case)
        differing = reference != found
        apart = 0
        if differing.any():
            apart = int((lead_at(expected_KS, pipeline.preprocess, case, differing) > TIE).sum())
        ties, flips = ties + int(differing.sum()) - apart, flips + apart
        if not float(off_KS.max()) <= furthest or apart:
            worst, furthest = name, max(furthest, float(np.nan_to_num(off_KS, nan=1.0).max()))
        total, count, places = total + float(off_KS.sum(dtype=np.float64)), count + off_KS.size, places + reference.size
    worst, furthest = _batched(model, pipeline, served, worst, furthest)
    report = {
        "cases": given,
        "places": places,
        "batches": list(batches),
        "max_probability_difference": furthest,
        "mean_probability_difference": total / count,
        "ties": ties,
        "flips": flips,
    }
    if not furthest <= tolerance or flips:
        raise ExportError(
            "X602",
            worst,
            f"the exported network draws otherwise than the trained one: probabilities off by {furthest:.1e} at most, "
            f"{total / count:.1e} on average (allowed {tolerance:.0e}), {flips:,} of {places:,} places flipped",
            "No bundle was written. Report the model; its run directory is whole",
        )
    return report


def reference_masks(model: nn.Module, pipeline: SegmentPipeline, case: Case) -> np.ndarray:
    """``(K, *S)`` logits on the grid of the model as training and evaluation compute them, without AMP."""
    windows = pipeline.windows
    config = SegmentationConfig(patch=windows.patch, overlap=windows.overlap, mirror=windows.mirror)
    pixels_CS = to_pixels(case, pipeline.preprocess)
    classes, device = len(pipeline.classes), torch.device("cpu")
    return case_logits(frozen(model), pixels_CS, pipeline.preprocess, config, classes, device)


def _batched(
    model: nn.Module, pipeline: SegmentPipeline, served: InProcess | Recorded, worst: str, furthest: float
) -> tuple[str, float]:
    """Windows of noise at each batch size (X603): the same network must answer, whatever their number."""
    x_BCP = noise(max(served.batches), pipeline.runtime.in_chans, pipeline.runtime.size)
    with torch.inference_mode():
        expected_BKP = torch.cat([model(torch.from_numpy(x_BCP[i : i + 1])) for i in range(len(x_BCP))]).numpy()
    for batch in served.batches:
        off = np.abs(softmax(expected_BKP[:batch], axis=1) - softmax(served.windows(x_BCP[:batch]), axis=1))
        if not float(off.max()) <= furthest:
            worst, furthest = f"{batch} windows at once", float(np.nan_to_num(off, nan=1.0).max())
    return worst, furthest
