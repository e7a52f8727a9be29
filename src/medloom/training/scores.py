"""What an epoch scored, and whether that is the best so far.

Shape suffixes: N images of the split, B batch, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medloom.evaluation import metrics
from medloom.training.batches import Examples
from medloom.training.losses import Loss


def correct(logits_BK: Tensor, target: Tensor) -> Tensor:
    """How many answers are right; where labels are many, the sum of each image's share of right ones."""
    if target.ndim == 2:
        return ((logits_BK > 0) == (target > 0.5)).double().mean(1).sum()
    return (logits_BK.argmax(1) == target).sum()


def validation_scores(logits_NK: np.ndarray, examples: Examples, loss: Loss) -> dict[str, float | None]:
    """``val_loss``, ``val_accuracy`` and ``val_auc`` of one epoch.

    The AUC is the mean over the classes that have images on both sides; None, not NaN, where there is none.
    """
    labels = examples.labels
    total = loss.total(torch.from_numpy(logits_NK.copy()), torch.from_numpy(labels))
    if examples.multi_label:
        positive_NK = labels > 0.5
        accuracy = float(((logits_NK > 0) == positive_NK).mean())
        columns = range(labels.shape[1])
        scores_NK = logits_NK
    else:
        n_classes = logits_NK.shape[1]
        positive_NK = labels[:, None] == np.arange(n_classes)
        accuracy = float((logits_NK.argmax(1) == labels).mean())
        # The differences to the log of the sum rank as the probabilities do, without their saturation.
        scores_NK = logits_NK.astype(np.float64)
        scores_NK = scores_NK - np.logaddexp.reduce(scores_NK, axis=1, keepdims=True)
        if n_classes == 2:
            scores_NK = logits_NK.astype(np.float64) - logits_NK[:, ::-1]
        columns = range(1, 2) if n_classes == 2 else range(n_classes)
    areas = [
        float(metrics.auc(metrics.rank(positive_NK[:, k], scores_NK[:, k])))
        for k in columns
        if 0 < positive_NK[:, k].sum() < len(labels)
    ]
    return {
        "val_loss": float(total) / max(loss.weight(labels), 1e-12),
        "val_accuracy": accuracy,
        "val_auc": float(np.mean(areas)) if areas else None,
    }


def monitor_of(wanted: str, val: Examples | None) -> tuple[str, tuple[str, ...]]:
    """What chooses the best epoch: ``val_auc`` or ``val_loss`` as wanted, ``epoch`` (the last) without validation.

    An AUC that cannot be estimated, because validation has one class only, gives way to the loss; the notices say so.
    """
    if val is None or not len(val):
        return "epoch", ()
    share_K = val.labels.mean(0) if val.multi_label else np.bincount(val.labels) / len(val)
    wanted = "val_auc" if wanted == "auto" else wanted
    if wanted == "val_auc" and not ((share_K > 0) & (share_K < 1)).any():
        return "val_loss", ("validation has one class only, so its AUC is not estimable: the loss chooses the epoch",)
    return wanted, ()


def improves(line: dict[str, Any], best: dict[str, Any] | None, monitor: str) -> bool:
    """A higher score wins; at equal score (an AUC of 1.0 is common in small sets) the lower loss does."""
    if best is None or monitor == "epoch":
        return True
    if monitor == "val_loss":
        return bool(line["val_loss"] < best["val_loss"])
    return bool((line[monitor], -line["val_loss"]) > (best["score"], -best["val_loss"]))
