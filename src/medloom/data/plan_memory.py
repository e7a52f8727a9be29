"""What a training step of a segmenter will take, before anything runs: arithmetic on measured bytes per voxel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medloom.data.plan_strides import plan_strides, stride_factor
from medloom.errors import UsageError

STEP: dict[str, tuple[int, float, float]] = {
    "unet": (2, 2440, 7.8e6),
    "maxvit_unet": (2, 10460, 37.4e6),
    "maxvit_unet_mini": (2, 5150, 7.7e6),
    "transunet": (2, 7750, 105e6),
    "transunet_small": (2, 5610, 33.3e6),
    "transunet_tiny": (2, 2260, 7.4e6),
    "unet_3d": (3, 1280, 7.4e6),
    "maxvit_unet_3d_tiny": (3, 1260, 7.3e6),
    "maxvit_unet_3d_small": (3, 2010, 28.5e6),
    "transunet_3d": (3, 1540, 108.5e6),
    "transunet_3d_tiny": (3, 870, 6.8e6),
    "transunet_3d_small": (3, 1750, 30.6e6),
    "swin_unetr": (3, 4580, 15.7e6),
}
"""Axes, bytes per voxel that a float32 training step keeps for its way back, and parameters: measured at 32 to 48 cubed
and 128 to 256 squared, 3 classes, 1 channel. Both grow in proportion to the voxels."""

OVERHEAD = 1.7
"""Peak of a process over kept activations, measured for six of the networks as 1.59 to 1.72: gradients on their way,
workspaces, the allocator's rounding."""

LARGEST_PATCH, LARGEST_PICTURE = 128, 512
MOST_BATCH = {2: 16, 3: 8}
BATCH_SHARE = 0.05
"""Of all voxels to train on: what nnU-Net lets a batch hold at most."""


def step_gigabytes(model: str, patch: tuple[int, ...], batch: int, spacing: Sequence[float] = ()) -> float:
    """Memory of one training step in float32: activations, weights, gradients and Adam's two moments.

    Args:
        spacing: mm of a voxel, for the strides that ``plan_strides`` gives its patch; left out, all axes are halved.
    """
    return _gigabytes(model, patch, batch, plan_strides(model, patch, spacing) if spacing else ())


def recipe_gigabytes(
    model: str, options: Mapping[str, Any], patch: tuple[int, ...], batch: int, *, half: bool
) -> float | None:
    """The same for a recipe's own model, patch or picture, and batch; ``half`` where activations are bfloat16.

    Returns:
        None for a network that was not measured, or under options by which it keeps more or less than that.
    """
    if model not in STEP or not options.keys() <= {"strides", "window"}:
        return None
    whole = _gigabytes(model, patch, batch, options.get("strides", ()))
    return _halved(model, whole) if half else whole


def _gigabytes(model: str, patch: tuple[int, ...], batch: int, strides: Sequence[Sequence[int]]) -> float:
    _, per_voxel, parameters = STEP[model]
    kept = per_voxel * stride_factor(model, strides) * math.prod(patch) * batch
    return (OVERHEAD * kept + 16 * parameters) / 1e9


def half_gigabytes(model: str, patch: tuple[int, ...], batch: int, spacing: Sequence[float] = ()) -> float:
    """The same where activations are bfloat16."""
    return _halved(model, step_gigabytes(model, patch, batch, spacing))


def _halved(model: str, gigabytes: float) -> float:
    """Weights, gradients and moments stay float32."""
    states = 16 * STEP[model][2] / 1e9
    return (gigabytes - states) / 2 + states


def largest_patch(model: str, shape: tuple[int, ...], memory: float, spacing: Sequence[float] = ()) -> tuple[int, ...]:
    """The median case rounded up to what networks halve often, shrunk along its longest axis until a step fits.

    Raises:
        UsageError: U229 not even the smallest patch fits.
    """
    least, most = (16, LARGEST_PATCH) if len(shape) == 3 else (64, LARGEST_PICTURE)
    step = 8 if len(shape) == 3 else 32
    patch = [min(most, max(least, step * math.ceil(n / step))) for n in shape]
    smallest = 2 if len(shape) == 3 else 4
    while step_gigabytes(model, tuple(patch), smallest, spacing) > memory:
        longest = max(range(len(patch)), key=lambda a: (patch[a] > least, patch[a] / shape[a], patch[a]))
        if patch[longest] - step < least:
            need = step_gigabytes(model, tuple(patch), smallest, spacing)
            told = f"{model} takes {need:.1f} GB with {' x '.join(map(str, patch))} and a batch of {smallest}"
            raise UsageError("U229", "--memory", told, "Allow more with --memory, or choose a smaller --model")
        patch[longest] -= step
    return tuple(patch)


def largest_batch(
    model: str, patch: tuple[int, ...], memory: float, voxels: int, cases: int, spacing: Sequence[float] = ()
) -> int:
    """At least 2; more while memory, a twentieth of all ``voxels`` and a quarter of the ``cases`` allow."""
    most = MOST_BATCH[len(patch)]
    batch = 2
    while (
        batch < min(most, max(2, cases // 4))
        and step_gigabytes(model, patch, batch + 1, spacing) <= memory
        and (batch + 1) * math.prod(patch) <= max(BATCH_SHARE * voxels, 2 * math.prod(patch))
    ):
        batch += 1
    return batch
