"""Random patches of volumes: read, moved and toned as drawn, each voxel interpolated once.

Geometry goes from the patch to the case: every voxel of the patch asks where in the case it comes from, so a rotated
patch has no empty corners but where the case itself ends. Outside of it is 0, the lowest value, as the answering of
whole cases pads them too.

Shapes: C channels, P the axes of a patch (X, Y, Z), B patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medloom.data.patch_draws import PatchDraws, centre_of, patch_matrix

LEVELS = 65535.0


def read_patch(
    pixels: np.ndarray,
    labels: np.ndarray,
    places: dict[int, np.ndarray],
    draws: PatchDraws,
    i: int,
    patch: tuple[int, int, int],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Patch ``i`` of a case.

    Args:
        pixels: ``(C, X, Y, Z)`` uint16.
        labels: ``(X, Y, Z)`` uint8 positions.
        places: of the structures, see ``case_cache.Cases``.
        spacing: of the voxels, for rotations.

    Returns:
        float32 ``(C, *P)`` in [0, 1], and int64 ``(*P)`` of the nearest voxel.
    """
    shape = labels.shape
    centre = _kept_inside(centre_of(draws, i, shape, places), shape, patch)
    matrix = patch_matrix(draws, i, spacing)
    moved = bool(np.abs(matrix - np.eye(3)).max() > 1e-9 or np.abs(draws.elastic[i]).max() > 0)
    if not moved:
        # An integer corner: nothing needs interpolation.
        start = np.round(centre - (np.array(patch) - 1) / 2).astype(np.int64)
        x_CP = torch.from_numpy(_cut(pixels, start, patch).astype(np.float32)) / LEVELS
        return toned(x_CP, draws, i), torch.from_numpy(_cut(labels[None], start, patch)[0]).long()
    source_P3 = _sources(centre, matrix, draws.elastic[i], patch)
    low = np.floor(source_P3.reshape(-1, 3).min(0)).astype(np.int64)
    high = np.ceil(source_P3.reshape(-1, 3).max(0)).astype(np.int64) + 1
    low, high = np.maximum(low, -1), np.minimum(high, np.array(shape) + 1)  # one empty voxel around is enough
    size = tuple(np.maximum(high - low, 1).tolist())
    x_1CS = torch.from_numpy(_cut(pixels, low, size).astype(np.float32) / np.float32(LEVELS))[None]
    y_11S = torch.from_numpy(_cut(labels[None], low, size).astype(np.float32))[None]
    # grid_sample wants -1 to 1 over the outer edges, and the last axis first.
    unit_P3 = (2 * (source_P3 - low) + 1) / np.array(size) - 1
    grid_1P3 = torch.from_numpy(unit_P3[..., ::-1].astype(np.float32).copy())[None]
    x_CP = F.grid_sample(x_1CS, grid_1P3, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    y_P = F.grid_sample(y_11S, grid_1P3, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    return toned(x_CP, draws, i), y_P.round().long()


def toned(x_CP: Tensor, draws: PatchDraws, i: int) -> Tensor:
    """Gamma, contrast about the middle, brightness, noise; clipped to [0, 1] once. Nothing drawn, nothing done."""
    gamma, contrast = float(draws.gamma[i]), float(draws.contrast[i])
    brightness, noise = float(draws.brightness[i]), float(draws.noise[i])
    if gamma != 1.0:
        x_CP = x_CP.clamp_min(0).pow(gamma)
    if contrast != 1.0 or brightness != 1.0:
        x_CP = ((x_CP - 0.5) * contrast + 0.5) * brightness
    if noise > 0:
        generator = torch.Generator().manual_seed(int(draws.noise_seed[i]))
        x_CP = x_CP + noise * torch.randn(x_CP.shape, generator=generator)
    return x_CP.clamp(0, 1)


def _kept_inside(centre: np.ndarray, shape: tuple[int, ...], patch: tuple[int, ...]) -> np.ndarray:
    """A patch does not reach out of a case that is larger than it; in a smaller one it lies in the middle."""
    half, end = (np.array(patch) - 1) / 2, np.array(shape) - 1
    return np.where(end >= 2 * half, np.clip(centre, half, np.maximum(end - half, half)), end / 2)


def _sources(centre: np.ndarray, matrix: np.ndarray, elastic: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """``(*P, 3)`` float64: the place in the case that each voxel of the patch comes from."""
    axes = [np.arange(n) - (n - 1) / 2 for n in patch]
    offset_P3 = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    source_P3 = offset_P3 @ matrix.T + centre
    if np.abs(elastic).max() > 0:
        smooth_13P = F.interpolate(torch.from_numpy(elastic)[None], size=patch, mode="trilinear", align_corners=True)
        source_P3 = source_P3 + smooth_13P[0].permute(1, 2, 3, 0).numpy()
    return np.asarray(source_P3)


def _cut(array_CS: np.ndarray, start: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """``(C, *size)`` from ``start`` on, zeros where the case ends."""
    out = np.zeros((array_CS.shape[0], *size), dtype=array_CS.dtype)
    low, high = np.maximum(start, 0), np.minimum(start + np.array(size), array_CS.shape[1:])
    if (high > low).all():
        here = tuple(slice(a, b) for a, b in zip(low - start, high - start))
        there = tuple(slice(a, b) for a, b in zip(low, high))
        out[(slice(None), *here)] = array_CS[(slice(None), *there)]
    return out
