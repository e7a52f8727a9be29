"""The training loop, to be read from top to bottom.

::

    with world(device) as w:
        result = fit(model, train=train, val=val, recipe=recipe, run=run, preprocess=preprocess,
                     fingerprint=fingerprint(recipe, {"hash": dataset.hash()}, device=device),
                     class_weights=weights, device=device, world=w, resume=False, progress=print)

Data order, augmentation, dropout and learning rate are functions of (seed, epoch, step), and everything else is in the
checkpoint. So a run that was killed at any moment and resumed ends, on the same CPU and threads, with the bytes of one
that was not.

A step is one move of the optimiser: ``batch_size * accumulate`` images over all processes.
Shape suffixes: B images of a micro-batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from medloom.data.prefetch import prefetch
from medloom.data.preprocess import Preprocess
from medloom.data.sampling import epoch_order
from medloom.errors import DataError
from medloom.files import RunDirectory
from medloom.training import faults, freezing, optimizers, token_stages
from medloom.training.added_losses import added_losses, for_stage
from medloom.training.batches import Examples, Reader, deal, parts
from medloom.training.distributed import World, share_buffers
from medloom.training.journal import Journal
from medloom.training.objective import objective
from medloom.training.precision import MEMORY_FORMAT, settings
from medloom.training.predict import Interrupted, predict_logits
from medloom.training.schedule import learning_rate
from medloom.training.scores import improves, monitor_of, validation_scores
from medloom.training.state import State, average_of, seed_step, update_average
from medloom.training.step import Objective, gradients, net_of
from medloom.training.stopping import EXIT_CODES, StopRequests

if TYPE_CHECKING:
    from pathlib import Path

    from medloom.config import Recipe


@dataclass(frozen=True)
class FitResult:
    """How a session ended.

    Attributes:
        stopped: why the run is over (``epochs``, ``steps``, ``patience``), or the signal (``SIGTERM``, ``SIGINT``)
            that ended the session; then a checkpoint of that moment is saved.
        epochs, steps: finished so far, over all sessions.
        best: ``epoch``, ``score``, ``monitor`` of the best epoch; None before the first validation.
        weights: safetensors file of the best epoch, which ``model`` now holds too; None before the first validation.
        notices: what a person should know (a damaged checkpoint was passed over, nothing was left to do ...).
    """

    stopped: str
    epochs: int
    steps: int
    best: dict[str, Any] | None
    weights: Path | None
    notices: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """Of the command line: 143 or 130 after a signal, else 0."""
        return EXIT_CODES.get(self.stopped, 0)


@dataclass(frozen=True)
class _Run:
    """What stays the same through a session."""

    recipe: Recipe
    train: Examples
    val: Examples | None
    reader: Reader
    objective: Objective
    goal: float | None
    net: nn.Module
    world: World
    journal: Journal
    checkpoint: Path
    stop: StopRequests
    monitor: str
    steps_per_epoch: int
    total_steps: int


def fit(
    model: nn.Module,
    *,
    train: Examples,
    val: Examples | None,
    recipe: Recipe,
    run: RunDirectory,
    preprocess: Preprocess,
    fingerprint: dict[str, Any],
    class_weights: np.ndarray | None = None,
    device: torch.device,
    world: World = World(),  # noqa: B008  (a frozen value)
    resume: bool = False,
    accept: tuple[str, ...] = (),
    teacher: nn.Module | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> FitResult:
    """Train, validate after each epoch, keep the best epoch, save as it goes.

    Args:
        model: freshly built from the recipe's seed; holds the best weights when the run is over.
        val: None trains without validation; the last epoch is then the best.
        run: its ``checkpoint`` and ``log`` are written, by the main process. The caller holds ``files.exclusive``.
        fingerprint: ``training.fingerprint.fingerprint``; must be equal on resume.
        class_weights: ``(K,)`` of ``data.sampling.class_weights``.
        resume: go on from the newest good checkpoint; without any, begin.
        accept: codes; ``T411`` goes on in spite of a changed fingerprint (but never with other data).
        teacher: gives the answers that ``recipe.distill`` is about; of the same classes and input.
        progress: is given a dict per ``event``: ``step`` (loss, learning_rate, seconds_left ...), ``epoch``,
            ``saved``, ``notice``.

    Raises:
        DataError: D115 no training images.
        UsageError: T411 not the run that was saved; T414 a run is here and ``resume`` is not set; T415 batch of one.
        ModelError: T414 no checkpoint is good; C505 they are of another model.
        GateError: T406 loss, gradient or weights are not finite.
        ResourceError: T404, T405 not saved; T407 out of memory; T408 images not readable.
    """
    config = recipe.train
    if not len(train):
        raise DataError("D115", "train", "no training images", "Check the split and the excluded files")
    with settings(device, config.threads), StopRequests() as stop:
        model.to(device=device, memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
        loss = objective(recipe, multi_label=train.multi_label, class_weights=class_weights)
        added = added_losses(model, recipe, preprocess, loss, teacher=teacher, masks=train.masks is not None)
        state = State(
            model=model,
            optimizer=optimizers.make_optimizer(model, config),
            average=average_of(model) if config.ema_decay > 0 else None,
            fingerprint=fingerprint,
            sums=torch.zeros(2 + len(added), dtype=torch.float64, device=device),
            added=tuple(one.name for one in added),
        )
        journal = Journal(run, world, progress)
        steps_per_epoch = len(_epoch_steps(recipe, train, 1))
        total_steps = config.epochs * steps_per_epoch
        total_steps = min(total_steps, config.max_steps or total_steps)
        token_stages.check_stages(recipe, model, steps_per_epoch, total_steps)
        journal.open(state, total_steps, resume=resume, accept=accept)
        freezing.hold_for(model, recipe, state.epoch)
        this = _Run(
            recipe=recipe,
            train=train,
            val=val,
            reader=Reader(train, preprocess, recipe.augment, config.seed, world, device),
            objective=Objective(loss, added),
            goal=token_stages.goal_of(model),
            net=net_of(model, recipe, state.epoch, device, world, taught=teacher is not None),
            world=world,
            journal=journal,
            checkpoint=run.checkpoint,
            stop=stop,
            monitor=monitor_of(config.monitor, val, journal.notice),
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
        )
        stopped = state.done
        with faults.memory_elsewhere(recipe):
            while stopped is None:
                if freezing.hold_for(model, recipe, state.epoch):
                    this = replace(
                        this, net=net_of(model, recipe, state.epoch, device, world, taught=teacher is not None)
                    )
                finished = _train_epoch(this, state) and _finish_epoch(this, state)
                stopped = state.done or (None if finished else stop.received or "SIGTERM")
        weights = journal.close(state, stopped)
        freezing.hold(model, 1, 0)
        token_stages.set_keep(model, this.goal)
    return FitResult(stopped, state.epoch - 1, state.total, state.best, weights, tuple(journal.notices))


def _train_epoch(this: _Run, state: State) -> bool:
    """Take the steps that are left of the epoch. False where a signal came; the state is then saved."""
    config, train, wanted = this.recipe.train, this.train, _objective(this, state)
    steps = _epoch_steps(this.recipe, train, state.epoch)[: this.total_steps - state.total + state.step]
    places = parts(steps, config.batch_size, state.epoch, state.step)
    # Where reading a number waits for the GPU, each step's numbers are looked at after the next step is under way.
    delay = 1 if this.reader.device.type == "cuda" else 0
    unread: list[faults.StepReport] = []
    freezing.train_mode(this.net)
    with closing(prefetch(this.reader.read, places)) as batches:
        for step in range(state.step, len(steps)):
            started = time.perf_counter()
            rate = learning_rate(state.total, this.steps_per_epoch, this.total_steps, config)
            optimizers.set_learning_rate(state.optimizer, rate)
            seed_step(config.seed, state.epoch, step, this.world.rank)
            kept = token_stages.keep_rate(this.recipe, this.goal, state.total, this.total_steps)
            token_stages.set_keep(state.model, kept)
            state.optimizer.zero_grad(set_to_none=True)
            weight = this.objective.loss.weight(train.labels[steps[step]])
            numbers = gradients(
                this.net,
                batches,
                wanted,
                this.recipe,
                this.world,
                stop=this.stop.received is not None,
                weight=weight,
                images=len(steps[step]),
                device=this.reader.device,
            )
            unread.append(faults.StepReport(state.epoch, step, rate, train, steps[step], numbers))
            halt = False
            while len(unread) > delay:
                halt |= unread.pop(0).check(this.journal, this.checkpoint)
            state.optimizer.step()
            update_average(state, config.ema_decay)
            state.sums += numbers[[0, 1, *range(4, len(numbers))]]
            state.step, state.total = step + 1, state.total + 1
            state.weight, state.images = state.weight + weight, state.images + len(steps[step])
            state.seconds += time.perf_counter() - started
            this.journal.step(state, rate, numbers, weight, this.steps_per_epoch, this.total_steps)
            due = config.save_steps is not None and state.total % config.save_steps == 0 and step + 1 < len(steps)
            if halt or due:
                while unread:
                    unread.pop(0).check(this.journal, this.checkpoint)
                faults.check_state(state, rate, this.journal, this.checkpoint)
                this.journal.save(state)
            if halt:
                return False
    while unread:
        unread.pop(0).check(this.journal, this.checkpoint)
    return True


def _objective(this: _Run, state: State) -> Objective:
    """What this epoch minimises."""
    alone = token_stages.scorer_alone(this.recipe, state.model, state.epoch)
    return replace(
        this.objective, added=for_stage(this.objective.added, scorer_alone=alone), share=0.0 if alone else 1.0
    )


def _finish_epoch(this: _Run, state: State) -> bool:
    """Validate, compare with the best epoch, log, save. False where a signal came before or during it."""
    scores: dict[str, float | None] = {}
    started = time.perf_counter()
    token_stages.set_keep(state.judged, this.goal)
    share_buffers(state.judged, this.world)
    rate = learning_rate(state.total - 1, this.steps_per_epoch, this.total_steps, this.recipe.train)
    faults.check_state(state, rate, this.journal, this.checkpoint)
    if this.val is not None:
        # fp32, as the final evaluation: the AUC that chose the epoch can be recomputed from its weights.
        try:
            logits_NK = predict_logits(
                state.judged,
                this.val.pixels,
                this.reader.preprocess,
                this.val.rows,
                2 * this.recipe.train.batch_size,
                this.reader.device,
                world=this.world,
                stop=lambda: this.stop.received is not None,
            )
        except Interrupted:
            this.journal.save(state)
            return False
        scores = validation_scores(logits_NK, this.val, this.objective.loss)
    line = this.journal.epoch_line(state, scores, rate, time.perf_counter() - started)
    # While a scorer learns alone, the answers that are validated come from blocks that have learnt nothing.
    alone = token_stages.scorer_alone(this.recipe, state.model, state.epoch)
    if not alone and improves(line, state.best, this.monitor):
        this.journal.keep_best(state, this.monitor, line)
    if state.total >= this.total_steps:
        state.done = "steps" if state.epoch < this.recipe.train.epochs else "epochs"
    elif this.recipe.train.patience and state.best:
        state.done = "patience" if state.epoch - state.best["epoch"] >= this.recipe.train.patience else None
    state.begin_epoch(state.epoch + 1)
    this.journal.end_epoch(state, line)
    halt = torch.tensor([float(this.stop.received is not None)], device=this.reader.device)
    return not bool(this.world.sum(halt))


def _epoch_steps(recipe: Recipe, train: Examples, epoch: int) -> list[np.ndarray]:
    """Positions in ``train`` of the images of each step."""
    order = epoch_order(train.labels, recipe.imbalance.method, recipe.train.seed, epoch)
    return [order[part] for part in deal(len(order), recipe.train.batch_size * recipe.train.accumulate)]
