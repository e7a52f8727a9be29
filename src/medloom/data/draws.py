"""What happens to each training image, drawn in numpy before anything touches a pixel.

``draw`` is a function of its seed tuple alone - not of the device, the number of processes, or which other changes are
switched on - so a batch can be drawn whole and sliced among processes, and an interrupted run draws the same again.

Row i of every array belongs to image i. Lengths and positions are shares of the image, so the draws do not know its
size either.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from medloom.config import AugmentConfig

ASPECT = (3 / 4, 4 / 3)
"""Range of width over height of a random crop, as Szegedy et al. 2015, arXiv:1409.4842."""

ERASE_AREA, ERASE_ASPECT = (0.02, 0.2), (0.3, 1 / 0.3)
"""Zhong et al. 2020, arXiv:1708.04896, with a smaller largest area: a lung must not vanish."""

NOISE_LENGTH = 2**21


@dataclass(frozen=True)
class Draws:
    """One row per image; see ``draw`` for the laws. ``draws[rows]`` selects images."""

    flip: np.ndarray
    vertical_flip: np.ndarray
    angle: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray
    zoom: np.ndarray
    crop_width: np.ndarray
    crop_height: np.ndarray
    crop_left: np.ndarray
    crop_top: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    gamma: np.ndarray
    noise: np.ndarray
    noise_start: np.ndarray
    blur: np.ndarray
    erase_width: np.ndarray
    erase_height: np.ndarray
    erase_left: np.ndarray
    erase_top: np.ndarray
    erase_value: np.ndarray
    hue: np.ndarray
    saturation: np.ndarray
    stain_scale: np.ndarray
    stain_shift: np.ndarray

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows: slice | np.ndarray) -> Draws:
        return Draws(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw(config: AugmentConfig, n: int, seed_sequence: tuple[int, ...]) -> Draws:
    """Parameters for ``n`` images.

    - flip, vertical_flip: with their probability.
    - angle: uniform in +-``rotate`` degrees, given in radians, clockwise.
    - shift: uniform in +-``translate`` of the width and of the height.
    - zoom: log-uniform in its range; above 1 magnifies.
    - crop: area share uniform in its range; aspect log-uniform in 3/4 to 4/3, as far as a box of that very area fits
      into the image; place uniform.
    - brightness, contrast: factor uniform in 1 +- the value. gamma: exponent, log-uniform in its range.
    - noise: standard deviation (of values in [0, 1]) uniform from 0. blur: sigma in pixels, uniform from 0.
    - erase: with its probability, a rectangle of 2 to 20 percent of the area, filled with one grey.
    - quarter turns: 0, 1, 2 or 3, equally likely, added to the angle.
    - hue: uniform in +- its share of the circle, given in radians; saturation: factor uniform in 1 +- the value.
    - stain: of haematoxylin and of eosin, ``(n, 2)``, a factor uniform in 1 +- and a shift uniform in +- the value.

    Args:
        seed_sequence: e.g. ``(seed, epoch, step)``, non-negative integers.
    """
    # One column per random number, always drawn, so that switching one change on leaves the others as they were.
    u = np.random.default_rng(np.random.SeedSequence(seed_sequence)).random((n, 24))
    # What came later has a stream of its own: more columns in the first one would have changed every row of it.
    v = np.random.default_rng(np.random.SeedSequence(seed_sequence, spawn_key=(1,))).random((n, 16))
    turns = np.floor(4 * v[:, 0]) * (np.pi / 2 if config.quarter_turns else 0.0)
    area = _between(u[:, 6], *config.crop)
    low, high = np.maximum(ASPECT[0], area), np.minimum(ASPECT[1], 1 / area)
    aspect = np.exp(np.log(low) + u[:, 7] * (np.log(high) - np.log(low)))
    crop_width, crop_height = np.minimum(np.sqrt(area * aspect), 1.0), np.minimum(np.sqrt(area / aspect), 1.0)
    erased = u[:, 16] < config.erase
    erase_area = _between(u[:, 17], *ERASE_AREA)
    erase_aspect = _log_between(u[:, 18], *ERASE_ASPECT)
    erase_width = np.minimum(np.sqrt(erase_area * erase_aspect), 1.0) * erased
    erase_height = np.minimum(np.sqrt(erase_area / erase_aspect), 1.0) * erased
    return Draws(
        flip=u[:, 0] < config.flip,
        vertical_flip=u[:, 1] < config.vertical_flip,
        angle=np.deg2rad(_between(u[:, 2], -config.rotate, config.rotate)) + turns,
        shift_x=_between(u[:, 3], -config.translate, config.translate),
        shift_y=_between(u[:, 4], -config.translate, config.translate),
        zoom=_log_between(u[:, 5], *config.zoom),
        crop_width=crop_width,
        crop_height=crop_height,
        crop_left=u[:, 8] * (1 - crop_width),
        crop_top=u[:, 9] * (1 - crop_height),
        brightness=_between(u[:, 10], 1 - config.brightness, 1 + config.brightness),
        contrast=_between(u[:, 11], 1 - config.contrast, 1 + config.contrast),
        gamma=_log_between(u[:, 12], *config.gamma),
        noise=u[:, 13] * config.noise,
        noise_start=(u[:, 14] * NOISE_LENGTH).astype(np.int64),
        blur=u[:, 15] * config.blur,
        erase_width=erase_width,
        erase_height=erase_height,
        erase_left=u[:, 19] * (1 - erase_width),
        erase_top=u[:, 20] * (1 - erase_height),
        erase_value=u[:, 21],
        hue=2 * np.pi * _between(v[:, 1], -config.hue, config.hue),
        saturation=_between(v[:, 2], 1 - config.saturation, 1 + config.saturation),
        stain_scale=_between(v[:, 3:5], 1 - config.stain, 1 + config.stain),
        stain_shift=_between(v[:, 5:7], -config.stain, config.stain),
    )


def inverse_affine(draws: Draws, height: int, width: int) -> np.ndarray:
    """``(n, 2, 3)`` float64: pixel (x, y) of the result to the place in the source where its value comes from.

    All geometry in one matrix, so that an image is interpolated once. Forward order: crop to the full frame, flips,
    rotation and zoom about the centre, shift. Coordinates are pixel centres, 0 to width - 1.
    """
    n = len(draws)
    cos, sin = np.cos(draws.angle) / draws.zoom, np.sin(draws.angle) / draws.zoom
    mirror_x, mirror_y = 1 - 2 * draws.flip.astype(float), 1 - 2 * draws.vertical_flip.astype(float)
    matrix = np.empty((n, 2, 3))
    matrix[:, 0, 0] = draws.crop_width * mirror_x * cos
    matrix[:, 0, 1] = draws.crop_width * mirror_x * sin
    matrix[:, 1, 0] = draws.crop_height * mirror_y * -sin
    matrix[:, 1, 1] = draws.crop_height * mirror_y * cos
    centre = np.stack([width / 2 + draws.shift_x * width, height / 2 + draws.shift_y * height], axis=1) - 0.5
    source = np.stack(
        [
            (draws.crop_left + draws.crop_width / 2) * width - 0.5,
            (draws.crop_top + draws.crop_height / 2) * height - 0.5,
        ],
        axis=1,
    )
    matrix[:, :, 2] = source - np.einsum("nij,nj->ni", matrix[:, :, :2], centre)
    return matrix


def tone_curves(draws: Draws) -> np.ndarray:
    """``(n, 256)`` float32 in [0, 1]: gamma, contrast about mid-grey, brightness as a factor, clipped once, as a table.

    Contrast turns about 0.5 and not about the image's own mean: the table is then known before the image is.
    """
    grey_256 = np.linspace(0.0, 1.0, 256)
    curve = grey_256[None] ** draws.gamma[:, None]
    curve = ((curve - 0.5) * draws.contrast[:, None] + 0.5) * draws.brightness[:, None]
    return np.clip(curve, 0.0, 1.0).astype(np.float32)


def blur_kernels(draws: Draws, largest: float) -> np.ndarray:
    """``(n, 2 r + 1)`` float32 Gaussian weights that sum to 1, with r = 3 of the largest sigma."""
    reach = np.arange(-int(np.ceil(3 * largest)), int(np.ceil(3 * largest)) + 1)
    weight = np.exp(-0.5 * (reach[None] / np.maximum(draws.blur, 1e-3)[:, None]) ** 2)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def erase_boxes(draws: Draws, height: int, width: int) -> np.ndarray:
    """``(n, 4)`` int64 pixel rows and columns ``top, bottom, left, right``; empty where nothing is erased."""
    top, left = np.rint(draws.erase_top * height), np.rint(draws.erase_left * width)
    bottom, right = top + np.rint(draws.erase_height * height), left + np.rint(draws.erase_width * width)
    return np.stack([top, bottom, left, right], axis=1).astype(np.int64)


def _between(u: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + u * (high - low)


def _log_between(u: np.ndarray, low: float, high: float) -> np.ndarray:
    return low * np.exp(u * np.log(high / low))
