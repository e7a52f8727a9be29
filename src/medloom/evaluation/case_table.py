"""The table that every number about masks is made of: one row per case and structure, without losing a bit.

Columns: ``id, patient, site, split, structure, outcome``, the measures of ``segmentation.MEASURES``, ``distance_unit,
size_unit, tolerance``. A measure that is not estimable is an empty cell. Shapes: N cases, K structures.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from medloom.errors import DataError
from medloom.evaluation.segmentation import MEASURES
from medloom.files import sha256_json, write_bytes

Array = np.ndarray
_FIXED = ("id", "patient", "site", "split", "structure", "outcome")
_UNITS = ("distance_unit", "size_unit", "tolerance")
OUTCOMES = ("both", "missed", "invented", "empty")
"""Truth and answer; truth alone; answer alone; neither."""
_REWRITE = "Write the table again with medloom evaluate"


@dataclass(frozen=True, eq=False)
class Case:
    """One case that was judged: ``values`` as ``segmentation.score_case`` gives them."""

    id: str
    patient: str | None
    site: str | None
    values: Mapping[str, Array]
    distance_unit: str = "mm"
    size_unit: str = "ml"


@dataclass(frozen=True, eq=False)
class CaseTable:
    """What one model answered to one split.

    Attributes:
        ids: one name per case, unique.
        patients: whose, or None, and then the case counts as its own patient.
        sites: where it was made, or None.
        structures: K names, without the background.
        values: measure to ``(N, K)``, NaN where not estimable.
        tolerance: within which surfaces agree, in ``distance_unit``.

    Raises:
        DataError: D116 for ids that repeat.
        ValueError: arrays of wrong shape (a fault of the caller).
    """

    ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    sites: tuple[str | None, ...]
    structures: tuple[str, ...]
    values: Mapping[str, Array]
    split: str = "test"
    distance_unit: str = "mm"
    size_unit: str = "ml"
    tolerance: float = 2.0

    def __post_init__(self) -> None:
        shape = (len(self.ids), len(self.structures))
        odd = [name for name in MEASURES if name not in self.values or self.values[name].shape != shape]
        if odd or {len(self.patients), len(self.sites)} != {shape[0]}:
            raise ValueError(f"{shape} cases and structures, but {', '.join(odd) or 'other patients or sites'}")
        if len(set(self.ids)) < len(self.ids):
            again = Counter(self.ids).most_common(1)[0][0]
            raise DataError("D116", again, "two cases have this id", "Give every case an id of its own")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def groups(self) -> Array:
        """``(N,)`` patient of each case; a case without one is its own group."""
        named = [f"patient:{p}" if p is not None else f"case:{i}" for i, p in zip(self.ids, self.patients)]
        return np.array(named, dtype=object)

    @property
    def patients_known(self) -> bool:
        """Whether every case names its patient."""
        return all(p is not None for p in self.patients)

    @property
    def outcomes(self) -> Array:
        """``(N, K)`` of ``OUTCOMES``."""
        truth, answer = self.values["size_truth"] > 0, self.values["size_answer"] > 0
        return np.select([truth & answer, truth, answer], OUTCOMES[:3], OUTCOMES[3])

    @property
    def hash(self) -> str:
        """SHA-256 of what the numbers depend on."""
        return sha256_json([list(self.structures), self.tolerance, [list(map(_text, row)) for row in self._rows()]])

    def per_case(self, measure: str) -> Array:
        """``(N,)`` mean of a measure over the structures of each case that have it; NaN where none has."""
        values = self.values[measure]
        there = np.isfinite(values)
        sums = np.where(there, values, 0.0).sum(axis=1)
        return np.where(there.any(axis=1), sums / np.maximum(there.sum(axis=1), 1), np.nan)

    def select(self, rows: Array) -> CaseTable:
        """Some of the cases: positions, or a mask ``(N,)``."""
        at = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            ids=tuple(self.ids[i] for i in at),
            patients=tuple(self.patients[i] for i in at),
            sites=tuple(self.sites[i] for i in at),
            values={name: v[at] for name, v in self.values.items()},
        )

    def write_csv(self, path: str | Path) -> None:
        """Write the table; ``read_cases`` gives back equal floats, ids of any spelling included.

        Raises:
            ResourceError: T404, T405 when it cannot be written; then nothing is left behind.
        """
        lines: list[str] = []
        # The writer quotes the characters of its own line end only, and an id may hold a bare carriage return.
        sink = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(sink, lineterminator="\r\n")
        writer.writerow([*_FIXED, *MEASURES, *_UNITS])
        tail = [self.distance_unit, self.size_unit, repr(float(self.tolerance))]
        for row in self._rows():
            writer.writerow([*map(_text, row), *tail])
        # File names need not be UTF-8; surrogateescape carries their bytes through unchanged.
        write_bytes(path, "".join(lines).encode("utf-8", "surrogateescape"))

    def _rows(self) -> Iterable[list[str | float]]:
        outcomes = self.outcomes
        for n, name in enumerate(self.ids):
            for k, structure in enumerate(self.structures):
                head = [name, self.patients[n] or "", self.sites[n] or "", self.split, structure, str(outcomes[n, k])]
                yield [*head, *(float(self.values[m][n, k]) for m in MEASURES)]


def case_table(
    cases: Iterable[Case], structures: Iterable[str], *, split: str = "test", tolerance: float = 2.0
) -> CaseTable:
    """The table of cases that were judged one by one.

    Raises:
        DataError: D116 where some cases are measured in mm and others in pixels: their means would mean nothing.
    """
    listed, names = list(cases), tuple(structures)
    units = {(c.distance_unit, c.size_unit) for c in listed}
    if len(units) > 1:
        problem = f"some are measured in {' and some in '.join(sorted(u for u, _ in units))}"
        raise DataError("D116", "cases", problem, "State the spacing of every image, or of none")
    distance, size = units.pop() if units else ("mm", "ml")
    shape = (len(listed), len(names))
    values = {m: np.array([c.values[m] for c in listed], dtype=np.float64).reshape(shape) for m in MEASURES}
    columns = (tuple(c.id for c in listed), tuple(c.patient for c in listed), tuple(c.site for c in listed))
    return CaseTable(*columns, names, values, split, distance, size, tolerance)


def join_tables(tables: Sequence[CaseTable], split: str = "test") -> CaseTable:
    """Cases of several tables as one, as those of the folds of a cross-validation, where each case is tested once.

    Raises:
        DataError: D116 for tables of other structures, units or tolerances, and for a case that is in two of them.
        ValueError: no tables.
    """
    if not tables:
        raise ValueError("no tables")
    first = tables[0]
    kinds = {(t.structures, t.distance_unit, t.size_unit, t.tolerance) for t in tables}
    if len(kinds) > 1:
        problem = "they know different structures, units or tolerances"
        raise DataError("D116", "tables of cases", problem, "Join runs of one recipe on one data set")
    return replace(
        first,
        ids=tuple(i for t in tables for i in t.ids),
        patients=tuple(p for t in tables for p in t.patients),
        sites=tuple(s for t in tables for s in t.sites),
        values={m: np.concatenate([t.values[m] for t in tables]) for m in MEASURES},
        split=split,
    )


def read_cases(path: str | Path) -> CaseTable:
    """Read a table that ``CaseTable.write_csv`` wrote.

    Raises:
        DataError: D114 not readable, D116 wrong columns, a cell that is no number, a case without all structures,
            rows of several splits or units, ids that repeat.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as problem:
        raise DataError("D114", path, f"not readable ({problem.strerror})", "Check the path and its rights") from None
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError):
        raise DataError("D116", path, "not a table of cases", _REWRITE) from None
    expected = [*_FIXED, *MEASURES, *_UNITS]
    if header != expected:
        odd = [c for c in expected if c not in header] + [c for c in header if c not in expected]
        told = f"wrong columns ({', '.join(odd[:5]) or 'order'})"
        raise DataError("D116", path, told, "Give a cases_*.csv of a run")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError("D116", f"{path}:{line}", f"{len(row)} cells, {len(header)} columns", _REWRITE)
    if not rows:
        raise DataError("D116", path, "no case in it", _REWRITE)
    structures = tuple(dict.fromkeys(row[4] for row in rows))
    k = len(structures)
    whole = len(rows) % k == 0 and all(
        row[4] == structures[i % k] and row[:4] == rows[i - i % k][:4] for i, row in enumerate(rows)
    )
    if not whole:
        raise DataError("D116", path, f"a case without all of {', '.join(structures)}", _REWRITE)
    constant = {(row[3], *row[-3:]) for row in rows}
    if len(constant) > 1:
        raise DataError("D116", path, "rows of several splits, units or tolerances", "One table per split")
    split, distance, size, tolerance = constant.pop()
    first = len(_FIXED)
    numbers = np.array([[_number(path, r, c) for c in row[first:-3]] for r, row in enumerate(rows)])
    values = {m: numbers[:, i].reshape(-1, k) for i, m in enumerate(MEASURES)}
    cases = rows[::k]
    return CaseTable(
        tuple(row[0] for row in cases),
        tuple(row[1] or None for row in cases),
        tuple(row[2] or None for row in cases),
        structures,
        values,
        split,
        distance,
        size,
        _number(path, 0, tolerance),
    )


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return repr(value) if math.isfinite(value) else ""


def _number(path: Path, row: int, cell: str) -> float:
    if not cell:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise DataError("D116", f"{path} row {row + 1}", f"'{cell[:40]}' is not a number", _REWRITE) from None
