"""From logits to recorded evidence: temperature and threshold from validation, then, counted, the test split."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np

from medloom.config import Recipe
from medloom.data.records import Dataset
from medloom.evaluation.calibration import fit_temperature
from medloom.evaluation.operating_point import choose_operating_points
from medloom.evaluation.predictions import Predictions, from_logits
from medloom.evaluation.summary import summarise
from medloom.files import RunDirectory, append_line, write_json


def predictions_of(dataset: Dataset, split: str, logits_NK: np.ndarray, temperature: float) -> Predictions:
    """Logits of one split's records, in their order, as a predictions table."""
    names = sorted({key for r in dataset.records for key in r.covariates})
    return from_logits(
        [r.id for r in dataset.records],
        [r.patient for r in dataset.records],
        [r.site for r in dataset.records],
        dataset.targets(),
        logits_NK,
        dataset.classes,
        multi_label=dataset.multi_label,
        temperature=temperature,
        split=split,
        covariates={name: [r.covariates.get(name, "") for r in dataset.records] for name in names},
    )


def freeze_decision(
    run: RunDirectory, validation: Dataset, logits_NK: np.ndarray, recipe: Recipe
) -> tuple[Predictions, dict[str, Any], float]:
    """Fit temperature and threshold on validation and write both down, before any test image is scored.

    Returns the validation table, the content of ``operating_point.json``, and the temperature.

    Raises:
        GateError: D124, validation is too small to choose a threshold.
    """
    config = recipe.evaluation
    temperature = 1.0
    if config.calibration == "temperature":
        temperature = fit_temperature(logits_NK, validation.targets(), validation.multi_label)
    table = predictions_of(validation, "val", logits_NK, temperature)
    decision = choose_operating_points(
        table,
        config,
        timestamp=now(),
        temperature=temperature,
        accept=recipe.data.accept,
        seed=recipe.train.seed,
    )
    table.write_csv(run.predictions("val"))
    write_json(run.operating_point, decision)
    return table, decision, temperature


def open_test(run: RunDirectory, what: str, data_hash: str) -> None:
    """Enter a scoring of test images in the ledger, before it happens (T416)."""
    entry = {"event": "test scored", "what": what, "time": now(), "data": data_hash}
    append_line(run.ledger, json.dumps(entry, ensure_ascii=False))


def scorings(run: RunDirectory) -> int:
    """How often the test split was scored, by the ledger."""
    if not run.ledger.exists():
        return 0
    return sum('"test scored"' in line for line in run.ledger.read_text(encoding="utf-8").splitlines())


def write_metrics(
    run: RunDirectory,
    test: Predictions | None,
    validation: Predictions,
    decision: dict[str, Any],
    recipe: Recipe,
    *,
    temperature: float,
) -> dict[str, Any]:
    """Write the test predictions, where there are any, and ``metrics.json``; returns its content."""
    if test is not None:
        test.write_csv(run.predictions("test"))
    metrics = summarise(
        test,
        validation=validation,
        operating_points=decision,
        temperature=temperature,
        config=recipe.evaluation,
        seed=recipe.train.seed,
    )
    metrics["test_scorings"] = scorings(run)
    write_json(run.metrics, metrics)
    return metrics


def now() -> str:
    """Wall clock, to the second, in UTC: for people; durations are measured with the monotonic clock."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
