"""From what a data set is to a recipe for it: every choice with its reason, in YAML that a person can edit.

The order of nnU-Net (Isensee et al., Nature Methods 18:203, 2021): spacing from the median of the cases, patch as large
as memory allows with the proportions of the median case, then batch size with what is left; normalisation by kind of
image. The estimate of memory is that of ``plan_memory``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from medloom.data.plan_memory import LARGEST_PICTURE, STEP, half_gigabytes, largest_batch, largest_patch, step_gigabytes
from medloom.data.plan_strides import APART, WINDOWED, plan_strides, plan_window
from medloom.data.scan import Scan
from medloom.errors import DataError, UsageError

DEFAULTS = {2: "maxvit_unet_mini", 3: "maxvit_unet_3d_tiny"}
ANISOTROPY = 3.0
RARE = 0.001
SET_ASIDE = 0.2


@dataclass(frozen=True)
class Choice:
    """One key of the recipe with its reason, which becomes its comment."""

    key: str
    value: Any
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Choices in the order of the recipe, and the estimate that they rest on.

    Attributes:
        gigabytes: of a training step in float32; bfloat16 activations take about half.
        facts: the fingerprint, as plain values.
    """

    choices: tuple[Choice, ...]
    gigabytes: float
    facts: dict[str, Any]

    def as_yaml(self) -> str:
        """The recipe as text: sections in their order, reasons as comments behind their keys."""
        lines = ["# Written by medloom data plan; every value may be edited."]
        section = None
        for choice in self.choices:
            head, _, key = choice.key.rpartition(".")
            if head != section and head:
                lines.append(f"{head}:")
            section = head
            text = f"{'  ' if head else ''}{key}: {_yaml(choice.value)}"
            lines.append(f"{text}  # {choice.reason}" if choice.reason else text)
        return "\n".join(lines) + "\n"


def make_plan(scan: Scan, *, model: str | None = None, memory: float = 4.0, data: dict[str, Any] | None = None) -> Plan:
    """Plan a recipe for a scanned data set of masks, from its cases that are of no test part.

    Args:
        model: a segmenter of ``STEP``; by default the small hybrid for the kind of data.
        memory: gigabytes that a training step may take.
        data: values of the recipe's ``data`` part that the scan was made with.

    Raises:
        UsageError: U228 data without masks; U204 a segmenter that is not planned for, or one for the other kind;
            U229 no patch fits into the memory.
        DataError: D115 every case is of a test part.
    """
    if not scan.cases:
        remedy = "Give images/ and masks/, imagesTr/ and labelsTr/, or a table with both columns"
        raise UsageError("U228", scan.dataset.name, "a plan is made for data with masks, and these have none", remedy)
    seen = scan.without("test")  # its spacing, window and sizes would else be learnt from
    if not seen.cases:
        raise DataError("D115", scan.dataset.name, "every case is of a test part", "Bring cases to train on")
    dims = 3 if scan.cases[0].spacing is not None else 2
    name = model or DEFAULTS[dims]
    if name not in STEP or STEP[name][0] != dims:
        fit = ", ".join(n for n, (axes, *_) in STEP.items() if axes == dims)
        raise UsageError("U204", "--model", f"{name} is no segmenter of these data", f"Choose one of {fit}")
    grid = _volume_grid(seen) if dims == 3 else _picture_grid(seen)
    shape = grid.shape
    spacing = tuple(grid.facts.get("spacing", ()))
    patch = largest_patch(name, shape, memory, spacing)
    training = _training_cases(scan, data or {})
    batch = largest_batch(name, patch, memory, training * math.prod(shape), training, spacing)
    gigabytes = step_gigabytes(name, patch, batch, spacing)
    half = half_gigabytes(name, patch, batch, spacing)
    facts = {**grid.facts, "patch": list(patch), "batch_size": batch, "memory_gb": round(gigabytes, 2), "model": name}
    size = Choice(
        "preprocess.size", list(patch), "pixels of the median image" + ("" if patch == shape else ", as memory allows")
    )
    why = f"{STEP[name][2] / 1e6:.3g} M parameters; {'the small hybrid' if name == DEFAULTS[dims] else 'as asked'}"
    choices = (
        Choice("name", "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in scan.dataset.name)),
        *_data(scan, data or {}),
        *([size] if dims == 2 else []),
        *grid.choices,
        Choice("model.name", name, why),
        *(_options(name, patch, spacing) if spacing else []),
        *_changes(seen, dims),
        *_segmentation(seen, dims, patch, shape),
        *_training(batch, gigabytes, half, training),
    )
    return Plan(choices, gigabytes, facts)


@dataclass(frozen=True)
class _Grid:
    """How cases become arrays, and the median shape of those."""

    shape: tuple[int, ...]
    choices: tuple[Choice, ...]
    facts: dict[str, Any]


def _volume_grid(scan: Scan) -> _Grid:
    spacing_NA = np.array([case.spacing for case in scan.cases], dtype=np.float64)
    shape_NA = np.array([case.shape for case in scan.cases], dtype=np.float64)
    target = np.median(spacing_NA, axis=0)
    reason = "mm, the median of the cases"
    coarse = int(target.argmax())
    if target[coarse] > ANISOTROPY * np.delete(target, coarse).max():
        target[coarse] = np.percentile(spacing_NA[:, coarse], 10)
        reason += f"; along axis {coarse} the finest tenth, as slices there are over {ANISOTROPY:g} times as thick"
    target = np.round(target, 4)
    if np.allclose(spacing_NA, target, rtol=1e-3):
        reason = "mm, which all cases have already"
    median = np.median(shape_NA * spacing_NA / target, axis=0)
    shape = tuple(round(n) for n in median.tolist())
    choices = [Choice("volume.spacing", [float(s) for s in target], reason), *_intensity(scan)]
    facts = {"spacing": target.tolist(), "median_shape": list(shape), "cases": len(scan.cases)}
    return _Grid(shape, tuple(choices), facts)


def _intensity(scan: Scan) -> list[Choice]:
    low, high = min(case.whole[0] for case in scan.cases), max(case.whole[2] for case in scan.cases)
    whole_numbers = all("int" in image.mode for image in scan.images)
    inside = np.array([case.inside for case in scan.cases if case.inside])
    if whole_numbers and low <= -500 and len(inside):
        window = [float(np.floor(inside[:, 0].min())), float(np.ceil(inside[:, 2].max()))]
        why = f"values from {low:g} to {high:g} in whole numbers are those of CT: one scale for all cases"
        return [
            Choice("volume.intensity", "window", why),
            Choice("volume.window", window, "what lies within structures, but for half a percent at either end"),
        ]
    spread = np.array([case.whole[2] for case in scan.cases])
    why = f"no scale is shared: the brightest values of the cases run from {spread.min():.4g} to {spread.max():.4g}"
    return [
        Choice("volume.intensity", "percentile", why),
        Choice("volume.percentiles", [0.5, 99.5], "of each case"),
    ]


def _picture_grid(scan: Scan) -> _Grid:
    sizes_NA = np.array([case.shape for case in scan.cases], dtype=np.float64)
    median = np.median(sizes_NA, axis=0)
    scale = min(1.0, LARGEST_PICTURE / median.max())
    shape = tuple(max(64, 32 * round(n * scale / 32)) for n in median)
    aspects = sizes_NA[:, 1] / sizes_NA[:, 0]
    colour = any(image.mode not in ("L", "I;16", "1", "I", "F") for image in scan.images)
    deep = any(image.bits != 8 for image in scan.images)
    facts = {"median_shape": [int(n) for n in median], "cases": len(scan.cases)}
    squash = aspects.max() / aspects.min() < 1.1
    return _Grid(
        shape,
        (
            Choice(
                "preprocess.resize",
                "squash" if squash else "pad",
                "all images have nearly one aspect"
                if squash
                else "aspects differ, and squashing would bend structures",
            ),
            Choice("preprocess.channels", "rgb" if colour else "grey", "as the files are"),
            Choice(
                "preprocess.intensity",
                "percentile" if deep else "none",
                "more than 8 bits, or floats" if deep else "8 bits, used as they are",
            ),
            Choice("preprocess.statistics", "train", "mean and deviation of the training images"),
        ),
        facts,
    )


def _options(name: str, patch: tuple[int, ...], spacing: tuple[float, ...]) -> list[Choice]:
    """Strides for thick slices, and windows that divide the maps which they lead to."""
    strides = plan_strides(name, patch, spacing)
    if not strides:
        return []
    options: dict[str, Any] = {"strides": [list(step) for step in strides]}
    if name in WINDOWED:
        options["window"] = list(plan_window(patch, strides))
    why = f"voxels are {max(spacing) / min(spacing):.2g} times as long as wide: halved only below {APART:g} times"
    return [Choice("model.options", options, why)]


def _training_cases(scan: Scan, given: dict[str, Any]) -> int:
    """Cases to train on, once the parts that the data do not bring are set aside."""
    count = float(sum(r.split not in ("val", "test") for r in scan.dataset.records))
    for part in ("test", "val"):
        if part not in scan.dataset.splits:
            count *= 1 - float(given.get(f"{part}_fraction", SET_ASIDE))
    return max(1, round(count))


def _data(scan: Scan, given: dict[str, Any]) -> list[Choice]:
    dataset = scan.dataset
    choices = [Choice(f"data.{key}", value, "as given") for key, value in given.items() if key not in _OWN]
    choices += [
        Choice("data.classes", list(dataset.classes), "rename at will; the background stays first"),
        Choice("data.label_values", list(dataset.label_values), "what each is stored as in the masks"),
    ]
    if "test" not in dataset.splits and "test_fraction" not in given:
        choices.append(Choice("data.test_fraction", SET_ASIDE, "the data bring no test part; by patient"))
    if "val" not in dataset.splits and "val_fraction" not in given:
        choices.append(Choice("data.val_fraction", SET_ASIDE, "the data bring no validation part; by patient"))
    return choices


_OWN = ("classes", "label_values", "path")


def _changes(scan: Scan, dims: int) -> list[Choice]:
    """Augmentation; mirrored left and right only where no structure's name speaks of a side."""
    sided = [name for name in scan.dataset.classes if _SIDE.search(name)]
    why = f"{sided[0]} has a side" if sided else "no structure is named for a side"
    choices = [
        Choice("augment.flip", 0.0 if sided else 0.5, why),
        Choice("augment.rotate", 15.0, "degrees about every axis" if dims == 3 else "degrees"),
        Choice("augment.zoom", [0.85, 1.15]),
        Choice("augment.brightness", 0.15),
        Choice("augment.contrast", 0.2),
        Choice("augment.gamma", [0.8, 1.25]),
    ]
    return choices if len({r.site for r in scan.dataset.records}) < 2 else [*choices, _NOISE]


_SIDE = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])", re.IGNORECASE)
_NOISE = Choice("augment.noise", 0.05, "sites differ in it")


def _segmentation(scan: Scan, dims: int, patch: tuple[int, ...], shape: tuple[int, ...]) -> list[Choice]:
    choices = []
    covers = all(p >= n for p, n in zip(patch, shape))
    total = sum(sum(case.counts) for case in scan.cases)
    shares = {
        name: sum(case.counts[k] for case in scan.cases) / total
        for k, name in enumerate(scan.dataset.classes)
        if k
    }  # fmt: skip
    rarest = min(shares, key=lambda n: shares[n])
    if dims == 3:
        seen = " x ".join(map(str, shape))
        what = f"the median case is {seen} voxels" + (", so a patch holds it" if covers else "; memory sets the size")
        choices.append(Choice("segmentation.patch", list(patch), what))
        share = 0.5 if shares[rarest] < RARE else 0.33
        told = f"{rarest} takes {100 * shares[rarest]:.2g} percent of the voxels"
        choices.append(Choice("segmentation.foreground", share, told))
        pieces = math.prod(shape) / math.prod(patch)
        count = int(min(4, max(1, round(pieces))))
        choices.append(Choice("segmentation.patches_per_case", count, f"a case is {pieces:.2g} patches large"))
    holding = Counter(k for r in scan.dataset.records for k in r.labels)
    seldom = min(holding[k] for k in range(1, len(scan.dataset.classes))) < 0.7 * len(scan.dataset)
    why = "some structure is absent from many cases" if seldom else "every structure is in most cases"
    choices.append(Choice("segmentation.loss", "dice_ce", "soft Dice and cross-entropy, one to one"))
    choices.append(Choice("segmentation.batch_dice", seldom, why))
    return choices


def _training(batch: int, gigabytes: float, half: float, training: int) -> list[Choice]:
    steps = max(1, training // batch)
    epochs = int(min(200, max(20, round(3000 / steps))))
    why = f"{gigabytes:.2g} GB for a step in float32, about {half:.2g} in bfloat16 (estimate)"
    return [
        Choice("train.epochs", epochs, f"about 3,000 steps at {steps} an epoch, between 20 and 200 epochs"),
        Choice("train.batch_size", batch, why),
        Choice("train.optimizer", "adamw", "hybrids of attention and convolution are trained with it"),
        Choice("train.learning_rate", 1e-3, "for networks from scratch; 1e-4 from pretrained weights"),
        Choice("train.weight_decay", 0.01),
        Choice("train.schedule", "cosine"),
        Choice("train.warmup_epochs", 2.0),
    ]


def _yaml(value: Any) -> str:
    import yaml

    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )
