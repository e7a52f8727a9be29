"""Class imbalance, first half: which images an epoch shows, and how much each class weighs in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medloom.config import ImbalanceConfig
from medloom.errors import UsageError

_ORDER_STREAM = 0x6F72646572


def epoch_order(labels: np.ndarray, method: str, seed: int, epoch: int) -> np.ndarray:
    """Row numbers of one epoch, in the order in which they are shown.

    A function of its arguments alone, so an interrupted epoch can be taken up anywhere.

    Args:
        labels: ``(N,)`` class positions, or ``(N, K)`` zeros and ones.
        method: ``oversample`` repeats the rarer classes up to the largest (each image a whole number of times, the
            rest without repetition), and where labels are many each image by ``repeat_factors``; ``undersample``
            takes of each class as many as the smallest has, chosen anew each epoch; any other name of
            ``ImbalanceConfig.method`` shows every image once.

    Raises:
        UsageError: U221, undersampling by class where an image has several labels.
    """
    rng = np.random.default_rng([_ORDER_STREAM, seed, epoch])
    if method not in ("oversample", "undersample"):
        return rng.permutation(len(labels))
    if labels.ndim != 1 and method == "oversample":
        return _repeated(repeat_factors(labels), rng)
    if labels.ndim != 1:
        raise UsageError(
            "U221",
            "imbalance.method",
            f"{method} needs one label per image, and these images have several",
            "Choose oversample, class_weights or none",
        )
    members = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    sizes = [len(rows) for rows in members]
    target = max(sizes) if method == "oversample" else min(sizes)
    chosen = []
    for rows in members:
        whole, rest = divmod(target, len(rows))
        chosen += [np.tile(rows, whole), rng.choice(rows, size=rest, replace=False)]
    return rng.permutation(np.concatenate(chosen))


def repeat_factors(labels_NK: np.ndarray) -> np.ndarray:
    """``(N,)`` how often each image should be shown: the square root of how much rarer its rarest label is than the
    commonest one; 1 for an image without a label.

    Reference: Gupta et al., LVIS, CVPR 2019, appendix B (repeat factor sampling; their threshold is here the share of
    the commonest label, so that nothing rarer goes unrepeated).
    """
    count_K = np.asarray(labels_NK).sum(axis=0)
    factor_K = np.sqrt(count_K.max(initial=0) / np.maximum(count_K, 1))
    factors: np.ndarray = np.where(np.asarray(labels_NK) > 0, np.maximum(factor_K, 1.0), 1.0).max(axis=1)
    return factors


def _repeated(factor_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row a whole number of times, the broken parts by lot, in one order; equally many rows in every epoch."""
    whole_N = np.floor(factor_N + 1e-9).astype(np.int64)
    broken_N = np.maximum(factor_N - whole_N, 0.0)
    rows = np.repeat(np.arange(len(factor_N)), whole_N)
    more = min(round(float(broken_N.sum())), int((broken_N > 0).sum()))
    drawn = rng.choice(len(factor_N), size=more, replace=False, p=broken_N / broken_N.sum()) if more else rows[:0]
    return rng.permutation(np.concatenate([rows, drawn]))


def class_weights(labels: np.ndarray, n_classes: int, config: ImbalanceConfig, classes: Sequence[str]) -> np.ndarray:
    """``(K,)`` float32 weights for the loss; ones unless ``config.method`` is ``class_weights``.

    One label per image: weights of the classes in cross-entropy, ``N / (K n_k)`` by the rule, so that their mean over
    the images is 1. Several labels: weights of the positives in binary cross-entropy, negatives over positives by
    the rule. A class without images keeps weight 1. Numbers given by name are used as they are, others stay 1.

    Raises:
        UsageError: U222, a weight for a class that does not exist, or that is not above zero.
    """
    weights = np.ones(n_classes, dtype=np.float32)
    if config.method != "class_weights":
        return weights
    if isinstance(config.weights, dict):
        for name, weight in config.weights.items():
            if name not in classes:
                raise UsageError(
                    "U222",
                    f"imbalance.weights.{name}",
                    "no such class in the data",
                    f"Use the names {', '.join(classes)}",
                )
            if weight <= 0:
                raise UsageError("U222", f"imbalance.weights.{name}", f"weight {weight}", "Give a number above zero")
            weights[list(classes).index(name)] = weight
        return weights
    if labels.ndim == 1:
        count_K = np.bincount(labels, minlength=n_classes)
        share = len(labels) / max(int((count_K > 0).sum()), 1)
        seen = count_K > 0
        weights[seen] = share / count_K[seen]
        return weights
    count_K = labels.sum(axis=0)
    seen = (count_K > 0) & (count_K < len(labels))
    weights[seen] = (len(labels) - count_K[seen]) / count_K[seen]
    return weights
