"""The training loop, to be read from top to bottom.

::

    with world(device) as w:
        work = classifying(model, train=train, val=val, recipe=recipe, preprocess=preprocess, device=device, world=w)
        result = fit(model, work=work, recipe=recipe, run=run, device=device, world=w, resume=False, progress=print,
                     fingerprint=fingerprint(recipe, {"hash": dataset.hash()}, device=device))

Data order, augmentation, dropout and learning rate are functions of (seed, epoch, step), and everything else is in the
checkpoint. So a run that was killed at any moment and resumed ends, on the same CPU and threads, with the bytes of one
that was not.

What is learnt from, and how an answer is judged, is a ``Work`` (``training.work``): labels or masks, the loop is one.

A step is one move of the optimiser: ``batch_size * accumulate`` images over all processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medloom.data.prefetch import prefetch
from medloom.errors import DataError
from medloom.files import RunDirectory
from medloom.training import faults, freezing, optimizers, token_stages
from medloom.training.added_losses import for_stage
from medloom.training.batches import parts
from medloom.training.distributed import World, replicate, share_buffers
from medloom.training.journal import Journal
from medloom.training.precision import memory_format, settings
from medloom.training.predict import Interrupted
from medloom.training.schedule import learning_rate
from medloom.training.scores import improves
from medloom.training.state import State, average_of, seed_step, update_average
from medloom.training.step import Objective, gradients
from medloom.training.stopping import EXIT_CODES, StopRequests
from medloom.training.work import Work

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
    work: Work
    device: torch.device
    goal: float | None
    net: nn.Module
    world: World
    journal: Journal
    checkpoint: Path
    stop: StopRequests
    steps_per_epoch: int
    total_steps: int


def fit(
    model: nn.Module,
    *,
    work: Work,
    recipe: Recipe,
    run: RunDirectory,
    fingerprint: dict[str, Any],
    device: torch.device,
    world: World = World(),  # noqa: B008  (a frozen value)
    resume: bool = False,
    accept: tuple[str, ...] = (),
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> FitResult:
    """Train, validate after each epoch, keep the best epoch, save as it goes.

    Args:
        model: freshly built from the recipe's seed; holds the best weights when the run is over.
        work: what it learns from and is judged by. Without validation the last epoch is the best.
        run: its ``checkpoint`` and ``log`` are written, by the main process. The caller holds ``files.exclusive``.
        fingerprint: ``training.fingerprint.fingerprint``; must be equal on resume.
        resume: go on from the newest good checkpoint; without any, begin.
        accept: codes; ``T411`` goes on in spite of a changed fingerprint (but never with other data).
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
    if not work.ids:
        raise DataError("D115", "train", "no training images", "Check the split and the excluded files")
    with settings(device, config.threads), StopRequests() as stop:
        model.to(device=device, memory_format=memory_format(model))  # type: ignore[call-overload]
        added = work.objective.added
        state = State(
            model=model,
            optimizer=optimizers.make_optimizer(model, config),
            average=average_of(model) if config.ema_decay > 0 else None,
            fingerprint=fingerprint,
            sums=torch.zeros(2 + len(added), dtype=torch.float64, device=device),
            added=tuple(one.name for one in added),
        )
        journal = Journal(run, world, progress)
        steps_per_epoch = len(work.steps(1))
        total_steps = config.epochs * steps_per_epoch
        total_steps = min(total_steps, config.max_steps or total_steps)
        token_stages.check_stages(recipe, model, steps_per_epoch)
        journal.open(state, total_steps, resume=resume, accept=accept)
        for text in work.notices:
            journal.notice(text)
        freezing.hold_for(model, recipe, state.epoch)
        this = _Run(
            recipe=recipe,
            work=work,
            device=device,
            goal=token_stages.goal_of(model),
            net=replicate(work.trained(state.epoch), device, world),
            world=world,
            journal=journal,
            checkpoint=run.checkpoint,
            stop=stop,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
        )
        stopped = state.done
        with faults.memory_elsewhere(recipe):
            while stopped is None:
                if freezing.hold_for(model, recipe, state.epoch):
                    this = replace(this, net=replicate(work.trained(state.epoch), device, world))
                finished = _train_epoch(this, state) and _finish_epoch(this, state)
                stopped = state.done or (None if finished else stop.received or "SIGTERM")
        weights = journal.close(state, stopped)
        freezing.hold(model, 1, 0)
        token_stages.set_keep(model, this.goal)
    return FitResult(stopped, state.epoch - 1, state.total, state.best, weights, tuple(journal.notices))


def _train_epoch(this: _Run, state: State) -> bool:
    """Take the steps that are left of the epoch. False where a signal came; the state is then saved."""
    config, work, wanted = this.recipe.train, this.work, _objective(this, state)
    steps = work.steps(state.epoch)[: this.total_steps - state.total + state.step]
    places = parts(steps, config.batch_size, state.epoch, state.step)
    # Where reading a number waits for the GPU, each step's numbers are looked at after the next step is under way.
    delay = 1 if this.device.type == "cuda" else 0
    unread: list[faults.StepReport] = []
    freezing.train_mode(this.net)
    with closing(prefetch(work.read, places)) as batches:
        for step in range(state.step, len(steps)):
            started = time.perf_counter()
            rate = learning_rate(state.total, this.steps_per_epoch, this.total_steps, config)
            optimizers.set_learning_rate(state.optimizer, rate)
            seed_step(config.seed, state.epoch, step, this.world.rank)
            kept = token_stages.keep_rate(this.recipe, this.goal, state.total, this.total_steps)
            token_stages.set_keep(state.model, kept)
            state.optimizer.zero_grad(set_to_none=True)
            weight = work.weight(steps[step])
            numbers = gradients(
                this.net,
                batches,
                wanted,
                this.recipe,
                this.world,
                stop=this.stop.received is not None,
                weight=weight,
                images=len(steps[step]),
                device=this.device,
            )
            unread.append(faults.StepReport(state.epoch, step, rate, work.ids, steps[step], numbers))
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
        this.work.objective,
        added=for_stage(this.work.objective.added, scorer_alone=alone),
        share=0.0 if alone else this.work.objective.share,
    )


def _finish_epoch(this: _Run, state: State) -> bool:
    """Validate, compare with the best epoch, log, save. False where a signal came before or during it."""
    scores: dict[str, float | None] = {}
    started = time.perf_counter()
    token_stages.set_keep(state.judged, this.goal)
    share_buffers(state.judged, this.world)
    rate = learning_rate(state.total - 1, this.steps_per_epoch, this.total_steps, this.recipe.train)
    faults.check_state(state, rate, this.journal, this.checkpoint)
    if this.work.validate is not None:
        try:
            scores = this.work.validate(state.judged, lambda: this.stop.received is not None)
        except Interrupted:
            this.journal.save(state)
            return False
    line = this.journal.epoch_line(state, scores, rate, time.perf_counter() - started, this.work.hit)
    # While a scorer learns alone, the answers that are validated come from blocks that have learnt nothing.
    alone = token_stages.scorer_alone(this.recipe, state.model, state.epoch)
    if not alone and improves(line, state.best, this.work.monitor):
        this.journal.keep_best(state, this.work.monitor, line)
    if state.total >= this.total_steps:
        state.done = "steps" if state.epoch < this.recipe.train.epochs else "epochs"
    elif this.recipe.train.patience and state.best:
        state.done = "patience" if state.epoch - state.best["epoch"] >= this.recipe.train.patience else None
    state.begin_epoch(state.epoch + 1)
    this.journal.end_epoch(state, line)
    halt = torch.tensor([float(this.stop.received is not None)], device=this.device)
    return not bool(this.world.sum(halt))
