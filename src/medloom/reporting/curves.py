"""Curves of a report, computed from the recorded predictions: ROC, precision-recall, reliability.

Bands are pointwise percentile intervals over resampled patients, so that ten images of one patient do not count as
ten patients. Suffixes: N images, G grid points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medloom.evaluation.intervals import bootstrap, wilson
from medloom.evaluation.metrics import Ranking, equal_mass_bins, precision_recall_curve, rank, roc_curve

_GRID = np.linspace(0.0, 1.0, 201)
# A band of three pixels' accuracy does not need the 2,000 draws of a reported number.
RESAMPLES = 500


@dataclass(frozen=True)
class Curve:
    """A curve with its band on a common grid."""

    x_G: np.ndarray
    y_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: mean forecast, observed share with its Wilson interval, images."""

    forecast: float
    observed: float
    low: float
    high: float
    n: int


def roc(
    positive_N: np.ndarray, score_N: np.ndarray, groups_N: np.ndarray, *, confidence: float, seed: int
) -> Curve | None:
    """Sensitivity over 1 - specificity; None when one of the two classes is absent."""
    return _curve(roc_curve, positive_N, score_N, groups_N, confidence, seed)


def precision_recall(
    positive_N: np.ndarray, score_N: np.ndarray, groups_N: np.ndarray, *, confidence: float, seed: int
) -> Curve | None:
    """Precision over recall; None when one of the two classes is absent."""
    return _curve(precision_recall_curve, positive_N, score_N, groups_N, confidence, seed)


def reliability(event_N: np.ndarray, forecast_N: np.ndarray, bins: int = 10) -> list[Bin]:
    """Equal-mass bins of the forecast, equal forecasts together; the bins that ECE is computed on."""
    if len(forecast_N) == 0:
        return []
    bin_N = equal_mass_bins(forecast_N, bins)
    found = []
    for b in range(int(bin_N.max()) + 1):
        event, forecast = event_N[bin_N == b].astype(float), forecast_N[bin_N == b]
        bounds = wilson(float(event.sum()), len(event))
        found.append(
            Bin(float(forecast.mean()), float(event.mean()), bounds.low or 0.0, bounds.high or 0.0, len(event))
        )
    return found


def _curve(
    curve: Callable[[Ranking, np.ndarray, np.ndarray | None], np.ndarray],
    positive_N: np.ndarray,
    score_N: np.ndarray,
    groups_N: np.ndarray,
    confidence: float,
    seed: int,
) -> Curve | None:
    if len(positive_N) == 0 or positive_N.all() or not positive_N.any():
        return None
    ranking = rank(positive_N, score_N)
    draws = bootstrap(
        lambda weight: {"curve": curve(ranking, _GRID, weight)}, groups_N, resamples=RESAMPLES, seed=seed
    )
    low, high = draws.band("curve", confidence)
    return Curve(_GRID, np.asarray(draws.value["curve"]), low, high)
