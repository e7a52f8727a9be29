"""Does the exported network answer as the trained one does, from image file to decision?

Shapes: N images, B batch, H x W pixels, C channels, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medloom.data.cache import finish
from medloom.deployment.bundle_clean import ask
from medloom.deployment.runtime import Picture, Pipeline, Prediction
from medloom.errors import ExportError

BATCHES = (1, 2, 7, 32)
TOLERANCE = 1e-4  # of a probability


def check_parity(
    model: nn.Module,
    pipeline: Pipeline,
    images: Sequence[Picture],
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Compare the trained network with what will be served, from image file to decision.

    One side is what training does (preprocessing, the torch form of the last affine, the network in float32), the other
    is ``pipeline``, fed at each of the ``batches`` and then with all images that are left.

    Args:
        images: real validation images, as paths or arrays; used again from the start where they are fewer than a batch.

    Returns:
        ``images, batches, max_probability_difference, mean_probability_difference, max_logit_difference, flips``.

    Raises:
        ExportError: X602 when a probability differs by more than ``tolerance`` or any decision flips.
        DataError: an image cannot be read.
    """
    expected = expected_answers(model, pipeline, images)
    pairs: list[tuple[Prediction, Prediction]] = []
    places = cycle(range(len(images)))
    for batch in (*batches, len(images) - sum(batches)):
        chosen = list(islice(places, max(0, batch)))
        found = pipeline.stream([images[k] for k in chosen], batch_size=batch)
        pairs += [(expected[k], answer) for k, answer in zip(chosen, found, strict=True)]
    return judge(pairs, len(images), batches, tolerance)


def expected_answers(model: nn.Module, pipeline: Pipeline, images: Sequence[Picture]) -> list[Prediction]:
    """What the trained network answers to ``images``, in their order.

    Raises:
        DataError: an image cannot be read. ValueError: there is none.
    """
    if not images:
        raise ValueError("parity needs at least one image")
    names = [str(image) if isinstance(image, str | Path) else f"image {k}" for k, image in enumerate(images)]
    pixels_NHWC = [pipeline.preprocess.to_uint8(pipeline.open(image, name)) for image, name in zip(images, names)]
    return pipeline.answer(names, reference_logits(model, pipeline, pixels_NHWC))


def check_clean(
    expected: Sequence[Prediction],
    bundle: Path,
    runtime: str,
    images: Sequence[Picture],
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float = TOLERANCE,
) -> tuple[dict[str, Any], dict[str, float]]:
    """As :func:`check_parity`, but a bundle on disk is asked, in a process of its own without torch.

    Args:
        expected: what :func:`expected_answers` gave for ``images``.

    Returns:
        The report, and milliseconds per image by batch size, measured in that process.

    Raises:
        ExportError: X602; what opening the bundle raises.
    """
    with ask(bundle, runtime, images, batches) as clean:
        pairs = [(expected[k], Prediction(**answer)) for k, answer in clean.answers]
        return judge(pairs, len(images), batches, tolerance), clean.milliseconds


def judge(
    pairs: Sequence[tuple[Prediction, Prediction]], images: int, batches: Sequence[int], tolerance: float
) -> dict[str, Any]:
    """The report on answers (expected, found), or the refusal.

    Raises:
        ExportError: X602.
    """
    off_N = np.array([_difference(a.probabilities, b.probabilities) for a, b in pairs])
    logits_N = np.array([_difference(a.logits, b.logits) for a, b in pairs])
    flips = sum(a.label != b.label for a, b in pairs)
    report = {
        "images": images,
        "batches": list(batches),
        "max_probability_difference": float(off_N.max()),
        "mean_probability_difference": float(off_N.mean()),
        "max_logit_difference": float(logits_N.max()),
        "flips": flips,
    }
    if not off_N.max() <= tolerance or flips:
        worst = pairs[int(np.nan_to_num(off_N, nan=np.inf).argmax())][0].id
        raise ExportError(
            "X602",
            worst,
            f"the exported network answers otherwise than the trained one: probabilities off by {off_N.max():.1e} at "
            f"most, {off_N.mean():.1e} on average (allowed {tolerance:.0e}), {flips} of {len(pairs)} decisions flipped",
            "No bundle was written. Report the model; its run directory is whole",
        )
    return report


def reference_logits(model: nn.Module, pipeline: Pipeline, pixels_NHWC: Sequence[np.ndarray]) -> np.ndarray:
    """``(N, K)`` logits as training and evaluation compute them, without AMP."""
    model = frozen(model)
    out: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(pixels_NHWC), 32):
            block_BHWC = torch.from_numpy(np.stack(pixels_NHWC[start : start + 32]))
            x_BCHW = finish(block_BHWC.permute(0, 3, 1, 2).float() / 255, pipeline.preprocess)
            logits_BK = model(x_BCHW)
            out.append((logits_BK + model(x_BCHW.flip(-1))) / 2 if pipeline.flip_average else logits_BK)
    return torch.cat(out).numpy()


def frozen(model: nn.Module) -> nn.Module:
    """A copy on the CPU, float32, in evaluation mode; the caller's model is not touched."""
    return copy.deepcopy(model).cpu().float().eval()


def _difference(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The largest; NaN where any is NaN (``max`` would keep what came before it), or the classes are not the same."""
    if not one or one.keys() != other.keys():
        return float(np.nan)
    return float(np.max([abs(value - other[key]) for key, value in one.items()]))
