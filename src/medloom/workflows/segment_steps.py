"""The steps of one training run whose answers are masks, in the order that keeps them honest.

The twin of ``train_steps``: the epoch, and whether only the largest piece of a structure counts, are chosen on
validation, before the test cases are answered.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medloom.config import Recipe
from medloom.data.augment import backend
from medloom.data.preprocess import Preprocess
from medloom.data.records import read_csv
from medloom.files import RunDirectory, make_folder, write_json, write_text
from medloom.models.registry import create_model, model_options
from medloom.models.weights import load_weights
from medloom.reporting.report import write_report
from medloom.training.distributed import World
from medloom.training.fingerprint import fingerprint
from medloom.training.loop import FitResult, fit
from medloom.training.segmentation import CaseExamples, segmenting
from medloom.workflows import segment_score
from medloom.workflows.environment import environment
from medloom.workflows.progress import Progress, duration
from medloom.workflows.segment_prepare import PreparedCases, load_cases, prepare_cases
from medloom.workflows.train import TrainedRun
from medloom.workflows.train_steps import check_recipe, device_of


def lead(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool, quiet: bool) -> TrainedRun:
    """The main process: everything that is written is written here."""
    started = time.monotonic()
    device = device_of(recipe)
    if resume:
        check_recipe(recipe, run)
    else:
        make_folder(run.root)
    prepared = prepare_cases(recipe, run, resume=resume, quiet=quiet)
    notices: list[str] = []
    model = build(recipe, prepared, notices)
    if not resume:
        # Last, so that what was refused for its data or its model leaves no recipe that looks like a run.
        write_json(run.environment, environment())
        write_text(run.recipe, recipe.as_yaml())
    world.barrier()
    fitted = _fit(model, recipe, run, prepared, device, world, resume=resume, quiet=quiet)
    told = (*notices, *fitted.notices)
    if fitted.exit_code:
        return TrainedRun(run, {}, time.monotonic() - started, fitted.exit_code, told)
    if run.report.exists() and run.metrics.exists():
        # Nothing was left to train, and answering the test cases again would only count one more scoring.
        recorded = json.loads(run.metrics.read_text(encoding="utf-8"))
        return TrainedRun(run, recorded, time.monotonic() - started, notices=told)
    metrics = segment_score.judge(model.eval(), recipe, run, prepared, device, quiet=quiet)
    segment_score.bundle(model, recipe, run, prepared, metrics, architecture_of(recipe, prepared))
    write_report(run)
    return TrainedRun(run, metrics, time.monotonic() - started, notices=told)


def follow(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool) -> TrainedRun:
    """Every other process under torchrun: trains and validates its share, writes nothing."""
    device = device_of(recipe)
    world.barrier()
    dataset = read_csv(run.records, Path(str(recipe.data.path)))
    prepared = load_cases(recipe, run, dataset)
    model = build(recipe, prepared, [])
    fitted = _fit(model, recipe, run, prepared, device, world, resume=resume, quiet=True)
    return TrainedRun(run, {}, 0.0, fitted.exit_code)


def build(recipe: Recipe, prepared: PreparedCases, notices: list[str]) -> nn.Module:
    """The recipe's model for these cases, from its seed, or from the weights that it names."""
    torch.manual_seed(recipe.train.seed)
    model = create_model(**architecture_of(recipe, prepared), pretrained=recipe.model.pretrained)
    if recipe.model.weights is not None:
        notices += load_weights(model, recipe.model.weights, new_head=recipe.model.new_head)
    return model


def architecture_of(recipe: Recipe, prepared: PreparedCases) -> dict[str, Any]:
    """What ``create_model`` takes to build this run's network again."""
    grid = prepared.preprocess
    size = grid.size if isinstance(grid, Preprocess) else recipe.segmentation.patch
    assert size is not None
    name = recipe.model.name
    deep = recipe.segmentation.deep_supervision and "deep_supervision" in model_options(name)
    return {
        "name": name,
        "num_classes": len(prepared.dataset.classes),
        "in_chans": grid.in_chans,
        "image_size": list(size),
        "spatial_dims": len(size),
        **({"deep_supervision": True} if deep else {}),
        **recipe.model.options,
    }


def _fit(
    model: nn.Module,
    recipe: Recipe,
    run: RunDirectory,
    prepared: PreparedCases,
    device: torch.device,
    world: World,
    *,
    resume: bool,
    quiet: bool,
) -> FitResult:
    dataset = prepared.dataset
    marks = fingerprint(
        recipe,
        {"hash": dataset.hash(), "cases": prepared.cases.key},
        device=device,
        processes=world.size,
        augmentation=backend(device),
    )
    work = segmenting(
        model,
        train=_examples(prepared, "train"),
        val=_examples(prepared, "val"),
        recipe=recipe,
        preprocess=prepared.preprocess,
        device=device,
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


def _examples(prepared: PreparedCases, split: str) -> CaseExamples:
    ids = tuple(r.id for r in prepared.dataset.records if r.split == split)
    return CaseExamples(prepared.cases, prepared.rows(split), ids, len(prepared.dataset.classes))


def _show(progress: Progress, event: dict[str, Any]) -> None:
    """One line per epoch that stays, and the time left in between."""
    if event["event"] == "epoch":
        dice = event.get("val_dice")
        progress.keep(
            f"epoch {event['epoch']}: train loss {event['train_loss']:.4f}, validation loss {event['val_loss']:.4f}, "
            f"Dice {'not estimable' if dice is None else f'{dice:.4f}'}, {duration(event['seconds'])}"
        )
    elif event["event"] == "step":
        progress(event["total"], event["total_steps"], f"loss {event['train_loss']:.4f}")
    elif event["event"] == "notice":
        progress.keep(str(event["text"]))
