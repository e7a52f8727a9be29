"""What is wrong with a mask, one number per image, in several ways; all in float32, whatever the network computes in.

Every function takes ``Masks`` and returns ``(B,)``: 0 for a perfect answer. Classes are averaged over those that
count, without the background unless asked. ``SMOOTH`` in numerator and denominator makes an empty structure that is
answered empty perfect, and the same one answered anyhow wrong, without a division by zero.

Shape suffixes: B images, K classes with the background, S spatial axes (two or three), V all places of an image.

References: Dice: Milletari et al. 2016, V-Net (squares in the denominator), Drozdzal et al. 2016 (sums). Generalised:
Sudre et al. 2017. Tversky: Salehi et al. 2017; focal: Abraham and Khan 2019. Top-k: Wu et al. 2016. Boundary:
Kervadec et al. 2019, equation 5. Centreline: Shit et al. 2021, clDice, algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

SMOOTH = 1e-5
THINNINGS = 5
"""Erosions of the soft skeleton: structures up to twice as thick in pixels are thinned to their centreline."""

_TINY = 1e-6
"""Floor under a power below one, whose slope is infinite at zero."""


@dataclass(frozen=True)
class Masks:
    """A batch in the forms that losses read.

    Attributes:
        logits_BKV: float32.
        answer_BKV: probabilities; 0 in places that do not count.
        truth_BKV: ones and zeros; 0 in places that do not count.
        target_BV: int64 classes.
        counts_BV: which places count, None for all.
        shape: S.
        first: 0 with the background, 1 without.
        batch: one overlap over the whole batch instead of one per image.
    """

    logits_BKV: Tensor
    answer_BKV: Tensor
    truth_BKV: Tensor
    target_BV: Tensor
    counts_BV: Tensor | None
    shape: tuple[int, ...]
    first: int
    batch: bool

    def overlap(self, squared: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the product, of the answer and of the truth, each ``(B, K)``, or ``(1, K)`` over the batch."""
        p, t = self.answer_BKV[:, self.first :], self.truth_BKV[:, self.first :]
        sums = (p * t).sum(2), (p * p if squared else p).sum(2), t.sum(2)
        return tuple(s.sum(0, keepdim=True) for s in sums) if self.batch else sums  # type: ignore[return-value]

    def per_image(self, loss: Tensor) -> Tensor:
        """``(B,)`` of ``(B,)`` or of the one number of the batch."""
        return loss.expand(len(self.logits_BKV))


def masks_of(
    logits_BKS: Tensor, target_BS: Tensor, *, background: bool, batch: bool = False, ignore: int | None = None
) -> Masks:
    """Logits and classes as losses read them.

    Args:
        background: whether it counts as a class.
        ignore: value of the target in places that do not count.
    """
    logits_BKV = logits_BKS.flatten(2).float()
    target_BV = target_BS.flatten(1).long()
    counts_BV = None
    if ignore is not None:
        counts_BV = target_BV != ignore
        target_BV = torch.where(counts_BV, target_BV, 0)
    answer_BKV = logits_BKV.softmax(1)
    truth_BKV = torch.zeros_like(logits_BKV).scatter_(1, target_BV[:, None], 1.0)
    if counts_BV is not None:
        answer_BKV, truth_BKV = answer_BKV * counts_BV[:, None], truth_BKV * counts_BV[:, None]
    shape = tuple(target_BS.shape[1:])
    return Masks(
        logits_BKV, answer_BKV, truth_BKV, target_BV, counts_BV, shape, 0 if background else 1, batch
    )  # fmt: skip


def dice_error(masks: Masks, *, squared: bool = False) -> Tensor:
    """One less the mean soft Dice of the classes."""
    hit, answer, truth = masks.overlap(squared)
    return masks.per_image(1 - ((2 * hit + SMOOTH) / (answer + truth + SMOOTH)).mean(1))


def tversky_error(masks: Masks, *, false_positives: float, false_negatives: float, focus: float = 1.0) -> Tensor:
    """One less the Tversky index of each class, raised to ``focus``, in the mean."""
    hit, answer, truth = masks.overlap()
    wrong = false_positives * (answer - hit) + false_negatives * (truth - hit)
    error = 1 - (hit + SMOOTH) / (hit + wrong + SMOOTH)
    if focus != 1.0:
        error = error.clamp_min(_TINY).pow(focus)
    return masks.per_image(error.mean(1))


def generalized_dice_error(masks: Masks) -> Tensor:
    """One less the Dice of all classes at once, each weighted by one over the square of its size.

    A class that is not there has the weight of the smallest one that is. The weights are stretched so that the largest
    is 1, else ``SMOOTH`` would outweigh large structures.
    """
    hit, answer, truth = masks.overlap()
    there = truth > 0
    weight = torch.where(there, 1 / truth.clamp_min(_TINY).square(), 0.0)
    largest = weight.amax(1, keepdim=True)
    weight = torch.where(there & (largest > 0), weight / largest.clamp_min(1e-30), 1.0)
    error = 1 - (2 * (weight * hit).sum(1) + SMOOTH) / ((weight * (answer + truth)).sum(1) + SMOOTH)
    return masks.per_image(error)


def cross_entropy(masks: Masks) -> Tensor:
    """The mean over the places of an image."""
    loss_BV = _entropy(masks)
    if masks.counts_BV is None:
        return loss_BV.mean(1)
    return loss_BV.sum(1) / masks.counts_BV.sum(1).clamp_min(1)


def worst_cross_entropy(masks: Masks, share: float) -> Tensor:
    """The mean over the worst places of each image."""
    loss_BV = _entropy(masks)
    return loss_BV.topk(max(1, int(share * loss_BV.shape[1])), dim=1, sorted=False).values.mean(1)


def boundary_error(masks: Masks) -> Tensor:
    """How far outside or inside of the true surface the wrong answers lie, in shares of the image's diagonal.

    The published integral of the answer times the signed distance, less what the truth itself would give: the same
    gradient, and 0 for a perfect answer. A structure that is not there has no surface and adds nothing here; the Dice
    beside it does. The distances are made by scipy for every batch, about 0.2 s for a class of 96 cubed on one core;
    this loss is meant for images and small patches.
    """
    distance_BKV = torch.from_numpy(signed_distances(_classes(masks), masks.logits_BKV.shape[1])).flatten(2)
    distance_BKV = distance_BKV.to(masks.logits_BKV.device)[:, masks.first :]
    wrong_BKV = masks.answer_BKV[:, masks.first :] - masks.truth_BKV[:, masks.first :]
    return (wrong_BKV * distance_BKV).mean(2).mean(1)


def centreline_error(masks: Masks) -> Tensor:
    """One less the Dice of centrelines: the answer's inside the truth, and the truth's inside the answer.

    About 0.8 s per structure of 96 cubed on one core, gradient included.
    """
    shape = (*masks.answer_BKV[:, masks.first :].shape[:2], *masks.shape)
    p, t = (x[:, masks.first :].reshape(shape) for x in (masks.answer_BKV, masks.truth_BKV))
    axes = tuple(range(2, p.ndim))

    def inside(line: Tensor, mask: Tensor) -> Tensor:
        return ((line * mask).sum(axes) + SMOOTH) / (line.sum(axes) + SMOOTH)

    precision_BK, sensitivity_BK = inside(soft_skeleton(p), t), inside(soft_skeleton(t), p)
    return 1 - (2 * precision_BK * sensitivity_BK / (precision_BK + sensitivity_BK)).mean(1)


def signed_distances(target_BS: np.ndarray, classes: int) -> np.ndarray:
    """``(B, K, *S)`` float32: of each place to the surface of each class, negative inside, in shares of the diagonal.

    Zero throughout for a class that is nowhere, or everywhere.
    """
    out = np.zeros((len(target_BS), classes, *target_BS.shape[1:]), dtype=np.float32)
    diagonal = float(np.linalg.norm(target_BS.shape[1:]))
    for b, target_S in enumerate(target_BS):
        for k in np.unique(target_S):
            inside = target_S == k
            if not 0 <= k < classes or inside.all():
                continue
            outer, inner = (ndimage.distance_transform_edt(m) for m in (~inside, inside))
            # The surface runs between two places: half a step from the centre of either.
            out[b, k] = (np.maximum(outer - 0.5, 0) - np.maximum(inner - 0.5, 0)) / diagonal
    return out


def soft_skeleton(mask_BKS: Tensor, thinnings: int = THINNINGS) -> Tensor:
    """What openings take away from a mask at every size: its centreline, differentiably."""
    thinner = _eroded(mask_BKS)
    skeleton = F.relu(mask_BKS - _dilated(thinner))
    for _ in range(thinnings):
        mask_BKS, thinner = thinner, _eroded(thinner)
        rest = F.relu(mask_BKS - _dilated(thinner))
        skeleton = skeleton + F.relu(rest - skeleton * rest)
    return skeleton


def _entropy(masks: Masks) -> Tensor:
    loss_BV = F.cross_entropy(masks.logits_BKV, masks.target_BV, reduction="none")
    return loss_BV if masks.counts_BV is None else loss_BV * masks.counts_BV


def _classes(masks: Masks) -> np.ndarray:
    target_BV = masks.target_BV if masks.counts_BV is None else torch.where(masks.counts_BV, masks.target_BV, -1)
    classes: np.ndarray = target_BV.reshape(len(target_BV), *masks.shape).cpu().numpy()
    return classes


def _eroded(mask_BKS: Tensor) -> Tensor:
    """The least of each place and its neighbours across faces."""
    lines = [_beside(mask_BKS, axis, _least) for axis in range(2, mask_BKS.ndim)]
    return functools.reduce(_least, lines)


def _dilated(mask_BKS: Tensor) -> Tensor:
    """The largest of each place and all its neighbours."""
    for axis in range(2, mask_BKS.ndim):
        mask_BKS = _beside(mask_BKS, axis, _largest)
    return mask_BKS


def _least(a: Tensor, b: Tensor) -> Tensor:
    # torch.minimum shares the gradient between equal values, which takes twice the time of this.
    return torch.where(a <= b, a, b)


def _largest(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a >= b, a, b)


def _beside(x: Tensor, axis: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme of each place and the two beside it on one axis; at the ends of the axis, of those that there are."""
    if x.shape[axis] == 1:
        return x
    pairs = extreme(x.narrow(axis, 0, x.shape[axis] - 1), x.narrow(axis, 1, x.shape[axis] - 1))
    first, last = pairs.narrow(axis, 0, 1), pairs.narrow(axis, pairs.shape[axis] - 1, 1)
    if pairs.shape[axis] == 1:
        return torch.cat([first, last], axis)
    inner = extreme(pairs.narrow(axis, 0, pairs.shape[axis] - 1), pairs.narrow(axis, 1, pairs.shape[axis] - 1))
    return torch.cat([first, inner, last], axis)
