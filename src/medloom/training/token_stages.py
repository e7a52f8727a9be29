"""How a model that chooses its tokens is led to few of them: stages, keep rate per step, what learns when.

First, where the recipe asks for it, stem and scorer learn alone. Then everything learns; the scorer stands still for a
while, so that the blocks get used to a choice that does not move under them. Models whose predictors stand between the
blocks (DynamicViT) have no such stages; the keep rate is then the goal of their draws. It starts at 1, falls along a
cosine, and ends at the goal; or it is drawn anew for every step, so that one checkpoint serves several rates.

All of it follows from the recipe, the epoch and the step, so a resumed run needs to remember nothing.

Reference: schedule: Liang et al., EViT, arXiv 2202.07800, section 4.1.
"""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from medloom.config import Recipe
from medloom.errors import UsageError
from medloom.training.added_losses import chooses_tokens, scores_tokens

_DRAW = 7
"""Keeps the draws of keep rates apart from those of data order and augmentation."""


def keep_rate(recipe: Recipe, goal: float | None, total: int, total_steps: int) -> float | None:
    """The share of tokens that step ``total`` (from 0) of ``total_steps`` keeps on the way to ``goal``.

    None where there is no goal, because the model chooses no tokens.
    """
    if goal is None:
        return None
    tokens = recipe.tokens
    if tokens.multi_keep:
        draw = np.random.default_rng(np.random.SeedSequence((recipe.train.seed, _DRAW, total)))
        return float(draw.choice(tokens.multi_keep))
    done = total / max(total_steps, 1)
    if done < tokens.warmup:
        return 1.0
    if done >= tokens.ramp:
        return goal
    way = (done - tokens.warmup) / max(tokens.ramp - tokens.warmup, 1e-9)
    return goal + (1.0 - goal) * 0.5 * (1.0 + math.cos(math.pi * way))


def goal_of(model: nn.Module) -> float | None:
    """The keep rate that the model was built with; None where it chooses no tokens."""
    return float(model.keep_rate) if chooses_tokens(model) else None  # type: ignore[arg-type]


def set_keep(model: nn.Module, rate: float | None) -> None:
    """Tell the model; nothing happens where it chooses no tokens."""
    if rate is not None:
        model.set_keep(rate)  # type: ignore[operator]


def scorer_alone(recipe: Recipe, model: nn.Module, epoch: int) -> bool:
    """Whether this epoch (from 1) belongs to the stage in which stem and scorer learn alone."""
    return scores_tokens(model) and epoch <= recipe.tokens.scorer_epochs


def check_stages(recipe: Recipe, model: nn.Module, steps_per_epoch: int) -> None:
    """Refuse a run that would end while the scorer still learns alone: its blocks and head would have learnt nothing.

    Args:
        steps_per_epoch: 1 before the data are known: what is too short then is too short with more.

    Raises:
        UsageError: U227.
    """
    alone, total = recipe.tokens.scorer_epochs, recipe.train.epochs * steps_per_epoch
    if scores_tokens(model) and alone and min(total, recipe.train.max_steps or total) <= alone * steps_per_epoch:
        told = f"its {alone} epochs are the whole run, so blocks and head would learn nothing"
        raise UsageError("U227", "tokens.scorer_epochs", told, "Give train.epochs and train.max_steps more")


def standing_still(recipe: Recipe, model: nn.Module, epoch: int) -> tuple[str, ...]:
    """Beginnings of the names of parameters that do not learn in this epoch (from 1)."""
    if not scores_tokens(model):
        return ()
    tokens, epochs = recipe.tokens, recipe.train.epochs
    if epoch <= tokens.scorer_epochs:
        return ("blocks.", "norm.", "head.", "position_1Dhw", "cls_token")
    still = round(tokens.freeze_scorer * (epochs - tokens.scorer_epochs))
    return ("scorer.",) if epoch <= tokens.scorer_epochs + still else ()
