"""The steps of one training run, in the order that keeps them honest. ``workflows.train`` is the door."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.config import Recipe
from medloom.data.augment import backend
from medloom.data.cache import DevicePixels, to_device
from medloom.data.masks import Masks, load_masks
from medloom.data.records import Dataset, read_csv
from medloom.data.sampling import class_weights
from medloom.evaluation.operating_point import thresholds
from medloom.evaluation.predictions import Predictions
from medloom.files import RunDirectory
from medloom.reporting.pictures import write_pictures
from medloom.reporting.report import write_report
from medloom.training.added_losses import scores_tokens
from medloom.training.batches import Examples
from medloom.training.classification import classifying
from medloom.training.distributed import World
from medloom.training.fingerprint import fingerprint
from medloom.training.predict import predict_logits
from medloom.training.reconstruction import reconstructs
from medloom.training.token_stages import check_stages
from medloom.training.work import Work
from medloom.workflows import score
from medloom.workflows.examples import pictures
from medloom.workflows.networks import architecture_of, build, check_learning, load_teacher
from medloom.workflows.prepare import Prepared, load_pixels, prepare
from medloom.workflows.run_bundle import write_run_bundle
from medloom.workflows.run_steps import announce, check_model, device_of, open_run, run_fit, without_scoring
from medloom.workflows.train import TrainedRun

EVALUATION_BATCH = 64


def lead(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool, quiet: bool) -> TrainedRun:
    """The main process: everything that is written is written here."""
    started = time.monotonic()
    device = device_of(recipe)
    check_learning(recipe, check_model(recipe))
    open_run(recipe, run, resume=resume)
    prepared = prepare(recipe, run, resume=resume, quiet=quiet)
    notices: list[str] = []
    model = build(recipe, architecture_of(recipe, prepared), notices.append)
    pixels = to_device(prepared.cache, device)
    work, marks = _work(model, recipe, prepared, pixels, device, world)
    announce(recipe, run, world, resume=resume)
    fitted = run_fit(model, work, recipe, run, marks, device, world, resume=resume, quiet=quiet)
    told = (*notices, *fitted.notices)
    if ended := without_scoring(run, fitted, started, told):
        return ended

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
    model = build(recipe, architecture_of(recipe, prepared))
    pixels = to_device(prepared.cache, device)
    work, marks = _work(model, recipe, prepared, pixels, device, world)
    fitted = run_fit(model, work, recipe, run, marks, device, world, resume=resume, quiet=True)
    if fitted.exit_code:
        return TrainedRun(run, {}, 0.0, fitted.exit_code)
    for split in ("val", "test"):
        if len(prepared.rows(split)):
            _score(model, recipe, prepared, split, pixels, device, world)
    return TrainedRun(run, {}, 0.0)


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


def _work(
    model: nn.Module, recipe: Recipe, prepared: Prepared, pixels: DevicePixels, device: torch.device, world: World
) -> tuple[Work, dict[str, Any]]:
    """What is learnt from, and the run's fingerprint; refused here is all that data, model and recipe together forbid.

    Raises:
        UsageError: U221, U222, U225, U227. DataError: D117, D134, a mask that cannot be read.
    """
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
    check_stages(recipe, model, len(work.steps(1)))
    return work, marks


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
