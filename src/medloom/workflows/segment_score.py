"""From a trained segmenter to recorded evidence: every case answered, brought back to its file's grid, and judged.

Shapes: K classes with the background, S the spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.config import Recipe
from medloom.data.case_restore import upright
from medloom.data.largest_piece import keep_largest
from medloom.data.records import Record
from medloom.deployment.export_segmenter import export_segmenter
from medloom.evaluation.case_table import Case, CaseTable, case_table
from medloom.evaluation.mean_shape import MeanShape, mean_shape
from medloom.evaluation.segmentation_summary import notable_cases, summarise_segmentation
from medloom.files import RunDirectory, write_json
from medloom.reporting.overlays import case_picture, case_views, write_case_pictures
from medloom.training.predict_cases import case_positions
from medloom.workflows import score
from medloom.workflows.progress import Progress
from medloom.workflows.segment_prepare import PreparedCases, open_case
from medloom.workflows.segment_truth import StoredCase, judged, stored_case

SHAPES = 200
"""Training masks, evenly spaced, that the mean shape is made of."""

PARITY_CASES = 6
"""Validation cases that export is proved on; every pixel of each counts."""


def judge(
    model: nn.Module, recipe: Recipe, run: RunDirectory, prepared: PreparedCases, device: torch.device, *, quiet: bool
) -> dict[str, Any]:
    """Answer validation and test, write the tables of cases, ``metrics.json`` and the pictures; returns the metrics."""
    structures = len(prepared.dataset.classes) - 1
    trained = [r for r in prepared.dataset.records if r.split == "train"]
    shown = [trained[i] for i in np.linspace(0, len(trained) - 1, min(SHAPES, len(trained)), dtype=int)]
    trivial = mean_shape((_stored(prepared, r, recipe).labels for r in shown), structures)
    wanted = recipe.segmentation.keep_largest
    ways = (False, True) if wanted == "auto" else (wanted == "on",)
    tables = _tables(model, recipe, prepared, "val", device, trivial, ways, quiet=quiet)
    keep, decided = ways[0], {"keep_largest": ways[0], "chosen_on": "recipe"}
    if wanted == "auto":
        dice = [float(np.nanmean(table.per_case("dice"))) for table in tables]
        keep = dice[1] > dice[0]
        decided = {"keep_largest": keep, "chosen_on": "validation", "dice_without": dice[0], "dice_with": dice[1]}
    validation = tables[ways.index(keep)]
    validation.write_csv(run.cases("val"))
    write_json(run.root / "postprocessing.json", decided)
    test = None
    if len(prepared.rows("test")):
        score.open_test(run, "training run", prepared.dataset.hash())
        (test,) = _tables(model, recipe, prepared, "test", device, trivial, (keep,), quiet=quiet)
        test.write_csv(run.cases("test"))
    _pictures(model, recipe, run, prepared, test if test is not None else validation, device, keep=keep)
    metrics = summarise_segmentation(test, validation=validation, config=recipe.evaluation, seed=recipe.train.seed)
    metrics["segmentation"] |= {"postprocessing": decided}
    metrics["test_scorings"] = score.scorings(run)
    write_json(run.metrics, metrics)
    return metrics


def answer(
    model: nn.Module, recipe: Recipe, prepared: PreparedCases, row: int, case: StoredCase, device: torch.device
) -> np.ndarray:
    """The model's positions uint8 on the grid of ``case.labels``, every piece of them.

    Args:
        row: place of the case in the cache.
    """
    grid, classes = prepared.preprocess, len(prepared.dataset.classes)
    pixels_CS = prepared.cases.pixels[row]
    found = case_positions(model, pixels_CS, grid, case.file, recipe.segmentation, classes, device)
    return upright(found, case.file)


def bundle(
    model: nn.Module,
    recipe: Recipe,
    run: RunDirectory,
    prepared: PreparedCases,
    metrics: dict[str, Any],
    architecture: dict[str, Any],
) -> None:
    """Export the model, proved on validation cases from file to mask."""
    dataset, settings = prepared.dataset, recipe.segmentation
    validation = dataset.select("val")
    chosen = np.linspace(0, len(validation) - 1, min(PARITY_CASES, len(validation)), dtype=int)
    export_segmenter(
        model,
        run.bundle,
        name=recipe.name,
        architecture=architecture,
        classes=dataset.classes,
        label_values=dataset.label_values,
        preprocess=prepared.preprocess,
        segmentation={
            "patch": settings.patch,
            "overlap": settings.overlap,
            "mirror": settings.mirror,
            "keep_largest": metrics["segmentation"]["postprocessing"]["keep_largest"],
        },
        cases=[validation.file(validation.records[i]) for i in chosen],
        decoding=recipe.data.decoding(),
        provenance={
            "data": dataset.hash(),
            "recipe": recipe.hash,
            "parameters": sum(p.numel() for p in model.parameters()),
            "training images": len(prepared.rows("train")),
            "accepted": list(recipe.data.accept),
        },
        metrics=metrics,
    )


def _tables(
    model: nn.Module,
    recipe: Recipe,
    prepared: PreparedCases,
    split: str,
    device: torch.device,
    trivial: MeanShape,
    ways: Sequence[bool],
    *,
    quiet: bool,
) -> list[CaseTable]:
    """Every case of a split, answered once and judged on the grid of its file: a table for each of ``ways``.

    Args:
        ways: whether only the largest piece of each structure counts.
    """
    names, tolerance = prepared.dataset.classes[1:], recipe.segmentation.tolerance
    rows = prepared.rows(split)
    cases: list[list[Case]] = [[] for _ in ways]
    with Progress(f"answering {split}", quiet=quiet) as step:
        for done, row in enumerate(rows, start=1):
            record = prepared.dataset.records[row]
            case = _stored(prepared, record, recipe)
            found = answer(model, recipe, prepared, int(row), case, device)
            for listed, keep in zip(cases, ways):
                kept = keep_largest(found) if keep else found
                listed.append(judged(record, case, kept, len(names), tolerance, trivial))
            step(done, len(rows))
    return [case_table(listed, names, split=split, tolerance=tolerance) for listed in cases]


def _stored(prepared: PreparedCases, record: Record, recipe: Recipe) -> StoredCase:
    file = open_case(prepared.dataset, record, prepared.preprocess, recipe.data)
    limit = recipe.data.max_megapixels
    return stored_case(prepared.dataset, record, file, prefer=recipe.volume.prefer, max_megapixels=limit)


def _pictures(
    model: nn.Module,
    recipe: Recipe,
    run: RunDirectory,
    prepared: PreparedCases,
    table: CaseTable,
    device: torch.device,
    *,
    keep: bool,
) -> None:
    """Store the worst, the middle and the best cases for the report, answered once more."""
    row_of = {record.id: row for row, record in enumerate(prepared.dataset.records)}
    drawn = []
    for group, ids in notable_cases(table).items():
        for identity in ids:
            row = row_of[identity]
            case = _stored(prepared, prepared.dataset.records[row], recipe)
            found = answer(model, recipe, prepared, row, case, device)
            found = keep_largest(found) if keep else found
            drawn.append(case_picture(table, identity, group, case_views(case.image, case.labels, found, case.spacing)))
    write_case_pictures(run, drawn)
