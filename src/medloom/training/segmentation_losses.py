"""The loss that a recipe's ``segmentation`` asks for, and its share at coarser resolutions.

Like every loss of the loop it is a sum over images, divided by their number, so that micro-batches and processes add
up to the whole step. One exception is in its nature: ``batch_dice`` takes the overlap over what lies in memory at
once, so there a step that is cut into micro-batches differs from one that is not.

Shape suffixes: B images, K classes with the background, S spatial axes (two or three).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medloom.training.batches import Batch
from medloom.training.losses import Loss
from medloom.training.mask_losses import (
    Masks,
    boundary_error,
    centreline_error,
    cross_entropy,
    dice_error,
    generalized_dice_error,
    masks_of,
    tversky_error,
    worst_cross_entropy,
)

if TYPE_CHECKING:
    from medloom.config_segmentation import SegmentationConfig


def segmentation_loss(config: SegmentationConfig, classes: int, *, ignore: int | None = None) -> Loss:
    """``total(logits_BKS, target_BS)``: the sum over the images; ``weight``: their number.

    Names ending in something beside the Dice are ``dice_weight`` times the Dice plus ``other_weight`` times that.

    Args:
        classes: K, checked against the logits.
        ignore: value of the target in places that do not count, e.g. where a mask says "unknown".

    Raises:
        ValueError: logits of another number of classes, or of another size than the target (a fault of the caller).
    """
    dice = _weighted(config.dice_weight, lambda m: dice_error(m, squared=config.squared))
    positives, negatives = config.tversky
    errors: dict[str, list[Callable[[Masks], Tensor]]] = {
        "dice": [lambda m: dice_error(m, squared=config.squared)],
        "cross_entropy": [cross_entropy],
        "generalized_dice": [generalized_dice_error],
        "tversky": [lambda m: tversky_error(m, false_positives=positives, false_negatives=negatives)],
        "focal_tversky": [
            lambda m: tversky_error(m, false_positives=positives, false_negatives=negatives, focus=config.focus)
        ],
        "dice_ce": [dice, _weighted(config.other_weight, cross_entropy)],
        "dice_topk": [dice, _weighted(config.other_weight, lambda m: worst_cross_entropy(m, config.top))],
        "dice_boundary": [dice, _weighted(config.other_weight, boundary_error)],
        "dice_cldice": [dice, _weighted(config.other_weight, centreline_error)],
    }
    parts = errors[config.loss]

    def total(logits_BKS: Tensor, target_BS: Tensor) -> Tensor:
        if logits_BKS.shape[1] != classes or logits_BKS.shape[2:] != target_BS.shape[1:]:
            raise ValueError(f"logits {tuple(logits_BKS.shape)}, {classes} classes, target {tuple(target_BS.shape)}")
        # Sums over a volume have too many terms for half precision, whatever the network runs in.
        with torch.autocast(logits_BKS.device.type, enabled=False):
            masks = masks_of(
                logits_BKS, target_BS, background=config.include_background, batch=config.batch_dice, ignore=ignore
            )
            return torch.stack([part(masks) for part in parts]).sum()

    return Loss(total, lambda target_BS: float(len(target_BS)))


def deep_weights(model: nn.Module) -> dict[str, float]:
    """Share of each coarser answer of the model in the whole loss, by its name; empty for a model without any.

    1, 1/2, 1/4 ... from the full resolution on, made to sum to 1; the full resolution keeps what these leave.
    """
    heads = getattr(model, "deep_heads", None) or {}
    return _shares([f"deep.{stride}" for stride in heads])


def deep_supervision(loss: Loss, shares: Mapping[str, float]) -> Callable[[dict[str, Tensor], Batch], Tensor]:
    """What the coarser answers add: the sum over images of their losses, each times its share."""

    def total(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        return torch.stack([s * _coarse(loss, outputs[name], batch.target) for name, s in shares.items()]).sum()

    return total


def deep_total(loss: Loss, outputs: Mapping[str, Tensor], target_BS: Tensor) -> Tensor:
    """The whole loss of ``train_outputs``: full resolution and coarser ones, in shares that sum to 1."""
    shares = _shares([name for name in outputs if name.startswith("deep.")])
    whole = (1 - sum(shares.values())) * loss.total(outputs["logits"], target_BS)
    return whole + sum(s * _coarse(loss, outputs[name], target_BS) for name, s in shares.items())


def coarser(target_BS: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The target on a coarser grid: the class at the centre of each cell.

    Of the choices this keeps every structure's share of the image as it is. The largest class of a cell would keep a
    lesion smaller than the cell, and make every structure up to a cell thicker where it borders on a lower number;
    what a coarse head cannot see, the full resolution learns, which weighs most.
    """
    for axis, new in enumerate(shape, start=1):
        old = target_BS.shape[axis]
        centres = ((torch.arange(new, device=target_BS.device, dtype=torch.float64) + 0.5) * old / new).long()
        target_BS = target_BS.index_select(axis, centres)
    return target_BS


def _coarse(loss: Loss, logits_BKS: Tensor, target_BS: Tensor) -> Tensor:
    return loss.total(logits_BKS, coarser(target_BS, tuple(logits_BKS.shape[2:])))


def _shares(names: list[str]) -> dict[str, float]:
    ordered = sorted(names, key=lambda name: int(name.removeprefix("deep.")))
    whole = 2.0 - 0.5 ** len(ordered)
    return {name: 0.5**level / whole for level, name in enumerate(ordered, start=1)}


def _weighted(weight: float, error: Callable[[Masks], Tensor]) -> Callable[[Masks], Tensor]:
    return lambda masks: weight * error(masks)
