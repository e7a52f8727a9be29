"""What a run directory holds, read once. A part that is absent or damaged is named, never passed over."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from medloom.errors import MedloomError
from medloom.evaluation.case_table import CaseTable, read_cases
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.predictions import read_csv as read_predictions
from medloom.files import RunDirectory
from medloom.reporting.overlays import CasePicture, read_case_pictures
from medloom.reporting.pictures import FACTS, Picture, read_pictures

T = TypeVar("T")
EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class Missing:
    """A part that could not be shown: its file, what it would have shown, and why."""

    file: str
    part: str
    why: str


@dataclass(frozen=True)
class Recorded:
    """The recorded files of one run; None or empty where ``missing`` says so.

    Attributes:
        log: all events of log.jsonl, in order.
        sessions: starts, resumes and ends of the processes that trained (sessions.jsonl), in order.
        ledger: every scoring of the test split and every override, in order.
        evaluations: name to metrics.json of each external data set (``evaluations/NAME/metrics.json``).
        compression: of a run that was distilled or pruned, what it was made from and what that cost.
        case_tables, case_pictures: of a run that answers with masks, in place of predictions and pictures; the tables
            by split.
    """

    name: str
    recipe: dict[str, Any] | None
    environment: dict[str, Any] | None
    records: int | None
    split: dict[str, Any] | None
    audit: dict[str, Any] | None
    log: tuple[dict[str, Any], ...]
    sessions: tuple[dict[str, Any], ...] | None
    ledger: tuple[dict[str, Any], ...] | None
    metrics: dict[str, Any] | None
    operating_point: dict[str, Any] | None
    validation: Predictions | None
    test: Predictions | None
    pictures: tuple[Picture, ...]
    model: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()
    case_tables: dict[str, CaseTable] = field(default_factory=dict)
    case_pictures: tuple[CasePicture, ...] = ()
    compression: dict[str, Any] | None = None


def read_run(run: RunDirectory) -> Recorded:
    """Read every part that there is."""
    missing: list[Missing] = []

    def take(path: Path, part: str, read: Callable[[Path], T]) -> T | None:
        name = path.relative_to(run.root).as_posix()
        if not path.exists():
            missing.append(Missing(name, part, "not recorded"))
            return None
        try:
            return read(path)
        except MedloomError as problem:
            missing.append(Missing(name, part, f"not readable: {problem.problem}"))
        except (OSError, ValueError, KeyError, TypeError, EOFError, yaml.YAMLError, zipfile.BadZipFile) as problem:
            missing.append(Missing(name, part, f"not readable ({type(problem).__name__})"))
        return None

    masks = answers_masks(run)
    found = Recorded(
        name=run.root.resolve().name,
        recipe=take(run.recipe, "what was asked", _yaml_mapping),
        environment=take(run.environment, "machine and versions", _mapping),
        records=take(run.records, "the images that the run saw", _count_records),
        split=take(run.split, "how the images were split", _mapping),
        audit=take(run.audit, "the audit of the data", _mapping),
        log=take(run.log, "training curves and times", _lines) or (),
        sessions=take(run.sessions, "interruptions and memory", _lines),
        ledger=take(run.ledger, "how often the test images were scored", _lines),
        metrics=take(run.metrics, "all numbers", _mapping),
        operating_point=None if masks else take(run.operating_point, "the threshold and when it was fixed", _mapping),
        validation=None if masks else take(run.predictions("val"), "validation curves", read_predictions),
        test=None if masks else take(run.predictions("test"), "test curves, confusion, scores", read_predictions),
        pictures=() if masks else tuple(take(run.root / FACTS, "example images", lambda _: read_pictures(run)) or ()),
        model=take(run.bundle / "model.json", "the bundle", _mapping),
    )
    tables = {s: take(run.cases(s), f"every {s} case", read_cases) for s in ("val", "test")} if masks else {}
    outlined = take(run.root / FACTS, "example cases", lambda _: read_case_pictures(run)) if masks else None
    evaluations = {}
    for path in sorted((run.root / EVALUATIONS).glob("*/metrics.json")):
        content = take(path, f"external evaluation {path.parent.name}", _mapping)
        if content is not None:
            evaluations[path.parent.name] = content
    made_from = run.root / "compression.json"
    compression = take(made_from, "what it was made from", _mapping) if made_from.exists() else None
    return replace(
        found,
        compression=compression,
        evaluations=evaluations,
        missing=tuple(missing),
        case_tables={split: table for split, table in tables.items() if table is not None},
        case_pictures=tuple(outlined or ()),
    )


def answers_masks(run: RunDirectory) -> bool:
    """Whether the run's answers are masks: it has tables of cases, or its metrics say so."""
    if run.cases("val").exists() or run.cases("test").exists():
        return True
    try:
        return bool(_mapping(run.metrics).get("task") == "segmentation")
    except (OSError, ValueError):
        return False


def _mapping(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _yaml_mapping(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    """Lines of a log; a last line that a kill cut short is left out, as the writer would on resume."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for k, line in enumerate(lines):
        try:
            value = json.loads(line)
        except ValueError:
            if k == len(lines) - 1:
                break
            raise
        if isinstance(value, dict):
            found.append(value)
    return tuple(found)


def _count_records(path: Path) -> int:
    import csv

    with path.open(encoding="utf-8", newline="") as handle:
        return sum(1 for row in csv.reader(handle) if row and not row[0].startswith("#")) - 1
