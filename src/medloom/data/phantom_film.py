"""From attenuation to the grey picture of one simulated site: exposure, curve, noise, collimation, burnt-in marks.

The sites differ as real ones do, in everything but the disease. Automatic exposure control sets the mean grey level of
the exposed field to a value drawn without regard to the label, so brightness carries no diagnosis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class Site:
    """How one hospital's pictures look.

    Attributes:
        curve: exponent of the film curve; below 1 flattens the bright parts.
        latitude: share of the grey scale that the attenuation range fills.
        noise: deviation of the quantum noise at 128 pixels, in grey levels of 1.
        blur: Gaussian sigma as a share of the image side.
        mean: grey level that automatic exposure aims at.
        frame: widest collimation border, as a share of the side.
        frame_grey: 0 black shutters, 1 the white edge of a scanned film.
        falloff: darkening towards the corners.
        supine: share of AP views.
        marker: letter burnt in beside the shoulder.
        caption: corner of the burnt-in text, or None.
    """

    name: str
    curve: float
    latitude: float
    noise: float
    blur: float
    mean: float
    frame: float
    frame_grey: float
    falloff: float
    supine: float
    marker: str
    caption: str | None


SITES = {
    site.name: site
    for site in (
        Site("north", 1.00, 0.92, 0.018, 0.000, 0.50, 0.00, 0.00, 0.00, 0.10, "R", None),
        Site("east", 0.85, 0.74, 0.042, 0.003, 0.54, 0.07, 0.00, 0.00, 0.60, "L", "top"),
        Site("south", 1.20, 0.80, 0.026, 0.007, 0.44, 0.03, 0.85, 0.22, 0.20, "R", "bottom"),
        Site("west", 1.45, 1.00, 0.034, 0.002, 0.40, 0.10, 0.00, 0.10, 0.35, "L", "bottom"),
    )
}


def develop(attenuation: np.ndarray, body: np.ndarray, site: Site, rng: np.random.Generator) -> np.ndarray:
    """Attenuation ``(H, W)`` to the uint8 picture of ``site``."""
    size = attenuation.shape[0]
    aim = site.mean + rng.normal(0, 0.035)
    curve = site.curve * np.exp(rng.normal(0, 0.08))
    latitude = site.latitude * np.exp(rng.normal(0, 0.05))
    tilt = rng.normal(0, 0.04, 2)
    line = np.linspace(-1, 1, size, dtype=np.float32)

    exposed = np.clip(attenuation / 0.95, 0, 1.2) ** np.float32(curve) * np.float32(latitude)
    # The heel effect and scatter make one side or end a little brighter.
    exposed += body * (np.float32(tilt[0]) * line[None, :] + np.float32(tilt[1]) * line[:, None])
    if site.blur:
        exposed = gaussian_filter(exposed, site.blur * size)
    # Quantum noise is white per detector element: fewer pixels average more of it away.
    grain = rng.standard_normal((size, size), dtype=np.float32)
    exposed += np.float32(site.noise * (size / 128) ** 0.5) * grain * (0.35 + 0.65 * body)
    if site.falloff:
        exposed *= 1 - np.float32(site.falloff) * (line[None, :] ** 2 + line[:, None] ** 2) / 2

    window = _window(size, site, rng)
    # Twice, because clipping at black and white takes a little of the shift back.
    for _ in range(2):
        exposed += np.float32(aim) - np.clip(exposed[window], 0, 1).mean()
    picture = np.clip(exposed, 0, 1)
    picture = np.where(_inside(size, window), picture, np.float32(site.frame_grey))
    _burn_in(picture, site, rng)
    return np.rint(picture * 255).astype(np.uint8)


def _window(size: int, site: Site, rng: np.random.Generator) -> tuple[slice, slice]:
    edges = np.rint(rng.uniform(0, 1, 4) * site.frame * size).astype(int)
    return slice(edges[0], size - edges[1]), slice(edges[2], size - edges[3])


def _inside(size: int, window: tuple[slice, slice]) -> np.ndarray:
    field = np.zeros((size, size), dtype=bool)
    field[window] = True
    return field


def _burn_in(picture: np.ndarray, site: Site, rng: np.random.Generator) -> None:
    size = picture.shape[0]
    scale = max(1, round(size / 96))
    row = int(size * rng.uniform(0.10, 0.16))
    column = int(size * rng.uniform(0.05, 0.08))
    if site.marker == "L":
        column = size - column - 5 * scale
    _stamp(picture, _LETTERS[site.marker], row, column, scale, 0.97)
    if site.caption:
        # Not words, only their look: what identifies a person has no place in a phantom.
        letters = [rng.random((5, 3)) < 0.6 for _ in range(int(rng.integers(6, 11)))]
        top = 1 + size // 40 if site.caption == "top" else size - 7 * scale - size // 40
        for n, letter in enumerate(letters):
            _stamp(picture, letter, top, size // 40 + 4 * scale * n, scale, 0.85)


def _stamp(picture: np.ndarray, letter: np.ndarray, row: int, column: int, scale: int, grey: float) -> None:
    ink = letter.repeat(scale, axis=0).repeat(scale, axis=1)
    patch = picture[row : row + ink.shape[0], column : column + ink.shape[1]]
    patch[ink[: patch.shape[0], : patch.shape[1]]] = grey


_LETTERS = {
    name: np.array([[c == "#" for c in line] for line in lines.split()])
    for name, lines in {
        "L": "#.... #.... #.... #.... #.... #.... #####",
        "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    }.items()
}
