"""The last step of a run that trained a classifier: its bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from medloom.config import Recipe
from medloom.deployment.export import export_bundle
from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import task
from medloom.files import RunDirectory
from medloom.workflows.networks import architecture_of
from medloom.workflows.prepare import Prepared

PARITY_IMAGES = 64


def write_run_bundle(
    model: nn.Module,
    recipe: Recipe,
    run: RunDirectory,
    prepared: Prepared,
    decision: dict[str, Any],
    temperature: float,
    metrics: dict[str, Any],
    table: Predictions,
    *,
    architecture: dict[str, Any] | None = None,
) -> None:
    """Export the model of a run into its ``bundle``, proved on validation images.

    Args:
        architecture: what ``create_model`` takes to build it; None, what the recipe says.
    """
    from medloom.data.images import decode

    validation = prepared.dataset.select("val")
    chosen = [
        validation.records[i]
        for i in np.linspace(0, len(validation) - 1, min(PARITY_IMAGES, len(validation)), dtype=int)
    ]
    images = [validation.file(r) if r.index is None else decode(validation, r, recipe.data).pixels for r in chosen]
    export_bundle(
        model,
        run.bundle,
        name=recipe.name,
        architecture=architecture or architecture_of(recipe, prepared),
        classes=prepared.dataset.classes,
        task=task(table),
        preprocess=prepared.preprocess,
        images=images,
        temperature=temperature,
        operating_point=decision,
        flip_average=recipe.evaluation.flip_average,
        decoding=recipe.data.decoding(),
        provenance={
            "data": prepared.dataset.hash(),
            "recipe": recipe.hash,
            "parameters": sum(p.numel() for p in model.parameters()),
            "training images": len(prepared.rows("train")),
            "accepted": list(recipe.data.accept),
        },
        metrics=metrics,
    )
