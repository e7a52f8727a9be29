"""The content of metrics.json: what the report shows and what a reader can recompute from the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.config import EvaluationConfig
from medloom.errors import DataError
from medloom.evaluation.baselines import covariate_only
from medloom.evaluation.calibration import default_bins, reliability, slope_and_intercept
from medloom.evaluation.curves import curves
from medloom.evaluation.operating_results import operating_results
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.probability_scores import calibration_pairs, probability_scores
from medloom.evaluation.questions import questions, task
from medloom.evaluation.scoring import score
from medloom.evaluation.subgroups import subgroups

FORMAT = "medloom metrics 1"


def summarise(
    test: Predictions | None,
    *,
    validation: Predictions | None = None,
    operating_points: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    config: EvaluationConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every number of one run, as plain values fit for strict JSON (no NaN anywhere).

    Args:
        test: predictions with calibrated probabilities; None where the data have no test split.
        validation: the same for the split on which temperature and threshold were chosen.
        operating_points: content of operating_point.json (``choose_operating_points``), or None.
        temperature: divisor that made the probabilities; 1 when there was no calibration.
        config: rules; the recipe's ``evaluation``.
        seed: of the resamples.

    An *entry* is ``{"value", "low", "high", "n", "patients", "baseline", "method", "note"}``; ``value`` is None and
    ``note`` says why where a number is not estimable. The result::

        format, task ("binary" | "multi_class" | "multi_label"), classes, positive (binary: the positive class, else
        null), unit ("patient" | "image"), confidence, resamples, seed, min_positives, temperature,
        operating_points (as given), splits: {"val": SPLIT, "test": SPLIT}

        SPLIT: name (the split or data set), n, patients, counts {class: images}, predictions_sha256,
          decision (what "metrics" calls an answer; thresholds are under "operating_points"),
          metrics: entries accuracy, [exact_match], balanced_accuracy, recall, precision, f1 (macro means), auc,
            average_precision, brier, brier_skill, log_loss, ece
          per_class: {class: {positives, negatives, [auc, average_precision], recall, precision, f1, specificity}}
          confusion: K x K counts, rows truth, columns answer; multi-label {class: 2 x 2}
          operating_points: [{class, rule, threshold, reason, positives, negatives, counts {tp, fp, fn, tn},
            confusion 2 x 2, metrics {accuracy, balanced_accuracy, sensitivity, specificity, precision, npv, f1},
            predictive_values [{prevalence, ppv, npv}]}]; counts, confusion, metrics, predictive_values are null
            where threshold is
          calibration: {"before": STAGE, "after": STAGE}; STAGE: temperature, bins, entries brier, brier_skill,
            log_loss, ece, and questions {class: {slope, intercept, reliability}} (multi-class also "top answer":
            {reliability}); reliability: [{n, patients, mean_probability, observed, low, high}]
          curves: {class: {roc: {x, y, low, high, chance}, pr: {...}, reason}}, 101 points each
          covariates_only: [{columns, auc}]
          subgroups: {rows: [{column, group, class, n, patients, positives, auc, sensitivity, specificity}], absent}

    Raises:
        DataError: D115 for a split without images.
    """
    config = config or EvaluationConfig()
    splits = {name: table for name, table in (("val", validation), ("test", test)) if table is not None}
    for name, table in splits.items():
        if len(table) == 0:
            raise DataError("D115", f"split {name}", "it has no images", "Give it some, or evaluate another split")
    first = next(iter(splits.values()))
    kind = task(first)
    return {
        "format": FORMAT,
        "task": kind,
        "classes": list(first.classes),
        "positive": first.classes[-1] if kind == "binary" else None,
        "unit": "patient" if all(t.patients_known for t in splits.values()) else "image",
        "confidence": config.confidence,
        "resamples": config.resamples,
        "seed": seed,
        "min_positives": config.min_positives,
        "temperature": float(temperature),
        "operating_points": None if operating_points is None else dict(operating_points),
        "splits": {n: _split(t, operating_points, temperature, config, seed) for n, t in splits.items()},
    }


def _split(
    table: Predictions,
    operating_points: Mapping[str, Any] | None,
    temperature: float,
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    positives = table.positives.sum(axis=0)
    return {
        "name": table.split,
        "n": len(table),
        "patients": len(set(table.groups)),
        "counts": {c: int(count) for c, count in zip(table.classes, positives)},
        "predictions_sha256": table.hash,
        **score(table, config, seed),
        "operating_points": operating_results(table, operating_points, config, seed),
        "calibration": {
            "before": _calibration(table.calibrated(1.0), 1.0, config, seed),
            "after": _calibration(table, temperature, config, seed),
        },
        "curves": curves(table, config, seed),
        "covariates_only": covariate_only(table, config, seed),
        "subgroups": subgroups(table, operating_points, config, seed),
    }


def _calibration(table: Predictions, temperature: float, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    whole = probability_scores(table, config, seed)
    groups = table.groups
    parts: dict[str, Any] = {}
    for question in questions(table):
        fit = slope_and_intercept(
            question.positive,
            question.score,
            groups,
            confidence=config.confidence,
            min_positives=config.min_positives,
        )
        points = reliability(question.positive, question.score, groups, confidence=config.confidence)
        parts[question.name] = {**fit, "reliability": points}
    if task(table) == "multi_class":
        right, sure = calibration_pairs(table)[0]
        parts["top answer"] = {"reliability": reliability(right, sure, groups, confidence=config.confidence)}
    return {"temperature": float(temperature), **whole, "bins": default_bins(len(table)), "questions": parts}
