"""Classification losses as a sum over images and the weight that the sum is divided by.

A batch may be cut into micro-batches and shared between processes; the pieces' sums, divided by the weight of the
whole batch, give the loss and the gradient of the whole batch, however it was cut.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12
"""Floor of 1 - p in the focal factor: a power below one has an infinite slope at zero."""


@dataclass(frozen=True)
class Loss:
    """A loss in two parts.

    Attributes:
        total: ``(logits_BK, target)`` to the scalar sum over the images.
        weight: labels (numpy) to what that sum is divided by.
    """

    total: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[np.ndarray], float]


def make_loss(
    *,
    multi_label: bool,
    class_weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float | None = None,
) -> Loss:
    """The loss of a recipe.

    Args:
        multi_label: labels are ``(B, K)`` zeros and ones; otherwise ``(B,)`` class positions.
        class_weights: ``(K,)`` weight of each class (of its positives, where labels are many); None for ones.
        label_smoothing: share of the target that is spread over the classes.
        focal_gamma: focal loss with this exponent (Lin et al., "Focal loss for dense object detection", 2017).
    """
    weight_K = None if class_weights is None else np.asarray(class_weights, dtype=np.float32)
    if multi_label:
        return _many_labels(weight_K, label_smoothing, focal_gamma)
    return _one_label(weight_K, label_smoothing, focal_gamma)


def _one_label(weight_K: np.ndarray | None, smoothing: float, gamma: float | None) -> Loss:
    def total(logits_BK: Tensor, target_B: Tensor) -> Tensor:
        w_K = None if weight_K is None else torch.as_tensor(weight_K, device=logits_BK.device)
        if gamma is None:
            return F.cross_entropy(logits_BK, target_B, weight=w_K, label_smoothing=smoothing, reduction="sum")
        loss_B = F.cross_entropy(logits_BK, target_B, weight=w_K, label_smoothing=smoothing, reduction="none")
        p_B = logits_BK.softmax(1).gather(1, target_B[:, None])[:, 0]
        return ((1.0 - p_B).clamp_min(_TINY).pow(gamma) * loss_B).sum()

    def weight(labels_B: np.ndarray) -> float:
        # The mean of a weighted loss is over the weights, as torch's own cross-entropy has it.
        return float(len(labels_B)) if weight_K is None else float(weight_K[labels_B].sum(dtype=np.float64))

    return Loss(total, weight)


def _many_labels(weight_K: np.ndarray | None, smoothing: float, gamma: float | None) -> Loss:
    def total(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        w_K = None if weight_K is None else torch.as_tensor(weight_K, device=logits_BK.device)
        soft_BK = target_BK * (1.0 - smoothing) + 0.5 * smoothing
        loss_BK = F.binary_cross_entropy_with_logits(logits_BK, soft_BK, pos_weight=w_K, reduction="none")
        if gamma is not None:
            p_BK = torch.where(target_BK > 0.5, logits_BK.sigmoid(), (-logits_BK).sigmoid())
            loss_BK = (1.0 - p_BK).clamp_min(_TINY).pow(gamma) * loss_BK
        return loss_BK.sum()

    return Loss(total, lambda labels_BK: float(labels_BK.size))
