"""What the training loop works on: the same for images with labels and for images with masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from medloom.training.batches import Batch, Part
from medloom.training.step import Objective

Validate = Callable[[nn.Module, Callable[[], bool]], dict[str, float | None]]


@dataclass(frozen=True)
class Work:
    """Everything about learning that is not the loop's.

    Attributes:
        ids: of all that is trained on, for messages.
        steps: epoch (from 1) to the positions in ``ids`` of each step's images, over all processes.
        read: a micro-batch before it is read to this process's share of it.
        weight: positions of a step to what its loss is divided by.
        objective: what a step minimises.
        trained: epoch to what a step calls: the model, or a method of it that gives more than its answer.
        hit: name in the log of what ``objective.hits`` counts, e.g. ``train_accuracy``.
        validate: ``(model, stop)`` to the scores of an epoch, ``val_loss`` among them; raises
            ``predict.Interrupted`` when ``stop`` says so. None without validation.
        monitor: which of them chooses the best epoch; ``epoch`` takes the last.
        notices: what a person should know before it begins.
    """

    ids: tuple[str, ...]
    steps: Callable[[int], list[np.ndarray]]
    read: Callable[[Part], Batch]
    weight: Callable[[np.ndarray], float]
    objective: Objective
    trained: Callable[[int], nn.Module]
    hit: str
    validate: Validate | None
    monitor: str
    notices: tuple[str, ...] = ()
