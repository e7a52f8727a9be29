"""The same model in parts of its patients: by sex, age band, view, device and site.

Reference: Seyyed-Kalantari et al. 2021, Nat. Med. 27 (under-diagnosis hides in the average).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medloom.config import EvaluationConfig
from medloom.evaluation import metrics as m
from medloom.evaluation.baselines import COVARIATES, covariates, years
from medloom.evaluation.intervals import bootstrap, entry, newcombe_auc, not_estimable, wilson
from medloom.evaluation.operating_point import thresholds
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import LEAST_PATIENTS, Question, questions

Array = np.ndarray
AGE_BANDS = ((0, 18), (18, 40), (40, 60), (60, 80), (80, 200))
_MOST = 20


def subgroups(
    predictions: Predictions, operating_points: Mapping[str, Any] | None, config: EvaluationConfig, seed: int = 0
) -> dict[str, Any]:
    """``rows`` and ``absent``: the columns that nobody gave, named so that silence is not read as fairness.

    A row: ``column, group, class, n, patients, positives, auc, sensitivity, specificity``, the last three entries;
    "too few to judge" below ``min_positives`` images, or five patients, of the side that they need.
    """
    known = covariates(predictions)
    cuts = thresholds(operating_points)
    rows = []
    for column, values in known.items():
        kinds = _bands(values) if column == "age" else _kinds(values)
        for group, inside in kinds.items():
            part = predictions.select(np.asarray(inside))
            for question in questions(part):
                rows.append({"column": column, "group": group} | _row(part, question, cuts, config, seed))
    return {"rows": rows, "absent": [c for c in COVARIATES if c not in known]}


def _row(
    part: Predictions, question: Question, cuts: Mapping[str, float], config: EvaluationConfig, seed: int
) -> dict[str, Any]:
    groups, truth = part.groups, question.positive.astype(int)
    sides = (len(set(groups[truth == 0])), len(set(groups[truth == 1])))
    patients, cut, least = len(set(groups)), cuts.get(question.name), max(config.min_positives, 1)
    owners = min(least, LEAST_PATIENTS)
    enough = {
        "specificity": question.negatives >= least and sides[0] >= owners,
        "sensitivity": question.positives >= least and sides[1] >= owners,
    }
    ranking = m.rank(question.positive, question.score)
    answer = (question.score >= (0.5 if cut is None else cut)).astype(int)

    def statistic(weight: Array) -> dict[str, Array]:
        recall = m.decisions(m.confusion(truth, answer, 2, weight))["recall"]
        return {"auc": m.auc(ranking, weight), "sensitivity": recall[..., 1], "specificity": recall[..., 0]}

    draws = bootstrap(statistic, groups, resamples=config.resamples, seed=seed) if any(enough.values()) else None
    row: dict[str, Any] = {
        "class": question.name,
        "n": len(part),
        "patients": patients,
        "positives": question.positives,
    }
    for name in ("auc", "sensitivity", "specificity"):
        fits = all(enough.values()) if name == "auc" else enough[name]
        if draws is None or not fits:
            row[name] = not_estimable("too few to judge", n=len(part), patients=patients)
        elif name != "auc" and cut is None:
            row[name] = not_estimable("no operating point", n=len(part), patients=patients)
        else:
            value, bounds = float(draws.value[name]), draws.interval(name, config.confidence)
            if value in (0.0, 1.0) and bounds.low == bounds.high:
                side = sides[1] if name == "sensitivity" else sides[0]
                bounds = newcombe_auc(value, sides[1], sides[0]) if name == "auc" else wilson(value * side, side)
            row[name] = entry(value, bounds, n=len(part), patients=patients)
    return row


def _kinds(values: tuple[str, ...]) -> dict[str, Array]:
    column = np.array(values, dtype=object)
    names, times = np.unique(column.astype(str), return_counts=True)
    # The largest groups first in size, but listed by name; a column of serial numbers gives no table.
    kept = sorted(names[np.argsort(-times, kind="stable")][:_MOST])
    return {name or "unknown": column == name for name in kept}


def _bands(values: tuple[str, ...]) -> dict[str, Array]:
    ages = np.array([np.nan if (y := years(v)) is None else y for v in values])
    out = {}
    for low, high in AGE_BANDS:
        inside = (ages >= low) & (ages < high)
        if inside.any():
            out[f"{low}-{high - 1}" if high < 200 else f"{low}+"] = inside
    if np.isnan(ages).any():
        out["unknown"] = np.isnan(ages)
    return out
