"""Metrics of discrimination, decision and calibration, each over any number of weightings at once.

Shapes: N images, K classes, B weightings (a bootstrap draws 2,000), P positives, Q negatives, M bins. A ``weight`` is
``(N,)`` or ``(B, N)``; results have its leading shape. Inside these arrays NaN marks a weighting under which a metric
is undefined (a class without images); what a person reads has a reason there instead (intervals.entry).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Ranking:
    """Scores of a two-class problem, sorted once so that each weighting costs two sums and no sort.

    Attributes:
        positive_at: ``(P,)`` images of the positive class by rising score.
        negative_at: ``(Q,)`` the others by rising score.
        below, upto: ``(P,)`` how many negatives score less than, and no more than, each positive.
        first_equal: ``(P,)`` position of the first positive with the same score.
    """

    positive_at: Array
    negative_at: Array
    below: Array
    upto: Array
    first_equal: Array
    positive_score: Array
    negative_score: Array


def rank(positive_N: Array, score_N: Array) -> Ranking:
    """Prepare ``auc``, ``average_precision`` and the curves for one score. Higher means more likely positive."""
    positive_N, score_N = np.asarray(positive_N, dtype=bool), np.asarray(score_N, dtype=np.float64)
    positive_at, negative_at = np.flatnonzero(positive_N), np.flatnonzero(~positive_N)
    positive_at = positive_at[np.argsort(score_N[positive_at], kind="stable")]
    negative_at = negative_at[np.argsort(score_N[negative_at], kind="stable")]
    p, q = score_N[positive_at], score_N[negative_at]
    return Ranking(
        positive_at,
        negative_at,
        np.searchsorted(q, p, side="left"),
        np.searchsorted(q, p, side="right"),
        np.searchsorted(p, p, side="left"),
        p,
        q,
    )


def auc(ranking: Ranking, weight: Array | None = None) -> Array:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting one half.

    Exact: with whole weights every partial sum is a whole or half number. NaN where a class has no weight.
    """
    w_BP, cumulative_BQ = _cumulate(ranking, weight)
    lower = np.take(cumulative_BQ, ranking.below, axis=-1)
    if not np.array_equal(ranking.below, ranking.upto):
        lower = (lower + np.take(cumulative_BQ, ranking.upto, axis=-1)) / 2
    return divide((w_BP * lower).sum(axis=-1), w_BP.sum(axis=-1) * cumulative_BQ[..., -1])


def average_precision(ranking: Ranking, weight: Array | None = None) -> Array:
    """Step-wise area under the precision-recall curve (no interpolation); NaN without positives."""
    w_BP, true_BP, false_BP = _answers(ranking, weight)
    precision = divide(true_BP, true_BP + false_BP, empty=0.0)
    return divide((w_BP * precision).sum(axis=-1), w_BP.sum(axis=-1))


def roc_curve(ranking: Ranking, grid: Array, weight: Array | None = None) -> Array:
    """Sensitivity at each false positive rate of ``grid``; ``(B, len(grid))``. Straight between tied scores."""
    edges = np.unique(np.concatenate([ranking.positive_score, ranking.negative_score]))
    w_BP, cumulative_BQ = _cumulate(ranking, weight)
    total_P = np.concatenate([np.zeros_like(w_BP[..., :1]), np.cumsum(w_BP, axis=-1)], axis=-1)
    at_p, at_q = np.searchsorted(ranking.positive_score, edges), np.searchsorted(ranking.negative_score, edges)
    tpr = divide(total_P[..., -1:] - total_P[..., at_p], total_P[..., -1:])
    fpr = divide(cumulative_BQ[..., -1:] - cumulative_BQ[..., at_q], cumulative_BQ[..., -1:])
    start = np.zeros_like(tpr[..., :1])
    tpr, fpr = (np.concatenate([start, x[..., ::-1]], axis=-1) for x in (tpr, fpr))
    return _rows(lambda x, y: np.interp(grid, x, y), fpr, tpr, len(grid))


def precision_recall_curve(ranking: Ranking, grid: Array, weight: Array | None = None) -> Array:
    """Precision of the strictest threshold that reaches each recall of ``grid``; ``(B, len(grid))``."""
    w_BP, true_BP, false_BP = _answers(ranking, weight)
    recall = divide(true_BP, w_BP.sum(axis=-1, keepdims=True))[..., ::-1]
    precision = divide(true_BP, true_BP + false_BP)[..., ::-1]

    def step(x: Array, y: Array) -> Array:
        # Images of weight zero at the strict end have no precision; the first real one stands for recall 0.
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        return y[np.minimum(np.searchsorted(x, grid - 1e-12), len(y) - 1)]

    return _rows(step, recall, precision, len(grid))


def confusion(truth_N: Array, answer_N: Array, n_classes: int, weight: Array | None = None) -> Array:
    """``(..., K, K)`` weight of images per true class (rows) and answered class (columns)."""
    truth_N, answer_N = np.asarray(truth_N), np.asarray(answer_N)
    cell_N = truth_N * n_classes + answer_N
    one_hot = (cell_N[:, None] == np.arange(n_classes**2)).astype(np.float64)
    flat = _weights(weight, len(cell_N)) @ one_hot
    return flat.reshape(*flat.shape[:-1], n_classes, n_classes)


def decisions(confusion_BKK: Array) -> dict[str, Array]:
    """Accuracy, balanced accuracy, and per class recall, precision, F1 and specificity ``(..., K)``.

    Precision of a class that nobody was given is NaN; F1 needs only one image of it on either side. Macro means are
    the caller's, who knows which classes are estimable.
    """
    c = np.asarray(confusion_BKK, dtype=np.float64)
    total = c.sum(axis=(-2, -1))
    hit, truth, answer = np.diagonal(c, axis1=-2, axis2=-1), c.sum(axis=-1), c.sum(axis=-2)
    recall = divide(hit, truth)
    others = total[..., None] - truth
    return {
        "accuracy": divide(hit.sum(axis=-1), total),
        "balanced_accuracy": recall.mean(axis=-1),
        "recall": recall,
        "precision": divide(hit, answer),
        "f1": divide(2 * hit, truth + answer),
        "specificity": divide(others - (answer - hit), others),
    }


def mean_over_images(value_N: Array, weight: Array | None = None) -> Array:
    """Weighted mean of a quantity per image (squared error, log loss, exact match ...)."""
    value_N = np.asarray(value_N, dtype=np.float64)
    w = _weights(weight, len(value_N))
    return divide(w @ value_N, w.sum(axis=-1))


def squared_error(positive_NK: Array, probability_NK: Array) -> Array:
    """``(N,)`` Brier score of each image, summed over classes: 0 to 2 for exclusive classes, as Brier defined it.

    Pass one column for the two-class form, 0 to 1. Reference: Brier 1950, Mon. Weather Rev. 78.
    """
    return ((probability_NK - np.asarray(positive_NK, dtype=np.float64)) ** 2).sum(axis=1)


def brier_skill(positive_NK: Array, probability_NK: Array, weight: Array | None = None) -> Array:
    """One minus Brier over the Brier of always answering the prevalence of the same images; NaN with one class."""
    y_NK = np.asarray(positive_NK, dtype=np.float64)
    w = _weights(weight, len(y_NK))
    share_BK = divide(w @ y_NK, w.sum(axis=-1, keepdims=True))
    reference = (share_BK * (1 - share_BK)).sum(axis=-1)
    return 1.0 - divide(mean_over_images(squared_error(y_NK, probability_NK), weight), reference)


def equal_mass_bins(score_N: Array, bins: int) -> Array:
    """``(N,)`` bin of each score so that bins hold about equally many images and equal scores share a bin."""
    order = np.sort(np.asarray(score_N, dtype=np.float64))
    edges = np.unique([order[len(order) * b // bins] for b in range(1, bins)]) if bins > 1 else np.zeros(0)
    found = np.searchsorted(edges, score_N, side="right")
    return np.unique(found, return_inverse=True)[1]


def calibration_error(positive_N: Array, score_N: Array, bin_N: Array, weight: Array | None = None) -> Array:
    """Expected calibration error over given bins: mean gap between stated and observed frequency.

    Reference: Naeini et al. 2015; equal-mass bins as in Nguyen and O'Connor 2015.
    """
    gap_N = np.asarray(score_N, dtype=np.float64) - np.asarray(positive_N, dtype=np.float64)
    one_hot = (bin_N[:, None] == np.arange(bin_N.max(initial=0) + 1)).astype(np.float64)
    w = _weights(weight, len(gap_N))
    return divide(np.abs(w @ (one_hot * gap_N[:, None])).sum(axis=-1), w.sum(axis=-1))


def log_loss(positive_NK: Array, probability_NK: Array) -> Array:
    """``(N,)`` minus log probability of the true classes.

    For labels that are not exclusive append the complements as columns of their own (1 - y, 1 - p).
    """
    y = np.asarray(positive_NK, dtype=bool)
    floor = np.finfo(np.float64).tiny
    return -np.where(y, np.log(np.maximum(probability_NK, floor)), 0.0).sum(axis=1)


def divide(top: Array, bottom: Array, empty: float = np.nan) -> Array:
    """Quotient, ``empty`` where the denominator is zero, without a warning."""
    top, bottom = np.broadcast_arrays(np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, empty), where=bottom != 0)


def _weights(weight: Array | None, n: int) -> Array:
    return np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)


def _cumulate(ranking: Ranking, weight: Array | None) -> tuple[Array, Array]:
    """Weights of the positives, and running sums ``(B, Q + 1)`` of those of the negatives, both by rising score."""
    w = _weights(weight, len(ranking.positive_at) + len(ranking.negative_at))
    cumulative = np.zeros((*w.shape[:-1], len(ranking.negative_at) + 1))
    np.cumsum(np.take(w, ranking.negative_at, axis=-1), axis=-1, out=cumulative[..., 1:])
    return np.take(w, ranking.positive_at, axis=-1), cumulative


def _answers(ranking: Ranking, weight: Array | None) -> tuple[Array, Array, Array]:
    """Weights of the positives, and the true and false positives when each one's score is the threshold."""
    w_BP, cumulative_BQ = _cumulate(ranking, weight)
    false_BP = cumulative_BQ[..., -1:] - np.take(cumulative_BQ, ranking.below, axis=-1)
    above = np.cumsum(w_BP[..., ::-1], axis=-1)[..., ::-1]
    return w_BP, np.take(above, ranking.first_equal, axis=-1), false_BP


def _rows(function: Callable[[Array, Array], Array], x_BG: Array, y_BG: Array, width: int) -> Array:
    shape = x_BG.shape[:-1]
    x, y = x_BG.reshape(-1, x_BG.shape[-1]), y_BG.reshape(-1, y_BG.shape[-1])
    out = np.full((len(x), width), np.nan)
    for b in range(len(x)):
        if np.isfinite(x[b]).any() and np.isfinite(y[b]).any():
            out[b] = function(x[b], y[b])
    return out.reshape(*shape, width)
