"""What frozen thresholds do on a split: counts, rates and predictive values. Nothing is searched here.

Shapes: N images, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medloom.config import EvaluationConfig
from medloom.evaluation.intervals import Draws, Interval, bootstrap, entry, not_estimable, wilson
from medloom.evaluation.metrics import confusion, decisions, divide
from medloom.evaluation.operating_point import counts, thresholds
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import Question, questions

Array = np.ndarray
PREVALENCES = (0.01, 0.05, 0.20, 0.50)


def operating_results(
    predictions: Predictions, operating_points: Mapping[str, Any] | None, config: EvaluationConfig, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per question: ``class, rule, threshold, reason, counts, metrics, confusion, predictive_values``.

    ``metrics`` holds entries ``accuracy, balanced_accuracy, sensitivity, specificity, precision, npv, f1``, each
    beside what the same answers dealt out at random would reach (accuracy: beside always the commoner side).
    ``predictive_values`` gives ``ppv`` and ``npv`` at prevalences of 1, 5, 20 and 50 percent.
    """
    if operating_points is None:
        return []
    cuts = thresholds(operating_points)
    reasons = {p["class"]: p["reason"] for p in operating_points["points"]}
    rows: list[dict[str, Any]] = []
    for question in questions(predictions):
        cut = cuts.get(question.name)
        row: dict[str, Any] = {
            "class": question.name,
            "rule": operating_points["rule"],
            "threshold": cut,
            "reason": None if cut is not None else reasons.get(question.name) or "no operating point: unknown class",
            "positives": question.positives,
            "negatives": question.negatives,
            "counts": None,
            "confusion": None,
            "metrics": None,
            "predictive_values": None,
        }
        rows.append(row if cut is None else row | _at(question, cut, predictions.groups, config, seed))
    return rows


def _at(question: Question, cut: float, groups: Array, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    truth, answer = question.positive.astype(int), (question.score >= cut).astype(int)

    def statistic(weight: Array) -> dict[str, Array]:
        table = decisions(confusion(truth, answer, 2, weight))
        sensitivity, specificity = table["recall"][..., 1], table["recall"][..., 0]
        out = {
            "accuracy": table["accuracy"],
            "balanced_accuracy": table["balanced_accuracy"],
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": table["precision"][..., 1],
            "npv": table["precision"][..., 0],
            "f1": table["f1"][..., 1],
        }
        for share in PREVALENCES:
            out[f"ppv/{share}"] = _ppv(sensitivity, specificity, share)
            out[f"npv/{share}"] = _ppv(specificity, sensitivity, 1 - share)
        return out

    draws = bootstrap(statistic, groups, resamples=config.resamples, seed=seed)
    n, patients = len(truth), draws.patients
    prevalence, said = float(truth.mean()), float(answer.mean())
    shuffled = {
        "accuracy": max(prevalence, 1 - prevalence),
        "balanced_accuracy": 0.5,
        "sensitivity": said,
        "specificity": 1 - said,
        "precision": prevalence,
        "npv": 1 - prevalence,
        "f1": 2 * prevalence * said / (prevalence + said) if prevalence + said else 0.0,
    }
    subset = {"sensitivity": truth == 1, "specificity": truth == 0, "precision": answer == 1, "npv": answer == 0}
    everyone, short = np.ones(n, dtype=bool), question.missing(config.min_positives)
    rows = {}
    for name, baseline in shuffled.items():
        among = subset.get(name, everyone)
        reason = _reason(name, question, among, short, config.min_positives)
        if reason is not None:
            rows[name] = not_estimable(reason, n=int(among.sum()), patients=len(set(groups[among])))
            continue
        proportion = name in subset or name == "accuracy"
        rows[name] = _rate(draws, name, among, groups, baseline, config.confidence, proportion)
    values = []
    for share in PREVALENCES:
        pair = {}
        for name in ("ppv", "npv"):
            at = f"{name}/{share}"
            if short is not None:
                pair[name] = not_estimable(short, n=n, patients=patients)
                continue
            bounds = draws.interval(at, config.confidence)
            value = float(draws.value[at])
            if value in (0.0, 1.0) and bounds.low == bounds.high:
                bounds = _worst_case(rows, name, share)
            base = share if name == "ppv" else 1 - share
            why = "not estimable (no image was called so)" if not np.isfinite(value) else None
            pair[name] = entry(value, bounds, n=n, patients=patients, baseline=base, note=why)
        values.append({"prevalence": share, **pair})
    matrix = confusion(truth, answer, 2).astype(int).tolist()
    return {"counts": counts(truth, answer), "confusion": matrix, "metrics": rows, "predictive_values": values}


def _reason(name: str, question: Question, among: Array, short: str | None, least: int) -> str | None:
    if name in ("sensitivity", "specificity"):
        kind = "positives" if name == "sensitivity" else "negatives"
        count = question.positives if name == "sensitivity" else question.negatives
        return None if count >= max(least, 1) else f"{count} {kind}, {least} needed" if count else f"0 {kind}"
    if not among.any():
        return "no image was called so"
    return None if name == "accuracy" else short


def _rate(
    draws: Draws, name: str, among: Array, groups: Array, baseline: float, confidence: float, proportion: bool
) -> dict[str, Any]:
    value, bounds = float(draws.value[name]), draws.interval(name, confidence)
    n, patients = int(among.sum()), len(set(groups[among]))
    check = wilson(value * patients, patients, confidence)
    if value in (0.0, 1.0) and bounds.low == bounds.high:
        bounds = check
    row = entry(value, bounds, n=n, patients=patients, baseline=baseline)
    # A plain proportion has a closed interval of its own; a reader can see that the two agree.
    return row | {"wilson": [check.low, check.high]} if proportion else row


def _worst_case(rows: Mapping[str, dict[str, Any]], name: str, share: float) -> Interval:
    """Bounds of a predictive value from those of sensitivity and specificity, where every resample agrees."""
    first, second = rows["sensitivity"], rows["specificity"]
    if name == "npv":
        first, second, share = second, first, 1 - share
    ends = [_ppv(np.array(first[e]), np.array(second[e]), share) for e in ("low", "high")]
    return Interval(float(ends[0]), float(ends[1]), "wilson")


def _ppv(sensitivity: Array, specificity: Array, prevalence: float) -> Array:
    """Share of positive calls that are right, at a stated prevalence (Bayes)."""
    right = np.asarray(sensitivity) * prevalence
    return divide(right, right + (1 - np.asarray(specificity)) * (1 - prevalence))
