"""The recipe by which a pruned model learns from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medloom.config import Recipe, load_recipe
from medloom.errors import UsageError
from medloom.files import RunDirectory

RATE = 0.3
"""Of the recipe's learning rate: the weights that stay are good ones."""


def lesson_recipe(
    source: str | Path,
    given: str | Path | None,
    data: str | Path,
    epochs: int,
    overrides: Sequence[str],
    accept: Sequence[str],
) -> Recipe:
    """The recipe that the model was trained by, for short lessons; ``overrides`` are laid over it last.

    Raises:
        UsageError: U236 a bare bundle without a recipe.
    """
    own = RunDirectory(Path(source)).recipe
    if given is None and not own.exists():
        told = "a bare bundle tells neither how it was trained nor on whom"
        raise UsageError("U236", source, told, "Give its run directory, or the recipe with --recipe")
    values = load_recipe(given or own).as_dict()
    rate = RATE * values["train"]["learning_rate"]
    values["name"] = f"{values['name']}-pruned"
    values["data"] |= {"path": str(data), "accept": sorted({*values["data"]["accept"], *accept})}
    values["model"] |= {"weights": None, "pretrained": False}
    values["distill"] |= {"teacher": str(source), "weight": 1.0, "temperature": 2.0}
    values["tokens"] |= {"scorer_epochs": 0, "warmup": 0.0, "ramp": 0.01, "attention_weight": 0.0}
    values["train"] |= {"epochs": epochs, "learning_rate": rate, "schedule": "cosine", "warmup_epochs": 0.0}
    values["train"] |= {"freeze_epochs": 0, "patience": None, "step_epochs": [], "save_steps": None}
    # An average of the weights that suits a long training would hold much of a short lesson's beginning.
    values["train"]["ema_decay"] = 0.0
    return load_recipe(values, tuple(overrides))
