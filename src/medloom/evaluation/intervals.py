"""Intervals that resample patients, and the one shape in which a number reaches a reader.

Images of one patient resemble each other; intervals that resample images are too narrow, as a test here shows.
A resample is a weighting of the images, so a metric that takes weights needs one pass for all of them.

Shapes: N images, P patients, B resamples. References: Efron 1987, J. Am. Stat. Assoc. 82 (BCa); Wilson 1927;
Newcombe 2006, Stat. Med. 25 (AUC at its bounds).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Statistic = Callable[[Array], Mapping[str, Array]]
"""From weightings ``(B, N)`` to named results ``(B,)`` or ``(B, M)``, NaN where undefined."""

_BLOCK = 2**20  # weights held at once; fixed, so that the same seed gives the same resamples everywhere
_JACKKNIFE_GROUPS = 400
_UNDEFINED_LIMIT = 0.05


@dataclass(frozen=True)
class Interval:
    """Bounds, how they were found, and why there are none where there are none."""

    low: float | None
    high: float | None
    method: str
    note: str | None = None


@dataclass(frozen=True)
class Draws:
    """A statistic on the sample itself, on resamples of its patients, and with groups of patients left out."""

    value: Mapping[str, Array]
    samples: Mapping[str, Array]
    left_out: Mapping[str, Array]
    patients: int

    def interval(self, name: str, confidence: float = 0.95) -> Interval:
        """BCa interval where it is stable, else percentile, of a result with shape ``(B,)``."""
        return bootstrap_interval(float(self.value[name]), self.samples[name], self.left_out[name], confidence)

    def band(self, name: str, confidence: float = 0.95) -> tuple[Array, Array]:
        """Pointwise percentile bounds ``(M,)`` of a result with shape ``(B, M)``, NaN where undefined too often."""
        samples = self.samples[name]
        undefined = np.isnan(samples).mean(axis=0) > _UNDEFINED_LIMIT
        filled = np.where(undefined, 0.0, samples)
        tail = (1 - confidence) / 2
        if np.isnan(filled).any():
            low, high = np.nanquantile(filled, [tail, 1 - tail], axis=0)
        else:
            low, high = np.quantile(filled, [tail, 1 - tail], axis=0)
        return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def patient_codes(groups_N: Array) -> tuple[Array, int]:
    """``(N,)`` patient number of each image, and how many patients there are."""
    names, codes = np.unique(np.asarray(groups_N).astype(str), return_inverse=True)
    return codes, len(names)


def resample_weights(codes_N: Array, patients: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks ``(b, N)`` of weightings: how often each image's patient came up in ``patients`` draws."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(len(codes_N), patients))
    for start in range(0, resamples, block):
        b = min(block, resamples - start)
        drawn = generator.integers(0, patients, size=(b, patients), dtype=np.int64)
        drawn += np.arange(b, dtype=np.int64)[:, None] * patients
        times = np.bincount(drawn.ravel(), minlength=b * patients).reshape(b, patients)
        yield np.take(times, codes_N, axis=1).astype(np.float64)


def bootstrap(
    statistic: Statistic, groups_N: Array, *, resamples: int = 2000, seed: int = 0, leave_out: bool = True
) -> Draws:
    """Evaluate ``statistic`` on the sample, on resamples of its patients, and without each (group of) patients.

    Args:
        statistic: from weightings ``(B, N)`` to named arrays ``(B,)`` or ``(B, M)``.
        groups_N: patient of each image.
        resamples: how many weightings to draw; the same seed draws the same ones for every statistic, so that two
            models resampled alike are compared pairwise.
        leave_out: also leave out patients, which BCa intervals need and bands do not.
    """
    codes, patients = patient_codes(groups_N)
    n = len(codes)
    whole = {k: np.asarray(v)[0] for k, v in statistic(np.ones((1, n))).items()}
    samples = _gather(statistic, resample_weights(codes, patients, resamples, seed))
    if not leave_out:
        return Draws(whole, samples, {}, patients)
    # Leaving out groups of patients instead of single ones keeps the acceleration's expectation (cubes of independent
    # influences add up as squares do) at bounded cost.
    fold = np.random.default_rng((seed, 1)).permutation(patients) % min(patients, _JACKKNIFE_GROUPS)
    left_out = _gather(statistic, _leave_out(fold[codes], min(patients, _JACKKNIFE_GROUPS)))
    return Draws(whole, samples, left_out, patients)


def bootstrap_interval(value: float, samples_B: Array, left_out_J: Array, confidence: float = 0.95) -> Interval:
    """Bounds from resampled values: BCa where its two corrections are small and defined, else percentile."""
    defined = samples_B[np.isfinite(samples_B)]
    undefined = 1.0 - len(defined) / max(len(samples_B), 1)
    if not math.isfinite(value):
        return Interval(None, None, "none", "not estimable")
    if undefined > _UNDEFINED_LIMIT:
        note = f"interval not estimable: undefined in {undefined:.0%} of the resamples (too few patients of a class)"
        return Interval(None, None, "none", note)
    tail = (1 - confidence) / 2
    quantiles, method = np.array([tail, 1 - tail]), "percentile"
    corrected = _bca_quantiles(value, defined, left_out_J, quantiles)
    if corrected is not None:
        quantiles, method = corrected, "bca"
    low, high = np.quantile(defined, quantiles)
    return Interval(float(low), float(high), method)


def wilson(hits: float, n: float, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion; stays honest at 0 and 1 (16 of 16 proves only that it is above 0.806)."""
    if n <= 0:
        return Interval(None, None, "none", "not estimable (0 images)")
    from scipy.special import ndtri  # a third of a second that no answer of a bundle needs

    z = float(ndtri((1 + confidence) / 2))
    p = hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale), "wilson")


def newcombe_auc(value: float, positives: float, negatives: float, confidence: float = 0.95) -> Interval:
    """Score-like interval of an AUC, for samples so well separated that every resample gives the same value."""
    from scipy.optimize import brentq  # as above
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    star = (positives + negatives) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + star * (1 - theta) / (2 - theta) + star * theta / (1 + theta)
        return (value - theta) ** 2 - z * z * theta * (1 - theta) * spread / (positives * negatives)

    # At exactly 0 and 1 the value itself is a root; the bound sought is the other one.
    step = 1e-9
    low = float(brentq(excess, 0.0, value - step)) if value > step else 0.0
    high = float(brentq(excess, value + step, 1.0)) if value < 1 - step else 1.0
    return Interval(low, high, "newcombe")


def entry(
    value: float,
    interval: Interval | None = None,
    *,
    n: int,
    patients: int,
    baseline: float | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """The shape of every metric in metrics.json: a number with bounds, or None with the reason. Never NaN."""
    estimable = math.isfinite(value)
    bounds = interval if estimable and interval is not None else Interval(None, None, "none")
    notes = [text for text in (note, bounds.note) if text]
    if not estimable and not notes:
        notes = ["not estimable"]
    return {
        "value": float(value) if estimable else None,
        "low": bounds.low,
        "high": bounds.high,
        "n": int(n),
        "patients": int(patients),
        "baseline": None if baseline is None or not math.isfinite(baseline) else float(baseline),
        "method": bounds.method,
        "note": "; ".join(notes) or None,
    }


def not_estimable(reason: str, *, n: int, patients: int) -> dict[str, Any]:
    """An entry that says why there is no number (D122, D123)."""
    return entry(math.nan, n=n, patients=patients, note=f"not estimable ({reason})")


def _bca_quantiles(value: float, samples: Array, left_out: Array, quantiles: Array) -> Array | None:
    """Corrected quantiles, or None where the correction would rest on few resamples or on undefined values."""
    left_out = left_out[np.isfinite(left_out)]
    share = ((samples < value).sum() + 0.5 * (samples == value).sum()) / max(len(samples), 1)
    if not 0 < share < 1 or len(left_out) < 20:
        return None
    from scipy.special import ndtr, ndtri  # as above

    bias = float(ndtri(share))
    influence = left_out.mean() - left_out
    spread = float((influence**2).sum())
    if spread <= 0 or abs(bias) > 0.5:
        return None
    acceleration = float((influence**3).sum()) / (6 * spread**1.5)
    if abs(acceleration) > 0.2:
        return None
    z = bias + ndtri(quantiles)
    corrected = ndtr(bias + z / (1 - acceleration * z))
    edge = 5 / len(samples)
    return corrected if edge <= corrected[0] < corrected[1] <= 1 - edge else None


def _leave_out(fold_N: Array, folds: int) -> Iterator[Array]:
    block = max(1, _BLOCK // max(len(fold_N), 1))
    for start in range(0, folds, block):
        yield (fold_N != np.arange(start, min(start + block, folds))[:, None]).astype(np.float64)


def _gather(statistic: Statistic, blocks: Iterator[Array]) -> dict[str, Array]:
    parts = [statistic(weight) for weight in blocks]
    return {name: np.concatenate([np.asarray(p[name]) for p in parts]) for name in parts[0]} if parts else {}
