"""Several models, each run with some seeds, on the same test images: every number with its interval, and each model's
difference to one of them.

Shapes: N images, B resamples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medloom.evaluation import comparison
from medloom.evaluation.baselines import trivial
from medloom.evaluation.intervals import Draws, Interval, bootstrap, entry, newcombe_auc, not_estimable, wilson
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import questions

Array = np.ndarray
METRICS = ("auc", "accuracy", "f1")
FEW_SEEDS = 5


@dataclass(frozen=True, eq=False)
class _Row:
    """One model: its tables by seed in the common order of images, and its metrics on the same resamples."""

    tables: Mapping[int, Predictions]
    draws: Draws | None

    @property
    def seeds(self) -> list[int]:
        return list(self.tables)


def standings(
    runs: Mapping[str, Mapping[int, Predictions]],
    *,
    baseline: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    min_positives: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers of a leaderboard.

    Args:
        runs: model, then seed, then its predictions on the one test split.
        baseline: the model that the others are held against; None gives no differences.

    Returns:
        ``rows``: per model ``seeds`` and per metric ``{mean, sd, values, entry}``: ``entry`` is the mean over the
        seeds with an interval over resampled patients (these very runs, other patients).
        ``differences``: per other model and metric ``{seeds, differences, difference, p, p_holm}``, model minus
        baseline over the seeds that both have; the interval covers patients and, from two seeds on, new seeds.
        Accuracy and F1 are those of the most probable class (labels: of probability one half and more).

    Raises:
        DataError: D116 when the tables are not about the same images and labels.
        ValueError: no runs, or a baseline that is not among them.
    """
    if not runs or (baseline is not None and baseline not in runs):
        raise ValueError("no runs, or a baseline that is none of them")
    first = next(iter(next(iter(runs.values())).values()))
    rows = {
        name: _row(
            first,
            {s: comparison.aligned(first, t) for s, t in sorted(by_seed.items())},
            min_positives,
            _Plan(resamples, seed),
        )
        for name, by_seed in runs.items()
    }
    level = confidence
    differences: dict[str, dict[str, Any]] = {}
    if baseline is not None:
        for name in rows:
            if name != baseline:
                differences[name] = {m: _difference(rows[name], rows[baseline], m, first, level, seed) for m in METRICS}
        for metric in METRICS:
            asked = [d[metric] for d in differences.values() if d[metric]["p"] is not None]
            for found, p in zip(asked, comparison.holm([d["p"] for d in asked]), strict=True):
                found["p_holm"] = p
    return {
        "baseline": baseline,
        "rows": {name: _numbers(row, first, level, min_positives) for name, row in rows.items()},
        "differences": differences,
        "trivial": {m: trivial(first)[m] for m in METRICS},
        "images": len(first),
        "patients": len(set(first.groups)),
        "unit": "patient" if first.patients_known else "image",
        "counts": {c: int(n) for c, n in zip(first.classes, first.positives.sum(axis=0))},
        "multi_label": first.multi_label,
        "left_out": [q.name for q in questions(first) if q.missing(min_positives) is not None],
        "confidence": confidence,
        "resamples": resamples,
    }


@dataclass(frozen=True)
class _Plan:
    resamples: int
    seed: int


def _row(first: Predictions, tables: dict[int, Predictions], min_positives: int, plan: _Plan) -> _Row:
    if not len(first):
        return _Row(tables, None)
    estimable = any(q.missing(min_positives) is None for q in questions(first))
    functions = {
        metric: [comparison.metric_of(t, metric, None, min_positives) for t in tables.values()]
        for metric in METRICS
        if estimable or metric == "accuracy"
    }

    def statistic(weight: Array) -> dict[str, Array]:
        out: dict[str, Array] = {}
        for metric, each in functions.items():
            values_BS = np.stack([one(weight) for one in each], axis=1)
            out |= {f"{metric}_S": values_BS, metric: values_BS.mean(axis=1)}
        return out

    return _Row(tables, bootstrap(statistic, first.groups, resamples=plan.resamples, seed=plan.seed))


def _numbers(row: _Row, first: Predictions, confidence: float, min_positives: int) -> dict[str, Any]:
    n, patients = len(first), len(set(first.groups))
    none = trivial(first)
    out: dict[str, Any] = {"seeds": row.seeds}
    for metric in METRICS:
        if row.draws is None or metric not in row.draws.value:
            reason = next((r for q in questions(first) if (r := q.missing(min_positives))), "0 images")
            out[metric] = {
                "mean": None,
                "sd": None,
                "values": [],
                "entry": not_estimable(reason, n=n, patients=patients),
            }
            continue
        value = float(row.draws.value[metric])
        bounds = row.draws.interval(metric, confidence)
        if value in (0.0, 1.0) and bounds.low == bounds.high:
            bounds = _collapsed(first, metric, value, confidence)
        found = comparison.mean_and_sd(row.draws.value[f"{metric}_S"])
        out[metric] = {**found, "entry": entry(value, bounds, n=n, patients=patients, baseline=none[metric])}
    return out


def _difference(
    row: _Row, other: _Row, metric: str, first: Predictions, confidence: float, seed: int
) -> dict[str, Any]:
    n, patients = len(first), len(set(first.groups))
    common = [s for s in row.seeds if s in other.seeds]
    out: dict[str, Any] = {"seeds": common, "differences": [], "p": None, "p_holm": None}
    if not common or row.draws is None or other.draws is None or metric not in row.draws.value:
        reason = "no seed in common" if not common else "too few images of a class"
        return out | {"difference": not_estimable(reason, n=n, patients=patients)}
    key = f"{metric}_S"
    mine, theirs = ([r.seeds.index(s) for s in common] for r in (row, other))
    values_S = row.draws.value[key][mine] - other.draws.value[key][theirs]
    # The same seed drew the same patients for every row, so the resamples pair up.
    both = comparison.over_seeds(row.draws.samples[key][:, mine] - other.draws.samples[key][:, theirs], seed)
    tail = (1 - confidence) / 2
    low, high = (float(q) for q in np.nanquantile(both, [tail, 1 - tail]))
    count = len(common)
    note = None
    if count < FEW_SEEDS:
        note = f"{count} seed{'s' if count > 1 else ''}: the spread between seeds is hardly known"
    bounds = Interval(low, high, "percentile")
    return out | {
        "differences": values_S.tolist(),
        "difference": entry(float(values_S.mean()), bounds, n=n, patients=patients, baseline=0.0, note=note),
        "p": comparison.bootstrap_p(both) if math.isfinite(low) else None,
    }


def _collapsed(first: Predictions, metric: str, value: float, confidence: float) -> Interval:
    """Where every resample gives 0 or 1 the bounds come from score intervals over patients."""
    groups = first.groups
    if metric == "auc":
        one = questions(first)[0]
        sides = (len(set(groups[one.positive])), len(set(groups[~one.positive])))
        return newcombe_auc(value, *sides, confidence)
    patients = len(set(groups))
    return wilson(value * patients, patients, confidence)
