"""Outlines of the reference and of the answer over slices of a case: stored with a run, and drawn for people.

``pictures.npz`` holds ``case_<i>_<j>_image``, uint8 ``(H, W)`` or ``(H, W, 3)``, and ``case_<i>_<j>_truth`` and
``..._answer``, uint8 positions ``(H, W)``, of view j of case i. ``pictures.json`` is a list in the same order::

    {"id": "hippocampus_001", "group": "worst", "site": null, "dice": 0.81, "hd95": 2.2,
     "structures": {"anterior": {"dice": 0.83, "hd95": 2.0, "outcome": "both"}, ...},
     "views": [{"plane": "axial", "at": "slice 17 of 35", "pixel": [1.0, 1.0]}, ...]}

Volumes come with axes to the right, anterior and superior. They are shown as radiologists look at them: the patient's
right on the left, front or head on top, in the sagittal plane the front on the left.

Shapes: S the spatial axes of a case, H and W of a view.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from medloom.evaluation.case_table import CaseTable
from medloom.files import RunDirectory, write_bytes, write_json
from medloom.reporting.pictures import ARRAYS, FACTS

Array = np.ndarray
GROUPS = ("worst", "median", "best")
PLANES = ("sagittal", "coronal", "axial")
"""By the axis that they cut."""

TRUTH, ANSWER, BOTH = (47, 198, 255), (255, 140, 24), (255, 244, 92)
"""Colours of the outlines; blue and orange are told apart by readers with any colour vision."""

_THICK = 2  # pixels of an outline
_MOST_PIXELS = 640


@dataclass(frozen=True, eq=False)
class View:
    """One slice.

    Attributes:
        plane: ``axial``, ``coronal``, ``sagittal``, or ``image``.
        at: which slice, in words; empty of an image.
        image: uint8 ``(H, W)`` or ``(H, W, 3)``.
        truth, answer: uint8 positions ``(H, W)``, 0 for the background.
        pixel: height and width of a pixel, in any unit.
    """

    plane: str
    at: str
    image: Array
    truth: Array
    answer: Array
    pixel: tuple[float, float]


@dataclass(frozen=True, eq=False)
class CasePicture:
    """One case.

    Attributes:
        group: of ``GROUPS``.
        dice, hd95: means over its structures; None where not estimable.
        structures: name to ``dice``, ``hd95`` (None where not estimable) and ``outcome``.
    """

    id: str
    group: str
    site: str | None
    dice: float | None
    hd95: float | None
    structures: dict[str, dict[str, Any]]
    views: tuple[View, ...]


def case_picture(table: CaseTable, identity: str, group: str, views: Sequence[View]) -> CasePicture:
    """A case with its numbers from the table."""
    row = table.ids.index(identity)
    structures = {
        name: {m: _known(table.values[m][row, k]) for m in ("dice", "hd95")} | {"outcome": str(table.outcomes[row, k])}
        for k, name in enumerate(table.structures)
    }
    dice, hd95 = (_known(table.per_case(m)[row]) for m in ("dice", "hd95"))
    return CasePicture(identity, group, table.sites[row], dice, hd95, structures, tuple(views))


def case_views(image: Array, truth_S: Array, answer_S: Array, spacing: Sequence[float] | None) -> tuple[View, ...]:
    """What is shown of a case: an image whole, a volume in three planes, each through the most of its structures.

    The plane is where the reference has its largest area; where the reference is empty, the answer.

    Args:
        image: ``(*S)``, or an image ``(H, W, 3)``; of any type, brought to grey levels by its percentiles.
        truth_S, answer_S: positions; volumes in axes to the right, anterior and superior.
        spacing: mm along each axis, None where unknown.
    """
    step = tuple(map(float, spacing)) if spacing is not None else (1.0,) * truth_S.ndim
    shades = _shades(image)
    if truth_S.ndim == 2:
        pixel = (step[0], step[1])
        masks = (truth_S.astype(np.uint8), answer_S.astype(np.uint8))
        return (_thinned(View("image", "", shades, *masks, pixel)),)
    shown = truth_S if truth_S.any() else answer_S
    views = []
    for axis in (2, 1, 0):
        rest = tuple(i for i in range(3) if i != axis)
        areas = (shown > 0).sum(axis=rest)
        at = int(areas.argmax()) if areas.any() else shown.shape[axis] // 2
        image_HW, *masks_HW = (
            np.ascontiguousarray(np.take(a, at, axis=axis).T[::-1, ::-1]) for a in (shades, truth_S, answer_S)
        )
        first, second = (m.astype(np.uint8) for m in masks_HW)
        told = f"slice {at + 1} of {shown.shape[axis]}"
        views.append(_thinned(View(PLANES[axis], told, image_HW, first, second, (step[rest[1]], step[rest[0]]))))
    return tuple(views)


def write_case_pictures(run: RunDirectory, cases: Sequence[CasePicture]) -> None:
    """Store examples for the report, both files atomically, the list last: it is what a reader looks for."""
    arrays: dict[str, Array] = {}
    facts = []
    for i, case in enumerate(cases):
        for j, view in enumerate(case.views):
            for name in ("image", "truth", "answer"):
                arrays[f"case_{i}_{j}_{name}"] = np.ascontiguousarray(getattr(view, name), dtype=np.uint8)
        views = [{"plane": v.plane, "at": v.at, "pixel": list(v.pixel)} for v in case.views]
        head = {"id": case.id, "group": case.group, "site": case.site, "dice": case.dice, "hd95": case.hd95}
        facts.append({**head, "structures": case.structures, "views": views})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(run.root / ARRAYS, buffer.getvalue())
    write_json(run.root / FACTS, facts)


def read_case_pictures(run: RunDirectory) -> list[CasePicture]:
    """Read what ``write_case_pictures`` wrote. Raises OSError, KeyError or ValueError when it is not whole."""
    facts: list[dict[str, Any]] = json.loads((run.root / FACTS).read_text(encoding="utf-8"))
    # Opened here, since numpy leaves a file open that turns out to be no archive.
    with (run.root / ARRAYS).open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
        return [_read_case(fact, arrays, i) for i, fact in enumerate(facts)]


def outlined(view: View, scale: float) -> Array:
    """The slice with both outlines, uint8 ``(H', W', 3)``.

    Args:
        scale: pixels of the result per unit of ``view.pixel``, so that slices of one case keep their proportions.
    """
    from PIL import Image

    height, width = (max(8, round(n * p * scale)) for n, p in zip(view.truth.shape, view.pixel))
    picture = Image.fromarray(view.image).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(picture)
    # Labels are enlarged by the nearest pixel: steps in an outline are those of the mask.
    truth, answer = (
        _edges(np.array(Image.fromarray(m).resize((width, height), Image.Resampling.NEAREST)))
        for m in (view.truth, view.answer)
    )
    pixels[truth], pixels[answer], pixels[truth & answer] = TRUTH, ANSWER, BOTH
    return pixels


def drawn_case(case: CasePicture, width: int = 640, height: int = 420) -> list[Array]:
    """All views of a case at one scale, on black up to one height, within ``width`` by ``height`` pixels together."""
    sizes = [(v.truth.shape[0] * v.pixel[0], v.truth.shape[1] * v.pixel[1]) for v in case.views]
    scale = min(width / sum(w for _, w in sizes), height / max(h for h, _ in sizes))
    drawn = [outlined(view, scale) for view in case.views]
    tall = max(d.shape[0] for d in drawn)
    return [np.pad(d, (_halves(tall - d.shape[0]), (0, 0), (0, 0))) for d in drawn]


def _read_case(fact: Mapping[str, Any], arrays: Mapping[str, Array], i: int) -> CasePicture:
    views = []
    for j, view in enumerate(fact["views"]):
        image, truth, answer = (arrays[f"case_{i}_{j}_{name}"] for name in ("image", "truth", "answer"))
        pixel = float(view["pixel"][0]), float(view["pixel"][1])
        views.append(View(view["plane"], view["at"], image, truth, answer, pixel))
    head = (fact["id"], fact["group"], fact["site"], fact["dice"], fact["hd95"], fact["structures"])
    return CasePicture(*head, tuple(views))


def _halves(rows: int) -> tuple[int, int]:
    return rows // 2, rows - rows // 2


def _edges(labels: Array) -> Array:
    """The outermost pixels of each structure, on its inside; the image's own border is no edge."""
    size = 2 * _THICK + 1
    low, high = (f(labels, size=size, mode="nearest") for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    edges: Array = (labels > 0) & ((low != labels) | (high != labels))
    return edges


def _shades(image: Array) -> Array:
    """Grey levels for a screen: uint8 as they are, others from their 0.5th to their 99.5th percentile."""
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    return np.rint(np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def _thinned(view: View) -> View:
    """A large image at a resolution that a page can show; the masks stay on its grid."""
    by = math.ceil(max(view.truth.shape) / _MOST_PIXELS)
    if by == 1:
        return view
    image, truth, answer = (a[by // 2 :: by, by // 2 :: by] for a in (view.image, view.truth, view.answer))
    return View(view.plane, view.at, image, truth, answer, (view.pixel[0] * by, view.pixel[1] * by))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
