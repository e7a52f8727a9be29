"""Example images of a run, what the model rebuilt of them and how it weighted its tokens: stored, and drawn for people.

``pictures.npz`` holds ``image_<i>``, uint8 ``(H, W)`` or ``(H, W, 3)``, ``weight_<i>_<scale>``, float32
``(rows, columns)`` of the token grid, of models that rebuild their input ``rebuilt_<i>``, like the image, and of
models that drop tokens ``kept_<i>``, uint8 like the weights.
``pictures.json`` is a list in the same order, one object per image::

    {"id": "test/PNEUMONIA/person1_virus_6.jpeg", "label": "PNEUMONIA", "predicted": "NORMAL", "correct": false,
     "probability": 0.31, "of": "PNEUMONIA", "weights": ["token_weight.0", "token_weight.1"], "rebuilt_error": null}

``probability`` is the calibrated one of the class ``of``; ``rebuilt_error`` the mean squared error of what was rebuilt,
on the scale of [0, 1].
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medloom.files import RunDirectory, write_bytes, write_json

ARRAYS, FACTS = "pictures.npz", "pictures.json"
# One hue whose opacity is the weight: what little weight is given stays plain, and the anatomy readable under the rest.
_HUE = np.array([255.0, 150.0, 0.0])
_OPACITY = 0.62


@dataclass(frozen=True, eq=False)
class Picture:
    """One example.

    Attributes:
        image: uint8 ``(H, W)`` or ``(H, W, 3)``, as preprocessing hands it to the model, before standardising.
        weights: tap name to the weights of one token scale, ``(rows, columns)``; empty for a model without.
        rebuilt: what the model rebuilt of the image, like it; None for a model that does not.
        rebuilt_error: its mean squared error before rounding, on the scale of [0, 1].
        kept: ``(rows, columns)`` of zeros and ones, which tokens reached the end; None where none are dropped.
    """

    id: str
    label: str
    predicted: str
    correct: bool
    probability: float
    of: str
    image: np.ndarray
    weights: dict[str, np.ndarray]
    rebuilt: np.ndarray | None = None
    rebuilt_error: float | None = None
    kept: np.ndarray | None = None


def write_pictures(run: RunDirectory, entries: Sequence[Picture]) -> None:
    """Store examples for the report, both files atomically, the list last: it is what a reader looks for.

    Raises:
        ValueError: a weight is not finite (a fault of the caller: the model's answer was to be checked first).
    """
    arrays: dict[str, np.ndarray] = {}
    facts = []
    for i, entry in enumerate(entries):
        arrays[f"image_{i}"] = np.ascontiguousarray(entry.image, dtype=np.uint8)
        if entry.rebuilt is not None:
            arrays[f"rebuilt_{i}"] = np.ascontiguousarray(entry.rebuilt, dtype=np.uint8)
        if entry.kept is not None:
            arrays[f"kept_{i}"] = np.ascontiguousarray(entry.kept, dtype=np.uint8)
        for scale, weight in enumerate(entry.weights.values()):
            if not np.isfinite(weight).all():
                raise ValueError(f"token weights of {entry.id} are not finite")
            arrays[f"weight_{i}_{scale}"] = np.asarray(weight, dtype=np.float32)
        facts.append(
            {
                "id": entry.id,
                "label": entry.label,
                "predicted": entry.predicted,
                "correct": bool(entry.correct),
                "probability": float(entry.probability),
                "of": entry.of,
                "weights": list(entry.weights),
                "rebuilt_error": entry.rebuilt_error,
            }
        )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(run.root / ARRAYS, buffer.getvalue())
    write_json(run.root / FACTS, facts)


def read_pictures(run: RunDirectory) -> list[Picture]:
    """Read what ``write_pictures`` wrote. Raises OSError, KeyError or ValueError when it is not whole."""
    facts: list[dict[str, Any]] = json.loads((run.root / FACTS).read_text(encoding="utf-8"))
    with np.load(run.root / ARRAYS, allow_pickle=False) as arrays:
        return [
            Picture(
                fact["id"],
                fact["label"],
                fact["predicted"],
                fact["correct"],
                fact["probability"],
                fact["of"],
                arrays[f"image_{i}"],
                {name: arrays[f"weight_{i}_{scale}"] for scale, name in enumerate(fact["weights"])},
                arrays.get(f"rebuilt_{i}"),
                fact.get("rebuilt_error"),
                arrays.get(f"kept_{i}"),
            )
            for i, fact in enumerate(facts)
        ]


def weight_range(pictures: Sequence[Picture], name: str) -> tuple[float, float]:
    """Smallest and largest weight of one scale over all pictures: one colour scale for all, so that they compare."""
    values = np.concatenate([p.weights[name].ravel() for p in pictures if name in p.weights])
    return float(values.min()), float(values.max())


def drawn_range(low: float, high: float) -> tuple[float, float]:
    """The ends of the colour scale: never narrower than a quarter of the weight itself.

    A scale stretched over weights of 0.501 to 0.517 would paint a choice where the model made none.
    """
    middle = (low + high) / 2
    if high - low >= abs(middle) / 4:
        return low, high
    return middle - abs(middle) / 8, middle + abs(middle) / 8


def overlay(image: np.ndarray, weight: np.ndarray, low: float, high: float) -> np.ndarray:
    """Token weights over their image: one flat cell per token (no smoothing: the model has no finer answer).

    Returns:
        uint8 ``(H, W, 3)``. Equal weights give one even tint, not an invented pattern.
    """
    at_row, at_column = _cells(image, weight)
    share = (weight - low) / (high - low) if high > low else np.full(weight.shape, 0.5)
    alpha = (_OPACITY * np.clip(share, 0, 1))[np.ix_(at_row, at_column)][..., None]
    base = (image[..., None] if image.ndim == 2 else image).astype(np.float64)
    return np.rint((1 - alpha) * base + alpha * _HUE).astype(np.uint8)


def dimmed(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The image with the dropped tokens darkened: what the model went on with stays as it is. uint8 ``(H, W, 3)``."""
    share = np.where(kept > 0, 1.0, 0.3)[np.ix_(*_cells(image, kept))][..., None]
    return np.rint(share * (image[..., None] if image.ndim == 2 else image) * np.ones(3)).astype(np.uint8)


def _cells(image: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell of the grid that each row and each column of pixels belongs to."""
    (height, width), (rows, columns) = image.shape[:2], grid.shape
    return np.arange(height) * rows // height, np.arange(width) * columns // width


def scale_bar() -> np.ndarray:
    """The colour scale as the overlay shows it over mid-grey, ``(8, 256, 3)`` uint8."""
    weight = np.linspace(0, 1, 256)[None]
    return overlay(np.full((8, 256), 110, dtype=np.uint8), weight, 0.0, 1.0)
