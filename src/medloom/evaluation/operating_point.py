"""The threshold: chosen on validation, frozen with a hash, and applied to other splits without any search.

A threshold tuned on the test images flatters; a test shows by how much. D124 is the gate on small validation splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.errors import GateError, ModelError
from medloom.evaluation.intervals import bootstrap, entry, wilson
from medloom.evaluation.metrics import confusion, decisions
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import Question, questions
from medloom.files import sha256_json

if TYPE_CHECKING:
    from medloom.config import EvaluationConfig

Array = np.ndarray
GATE = 50  # images of either side below which a threshold is not tuned (D124)
FORMAT = "medloom operating point 1"


def choose_threshold(positive: Array, score: Array, rule: str, target_sensitivity: float = 0.95) -> float | None:
    """The cut that serves ``rule`` best; an image is called positive when ``score >= threshold``.

    The cut lies midway between two neighbouring scores. Among cuts of equal merit the widest gap wins, because the
    next images will not fall exactly where these did; then the lower, more sensitive one.

    Args:
        positive: ``(N,)`` bool.
        score: ``(N,)`` calibrated probabilities.
        rule: ``youden``, ``balanced_accuracy`` (the same cut), ``accuracy``, or ``sensitivity``: the highest cut that
            still finds ``target_sensitivity`` of the positives.

    Returns:
        None where there is nothing to choose: one class only, or all scores equal.
    """
    positive, score = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    p, q = int(positive.sum()), int((~positive).sum())
    values = np.unique(score)
    if p == 0 or q == 0 or len(values) < 2:
        return None
    lower, upper = values[:-1], values[1:]
    middle = lower + (upper - lower) / 2
    cuts = np.where(middle > lower, middle, upper)
    if rule == "sensitivity":
        # Only this rule may ask for everything: below the lowest score.
        cuts = np.concatenate([[values[0] / 2], cuts])
        lower, upper = np.concatenate([[0.0], lower]), np.concatenate([values[:1], upper])
    found = p - np.searchsorted(np.sort(score[positive]), cuts, side="left")
    cleared = np.searchsorted(np.sort(score[~positive]), cuts, side="left")
    if rule == "sensitivity":
        # The tolerance keeps 0.95 of 20 at 19 whatever the last bit of the product says.
        enough = np.flatnonzero(found >= target_sensitivity * p - 1e-9)
        return float(cuts[enough.max()])
    if rule == "accuracy":
        merit = found + cleared
    elif rule in ("youden", "balanced_accuracy"):
        merit = found * q + cleared * p
    else:
        raise ValueError(f"unknown rule {rule!r}")
    best = np.flatnonzero(merit == merit.max())
    gap = (upper - lower)[best]
    return float(cuts[best[np.flatnonzero(gap == gap.max())[0]]])


def gate(predictions: Predictions, accept: Sequence[str] = ()) -> dict[str, str]:
    """Questions that validation is too small to tune, by name, with the reason; empty when D124 is accepted.

    A label of many goes without a threshold and the run goes on, even where that is the fate of all: their ranking
    can still be judged, and rare findings are the rule there.

    Raises:
        GateError: D124, when classes exclude each other and none has 50 positives and 50 negatives.
    """
    if "D124" in accept:
        return {}
    asked = questions(predictions)
    short = {
        q.name: f"{q.positives} positives and {q.negatives} negatives in validation, {GATE} of each needed (D124)"
        for q in asked
        if min(q.positives, q.negatives) < GATE
    }
    if asked and len(short) == len(asked) and not predictions.multi_label:
        first = asked[0]
        raise GateError(
            "D124",
            f"split {predictions.split}",
            f"{first.positives} positives and {first.negatives} negatives for '{first.name}' are too few to choose a "
            f"threshold on ({GATE} of each)",
            "Give validation more patients (data.val_fraction), or --accept D124",
        )
    return short


def choose_operating_points(
    validation: Predictions,
    config: EvaluationConfig,
    *,
    timestamp: str,
    temperature: float = 1.0,
    accept: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Content of ``operating_point.json``.

    Keys: ``format, rule, target_sensitivity, scale, temperature, timestamp, accepted, validation {n, patients,
    sha256}, points, sha256``. Each point: ``class, threshold`` (None when refused) ``, reason, positives, negatives,
    counts {tp, fp, fn, tn}, sensitivity, specificity`` (entries with intervals, measured where the threshold was
    chosen and so a little too good).

    Args:
        validation: probabilities after calibration.
        timestamp: when, in ISO 8601; the caller's clock, so that equal inputs can give equal bytes.
        accept: accepted gate codes.

    Raises:
        GateError: D124, where classes exclude each other.
    """
    short = gate(validation, accept)
    groups = validation.groups
    points = []
    for question in questions(validation):
        reason = short.get(question.name) or question.missing(config.min_positives)
        threshold = None
        if reason is None:
            threshold = choose_threshold(question.positive, question.score, config.threshold, config.target_sensitivity)
            reason = "all scores are equal" if threshold is None else None
        points.append(_point(question, threshold, reason, groups, config, seed))
    content: dict[str, Any] = {
        "format": FORMAT,
        "rule": config.threshold,
        "target_sensitivity": config.target_sensitivity if config.threshold == "sensitivity" else None,
        "scale": "probability after calibration; positive when probability >= threshold",
        "temperature": float(temperature),
        "timestamp": timestamp,
        "accepted": sorted(c for c in accept if c == "D124"),
        "validation": {"n": len(validation), "patients": len(set(groups)), "sha256": validation.hash},
        "points": points,
    }
    return content | {"sha256": sha256_json(content)}


def carried_over(
    decision: Mapping[str, Any], validation: Predictions, config: EvaluationConfig, *, timestamp: str, seed: int = 0
) -> dict[str, Any]:
    """The same thresholds for a model that takes another's place, with what they do on validation measured anew.

    Args:
        decision: content of ``operating_point.json`` of the model before.
        validation: the model after, calibrated with the same temperature.
    """
    before = {point["class"]: point for point in decision["points"]}
    points = []
    for question in questions(validation):
        old = before[question.name]
        point = _point(question, old["threshold"], None, validation.groups, config, seed)
        points.append(point | {"reason": old["reason"]})
    kept = {key: value for key, value in decision.items() if key != "sha256"}
    made_of = {"n": len(validation), "patients": len(set(validation.groups)), "sha256": validation.hash}
    content = kept | {"timestamp": timestamp, "validation": made_of, "points": points}
    return content | {"sha256": sha256_json(content)}


def check_hash(operating_points: Mapping[str, Any], place: object = "operating_point.json") -> None:
    """Refuse thresholds that were edited after they were chosen.

    Raises:
        ModelError: C510.
    """
    content = {key: value for key, value in operating_points.items() if key != "sha256"}
    if operating_points.get("format") != FORMAT or sha256_json(content) != operating_points.get("sha256"):
        raise ModelError(
            "C510", place, "the operating point is not the one that was frozen", "Restore it, or evaluate again"
        )


def thresholds(operating_points: Mapping[str, Any] | None) -> dict[str, float]:
    """Threshold by class, refused ones left out."""
    points = operating_points["points"] if operating_points else []
    return {p["class"]: p["threshold"] for p in points if p["threshold"] is not None}


def _point(
    question: Question, threshold: float | None, reason: str | None, groups: Array, config: EvaluationConfig, seed: int
) -> dict[str, Any]:
    point: dict[str, Any] = {
        "class": question.name,
        "threshold": threshold,
        "reason": None if reason is None else f"no operating point: {reason}",
        "positives": question.positives,
        "negatives": question.negatives,
        "counts": None,
        "sensitivity": None,
        "specificity": None,
    }
    if threshold is None:
        return point
    truth, answer = question.positive.astype(int), (question.score >= threshold).astype(int)

    def statistic(weight: Array) -> dict[str, Array]:
        at = decisions(confusion(truth, answer, 2, weight))
        return {"sensitivity": at["recall"][:, 1], "specificity": at["recall"][:, 0]}

    draws = bootstrap(statistic, groups, resamples=config.resamples, seed=seed)
    point["counts"] = counts(truth, answer)
    for name, side in (("sensitivity", 1), ("specificity", 0)):
        patients = len(set(groups[truth == side]))
        value = float(draws.value[name])
        bounds = draws.interval(name, config.confidence)
        if value in (0.0, 1.0) and bounds.low == bounds.high:
            bounds = wilson(value * patients, patients, config.confidence)
        point[name] = entry(value, bounds, n=int((truth == side).sum()), patients=patients, note="in sample")
    return point


def counts(truth: Array, answer: Array) -> dict[str, int]:
    """True and false positives and negatives of a two-class decision."""
    (tn, fp), (fn, tp) = confusion(truth, answer, 2).astype(int)
    return {"tp": int(tp), "fp": int(fp), "fn": int(fn), "tn": int(tn)}
