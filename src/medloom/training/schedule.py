"""Learning rate as a function of the step alone, so that resuming needs no scheduler state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medloom.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of one optimiser step.

    Args:
        step: steps taken before this one, from 0.
        steps_per_epoch: optimiser steps of a whole epoch.
        total_steps: of the whole run.
        config: ``learning_rate``, ``schedule``, ``warmup_epochs``, ``step_epochs``, ``step_factor``.

    The warm-up rises in a line and reaches the full rate with its last step. The cosine falls from there to zero
    (Loshchilov & Hutter, "SGDR", 2017, without restarts), ``poly`` falls as the share that is left to the power 0.9
    (usual in segmentation: Chen et al., arXiv 1606.00915, section 4); ``step`` multiplies by the factor after each
    named epoch.
    """
    peak = config.learning_rate
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, total_steps - warmup)
        return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if config.schedule == "poly":
        return peak * float((1.0 - min(1.0, (step - warmup) / max(1, total_steps - warmup))) ** 0.9)
    if config.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.step_epochs)
        return peak * float(config.step_factor**passed)
    return peak
