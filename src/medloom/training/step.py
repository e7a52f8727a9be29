"""One step: forward and backward over its micro-batches, the gradient, and the numbers that tell how it went.

Shape suffixes: B images of a micro-batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medloom.config import Recipe
from medloom.training import faults
from medloom.training.added_losses import AddedLoss, chooses_tokens
from medloom.training.batches import Batch
from medloom.training.distributed import World, accumulating
from medloom.training.losses import Loss
from medloom.training.precision import autocast
from medloom.training.reconstruction import reconstructs


@dataclass(frozen=True)
class Objective:
    """What a step minimises.

    Attributes:
        loss: of the answer.
        hits: ``(logits, target)`` to what the log counts beside the loss: a sum over the images.
        added: beside it.
        share: weight of the answer's loss; 0 while a scorer learns alone.
    """

    loss: Loss
    hits: Callable[[Tensor, Tensor], Tensor]
    added: tuple[AddedLoss, ...] = ()
    share: float = 1.0


class TrainOutputs(nn.Module):
    """A method as a module: several processes average the gradients of what is called through one alone."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        outputs: dict[str, Tensor] = getattr(self.model, self.method)(x_BCHW)
        return outputs


def trained_part(model: nn.Module, *, scorer_alone: bool = False, taught: bool = False) -> nn.Module:
    """What a step calls: ``train_outputs`` of models that rebuild their input or choose tokens, else the model.

    Args:
        scorer_alone: ``scorer_outputs`` instead, which leave the blocks out: in that stage nothing there learns.
        taught: there is a teacher; a second head that is there for it (DeiT's) then learns from it alone.
    """
    if scorer_alone:
        return TrainOutputs(model, "scorer_outputs")
    own_head = taught and getattr(model, "head_dist", None) is not None
    return TrainOutputs(model, "train_outputs") if reconstructs(model) or chooses_tokens(model) or own_head else model


def outputs_of(net: nn.Module, x_BCHW: Tensor) -> dict[str, Tensor]:
    """``logits``, and what else the model gives in training."""
    outputs = net(x_BCHW)
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def gradients(
    net: nn.Module,
    batches: Iterator[Batch],
    objective: Objective,
    recipe: Recipe,
    world: World,
    *,
    stop: bool,
    weight: float,
    images: int,
    device: torch.device,
) -> Tensor:
    """Gradients of one step of ``images`` images into the parameters of ``net``, averaged over the processes.

    Args:
        stop: this process was asked to stop; every process hears of it.
        weight: what the sum of the loss is divided by.

    Returns:
        float64 ``[loss, hits, stop, norm, added losses ...]``: sums over all processes, and the gradient's norm.
        ``loss`` is that of the answer.
    """
    config, size = recipe.train, world.size
    numbers = torch.zeros(4 + len(objective.added), dtype=torch.float64, device=device)
    for batch in batches:
        with accumulating(net, not batch.last), faults.explained(net, batch, recipe, size):
            with autocast(device, config.amp):
                outputs = outputs_of(net, batch.x_BCHW)
            counts = float(batch.counts)
            total = objective.loss.total(outputs["logits"].float(), batch.target) * counts
            # Over all micro-batches and processes these sum to the mean loss of the whole step; the factor undoes
            # the division by the number of processes in the exchange of gradients.
            mean = total * (objective.share * size / max(weight, 1e-12))
            for place, added in enumerate(objective.added):
                with autocast(device, config.amp):
                    error = added.total(outputs, batch) * counts
                mean = mean + error * (added.weight * size / images)
                numbers[4 + place] += error.detach()
            mean.backward()
        numbers[0] += total.detach()
        if batch.counts:
            numbers[1] += objective.hits(outputs["logits"].detach(), batch.target)
        if batch.last:
            break
    numbers[2] = float(stop)
    world.sum(numbers)
    limit = config.clip_norm if config.clip_norm is not None else math.inf
    numbers[3] = torch.nn.utils.clip_grad_norm_(net.parameters(), limit)
    return numbers
