"""Classification as the loop's work: which images a step shows, what it minimises, how an epoch is judged.

Shape suffixes: N images of the split, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from medloom.data.preprocess import Preprocess
from medloom.data.sampling import epoch_order
from medloom.training.added_losses import added_losses
from medloom.training.batches import Examples, Reader, deal
from medloom.training.distributed import World
from medloom.training.objective import objective
from medloom.training.predict import predict_logits
from medloom.training.scores import correct, monitor_of, validation_scores
from medloom.training.step import Objective, trained_part
from medloom.training.token_stages import scorer_alone
from medloom.training.work import Work

if TYPE_CHECKING:
    from medloom.config import Recipe


def classifying(
    model: nn.Module,
    *,
    train: Examples,
    val: Examples | None,
    recipe: Recipe,
    preprocess: Preprocess,
    device: torch.device,
    class_weights: np.ndarray | None = None,
    teacher: nn.Module | None = None,
    world: World = World(),  # noqa: B008  (a frozen value)
) -> Work:
    """The work of a classifier.

    Args:
        val: None trains without validation.
        class_weights: ``(K,)`` of ``data.sampling.class_weights``.
        teacher: gives the answers that ``recipe.distill`` is about; of the same classes and input.

    Raises:
        UsageError: U225, the recipe wants a teacher's attention, and there is none to have.
    """
    loss = objective(recipe, multi_label=train.multi_label, class_weights=class_weights)
    added = added_losses(model, recipe, preprocess, loss, teacher=teacher, masks=train.masks is not None)
    monitor, notices = monitor_of(recipe.train.monitor, val)

    def steps(epoch: int) -> list[np.ndarray]:
        order = epoch_order(train.labels, recipe.imbalance.method, recipe.train.seed, epoch)
        return [order[part] for part in deal(len(order), recipe.train.batch_size * recipe.train.accumulate)]

    def trained(epoch: int) -> nn.Module:
        return trained_part(model, scorer_alone=scorer_alone(recipe, model, epoch), taught=teacher is not None)

    def validate(judged: nn.Module, stop: Callable[[], bool]) -> dict[str, float | None]:
        assert val is not None
        # fp32, as the final evaluation: the AUC that chose the epoch can be recomputed from its weights.
        batch_size = 2 * recipe.train.batch_size
        logits_NK = predict_logits(judged, val.pixels, preprocess, val.rows, batch_size, device, world=world, stop=stop)
        return validation_scores(logits_NK, val, loss)

    return Work(
        ids=train.ids,
        steps=steps,
        read=Reader(train, preprocess, recipe.augment, recipe.train.seed, world, device).read,
        weight=lambda rows: loss.weight(train.labels[rows]),
        objective=Objective(loss, correct, added),
        trained=trained,
        hit="train_accuracy",
        validate=None if val is None else validate,
        monitor=monitor,
        notices=notices,
    )
