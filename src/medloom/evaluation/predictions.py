"""The table that every number of a report is made of: one row per image, written and read without losing a bit.

Columns: ``id, patient, site, split, label, logit:CLASS ..., probability:CLASS ..., covariate:NAME ...``. Shapes: N
images, K classes.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from medloom.errors import DataError, ModelError
from medloom.files import sha256_json, write_bytes

_FIXED = ("id", "patient", "site", "split", "label")
_REWRITE = "Write the table again with medloom evaluate"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model said about one split.

    Attributes:
        ids: one name per image, unique.
        patients: who the image is of; None where nobody says, and then the image counts as its own patient.
        sites: where it was made, or None.
        labels: ``(N,)`` positions in ``classes``, or ``(N, K)`` zeros and ones where labels are many.
        logits: ``(N, K)`` as the network gave them.
        probabilities: ``(N, K)`` after calibration: softmax over the classes, or one sigmoid per label.
        classes: names in order; of two exclusive classes the last is the positive one.
        covariates: further columns as text (age, sex, view ...), one value per image, "" where unknown.

    Raises:
        DataError: D116 for ids that repeat, or names that a table cannot hold.
        ModelError: C508 for logits or probabilities that are not finite.
        ValueError: arrays of unequal length or wrong shape (a fault of the caller).
    """

    ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    sites: tuple[str | None, ...]
    labels: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    multi_label: bool = False
    split: str = "test"
    covariates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("ids", "patients", "sites", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "labels", np.asarray(self.labels).astype(np.int64))
        for name in ("logits", "probabilities"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "covariates", {k: tuple(v) for k, v in self.covariates.items()})
        self._check()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def groups(self) -> np.ndarray:
        """``(N,)`` patient of each image; an image without one is its own group."""
        return np.array(
            [f"patient:{p}" if p is not None else f"image:{i}" for i, p in zip(self.ids, self.patients)], dtype=object
        )

    @property
    def patients_known(self) -> bool:
        """Whether every image names its patient."""
        return all(p is not None for p in self.patients)

    @property
    def positives(self) -> np.ndarray:
        """``(N, K)`` bool: which classes are true of which image."""
        if self.multi_label:
            return self.labels.astype(bool)
        return self.labels[:, None] == np.arange(len(self.classes))

    @property
    def hash(self) -> str:
        """SHA-256 of what the numbers depend on."""
        return sha256_json(
            {
                "classes": self.classes,
                "multi_label": self.multi_label,
                "rows": sha256_json([list(self.ids), list(self.patients), self.labels.tolist(), self.logits.tolist()]),
                "probabilities": self.probabilities.tolist(),
            }
        )

    def calibrated(self, temperature: float) -> Predictions:
        """The same table with probabilities computed from the logits divided by ``temperature``."""
        return replace(self, probabilities=probabilities(self.logits, self.multi_label, temperature))

    def select(self, rows: np.ndarray) -> Predictions:
        """Some of the rows: positions, or a mask ``(N,)``."""
        at = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            ids=tuple(self.ids[i] for i in at),
            patients=tuple(self.patients[i] for i in at),
            sites=tuple(self.sites[i] for i in at),
            labels=self.labels[at],
            logits=self.logits[at],
            probabilities=self.probabilities[at],
            covariates={k: tuple(v[i] for i in at) for k, v in self.covariates.items()},
        )

    def write_csv(self, path: str | Path) -> None:
        """Write the table; ``read_csv`` gives back equal floats, ids of any spelling included.

        Raises:
            ResourceError: T404, T405 when it cannot be written; then nothing is left behind.
        """
        lines: list[str] = []
        # The writer quotes the characters of its own line end only, and an id may hold a bare carriage return.
        sink = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(sink, lineterminator="\r\n")
        writer.writerow(
            [
                *_FIXED,
                *(f"logit:{c}" for c in self.classes),
                *(f"probability:{c}" for c in self.classes),
                *(f"covariate:{c}" for c in self.covariates),
            ]
        )
        positives, logits, scores = self.positives, self.logits.tolist(), self.probabilities.tolist()
        for row in range(len(self)):
            writer.writerow(
                [
                    self.ids[row],
                    self.patients[row] or "",
                    self.sites[row] or "",
                    self.split,
                    "|".join(self.classes[k] for k in np.flatnonzero(positives[row])),
                    *map(repr, logits[row]),
                    *map(repr, scores[row]),
                    *(values[row] for values in self.covariates.values()),
                ]
            )
        # File names need not be UTF-8; surrogateescape carries their bytes through unchanged.
        write_bytes(path, "".join(lines).encode("utf-8", "surrogateescape"))

    def _check(self) -> None:
        n, k = len(self.ids), len(self.classes)
        lengths = {len(self.patients), len(self.sites), len(self.labels), *map(len, self.covariates.values())}
        if lengths - {n} or self.logits.shape != (n, k) or self.probabilities.shape != (n, k):
            raise ValueError(f"{n} ids, {k} classes, but lengths {lengths}, logits {self.logits.shape}")
        if self.labels.shape != ((n, k) if self.multi_label else (n,)):
            raise ValueError(f"labels have shape {self.labels.shape}")
        if n and not (self.labels.min() >= 0 and self.labels.max() < (2 if self.multi_label else k)):
            raise ValueError("labels lie outside the classes")
        if len(set(self.ids)) < n:
            again = Counter(self.ids).most_common(1)[0][0]
            raise DataError("D116", again, "two rows have this id", "Give every image an id of its own")
        if len(set(self.classes)) < k or not all(self.classes) or (self.multi_label and "|" in "".join(self.classes)):
            raise DataError("D116", ", ".join(self.classes), "class names repeat, are empty or hold '|'", "Rename them")
        bad = ~(np.isfinite(self.logits).all(axis=1) & np.isfinite(self.probabilities).all(axis=1))
        if bad.any():
            raise ModelError(
                "C508",
                self.ids[int(bad.argmax())],
                f"the model's answer is not a number for {int(bad.sum())} of {n} images",
                "Train again with a lower learning rate, or with train.amp=off",
            )


def from_logits(
    ids: Sequence[str],
    patients: Sequence[str | None],
    sites: Sequence[str | None],
    labels: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    temperature: float = 1.0,
    split: str = "test",
    covariates: Mapping[str, Sequence[str]] | None = None,
) -> Predictions:
    """Predictions of a network's logits ``(N, K)``; raises what ``Predictions`` raises."""
    logits = np.asarray(logits, dtype=np.float64)
    return Predictions(
        tuple(ids),
        tuple(patients),
        tuple(sites),
        labels,
        logits,
        probabilities(logits, multi_label, temperature),
        tuple(classes),
        multi_label,
        split,
        {k: tuple(v) for k, v in (covariates or {}).items()},
    )


def probabilities(logits: np.ndarray, multi_label: bool, temperature: float = 1.0) -> np.ndarray:
    """``(N, K)`` softmax over classes, or a sigmoid per label, of ``logits / temperature``."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    if multi_label:
        e = np.exp(-np.abs(z))
        return np.where(z >= 0, 1.0, e) / (1.0 + e)
    e = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=1, keepdims=True)


def read_csv(path: str | Path, *, multi_label: bool | None = None) -> Predictions:
    """Read a table that ``Predictions.write_csv`` wrote.

    Args:
        multi_label: whether labels are many; when None it is read from the table: some row has no label or several,
            or the probabilities of a row do not add up to one.

    Raises:
        DataError: D114 not readable, D116 wrong columns, a cell that is no number, an unknown label, ids that repeat.
        ModelError: C508 for numbers that are not finite.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as problem:
        raise DataError("D114", path, f"not readable ({problem.strerror})", "Check the path and its rights") from None
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError):
        raise DataError("D116", path, "not a table of predictions", _REWRITE) from None
    classes = tuple(c.removeprefix("logit:") for c in header if c.startswith("logit:"))
    covariates = tuple(c.removeprefix("covariate:") for c in header if c.startswith("covariate:"))
    expected = [
        *_FIXED,
        *(f"logit:{c}" for c in classes),
        *(f"probability:{c}" for c in classes),
        *(f"covariate:{c}" for c in covariates),
    ]
    if header != expected or not classes:
        odd = [c for c in expected if c not in header] + [c for c in header if c not in expected]
        problem_text = f"wrong columns ({', '.join(odd[:5]) or 'order'})"
        raise DataError("D116", path, problem_text, "Give a predictions_*.csv of a run")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError("D116", f"{path}:{line}", f"{len(row)} cells, {len(header)} columns", _REWRITE)
    k, first = len(classes), len(_FIXED)
    numbers = np.array([[_number(path, r, c) for c in row[first : first + 2 * k]] for r, row in enumerate(rows)])
    numbers = numbers.reshape(len(rows), 2 * k)
    cells = [row[4] for row in rows]
    if multi_label is None:
        off = np.abs(numbers[:, k:].sum(axis=1) - 1.0)
        multi_label = any(c not in classes for c in cells) or bool((off > 1e-6).any())
    position = {name: i for i, name in enumerate(classes)}
    labels = np.zeros((len(rows), k), dtype=np.int64)
    for r, cell in enumerate(cells):
        for name in cell.split("|") if multi_label else [cell]:
            if name in position:
                labels[r, position[name]] = 1
            elif name or not multi_label:
                raise DataError(
                    "D116", f"{path} row {r + 1}", f"unknown label '{name}'", f"Known: {', '.join(classes)}"
                )
    splits = {row[3] for row in rows}
    if len(splits) > 1:
        raise DataError("D116", path, f"rows of several splits ({', '.join(sorted(splits))})", "One table per split")
    return Predictions(
        tuple(row[0] for row in rows),
        tuple(row[1] or None for row in rows),
        tuple(row[2] or None for row in rows),
        labels if multi_label else labels.argmax(axis=1),
        numbers[:, :k],
        numbers[:, k:],
        classes,
        multi_label,
        splits.pop() if splits else "test",
        {c: tuple(row[first + 2 * k + j] for row in rows) for j, c in enumerate(covariates)},
    )


def _number(path: Path, row: int, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise DataError("D116", f"{path} row {row + 1}", f"'{cell[:40]}' is not a number", _REWRITE) from None
