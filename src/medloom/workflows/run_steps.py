"""What every training run does, whatever it answers with: opened, announced, fitted, and not scored twice."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medloom.config import Recipe, difference, load_recipe
from medloom.data.preprocess import Preprocess
from medloom.errors import UsageError
from medloom.files import RunDirectory, make_folder, write_json, write_text
from medloom.models.registry import create_model, input_of
from medloom.models.weights import read_safetensors
from medloom.training.distributed import World
from medloom.training.loop import FitResult, fit
from medloom.training.precision import choose_device, number_format
from medloom.training.work import Work
from medloom.workflows.environment import environment
from medloom.workflows.progress import Progress, duration
from medloom.workflows.train import TrainedRun

_FREE = ("data.accept:", "data.path:", "notes:")  # may change on resume: the hash of the data guards what they are


def device_of(recipe: Recipe) -> torch.device:
    """Where this process computes; also sets the thread count that the recipe asks for."""
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    return choose_device(recipe.train.device)


def with_number_format(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with ``train.amp`` as this machine understands it, so that the run says in what it computed."""
    chosen = number_format(device, recipe.train.amp)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"amp": chosen})})


def open_run(recipe: Recipe, run: RunDirectory, *, resume: bool) -> None:
    """Refuse to go on under another recipe, or make the folder of a new run."""
    if resume:
        check_recipe(recipe, run)
    else:
        make_folder(run.root)


def check_model(recipe: Recipe) -> nn.Module | None:
    """Refuse before the data are read what does not depend on them: the model's name, options and weights.

    Returns:
        the model for two classes, on the device ``meta``; None where the data decide, or it takes memory to make it.

    Raises:
        UsageError: U206, U207, U208, U209. ModelError: C501, C502, C511, C512.
    """
    if recipe.model.weights is not None:
        at = Path(recipe.model.weights)
        read_safetensors(at / "model.safetensors" if at.is_dir() else at)
    draft = Preprocess.from_config(recipe.preprocess)
    patch = recipe.segmentation.patch
    size, in_chans = (draft.size, draft.in_chans) if patch is None else (patch, 1)
    if input_of(recipe.model.name)["spatial_dims"] != len(size):
        return None  # whether they are images or volumes the data say, and refuse the other
    # A network that cannot be made without memory is judged when it is built.
    with contextlib.suppress(RuntimeError), torch.device("meta"):
        return create_model(
            recipe.model.name, num_classes=2, in_chans=in_chans, image_size=size, **recipe.model.options
        )
    return None


def check_recipe(recipe: Recipe, run: RunDirectory) -> None:
    """Refuse to resume under another recipe (T411), whatever the difference."""
    before = load_recipe(run.recipe)
    changed = [line for line in difference(before, recipe) if not line.startswith(_FREE)]
    if changed and "T411" not in recipe.data.accept:
        shown = "; ".join(changed[:5])
        remedy = "Undo it, name another --out, or go on as changed with --accept T411"
        raise UsageError("T411", run.recipe, f"the recipe changed: {shown}", remedy)


def announce(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool) -> None:
    """Write what the run is, and let the other processes in.

    Late, so that what was refused for its data, its model or how it is to learn leaves no recipe that looks like a run.
    """
    if not resume:
        write_json(run.environment, environment())
        write_text(run.recipe, recipe.as_yaml())
    world.barrier()


def run_fit(
    model: nn.Module,
    work: Work,
    recipe: Recipe,
    run: RunDirectory,
    marks: dict[str, Any],
    device: torch.device,
    world: World,
    *,
    resume: bool,
    quiet: bool,
) -> FitResult:
    """Train, with a line per epoch.

    Args:
        marks: the fingerprint.
    """
    with Progress("training", quiet=quiet) as progress:
        return fit(
            model,
            work=work,
            recipe=recipe,
            run=run,
            fingerprint=marks,
            accept=recipe.data.accept,
            resume=resume,
            device=device,
            world=world,
            progress=lambda event: _show(progress, event),
        )


def without_scoring(run: RunDirectory, fitted: FitResult, started: float, told: tuple[str, ...]) -> TrainedRun | None:
    """The end of a session that was stopped, or that found everything done; None where the test split is still to come.

    Args:
        started: monotonic clock.
    """
    seconds = time.monotonic() - started
    if fitted.exit_code:
        return TrainedRun(run, {}, seconds, fitted.exit_code, told)
    if run.report.exists() and run.metrics.exists():
        # Scoring the test split again would only count one more scoring.
        recorded = json.loads(run.metrics.read_text(encoding="utf-8"))
        return TrainedRun(run, recorded, seconds, notices=told)
    return None


def _show(progress: Progress, event: dict[str, Any]) -> None:
    """One line per epoch that stays, and the time left in between."""
    if event["event"] == "epoch":
        key, name = ("val_dice", "Dice") if "val_dice" in event else ("val_auc", "AUC")
        score = event.get(key)
        rebuilt = f", reconstruction error {event['reconstruction']:.4f}" if "reconstruction" in event else ""
        progress.keep(
            f"epoch {event['epoch']}: train loss {event['train_loss']:.4f}, validation loss {event['val_loss']:.4f}, "
            f"{name} {'not estimable' if score is None else f'{score:.4f}'}{rebuilt}, {duration(event['seconds'])}"
        )
    elif event["event"] == "step":
        progress(event["total"], event["total_steps"], f"loss {event['train_loss']:.4f}")
    elif event["event"] == "notice":
        progress.keep(str(event["text"]))
