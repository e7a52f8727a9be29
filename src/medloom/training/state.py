"""What a training run is at one moment: weights, moments, averages, sums of the running epoch, and its history.

There is no random generator in it. Every draw is a function of (seed, epoch, step, process), see ``seed_step``.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medloom import files
from medloom.errors import ModelError
from medloom.training import checkpoint

_TORCH_STREAM = 0x746F726368


@dataclass
class State:
    """One run, as far as it has come.

    Attributes:
        model: the weights in training.
        average: their exponential moving average, None without EMA; validation and the best epoch use it.
        epoch: the epoch in work, from 1.
        step: optimiser steps done in it.
        total: optimiser steps done in all.
        sums: float64 ``[loss, correct, added losses ...]`` over the images of the epoch so far, on the device.
        added: names of the added losses.
        weight, images: what the sums are divided by.
        seconds: spent in the epoch so far, over all sessions.
        best: ``epoch``, ``score``, ``file`` ... of the best epoch so far.
        history: every line of ``log.jsonl`` so far; the log is rewritten from it on resume.
        changes: differences of the fingerprint that were accepted on resume.
        done: why the run is over (``epochs``, ``steps``, ``patience``), None while it is not.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    fingerprint: dict[str, Any]
    epoch: int = 1
    step: int = 0
    total: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    added: tuple[str, ...] = ()
    weight: float = 0.0
    images: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    done: str | None = None

    @property
    def judged(self) -> nn.Module:
        """The model that is validated and kept."""
        return self.model if self.average is None else self.average

    def begin_epoch(self, epoch: int) -> None:
        """Reset the sums."""
        self.epoch, self.step, self.weight, self.images, self.seconds = epoch, 0, 0.0, 0, 0.0
        self.sums = torch.zeros_like(self.sums)


_PLAIN = ("fingerprint", "epoch", "step", "total", "weight", "images", "seconds", "best", "history", "changes", "done")


def save(state: State, directory: Path) -> Path:
    """Write a checkpoint; see ``checkpoint.write_checkpoint`` for what is promised and raised."""
    values: dict[str, Any] = {name: getattr(state, name) for name in _PLAIN}
    values["sums"] = state.sums.tolist()
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in state.average.state_dict().items()}
    tensors |= _moments(state)
    return checkpoint.write_checkpoint(directory, state.total, values, tensors)


def load(state: State, found: checkpoint.Checkpoint) -> None:
    """Bring ``state`` (freshly made by the same recipe) to where ``found`` was saved.

    Raises:
        ModelError: C505, the checkpoint is of another model or optimiser.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in found.tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    checkpoint.fill(state.model.state_dict(), parts["model"], found.path)
    if state.average is not None:
        checkpoint.fill(state.average.state_dict(), parts["average"], found.path)
    _restore_moments(state, parts["optimizer"], found.path)
    for name in _PLAIN:
        if name != "fingerprint":
            setattr(state, name, found.values[name])
    sums = [*found.values["sums"], *[0.0] * len(state.added)][: len(state.sums)]  # older checkpoints hold fewer
    state.sums = torch.tensor(sums, dtype=torch.float64, device=state.sums.device)


def average_of(model: nn.Module) -> nn.Module:
    """A copy of the model to hold the moving average of its weights."""
    average = copy.deepcopy(model).eval()
    return average.requires_grad_(False)


@torch.no_grad()
def update_average(state: State, decay: float) -> None:
    """Move the average towards the weights; running statistics are copied.

    The decay starts low and rises to its value, so that a short run is not dominated by its random start.
    """
    if state.average is None:
        return
    decay = min(decay, (1 + state.total) / (10 + state.total))
    torch._foreach_lerp_(list(state.average.parameters()), list(state.model.parameters()), 1.0 - decay)
    for mean, buffer in zip(state.average.buffers(), state.model.buffers()):
        mean.copy_(buffer)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch for one step (dropout, drop path): the same draws after a resume, without saved generators."""
    word = np.random.SeedSequence([_TORCH_STREAM, seed, epoch, step, rank]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(word >> np.uint64(1)))


def _moments(state: State) -> dict[str, Tensor]:
    """Optimiser state by parameter name, so that it does not depend on how parameters were grouped."""
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _restore_moments(state: State, moments: dict[str, Tensor], place: Path) -> None:
    parameters = dict(state.model.named_parameters())
    for name, saved in moments.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters.get(owner)
        if parameter is None or (saved.ndim and saved.shape != parameter.shape):
            raise ModelError(
                "C505", place, f"optimiser state of {owner} does not fit", "Use the recipe that it was made with"
            )
        # Like the parameter in memory layout and alignment: vectorised kernels round by them.
        like = torch.empty_like(parameter if saved.ndim else saved, dtype=saved.dtype, requires_grad=False)
        if saved.ndim == 0 and state.optimizer.defaults.get("fused"):
            like = like.to(parameter.device)
        state.optimizer.state[parameter][key] = like.copy_(saved)


def rewrite_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Make ``log.jsonl`` say what the checkpoint says: lines of a lost epoch go, lines that were lost come back."""
    files.write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in history))
