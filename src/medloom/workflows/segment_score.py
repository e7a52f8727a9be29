"""From a trained segmenter to recorded evidence: every case answered, brought back to its file's grid, and judged.

Shapes: K classes with the background, S the spatial axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.config import Recipe
from medloom.data.case_restore import restore_case
from medloom.data.largest_piece import keep_largest
from medloom.data.volumes import Volume, canonical
from medloom.deployment.export_segmenter import export_segmenter
from medloom.evaluation.case_table import Case, CaseTable, case_table
from medloom.evaluation.mean_shape import MeanShape, mean_shape
from medloom.evaluation.segmentation import score_case, units
from medloom.evaluation.segmentation_summary import notable_cases, summarise_segmentation
from medloom.files import RunDirectory, write_json
from medloom.reporting.overlays import case_picture, case_views, write_case_pictures
from medloom.training.predict_cases import case_logits
from medloom.workflows import score
from medloom.workflows.progress import Progress
from medloom.workflows.segment_prepare import PreparedCases, StoredCase, stored_case

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
    trivial = mean_shape((stored_case(prepared, r, recipe).labels for r in shown), structures)
    keep = recipe.segmentation.keep_largest == "on"
    validation = _table(model, recipe, prepared, "val", device, trivial, keep=keep, quiet=quiet)
    decided: dict[str, Any] = {"keep_largest": keep, "chosen_on": "recipe"}
    if recipe.segmentation.keep_largest == "auto":
        other = _table(model, recipe, prepared, "val", device, trivial, keep=True, quiet=quiet)
        dice = [float(np.nanmean(t.per_case("dice"))) for t in (validation, other)]
        keep = dice[1] > dice[0]
        validation = other if keep else validation
        decided = {"keep_largest": keep, "chosen_on": "validation", "dice_without": dice[0], "dice_with": dice[1]}
    validation.write_csv(run.cases("val"))
    write_json(run.root / "postprocessing.json", decided)
    test = None
    if len(prepared.rows("test")):
        score.open_test(run, "training run", prepared.dataset.hash())
        test = _table(model, recipe, prepared, "test", device, trivial, keep=keep, quiet=quiet)
        test.write_csv(run.cases("test"))
    _pictures(model, recipe, run, prepared, test if test is not None else validation, device, keep=keep)
    metrics = summarise_segmentation(test, validation=validation, config=recipe.evaluation, seed=recipe.train.seed)
    metrics["segmentation"] |= {"postprocessing": decided}
    metrics["test_scorings"] = score.scorings(run)
    write_json(run.metrics, metrics)
    return metrics


def answer(
    model: nn.Module,
    recipe: Recipe,
    prepared: PreparedCases,
    row: int,
    case: StoredCase,
    device: torch.device,
    *,
    keep: bool,
) -> np.ndarray:
    """The model's positions uint8 on the grid of ``case.labels``.

    Args:
        row: place of the case in the cache.
        keep: only the largest piece of each structure.
    """
    grid = prepared.preprocess
    classes = len(prepared.dataset.classes)
    logits_KS = case_logits(model, prepared.cases.pixels[row], grid, recipe.segmentation, classes, device)
    positions = restore_case(logits_KS, grid, case.file)
    if isinstance(case.file, Volume):
        positions = canonical(Volume(positions, case.file.affine)).array
    return keep_largest(positions) if keep else positions


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


def _table(
    model: nn.Module,
    recipe: Recipe,
    prepared: PreparedCases,
    split: str,
    device: torch.device,
    trivial: MeanShape,
    *,
    keep: bool,
    quiet: bool,
) -> CaseTable:
    """Every case of a split, answered and judged on the grid of its file."""
    names = prepared.dataset.classes[1:]
    rows, cases = prepared.rows(split), []
    with Progress(f"answering {split}", quiet=quiet) as step:
        for row in rows:
            record = prepared.dataset.records[row]
            case = stored_case(prepared, record, recipe)
            found = answer(model, recipe, prepared, int(row), case, device, keep=keep)
            values = score_case(
                case.labels,
                found,
                len(names),
                case.spacing,
                tolerance=recipe.segmentation.tolerance,
                trivial_S=trivial.at(case.labels.shape),
            )
            distance, size = units(case.labels.ndim, case.spacing)
            cases.append(Case(record.id, record.patient, record.site, values, distance, size))
            step(len(cases), len(rows))
    return case_table(cases, names, split=split, tolerance=recipe.segmentation.tolerance)


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
            case = stored_case(prepared, prepared.dataset.records[row], recipe)
            found = answer(model, recipe, prepared, row, case, device, keep=keep)
            drawn.append(case_picture(table, identity, group, case_views(case.image, case.labels, found, case.spacing)))
    write_case_pictures(run, drawn)
