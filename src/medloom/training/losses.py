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
    focal_alpha: float | None = None,
) -> Loss:
    """Cross-entropy over exclusive classes, or the mean binary cross-entropy of many labels; both also focal.

    Args:
        multi_label: labels are ``(B, K)`` zeros and ones; otherwise ``(B,)`` class positions.
        class_weights: ``(K,)`` weight of each class (of its positives, where labels are many); None for ones.
        label_smoothing: share of the target that is spread over the classes.
        focal_gamma: focal loss with this exponent (Lin et al., "Focal loss for dense object detection", 2017).
        focal_alpha: weight of positives in it, ``1 - alpha`` of negatives; None for ones. Where classes exclude each
            other it is said by ``class_weights`` instead.
    """
    weight_K = None if class_weights is None else np.asarray(class_weights, dtype=np.float32)
    if multi_label:
        return _many_labels(weight_K, label_smoothing, focal_gamma, focal_alpha)
    return _one_label(weight_K, label_smoothing, focal_gamma)


def asymmetric_loss(*, gamma_positive: float = 0.0, gamma_negative: float = 4.0, margin: float = 0.05) -> Loss:
    """Loss of many labels that forgets easy negatives.

    ``-(1 - p)^gp log p`` for positives, ``-q^gn log(1 - q)`` with ``q = max(p - margin, 0)`` for negatives.
    The gradient flows through the focusing factors too, as the paper's analysis has it.

    Args:
        gamma_positive: exponent of the positives.
        gamma_negative: exponent of the negatives.
        margin: what is taken off a negative's probability; below it a negative counts as settled.

    Reference: Ridnik et al., "Asymmetric loss for multi-label classification", ICCV 2021, equations 4 to 7.
    """

    def total(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        p_BK, miss_BK = logits_BK.sigmoid(), (-logits_BK).sigmoid()
        q_BK = (p_BK - margin).clamp_min(0.0)
        # Without a margin 1 - q may be zero; its logarithm is then taken from the logit.
        clear_BK = F.logsigmoid(-logits_BK) if margin == 0 else (miss_BK + margin).clamp_max(1.0).log()
        hit_BK = _power(miss_BK, gamma_positive) * F.logsigmoid(logits_BK)
        clear_BK = _power(q_BK, gamma_negative) * clear_BK
        return -(target_BK * hit_BK + (1.0 - target_BK) * clear_BK).sum()

    return Loss(total, lambda labels_BK: float(labels_BK.size))


def _power(x: Tensor, exponent: float) -> Tensor:
    """``x ** exponent``, and ones for exponent 0; a power below one has an infinite slope at zero."""
    return torch.ones_like(x) if exponent == 0 else x.clamp_min(_TINY).pow(exponent)


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


def _many_labels(weight_K: np.ndarray | None, smoothing: float, gamma: float | None, alpha: float | None) -> Loss:
    def total(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        w_K = None if weight_K is None else torch.as_tensor(weight_K, device=logits_BK.device)
        soft_BK = target_BK * (1.0 - smoothing) + 0.5 * smoothing
        loss_BK = F.binary_cross_entropy_with_logits(logits_BK, soft_BK, pos_weight=w_K, reduction="none")
        if gamma is not None:
            p_BK = torch.where(target_BK > 0.5, logits_BK.sigmoid(), (-logits_BK).sigmoid())
            loss_BK = (1.0 - p_BK).clamp_min(_TINY).pow(gamma) * loss_BK
        if alpha is not None:
            loss_BK = loss_BK * (target_BK * alpha + (1.0 - target_BK) * (1.0 - alpha))
        return loss_BK.sum()

    return Loss(total, lambda labels_BK: float(labels_BK.size))
