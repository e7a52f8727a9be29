"""Two models on the same images: the difference, its interval, and whether it is more than luck.

Shapes: N images, B resamples, S seeds. References: DeLong et al. 1988 (in the fast form of Sun and Xu 2014);
Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from medloom.errors import DataError
from medloom.evaluation import metrics as m
from medloom.evaluation.intervals import Interval, bootstrap, entry, not_estimable
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import answers, questions

Array = np.ndarray
Metric = Callable[[Array], Array]
METRICS = ("auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "brier", "log_loss")


def paired_difference(
    a: Predictions,
    b: Predictions,
    metric: str = "auc",
    *,
    thresholds: tuple[Mapping[str, float] | None, Mapping[str, float] | None] = (None, None),
    resamples: int = 2000,
    confidence: float = 0.95,
    min_positives: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """``a`` minus ``b`` in one metric over the same resampled patients.

    Args:
        a, b: predictions of the same ids with the same labels, in any order.
        metric: one of ``METRICS``.
        thresholds: by class, for each model its own from validation; without one the most probable class (labels:
            one half) is the answer. Only ``accuracy``, ``balanced_accuracy`` and ``f1`` read them.

    Returns:
        ``metric, a, b, difference`` (entry)``, p, resamples, delong`` ({difference, low, high, p} for the AUC of a
        two-class question where every patient has one image, else None).

    Raises:
        DataError: D116 when ids, labels or classes differ.
        ValueError: an unknown metric.
    """
    b = aligned(a, b)
    reason = _too_few(a, min_positives, metric)
    n, patients = len(a), len(set(a.groups))
    out: dict[str, Any] = {"metric": metric, "a": None, "b": None, "p": None, "resamples": resamples, "delong": None}
    first = metric_of(a, metric, thresholds[0], min_positives)
    second = metric_of(b, metric, thresholds[1], min_positives)
    if reason is not None:
        return out | {"difference": not_estimable(reason, n=n, patients=patients)}

    def statistic(weight: Array) -> dict[str, Array]:
        values = first(weight), second(weight)
        return {"a": values[0], "b": values[1], "difference": values[0] - values[1]}

    draws = bootstrap(statistic, a.groups, resamples=resamples, seed=seed)
    bounds = draws.interval("difference", confidence)
    out |= {name: float(draws.value[name]) for name in ("a", "b")}
    out["difference"] = entry(float(draws.value["difference"]), bounds, n=n, patients=patients, baseline=0.0)
    out["p"] = bootstrap_p(draws.samples["difference"])
    asked = questions(a)
    if metric == "auc" and len(asked) == 1 and patients == n:
        out["delong"] = delong(asked[0].positive, asked[0].score, questions(b)[0].score, confidence)
    return out


def seeds_difference(
    pairs: Sequence[tuple[Predictions, Predictions]],
    metric: str = "auc",
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    min_positives: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """``a`` minus ``b`` over runs with several seeds: each resample draws patients, and pairs of runs.

    Args:
        pairs: one ``(a, b)`` per seed, all on the same ids. The runs of a pair share a seed, so they are drawn
            together.

    Returns:
        ``metric, a, b`` ({mean, sd, values} over seeds)``, differences`` (per seed)``, difference`` (entry: patients
        and seeds)``, patients_only`` (entry: these very runs, other patients)``, p, seeds``. Three seeds say little
        about the spread between seeds, and the note says so below five.

    Raises:
        DataError: D116 as in ``paired_difference``; ValueError without pairs.
    """
    if not pairs:
        raise ValueError("no pairs of runs")
    first = pairs[0][0]
    tables = [(aligned(first, a), aligned(first, b)) for a, b in pairs]
    reason = _too_few(first, min_positives, metric)
    n, patients, runs = len(first), len(set(first.groups)), len(tables)
    if reason is not None:
        return {"metric": metric, "seeds": runs, "p": None} | {
            name: not_estimable(reason, n=n, patients=patients) for name in ("difference", "patients_only")
        }
    functions = [tuple(metric_of(t, metric, None, min_positives) for t in pair) for pair in tables]

    def statistic(weight: Array) -> dict[str, Array]:
        a, b = (np.stack([pair[side](weight) for pair in functions], axis=1) for side in (0, 1))
        return {"a_S": a, "b_S": b, "mean": (a - b).mean(axis=1)}

    draws = bootstrap(statistic, first.groups, resamples=resamples, seed=seed)
    gap_BS = draws.samples["a_S"] - draws.samples["b_S"]
    both = over_seeds(gap_BS, seed)
    value = float(draws.value["mean"])
    tail = (1 - confidence) / 2
    low, high = (float(q) for q in np.nanquantile(both, [tail, 1 - tail]))
    note = f"{runs} seed{'s' if runs > 1 else ''}: the spread between seeds is hardly known" if runs < 5 else None
    a_S, b_S = draws.value["a_S"], draws.value["b_S"]
    return {
        "metric": metric,
        "seeds": runs,
        "a": mean_and_sd(a_S),
        "b": mean_and_sd(b_S),
        "differences": (a_S - b_S).tolist(),
        "difference": entry(value, Interval(low, high, "percentile"), n=n, patients=patients, baseline=0.0, note=note),
        "patients_only": entry(value, draws.interval("mean", confidence), n=n, patients=patients, baseline=0.0),
        "p": bootstrap_p(both),
    }


def over_seeds(values_BS: Array, seed: int = 0) -> Array:
    """``(B,)`` means over runs drawn with replacement, from the values ``(B, S)`` of S runs on B resamples.

    Runs drawn with replacement from S spread (S - 1) / S as much as new runs would; that part is stretched to size.
    """
    runs = values_BS.shape[1]
    only = values_BS.mean(axis=1)
    if runs < 2:
        return only
    drawn_BS = np.random.default_rng((seed, 3)).integers(0, runs, size=values_BS.shape)
    both = np.take_along_axis(values_BS, drawn_BS, axis=1).mean(axis=1)
    stretched: Array = only + (both - only) * math.sqrt(runs / (runs - 1))
    return stretched


def metric_of(
    predictions: Predictions, metric: str, thresholds: Mapping[str, float] | None = None, min_positives: int = 10
) -> Metric:
    """A function from weightings ``(B, N)`` to values ``(B,)``; macro means run over the estimable questions."""
    asked = questions(predictions)
    usable = [q for q in asked if q.missing(min_positives) is None]
    if metric in ("auc", "average_precision"):
        rankings = [m.rank(q.positive, q.score) for q in usable]
        one = m.auc if metric == "auc" else m.average_precision
        return lambda weight: np.mean([one(r, weight) for r in rankings], axis=0)
    columns = [q.column for q in asked]
    truth, scores = predictions.positives, predictions.probabilities
    width = len(columns) if predictions.multi_label else 1
    if metric == "brier":
        error = m.squared_error(truth[:, columns], scores[:, columns]) / width
        return lambda weight: m.mean_over_images(error, weight)
    if metric == "log_loss":
        sides = (np.concatenate([truth, ~truth], 1), np.concatenate([scores, 1 - scores], 1))
        loss = m.log_loss(*sides) / width if predictions.multi_label else m.log_loss(truth, scores)
        return lambda weight: m.mean_over_images(loss, weight)
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known are {', '.join(METRICS)}")
    return _decided(predictions, metric, thresholds or {}, [q.column for q in usable])


def aligned(a: Predictions, b: Predictions) -> Predictions:
    """``b`` in the order of ``a``.

    Raises:
        DataError: D116 when the two are not about the same images, classes and labels.
    """
    if a.classes != b.classes or a.multi_label != b.multi_label:
        raise DataError("D116", "comparison", "the two models know different classes", "Compare runs on one data set")
    row = {name: i for i, name in enumerate(b.ids)}
    absent = [name for name in a.ids if name not in row]
    if absent or len(a) != len(b):
        problem = f"the two tables hold different images ({len(a)} and {len(b)}, {len(absent)} not shared)"
        raise DataError("D116", "comparison", problem, "Evaluate both models on the same split")
    b = b.select(np.array([row[name] for name in a.ids], dtype=np.int64))
    if not np.array_equal(a.labels, b.labels):
        odd = a.ids[int(np.argmax((a.labels != b.labels).reshape(len(a), -1).any(axis=1)))]
        raise DataError("D116", odd, "the two tables give it different labels", "Evaluate both models on the same data")
    return b


def bootstrap_p(samples: Array) -> float:
    """Two-sided p value of no difference: twice the smaller tail beyond zero, never below 2 / (B + 1)."""
    values = samples[np.isfinite(samples)]
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(values) + 1)))


def delong(positive: Array, score_a: Array, score_b: Array, confidence: float = 0.95) -> dict[str, float]:
    """Difference of two correlated AUCs with normal bounds; holds only when every patient has one image."""
    positive = np.asarray(positive, dtype=bool)
    p, q = int(positive.sum()), int((~positive).sum())
    parts = [_placements(np.asarray(s, dtype=np.float64), positive) for s in (score_a, score_b)]
    gap_p, gap_q = parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]
    value = float(gap_p.mean())
    error = math.sqrt(gap_p.var(ddof=1) / p + gap_q.var(ddof=1) / q)
    z = float(ndtri((1 + confidence) / 2))
    p_value = float(2 * ndtr(-abs(value) / error)) if error > 0 else 1.0
    return {"difference": value, "low": value - z * error, "high": value + z * error, "p": p_value}


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = worst
    return out


def mean_and_sd(values: Sequence[float] | Array) -> dict[str, Any]:
    """``{mean, sd, values}``; sd is None for a single run."""
    v = np.asarray(values, dtype=np.float64)
    return {"mean": float(v.mean()), "sd": float(v.std(ddof=1)) if len(v) > 1 else None, "values": v.tolist()}


def _decided(predictions: Predictions, metric: str, cuts: Mapping[str, float], usable: list[int]) -> Metric:
    truth, answer = predictions.positives.copy(), answers(predictions)
    for question in questions(predictions):
        if question.name in cuts:
            answer[:, question.column] = question.score >= cuts[question.name]
    if predictions.multi_label:
        if metric == "accuracy":
            same = (truth == answer).mean(axis=1)
            return lambda weight: m.mean_over_images(same, weight)
        which = 1 if metric == "f1" else None

        def labels(weight: Array) -> Array:
            tables = [m.decisions(m.confusion(truth[:, k] + 0, answer[:, k] + 0, 2, weight)) for k in usable]
            return np.mean([t["f1"][..., 1] if which else t["balanced_accuracy"] for t in tables], axis=0)

        return labels
    # Exclusive classes: a threshold exists for the positive one of two; among more the most probable class stands.
    chosen = answer[:, 1].astype(int) if len(predictions.classes) == 2 else answers(predictions).argmax(axis=1)
    labels_N, k = predictions.labels, len(predictions.classes)

    def classes(weight: Array) -> Array:
        table = m.decisions(m.confusion(labels_N, chosen, k, weight))
        return table["f1"].mean(axis=-1) if metric == "f1" else table[metric]

    return classes


def _too_few(predictions: Predictions, min_positives: int, metric: str) -> str | None:
    if metric in ("accuracy", "brier", "log_loss"):
        return None if len(predictions) else "0 images"
    reasons = [q.missing(min_positives) for q in questions(predictions)]
    return None if any(r is None for r in reasons) else str(reasons[0]) if reasons else "0 images"


def _placements(score: Array, positive: Array) -> tuple[Array, Array]:
    """For each positive the share of negatives below it, for each negative the share of positives above it."""
    x, y = score[positive], score[~positive]
    below = (np.searchsorted(np.sort(y), x, "left") + np.searchsorted(np.sort(y), x, "right")) / (2 * len(y))
    above = 1 - (np.searchsorted(np.sort(x), y, "left") + np.searchsorted(np.sort(x), y, "right")) / (2 * len(x))
    return below, above
