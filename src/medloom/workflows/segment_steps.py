"""The steps of one training run whose answers are masks, in the order that keeps them honest.

The twin of ``train_steps``: the epoch, and whether only the largest piece of a structure counts, are chosen on
validation, before the test cases are answered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medloom.config import Recipe
from medloom.data.augment import backend
from medloom.data.plan_memory import recipe_gigabytes
from medloom.data.preprocess import Preprocess
from medloom.data.records import read_csv
from medloom.files import RunDirectory
from medloom.models.registry import model_options
from medloom.reporting.report import write_report
from medloom.training.distributed import World
from medloom.training.fingerprint import fingerprint
from medloom.training.loop import FitResult
from medloom.training.segmentation import CaseExamples, segmenting
from medloom.workflows import segment_score
from medloom.workflows.networks import build
from medloom.workflows.progress import Progress
from medloom.workflows.run_steps import announce, check_model, device_of, open_run, run_fit, without_scoring
from medloom.workflows.segment_prepare import PreparedCases, load_cases, prepare_cases
from medloom.workflows.train import TrainedRun


def lead(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool, quiet: bool) -> TrainedRun:
    """The main process: everything that is written is written here."""
    started = time.monotonic()
    device = device_of(recipe)
    check_model(recipe)
    open_run(recipe, run, resume=resume)
    prepared = prepare_cases(recipe, run, resume=resume, quiet=quiet)
    architecture = architecture_of(recipe, prepared)
    notices: list[str] = []
    model = build(recipe, architecture, notices.append)
    announce(recipe, run, world, resume=resume)
    if expected := memory_line(recipe, architecture["image_size"]):
        Progress("training", quiet=quiet).keep(expected)
    fitted = _fit(model, recipe, run, prepared, device, world, resume=resume, quiet=quiet)
    told = (*notices, *fitted.notices)
    if ended := without_scoring(run, fitted, started, told):
        return ended
    metrics = segment_score.judge(model.eval(), recipe, run, prepared, device, quiet=quiet)
    segment_score.bundle(model, recipe, run, prepared, metrics, architecture)
    write_report(run)
    return TrainedRun(run, metrics, time.monotonic() - started, notices=told)


def follow(recipe: Recipe, run: RunDirectory, world: World, *, resume: bool) -> TrainedRun:
    """Every other process under torchrun: trains and validates its share, writes nothing."""
    device = device_of(recipe)
    world.barrier()
    dataset = read_csv(run.records, Path(str(recipe.data.path)))
    prepared = load_cases(recipe, run, dataset)
    model = build(recipe, architecture_of(recipe, prepared))
    fitted = _fit(model, recipe, run, prepared, device, world, resume=resume, quiet=True)
    return TrainedRun(run, {}, 0.0, fitted.exit_code)


def memory_line(recipe: Recipe, size: Sequence[int]) -> str | None:
    """What ``data plan`` would say of this recipe's memory, before the first step; None where nothing was measured."""
    half, batch = recipe.train.amp == "bf16", recipe.train.batch_size
    taken = recipe_gigabytes(recipe.model.name, recipe.model.options, tuple(size), batch, half=half)
    if taken is None:
        return None
    shown = " x ".join(map(str, size))
    return f"a step of {batch} x {shown} takes about {taken:.2g} GB in {'bfloat16' if half else 'float32'} (estimate)"


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
    return run_fit(model, work, recipe, run, marks, device, world, resume=resume, quiet=quiet)


def _examples(prepared: PreparedCases, split: str) -> CaseExamples:
    ids = tuple(r.id for r in prepared.dataset.records if r.split == split)
    return CaseExamples(prepared.cases, prepared.rows(split), ids, len(prepared.dataset.classes))
