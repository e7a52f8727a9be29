"""Where each training patch of a volume lies and what happens to it, drawn in numpy before a voxel is touched.

As ``draws`` does for images: a function of its seed tuple alone, so that a batch can be drawn whole and sliced among
processes, and an interrupted run draws the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from medloom.config import AugmentConfig

COARSE = 4
"""Nodes per axis of the grid whose displacements make a smooth deformation."""


@dataclass(frozen=True)
class PatchDraws:
    """One row per patch; see ``draw_patches`` for the laws. ``draws[rows]`` selects patches."""

    foreground: np.ndarray
    structure: np.ndarray
    place: np.ndarray
    centre: np.ndarray
    flip: np.ndarray
    angle: np.ndarray
    zoom: np.ndarray
    elastic: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    gamma: np.ndarray
    noise: np.ndarray
    noise_seed: np.ndarray

    def __len__(self) -> int:
        return len(self.foreground)

    def __getitem__(self, rows: slice | np.ndarray) -> PatchDraws:
        return PatchDraws(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw_patches(config: AugmentConfig, foreground: float, n: int, seed_sequence: tuple[int, ...]) -> PatchDraws:
    """Parameters for ``n`` patches of volumes.

    - foreground: with its share, the patch is centred in a structure; ``structure`` and ``place`` say, as shares of
      what there is, in which and where. Otherwise ``centre`` ``(n, 3)`` says where, as a share of each axis.
    - flip ``(n, 3)``: the first axis (left to right) with the probability of ``flip``, the others with that of
      ``vertical_flip``.
    - angle ``(n, 3)``: about each axis, uniform in +-``rotate`` degrees, in radians. zoom: log-uniform in its range.
    - elastic ``(n, 3, 4, 4, 4)``: displacements in voxels, uniform in +-``elastic``.
    - brightness, contrast, gamma, noise: as in ``draws``; ``noise_seed`` makes the noise of each patch its own.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed_sequence))
    # Always drawn, so that switching one change on leaves the others as they were.
    u = rng.random((n, 24))
    nodes = rng.random((n, 3, COARSE, COARSE, COARSE), dtype=np.float32)
    return PatchDraws(
        foreground=u[:, 0] < foreground,
        structure=u[:, 1],
        place=u[:, 2],
        centre=u[:, 3:6],
        flip=u[:, 6:9] < np.array([config.flip, config.vertical_flip, config.vertical_flip]),
        angle=np.deg2rad((2 * u[:, 9:12] - 1) * config.rotate),
        zoom=config.zoom[0] * np.exp(u[:, 12] * np.log(config.zoom[1] / config.zoom[0])),
        elastic=(2 * nodes - 1) * np.float32(config.elastic),
        brightness=1 + (2 * u[:, 13] - 1) * config.brightness,
        contrast=1 + (2 * u[:, 14] - 1) * config.contrast,
        gamma=config.gamma[0] * np.exp(u[:, 15] * np.log(config.gamma[1] / config.gamma[0])),
        noise=u[:, 16] * config.noise,
        noise_seed=(u[:, 17] * 2**31).astype(np.int64),
    )


def centre_of(draws: PatchDraws, i: int, shape: tuple[int, ...], places: dict[int, np.ndarray]) -> np.ndarray:
    """``(3,)`` voxel that patch ``i`` is centred on, in a case of this shape with structures at ``places``."""
    if draws.foreground[i] and places:
        structures = sorted(places)
        voxels = places[structures[int(draws.structure[i] * len(structures))]]
        return voxels[int(draws.place[i] * len(voxels))].astype(np.float64)
    return draws.centre[i] * (np.array(shape) - 1)


def patch_matrix(draws: PatchDraws, i: int, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """``(3, 3)``: offset of a voxel of the patch from its centre to the offset in the case it is read from.

    Args:
        spacing: of the voxels, in any unit: a rotation turns the patient, so with thick slices it is none of voxels.
    """
    cos, sin = np.cos(draws.angle[i]), np.sin(draws.angle[i])
    rotate_0 = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    rotate_1 = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    rotate_2 = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    mirror = np.diag(1.0 - 2.0 * draws.flip[i])
    step = np.asarray(spacing, dtype=np.float64)
    turn = rotate_0 @ rotate_1 @ rotate_2 * step / step[:, None]
    return np.asarray(turn @ mirror / draws.zoom[i])
