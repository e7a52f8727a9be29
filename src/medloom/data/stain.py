"""Colours of stained tissue: what a random change of stain, hue and saturation does to red, green and blue, as numbers.

Light that passes a stain falls off exponentially, so stains add up in optical density (Beer and Lambert). There each
pixel is so much haematoxylin, so much eosin and a rest; scaling and shifting the two amounts is one affine map of the
density, and turning and stretching the chroma about the grey axis is one linear map of the colours. Both are small
matrices per image, made here; ``medloom.data.augment`` applies them.

References: Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23:291, 2001 (stain vectors,
deconvolution; two stains take the cross product as the third); Tellez et al., IEEE Transactions on Medical Imaging
37:2126, 2018 (scale and shift of each stain).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medloom.data.draws import Draws

HAEMATOXYLIN, EOSIN = (0.650, 0.704, 0.286), (0.072, 0.990, 0.105)
"""Share of the optical density in red, green and blue, of unit length."""


def stain_vectors() -> np.ndarray:
    """``(3, 3)``, a row per stain: haematoxylin, eosin, and what neither explains."""
    rows = np.array([HAEMATOXYLIN, EOSIN], dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rest = np.cross(rows[0], rows[1])
    return np.stack([*rows, rest / np.linalg.norm(rest)])


def densities() -> np.ndarray:
    """``(256,)`` float32: optical density of each stored value (natural logarithm); 0 for white, finite for black."""
    return -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)


def amounts(density_N3: np.ndarray) -> np.ndarray:
    """``(N, 3)`` haematoxylin, eosin and rest of optical densities ``(N, 3)``."""
    return density_N3 @ np.linalg.inv(stain_vectors())


def stain_maps(draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Matrix ``(n, 3, 3)`` and shift ``(n, 3)``, float32: density of red, green and blue to that of the changed image.

    Amounts are multiplied by ``stain_scale`` and moved by ``stain_shift``; the rest stays.
    """
    vectors = stain_vectors()
    scale = np.concatenate([draws.stain_scale, np.ones((len(draws), 1))], axis=1)
    matrix = np.einsum("ji,nj,kj->nik", vectors, scale, np.linalg.inv(vectors))
    return matrix.astype(np.float32), (draws.stain_shift @ vectors[:2]).astype(np.float32)


def chroma_matrices(draws: Draws) -> np.ndarray:
    """``(n, 3, 3)`` float32: a turn by ``hue`` about the grey axis, and a stretch from it by ``saturation``.

    Grey stays what it is, and so does the mean of the three channels.
    """
    grey = np.full((3, 3), 1 / 3)
    turn = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / np.sqrt(3)
    cos, sin = np.cos(draws.hue)[:, None, None], np.sin(draws.hue)[:, None, None]
    rotation = cos * (np.eye(3) - grey) + sin * turn + grey
    factor = draws.saturation[:, None, None]
    return (factor * rotation + (1 - factor) * grey).astype(np.float32)
