"""The steps of one training run, in the order that keeps them honest. ``workflows.train`` is the door."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.config import Recipe, difference, load_recipe
from medloom.data.augment import backend
from medloom.data.cache import DevicePixels, to_device
from medloom.data.masks import Masks, load_masks
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, read_csv
from medloom.data.sampling import class_weights
from medloom.errors import UsageError
from medloom.evaluation.operating_point import thresholds
from medloom.evaluation.predictions import Predictions
from medloom.files import RunDirectory, make_folder, write_json, write_text
from medloom.models.registry import create_model
from medloom.models.weights import read_safetensors
from medloom.reporting.pictures import write_pictures
from medloom.reporting.report import write_report
from medloom.training.added_losses import scores_tokens
from medloom.training.batches import Examples
from medloom.training.classification import classifying
from medloom.training.distributed import World
from medloom.training.fingerprint import fingerprint
from medloom.training.loop import FitResult, fit
from medloom.training.precision import choose_device
from medloom.training.predict import predict_logits
from medloom.training.reconstruction import reconstructs
from medloom.workflows import score
from medloom.workflows.environment import environment
from medloom.workflows.examples import pictures
from medloom.workflows.networks import build, load_teacher
from medloom.workflows.prepare import Prepared, load_pixels, prepare
from medloom.workflows.progress import Progress, duration
from medloom.workflows.run_bundle import write_run_bundle
from medloom.workflows.train import TrainedRun

EVALUATION_BATCH = 64
_FREE = ("data.accept:", "data.path:", "notes:")  # may change on resume: the hash of the data guards what they are


def lead(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool, quiet: bool) -> TrainedRun:
    """The main process: everything that is written is written here."""
    started = time.monotonic()
    device = device_of(recipe)
    check_model(recipe)
    if resume:
        check_recipe(recipe, run)
    else:
        make_folder(run.root)
    prepared = prepare(recipe, run, resume=resume, quiet=quiet)
    notices: list[str] = []
    model = build(recipe, prepared, notices.append)
    if not resume:
        # Last, so that what was refused for its data or its model leaves no recipe that looks like a run.
        write_json(run.environment, environment())
        write_text(run.recipe, recipe.as_yaml())
    world.barrier()
    pixels = to_device(prepared.cache, device)
    fitted = _fit(model, recipe, run, prepared, pixels, device, world, resume=resume, quiet=quiet)
    told = (*notices, *fitted.notices)
    if fitted.exit_code:
        return TrainedRun(run, {}, time.monotonic() - started, fitted.exit_code, told)
    if run.report.exists() and run.metrics.exists():
        # Nothing was left to train, and scoring the test split again would only count one more scoring.
        recorded = json.loads(run.metrics.read_text(encoding="utf-8"))
        return TrainedRun(run, recorded, time.monotonic() - started, notices=told)

    def logits(split: str) -> np.ndarray:
        return _score(model, recipe, prepared, split, pixels, device, world)

    table, decision, temperature = score.freeze_decision(run, prepared.dataset.select("val"), logits("val"), recipe)
    test = prepared.dataset.select("test")
    scored = None
    if len(test):
        score.open_test(run, "training run", prepared.dataset.hash())
        scored = score.predictions_of(test, "test", logits("test"), temperature)
    metrics = score.write_metrics(run, scored, table, decision, recipe, temperature=temperature)
    shown, rows = (scored, prepared.rows("test")) if scored is not None else (table, prepared.rows("val"))
    answers = decide(shown, decision)
    rebuild = reconstructs(model) and recipe.loss.reconstruction > 0  # else its decoder was never taught
    write_pictures(run, pictures(model, pixels, prepared.preprocess, rows, shown, answers, device, rebuild=rebuild))
    write_run_bundle(model, recipe, run, prepared, decision, temperature, metrics, table)
    write_report(run)
    return TrainedRun(run, metrics, time.monotonic() - started, notices=told)


def follow(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool) -> TrainedRun:
    """Every other process under torchrun: trains and scores its share, writes nothing."""
    device = device_of(recipe)
    world.barrier()
    dataset = read_csv(run.records, Path(str(recipe.data.path)))
    prepared = load_pixels(recipe, run, dataset)
    model = build(recipe, prepared)
    pixels = to_device(prepared.cache, device)
    fitted = _fit(model, recipe, run, prepared, pixels, device, world, resume=resume, quiet=True)
    if fitted.exit_code:
        return TrainedRun(run, {}, 0.0, fitted.exit_code)
    for split in ("val", "test"):
        if len(prepared.rows(split)):
            _score(model, recipe, prepared, split, pixels, device, world)
    return TrainedRun(run, {}, 0.0)


def check_model(recipe: Recipe) -> None:
    """Refuse before the data are read what does not depend on them: the model's name, options and weights.

    Raises:
        UsageError: U206, U207, U208, U209. ModelError: C501, C502, C511, C512.
    """
    if recipe.model.weights is not None:
        at = Path(recipe.model.weights)
        read_safetensors(at / "model.safetensors" if at.is_dir() else at)
    draft = Preprocess.from_config(recipe.preprocess)
    # A network that cannot be made without memory is judged when it is built.
    with contextlib.suppress(RuntimeError), torch.device("meta"):
        create_model(
            recipe.model.name, num_classes=2, in_chans=draft.in_chans, image_size=draft.size, **recipe.model.options
        )


def decide(table: Predictions, decision: dict[str, Any]) -> np.ndarray:
    """Answers at the frozen threshold: class positions, or zeros and ones where labels are many."""
    cut = thresholds(decision)
    if table.multi_label:
        limits = np.array([cut.get(name, 0.5) for name in table.classes])
        return (table.probabilities >= limits).astype(np.int64)
    positive = table.classes[-1]
    if len(table.classes) == 2 and positive in cut:
        return (table.probabilities[:, 1] >= cut[positive]).astype(np.int64)
    return table.probabilities.argmax(axis=1)


def _fit(
    model: nn.Module,
    recipe: Recipe,
    run: RunDirectory,
    prepared: Prepared,
    pixels: DevicePixels,
    device: torch.device,
    world: World,
    *,
    resume: bool,
    quiet: bool,
) -> FitResult:
    dataset = prepared.dataset
    train = dataset.select("train")
    weights = class_weights(train.targets(), len(dataset.classes), recipe.imbalance, dataset.classes)
    learns = scores_tokens(model) and recipe.tokens.mask_weight > 0
    masks = load_masks(dataset, prepared.preprocess) if learns else None
    teacher, taught = load_teacher(recipe, prepared, device)
    marks = fingerprint(
        recipe,
        {
            "hash": dataset.hash(),
            **({"teacher": taught} if taught else {}),
            **({"masks": masks.hash} if masks is not None else {}),
        },
        device=device,
        processes=world.size,
        augmentation=backend(device),
    )
    work = classifying(
        model,
        train=_examples(prepared, pixels, "train", train, masks),
        val=_examples(prepared, pixels, "val", dataset.select("val")),
        recipe=recipe,
        preprocess=prepared.preprocess,
        device=device,
        class_weights=weights,
        teacher=teacher,
        world=world,
    )
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


def _score(
    model: nn.Module,
    recipe: Recipe,
    prepared: Prepared,
    split: str,
    pixels: DevicePixels,
    device: torch.device,
    world: World,
) -> np.ndarray:
    """``(N, K)`` float32 logits of one split, each image once over all processes."""
    return predict_logits(
        model,
        pixels,
        prepared.preprocess,
        prepared.rows(split),
        EVALUATION_BATCH,
        device,
        world=world,
        flip_average=recipe.evaluation.flip_average,
    )


def _examples(
    prepared: Prepared, pixels: DevicePixels, split: str, part: Dataset, masks: Masks | None = None
) -> Examples:
    return Examples(pixels, prepared.rows(split), part.targets(), tuple(r.id for r in part.records), masks)


def _show(progress: Progress, event: dict[str, Any]) -> None:
    """One line per epoch that stays, and the time left in between."""
    if event["event"] == "epoch":
        area = event.get("val_auc")
        rebuilt = f", reconstruction error {event['reconstruction']:.4f}" if "reconstruction" in event else ""
        progress.keep(
            f"epoch {event['epoch']}: train loss {event['train_loss']:.4f}, validation loss {event['val_loss']:.4f}, "
            f"AUC {'not estimable' if area is None else f'{area:.4f}'}{rebuilt}, {duration(event['seconds'])}"
        )
    elif event["event"] == "step":
        progress(event["total"], event["total_steps"], f"loss {event['train_loss']:.4f}")
    elif event["event"] == "notice":
        progress.keep(str(event["text"]))


def check_recipe(recipe: Recipe, run: RunDirectory) -> None:
    """Refuse to resume under another recipe (T411), whatever the difference."""
    before = load_recipe(run.recipe)
    changed = [line for line in difference(before, recipe) if not line.startswith(_FREE)]
    if changed and "T411" not in recipe.data.accept:
        shown = "; ".join(changed[:5])
        remedy = "Undo it, name another --out, or go on as changed with --accept T411"
        raise UsageError("T411", run.recipe, f"the recipe changed: {shown}", remedy)


def device_of(recipe: Recipe) -> torch.device:
    """Where this process computes; also sets the thread count that the recipe asks for."""
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    return choose_device(recipe.train.device)
