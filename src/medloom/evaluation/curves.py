"""ROC and precision-recall curves on a grid of 101 points, with pointwise bands over resampled patients."""

from __future__ import annotations

from typing import Any

import numpy as np

from medloom.config import EvaluationConfig
from medloom.evaluation import metrics as m
from medloom.evaluation.intervals import bootstrap
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import questions

Array = np.ndarray
GRID = np.linspace(0.0, 1.0, 101)
_RESAMPLES = 500  # a band is drawn, not quoted; more would not move a line by its own width


def curves(predictions: Predictions, config: EvaluationConfig, seed: int = 0) -> dict[str, Any]:
    """By question: ``roc`` {x: false positive rate, y: sensitivity} and ``pr`` {x: recall, y: precision}.

    Each curve also has ``low`` and ``high``, its pointwise band, and ``chance``, the height of a model that guesses
    (the diagonal, None, for ROC). A question with too few images of a side has None and a ``reason``.
    """
    out: dict[str, Any] = {}
    for question in questions(predictions):
        reason = question.missing(config.min_positives)
        if reason is not None:
            out[question.name] = {"roc": None, "pr": None, "reason": f"not estimable ({reason})"}
            continue
        ranking = m.rank(question.positive, question.score)

        def statistic(weight: Array, ranking: m.Ranking = ranking) -> dict[str, Array]:
            return {
                "roc": m.roc_curve(ranking, GRID, weight),
                "pr": m.precision_recall_curve(ranking, GRID, weight),
            }

        draws = bootstrap(
            statistic, predictions.groups, resamples=min(config.resamples, _RESAMPLES), seed=seed, leave_out=False
        )
        pair = {}
        for name in ("roc", "pr"):
            low, high = draws.band(name, config.confidence)
            pair[name] = {
                "x": _plain(GRID),
                "y": _plain(draws.value[name]),
                "low": _plain(low),
                "high": _plain(high),
                "chance": None if name == "roc" else float(question.positive.mean()),
            }
        out[question.name] = {**pair, "reason": None}
    return out


def _plain(values: Array) -> list[float | None]:
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]
