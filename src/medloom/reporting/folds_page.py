"""The page of cross-validation: every fold, how far they lie apart, all cases together, and each site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloom.evaluation.case_table import read_cases
from medloom.files import write_text
from medloom.reporting import plots_masks
from medloom.reporting.page import render
from medloom.reporting.sections_segmentation import site_table
from medloom.reporting.wording import NOT_A_DEVICE, plural

NAMES = {"dice": "Dice", "hd95": "HD95", "nsd": "surface Dice", "auc": "AUC", "accuracy": "accuracy",
         "balanced_accuracy": "balanced accuracy"}  # fmt: skip
LEAD = (
    "Each patient was tested once, by a model that was trained and chosen without him. The deviation over the folds "
    "mixes the luck of the training with that of the patients; it is no interval."
)

NOTE = "One point per case of all folds. Diamond: what the mean shape of the training masks reaches."


def write_folds_page(root: Path, values: Mapping[str, Any]) -> Path:
    """Write ``folds.html`` beside the folds' run directories, from ``folds.json`` and ``cases_test.csv``; its path.

    Raises:
        ResourceError: T404, T405 when it cannot be written.
    """
    path = root / "folds.html"
    write_text(path, folds_html(root, values))
    return path


def folds_html(root: Path, values: Mapping[str, Any]) -> str:
    """The page as text."""
    folds, over = values["folds"], values["over_folds"]
    columns = [name for name in NAMES if any(name in fold["metrics"] for fold in folds)]
    rows = [
        {
            "fold": fold["fold"],
            "n": fold["n"],
            "cells": [
                {"entry": fold["metrics"].get(name), "name": name, "path": f"folds.json: folds[{k}].metrics.{name}"}
                for name in columns
            ],
        }
        for k, fold in enumerate(folds)
    ]
    plots, together = [], values.get("together")
    joined: list[dict[str, Any]] | None = None
    sites: dict[str, Any] = {"blocks": [], "columns": []}
    if together is not None:
        table = read_cases(root / "cases_test.csv")
        part = together["splits"]["test"]
        trivial = {name: found["metrics"]["dice"].get("baseline") for name, found in part["structures"].items()}
        plots.append({"svg": plots_masks.distribution(table, trivial), "note": NOTE})
        sites = site_table(part, table.distance_unit, "folds.json: together.splits.test")
        joined = [
            {
                "name": name,
                "n": found["metrics"]["dice"]["n"],
                "cells": [
                    {"entry": found["metrics"][m], "name": m, "path": f"folds.json: {place}.metrics.{m}"}
                    for m in ("dice", "hd95", "nsd")
                ],
            }
            for name, found, place in (
                ("all", part, "together.splits.test"),
                *((s, part["structures"][s], f"together.splits.test.structures.{s}") for s in part["structures"]),
            )
        ]
    unit = f", {table.distance_unit}" if together is not None else ""
    labels = {**NAMES, "hd95": f"{NAMES['hd95']}{unit}"}
    first = next(iter(over), None)
    told = f"{NAMES[first]} {over[first]['mean']:.3f}, deviation {over[first]['sd']:.3f}. " if first else ""
    return render(
        "folds.html",
        title=f"{values['recipe']}: MedLoom cross-validation",
        made_by="MedLoom train --folds",
        name=values["recipe"],
        flags=[{"text": plural(len(folds), "fold"), "tone": ""}, {"text": NOT_A_DEVICE, "tone": ""}],
        sentence=f"{values['model']}, {plural(sum(f['n'] for f in folds), 'case')} tested. {told}{LEAD}",
        columns=[{"name": name, "label": labels[name]} for name in columns],
        rows=rows,
        over=[over.get(name) for name in columns],
        joined=joined,
        sites=sites,
        labels=labels,
        plots=plots,
    )
