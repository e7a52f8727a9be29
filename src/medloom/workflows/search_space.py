"""What a search may choose: trunk, embedding scales, refinement, depth, width, tokens kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medloom.config import Recipe
from medloom.errors import UsageError

if TYPE_CHECKING:
    import optuna

TRUNKS = ("conv2d", "resnet18", "efficientnet_b0")
SCALES: dict[str, list[list[int]]] = {"2": [[2, 1]], "2+3": [[2, 1], [3, 2]], "1+2+3": [[1, 1], [2, 1], [3, 2]]}
WIDTHS = (64, 128, 192, 256, 384)
HEAD_WIDTH = 32
KEEP = (0.3, 0.5, 0.7, 1.0)
FAMILIES = ("hatr", "token_pruned")


def families_of(recipe: Recipe) -> tuple[str, ...]:
    """Systems that are searched: both, the recipe's own first.

    Raises:
        UsageError: U238, the recipe's model is of neither.
    """
    name = recipe.model.name
    own = next((family for family in FAMILIES if name.startswith(family)), None)
    if own is None:
        told = f"{name} has no composition to search"
        raise UsageError("U238", "model.name", told, f"Start from a recipe of {' or '.join(FAMILIES)}")
    return (own, *(family for family in FAMILIES if family != own))


def compose(trial: optuna.Trial, families: tuple[str, ...], recipe: Recipe) -> dict[str, Any]:
    """``name`` and ``options`` of one composition, as a recipe's model part takes them."""
    family = trial.suggest_categorical("system", families)
    width = trial.suggest_categorical("width", WIDTHS)
    options: dict[str, Any] = {"embed_dim": width, "num_heads": width // HEAD_WIDTH}
    if family == "hatr":
        options["trunk"] = trial.suggest_categorical("trunk", TRUNKS)
        if options["trunk"] != "conv2d":
            options["trunk_stride"] = 16
        options["scales"] = SCALES[trial.suggest_categorical("scales", tuple(SCALES))]
        options["weighting"] = trial.suggest_categorical("refinement", (True, False))
        options["depth"] = trial.suggest_int("hatr depth", 1, 6)
    else:
        options["patch_size"] = 8 if min(_pair(recipe)) < 112 else 16
        options["depth"] = trial.suggest_int("blocks", 2, 8)
        options["keep_rate"] = trial.suggest_categorical("tokens kept", KEEP)
    return {"name": family, "options": options}


def _pair(recipe: Recipe) -> tuple[int, int]:
    size = recipe.preprocess.size
    return (size, size) if isinstance(size, int) else size
