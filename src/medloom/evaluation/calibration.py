"""Whether 0.8 means eight in ten: temperature from validation, reliability curve, slope and intercept.

Shapes: N images, K classes. References: Guo et al. 2017 (temperature); Cox 1958 and Van Calster et al. 2019 (slope,
intercept); Liang and Zeger 1986 (variance with several images per patient).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, ndtri

from medloom.evaluation.intervals import Interval, entry, not_estimable, patient_codes, wilson
from medloom.evaluation.metrics import equal_mass_bins
from medloom.evaluation.questions import LEAST_PATIENTS

Array = np.ndarray
_RANGE = (0.05, 20.0)


def fit_temperature(logits: Array, labels: Array, multi_label: bool = False) -> float:
    """The one divisor of all logits that makes validation most likely, between 0.05 and 20.

    Args:
        logits: ``(N, K)`` of the validation split, never of the test split.
        labels: ``(N,)`` class positions, or ``(N, K)`` zeros and ones.
        multi_label: sigmoid per label instead of softmax.
    """
    z = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels).astype(np.int64)
    if len(z) == 0:
        return 1.0
    if multi_label:
        margin = np.where(y == 1, z, -z).ravel()
        separated = bool((margin > 0).all())
    else:
        true = z[np.arange(len(z)), y]
        separated = bool((true > np.where(np.arange(z.shape[1]) == y[:, None], -np.inf, z).max(axis=1)).all())
    if separated:
        # Without a single error nothing keeps the likelihood from asking for ever more confidence.
        return 1.0

    def loss(log_t: float) -> float:
        t = math.exp(log_t)
        if multi_label:
            return float(np.logaddexp(0.0, -margin / t).mean())
        return float((np.logaddexp.reduce(z / t, axis=1) - true / t).mean())

    found = minimize_scalar(loss, bounds=tuple(map(math.log, _RANGE)), method="bounded", options={"xatol": 1e-6})
    return float(math.exp(found.x))


def default_bins(n: int) -> int:
    """Fifteen bins, or fewer so that each holds about twenty images."""
    return max(1, min(15, n // 20))


def reliability(positive: Array, score: Array, groups: Array, *, confidence: float = 0.95) -> list[dict[str, Any]]:
    """Points of the reliability diagram over bins of equal mass.

    Each has ``n``, ``patients``, ``mean_probability``, ``observed`` and Wilson bounds ``low``, ``high`` that count
    patients, not images, as the trials.
    """
    if len(score) == 0:
        return []
    bins = equal_mass_bins(score, default_bins(len(score)))
    rows = []
    for b in range(int(bins.max()) + 1):
        inside = bins == b
        n, patients = int(inside.sum()), len(set(groups[inside]))
        observed = float(positive[inside].mean())
        bounds = wilson(observed * patients, patients, confidence)
        rows.append(
            {
                "n": n,
                "patients": patients,
                "mean_probability": float(score[inside].mean()),
                "observed": observed,
                "low": bounds.low,
                "high": bounds.high,
            }
        )
    return rows


def errors_if_calibrated(score: Array, *, draws: int = 200, seed: int = 0) -> Array:
    """``(draws,)`` calibration errors that perfectly calibrated models of these scores show: the measure's own bias."""
    bins = equal_mass_bins(score, default_bins(len(score)))
    one_hot = (bins[:, None] == np.arange(bins.max() + 1)).astype(np.float64)
    generator = np.random.default_rng((seed, 4))
    gaps = [(generator.random(len(score)) < score).astype(np.float64) - score for _ in range(draws)]
    return np.abs(np.stack(gaps) @ one_hot).sum(axis=1) / len(score)


def slope_and_intercept(
    positive: Array, score: Array, groups: Array, *, confidence: float = 0.95, min_positives: int = 10
) -> dict[str, dict[str, Any]]:
    """Entries ``slope`` (1 is right, below is over-confident) and ``intercept`` (0 is right, above is under-called).

    Slope is that of a logistic regression on the log odds; the intercept holds the slope at one. Intervals are
    normal ones on a variance that sums scores within patients.
    """
    y = np.asarray(positive, dtype=np.float64)
    codes, patients = patient_codes(groups)
    n = len(y)
    fewest = int(min(y.sum(), n - y.sum()))
    p = np.clip(np.asarray(score, dtype=np.float64), 1e-12, 1 - 1e-12)
    odds = np.log(p) - np.log1p(-p)
    reason = None
    owners = min(len(set(groups[y == side])) for side in (0, 1))
    if fewest < max(min_positives, 1):
        reason = f"{fewest} images of the rarer side, {min_positives} needed"
    elif owners < min(min_positives, LEAST_PATIENTS):
        reason = f"{owners} patients of the rarer side, {LEAST_PATIENTS} needed"
    elif float(np.ptp(odds)) == 0.0:
        reason = "all scores are equal"
    if reason is not None:
        return {name: not_estimable(reason, n=n, patients=patients) for name in ("slope", "intercept")}
    # In units of their own spread: scores that hardly vary want a slope of hundreds, further than the steps reach.
    spread = float(odds.std())
    steep = _logistic(np.stack([odds / spread, np.ones(n)], axis=1), y, np.zeros(n), codes, patients)
    fits = {
        "slope": None if steep is None else (steep[0] / spread, steep[1] / spread),
        "intercept": _logistic(np.ones((n, 1)), y, odds, codes, patients),
    }
    z = float(ndtri((1 + confidence) / 2))
    out = {}
    for (name, fit), ideal in zip(fits.items(), (1.0, 0.0)):
        if fit is None:
            out[name] = not_estimable("the scores separate the classes", n=n, patients=patients)
        else:
            value, error = fit
            bounds = Interval(value - z * error, value + z * error, "sandwich")
            out[name] = entry(value, bounds, n=n, patients=patients, baseline=ideal, note="baseline is the ideal")
    return out


def _logistic(x_ND: Array, y: Array, offset: Array, codes: Array, patients: int) -> tuple[float, float] | None:
    """First coefficient and its cluster-robust error by Newton's method, or None where it does not settle."""
    beta = np.zeros(x_ND.shape[1])
    for _ in range(50):
        p = expit(x_ND @ beta + offset)
        information = (x_ND * (p * (1 - p))[:, None]).T @ x_ND
        if not np.isfinite(information).all() or np.linalg.cond(information) > 1e12:
            return None
        step = np.linalg.solve(information, x_ND.T @ (y - p))
        # Full Newton steps overshoot on steep scores; four units of log odds at a time is still a few iterations.
        beta = beta + step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-9:
            break
    else:
        return None
    per_patient = np.zeros((patients, x_ND.shape[1]))
    np.add.at(per_patient, codes, x_ND * (y - p)[:, None])
    bread = np.linalg.inv(information)
    variance = bread @ (per_patient.T @ per_patient) @ bread * patients / max(patients - 1, 1)
    return float(beta[0]), float(math.sqrt(variance[0, 0]))
