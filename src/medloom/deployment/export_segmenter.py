"""From a trained segmenter to a bundle: one ONNX file, and proof that it draws the masks that the network draws.

Shapes: B windows, C channels, K classes, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from medloom.data.case_answer import Windows
from medloom.data.case_restore import Case, Grid
from medloom.data.images import MIN_SIDE
from medloom.data.mask_geometry import require_restorable
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume
from medloom.deployment.bundle_golden import golden_arrays
from medloom.deployment.bundle_segmenter import SETTINGS, write_segmenter
from medloom.deployment.export import LICENCES, golden_inputs, of_one_file, onnx_bytes, timed_on
from medloom.deployment.parity import frozen
from medloom.deployment.parity_segmenter import check_masks, reference_masks
from medloom.deployment.runtime import Runtime, open_image
from medloom.deployment.segmenter import SegmentPipeline, Source

GOLDEN_IMAGES = 2
_TIMED = (1, 2)


def export_segmenter(
    model: nn.Module,
    directory: str | Path,
    *,
    name: str,
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    label_values: Sequence[int],
    preprocess: Grid,
    segmentation: Mapping[str, Any],
    cases: Sequence[Source],
    decoding: Mapping[str, Any] | None = None,
    expected_input: Mapping[str, Any] | None = None,
    licences: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    intended_use: str | None = None,
    golden_seed: int = 0,
) -> Path:
    """Export, compare on real ``cases`` from file to mask, record golden answers and latency, and write the bundle.

    Nothing is left in ``directory`` unless every step passed; a bundle that was there before stays until then.

    Args:
        model: ``forward(x_BCS)`` gives ``(B, K, *S)``.
        architecture: ``{"name": ..., **kwargs}`` with which ``create_model`` builds this model.
        classes: the background first; ``label_values`` are the numbers that stand for them in masks.
        segmentation: ``patch`` (three lengths; None or left out for images), ``overlap``, ``mirror``,
            ``keep_largest`` (true or false, as validation decided).
        cases: validation cases for parity: paths, DICOM series, images or volumes. A few suffice: each is answered
            twice, and a volume's every voxel counts.
        decoding: ``frames``, ``max_megapixels`` and ``expect`` of the data configuration; frames of their own
            (``all``) are answered one file at a time, so they count as ``refuse``.

    Raises:
        ExportError: X601 operator missing, X602 parity.
        ModelError: what ``medloom.load`` would refuse in the bundle.
        DataError: a case that cannot be read.
        UsageError: U226 a geometry that has no way back.
    """
    model, decoding = frozen(model), of_one_file(decoding)
    settings = {**SETTINGS, **segmentation}
    patch = None if settings["patch"] is None else tuple(int(n) for n in settings["patch"])
    if isinstance(preprocess, Preprocess):
        require_restorable(preprocess)
    size = preprocess.size if isinstance(preprocess, Preprocess) else patch
    if size is None:
        raise ValueError("a volume is answered through windows: give segmentation['patch']")
    onnx = onnx_bytes(model, in_chans=preprocess.in_chans, size=size)
    pipeline = SegmentPipeline(
        tuple(classes),
        tuple(int(v) for v in label_values),
        preprocess,
        Windows(patch, float(settings["overlap"]), bool(settings["mirror"])),
        bool(settings["keep_largest"]),
        Runtime(onnx),
        **(decoding or {}),
    )
    golden = golden_cases(preprocess, patch, golden_seed)
    parity = check_masks(model, pipeline, cases, golden)
    milliseconds = pipeline.runtime.latency(batches=_TIMED, repeats=3)
    return write_segmenter(
        directory,
        name=name,
        architecture=architecture,
        classes=classes,
        label_values=label_values,
        preprocess=preprocess,
        segmentation=settings,
        decoding=decoding,
        weights={key: tensor.numpy() for key, tensor in model.state_dict().items()},
        onnx=onnx,
        golden=golden_arrays(golden, [reference_masks(model, pipeline, case) for case in golden], preprocess),
        expected_input=expected_input or _expected(preprocess),
        licences=licences or LICENCES,
        provenance=provenance or {},
        metrics=metrics,
        latency={"milliseconds_per_window_at_batch": milliseconds, **timed_on(pipeline.runtime)},
        parity=parity,
        intended_use=intended_use,
    )


def golden_cases(preprocess: Grid, patch: tuple[int, ...] | None, seed: int) -> list[Case]:
    """Synthetic inputs that every step of the way is proved on: two images, or one oblique volume of two windows."""
    if isinstance(preprocess, Preprocess):
        return [open_image(image, "golden") for image in golden_inputs(preprocess, seed, GOLDEN_IMAGES)]
    assert patch is not None
    return [golden_volume(preprocess, patch, seed)]


def golden_volume(preprocess: VolumePreprocess, patch: tuple[int, ...], seed: int) -> Volume:
    """Ellipsoids in noise, int16: on the model's grid longer than a window along one axis and shorter along the others,
    stored to the left, superior and anterior, turned by some degrees, at a spacing of its own.
    """
    draw = np.random.default_rng(seed)
    longest = int(np.argmax(patch))
    wanted = [p + max(1, p // 4) if a == longest else max(2, round(0.7 * p)) for a, p in enumerate(patch)]
    goal = preprocess.spacing or (1.0, 1.2, 0.9)
    ratio = (1.0, 1.0, 1.0) if preprocess.spacing is None else (0.8, 1.25, 0.9)
    shape = [max(2, round(n / r)) for n, r in zip(wanted, ratio)]
    at_SXYZ = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    values = 0.1 + 0.05 * draw.normal(size=shape)
    for level in (0.3, 0.45, 0.7, 0.95):
        centre, radii = draw.uniform(-0.5, 0.5, 3), draw.uniform(0.2, 0.6, 3)
        values[(((at_SXYZ - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(axis=0) < 1] += level
    low, high = preprocess.window or (0.0, 1000.0)
    stored = np.rint(low + (high - low) * values).clip(-32000, 32000).astype(np.int16)
    # Axes of the file: right to left, inferior to superior, posterior to anterior.
    stored = np.ascontiguousarray(stored[::-1].transpose(0, 2, 1))
    angle = np.deg2rad(9.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (turn * [s * r for s, r in zip(goal, ratio)]) @ np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    affine[:3, 3] = (31.0, -42.5, 17.25)
    return Volume(stored, affine)


def _expected(preprocess: Grid) -> dict[str, str]:
    if isinstance(preprocess, Preprocess):
        height, width = preprocess.size
        sized = f"resized to {height} x {width} ({preprocess.resize}); the mask has the pixels of the file"
        return {
            "content": "one image per file, of the kind that the training images were",
            "colour": "red, green, blue" if preprocess.channels == "rgb" else "grey; colours are turned into grey",
            "size": f"{height} x {width} pixels, no other"
            if preprocess.resize == "none"
            else f"from {MIN_SIDE} pixels a side; {sized}",
        }
    spacing = preprocess.spacing
    return {
        "content": "one volume per NIfTI file or DICOM series, of the kind that the training volumes were",
        "orientation": "any that the header states; turned to right, anterior, superior",
        "spacing": "its own"
        if spacing is None
        else f"any; resampled to {' x '.join(f'{s:g}' for s in spacing)} mm (right, anterior, superior)",
    }
