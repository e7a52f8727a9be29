"""Segmentation as the loop's work: which cases a step shows, what it minimises, how an epoch is judged.

Shape suffixes: B items of a micro-batch, C channels, K classes, S the spatial axes: (H, W) or (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medloom.data.case_cache import Cases
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.training.added_losses import AddedLoss
from medloom.training.batches import deal
from medloom.training.case_batches import ImageReader, PatchReader
from medloom.training.distributed import World
from medloom.training.predict import Interrupted
from medloom.training.predict_cases import case_logits
from medloom.training.segmentation_losses import deep_supervision, deep_weights, segmentation_loss
from medloom.training.step import Objective, TrainOutputs
from medloom.training.work import Work

if TYPE_CHECKING:
    from medloom.config import Recipe

_ORDER = 11
"""Keeps the order of the cases apart from other draws of the same seed."""


@dataclass(frozen=True)
class CaseExamples:
    """The cases of one split.

    Attributes:
        cases: of the whole data set.
        rows: which of them belong to the split.
        ids: record ids of those, for messages.
        classes: K, with the background.
    """

    cases: Cases
    rows: np.ndarray
    ids: tuple[str, ...]
    classes: int


def segmenting(
    model: nn.Module,
    *,
    train: CaseExamples,
    val: CaseExamples | None,
    recipe: Recipe,
    preprocess: Preprocess | VolumePreprocess,
    device: torch.device,
    world: World = World(),  # noqa: B008  (a frozen value)
) -> Work:
    """The work of a segmenter. Without ``val`` the last epoch is the best."""
    config, batch_size = recipe.segmentation, recipe.train.batch_size * recipe.train.accumulate
    items = np.repeat(train.rows, config.patches_per_case)
    loss = segmentation_loss(config, train.classes)
    deep = deep_weights(model) if config.deep_supervision else {}
    added: tuple[AddedLoss, ...] = ()
    if deep:
        added = (AddedLoss("deep_supervision", 1.0, deep_supervision(loss, deep)),)

    def steps(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng(np.random.SeedSequence((recipe.train.seed, _ORDER, epoch))).permutation(
            len(items)
        )
        return [order[part] for part in deal(len(order), batch_size)]

    def trained(epoch: int) -> nn.Module:
        return TrainOutputs(model, "train_outputs") if deep else model

    def validate(judged: nn.Module, stop: Callable[[], bool]) -> dict[str, float | None]:
        assert val is not None
        return validation(judged, val, recipe, preprocess, loss.total, device, world, stop)

    reader = reader_of(train, items, recipe, preprocess, world, device)
    return Work(
        ids=tuple(train.ids[k] for k in np.repeat(np.arange(len(train.rows)), config.patches_per_case)),
        steps=steps,
        read=reader.read,
        weight=lambda rows: float(len(rows)),
        objective=Objective(loss, batch_dice, added, share=1.0 - sum(deep.values())),
        trained=trained,
        hit="train_dice",
        validate=None if val is None else validate,
        monitor=monitor_of(recipe.train.monitor, val),
    )


def reader_of(
    train: CaseExamples,
    items: np.ndarray,
    recipe: Recipe,
    preprocess: Preprocess | VolumePreprocess,
    world: World,
    device: torch.device,
) -> ImageReader | PatchReader:
    """What makes the micro-batches: whole images, or patches of volumes."""
    seed = recipe.train.seed
    if isinstance(preprocess, Preprocess):
        return ImageReader(train.cases, items, train.classes, preprocess, recipe.augment, seed, world, device)
    assert recipe.segmentation.patch is not None
    x, y, z = recipe.segmentation.patch
    share = recipe.segmentation.foreground
    return PatchReader(train.cases, items, (x, y, z), share, preprocess, recipe.augment, seed, world, device)


def monitor_of(wanted: str, val: CaseExamples | None) -> str:
    """What chooses the best epoch: ``val_dice`` unless the loss is wanted; ``epoch`` (the last) without validation."""
    if val is None or not len(val.rows):
        return "epoch"
    return "val_loss" if wanted == "val_loss" else "val_dice"


def batch_dice(logits_BKS: Tensor, target_BS: Tensor) -> Tensor:
    """Sum over the items of the mean Dice of the structures that are in the target or in the answer.

    An item in which there is nothing and nothing is answered counts 1: what the log shows is how training goes, the
    evidence leaves such cases out.
    """
    counts_BK3 = overlaps(logits_BKS.argmax(dim=1), target_BS, logits_BKS.shape[1])
    return dice_of(counts_BK3).nanmean(dim=1).nan_to_num(1.0).sum()


def overlaps(answer_BS: Tensor, target_BS: Tensor, classes: int) -> Tensor:
    """``(B, K - 1, 3)`` float64: pixels of each structure in both, in the answer, in the target."""
    rows = []
    for k in range(1, classes):
        answer, target = (answer_BS == k).flatten(1), (target_BS == k).flatten(1)
        rows.append(torch.stack([(answer & target).sum(1), answer.sum(1), target.sum(1)], dim=1))
    return torch.stack(rows, dim=1).double()


def dice_of(counts_BK3: Tensor) -> Tensor:
    """``(B, K - 1)``; NaN where a structure is in neither."""
    both, answer, target = counts_BK3.unbind(-1)
    return 2 * both / (answer + target)


@torch.inference_mode()
def validation(
    model: nn.Module,
    val: CaseExamples,
    recipe: Recipe,
    preprocess: Preprocess | VolumePreprocess,
    loss: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    world: World,
    stop: Callable[[], bool],
) -> dict[str, float | None]:
    """``val_loss`` and ``val_dice`` of one epoch, over whole cases on the grid of the model.

    The Dice is the mean over structures of the mean over cases in which the structure is, or was answered.

    Raises:
        Interrupted: ``stop`` said so.
    """
    mine = world.share(len(val.rows))
    numbers = torch.zeros(len(val.rows), 3 * (val.classes - 1) + 1, dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    try:
        for place in range(mine.start, mine.stop):
            if world.size == 1 and stop():
                raise Interrupted
            row = val.rows[place]
            logits_KS = torch.from_numpy(
                case_logits(model, val.cases.pixels[row], preprocess, recipe.segmentation, val.classes, device)
            )
            target_1S = torch.from_numpy(np.asarray(val.cases.labels[row], dtype=np.int64))[None]
            numbers[place, 0] = loss(logits_KS[None], target_1S)
            counts_1K3 = overlaps(logits_KS.argmax(0)[None], target_1S, val.classes)
            numbers[place, 1:] = counts_1K3.flatten()
    finally:
        model.train(training)
    # Each process fills its rows and the sum joins them.
    numbers = world.sum(numbers).cpu()
    dice_NK = dice_of(numbers[:, 1:].reshape(len(val.rows), -1, 3))
    per_structure_K = dice_NK.nanmean(dim=0)
    mean = per_structure_K.nanmean()
    return {
        "val_loss": float(numbers[:, 0].mean()),
        "val_dice": None if bool(mean.isnan()) else float(mean),
    }
