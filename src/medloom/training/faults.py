"""What can go wrong inside a step, said in one line: T406 not finite, T407 out of memory,
T415 a batch of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medloom.errors import GateError, ResourceError, UsageError
from medloom.training.batches import Batch
from medloom.training.checkpoint import not_finite

if TYPE_CHECKING:
    from medloom.config import Recipe
    from medloom.training.journal import Journal
    from medloom.training.state import State


@dataclass(frozen=True)
class StepReport:
    """The numbers of one step, perhaps still being computed, and what to name if they are bad.

    Attributes:
        ids: of all that is trained on; ``rows`` are those of the step.
        numbers: float64 ``[loss, hits, stop, norm, added losses ...]``, sums over all processes.
    """

    epoch: int
    step: int
    rate: float
    ids: tuple[str, ...]
    rows: np.ndarray
    numbers: Tensor

    def check(self, journal: Journal, directory: Path) -> bool:
        """Wait for the numbers; whether some process was asked to stop.

        Raises:
            GateError: T406, loss or gradient is NaN or infinite. The weights in ``directory``, if any, are from before.
        """
        loss, _, stop, norm, *added = self.numbers.tolist()
        loss += sum(added)
        if np.isfinite(loss) and np.isfinite(norm):
            return bool(stop > 0)
        ids = [self.ids[row] for row in self.rows]
        what = "loss" if not np.isfinite(loss) else "gradient"
        journal.session("not_finite", epoch=self.epoch, step=self.step + 1, learning_rate=self.rate, what=what, ids=ids)
        shown = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more (sessions.jsonl)" if len(ids) > 4 else "")
        raise GateError(
            "T406",
            f"epoch {self.epoch} step {self.step + 1}",
            f"{what} is not finite at learning rate {self.rate:.3g} on the images {shown}",
            f"{_kept(directory)}ook at these images, or lower train.learning_rate",
        )


def check_state(state: State, rate: float, journal: Journal, directory: Path) -> None:
    """Look at weights and running statistics, which can overflow while loss and gradient are still finite.

    Raises:
        GateError: T406, before any of it is written.
    """
    nets = [state.model] + ([] if state.average is None else [state.average])
    broken = [name for net in nets for name in not_finite(net.state_dict())]
    if not broken:
        return
    what = {"what": "state", "tensors": broken[:4]}
    journal.session("not_finite", epoch=state.epoch, step=state.step, learning_rate=rate, **what)
    raise GateError(
        "T406",
        f"epoch {state.epoch} step {state.step}",
        f"'{broken[0]}' holds NaN or infinity at learning rate {rate:.3g}",
        f"{_kept(directory)}ower train.learning_rate",
    )


def _kept(directory: Path) -> str:
    return "The last good checkpoint is kept; l" if any(directory.glob("[0-9]*.json")) else "Nothing was saved yet; l"


@contextlib.contextmanager
def explained(net: nn.Module, batch: Batch, recipe: Recipe, processes: int) -> Iterator[None]:
    """Turn what torch says when memory ends, or when a batch is too small to be normalised, into our errors.

    Raises:
        ResourceError: T407 with a batch size that was tried and fits.
        UsageError: T415.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not _is_out_of_memory(problem):
            raise
        n = len(batch.x_BCHW)
    except ValueError as problem:
        if "more than 1 value per channel" not in str(problem):
            raise
        raise UsageError(
            "T415",
            "train.batch_size",
            f"a batch of {len(batch.x_BCHW)} image cannot be normalised over the batch, as this model does",
            "Use at least 2 images per process and step",
        ) from None
    else:
        return
    # Only here is the failed step's memory free: while the exception lived, its frames held the activations.
    fitting = _fitting(net, batch, recipe) if processes == 1 else n // 2
    if fitting:
        pieces = -(-n // fitting) * recipe.train.accumulate
        advice = f"train.batch_size={fitting * processes} fits; train.accumulate={pieces} keeps the step size"
    else:
        advice = "Use a smaller model or preprocess.size"
    where = batch.x_BCHW.device.type.upper()
    raise ResourceError("T407", "train.batch_size", f"out of {where} memory with {n} images a batch", advice)


@contextlib.contextmanager
def memory_elsewhere(recipe: Recipe) -> Iterator[None]:
    """The same for memory that ends outside a forward and backward pass: optimiser state, validation, reading.

    Raises:
        ResourceError: T407 with half the batch size, untried.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not _is_out_of_memory(problem):
            raise
    else:
        return
    half = max(1, recipe.train.batch_size // 2)
    advice = f"Try train.batch_size={half}, train.accumulate={2 * recipe.train.accumulate}, or a smaller model"
    raise ResourceError("T407", "training", f"out of memory with train.batch_size={recipe.train.batch_size}", advice)


def _is_out_of_memory(problem: BaseException) -> bool:
    text = str(problem).lower()
    return (
        isinstance(problem, (torch.OutOfMemoryError, MemoryError))
        or "can't allocate memory" in text
        or "not enough memory" in text
        or "out of memory" in text
    )


def _fitting(net: nn.Module, batch: Batch, recipe: Recipe) -> int:
    """Largest of n/2, n/4 ... images that go forward and backward; 0 where not even two do."""
    from medloom.training.precision import autocast

    n = len(batch.x_BCHW) // 2
    while n >= 1:
        net.zero_grad(set_to_none=True)
        if batch.x_BCHW.device.type == "cuda":
            torch.cuda.empty_cache()
        with contextlib.suppress(RuntimeError, MemoryError, ValueError):
            with autocast(batch.x_BCHW.device, recipe.train.amp):
                found = net(batch.x_BCHW[:n])
            outputs = found.values() if isinstance(found, dict) else [found]
            torch.stack([output.float().square().sum() for output in outputs]).sum().backward()
            return n
        n //= 2
    return 0
