"""Perceptual hashes, and pairs of images that differ by no more than re-encoding, brightness, mirror or a small crop.

The hash is 255 signs of the lowest 16 x 16 cosine coefficients of the image at 32 x 32 (the constant left out), once
for the whole image and once for its inner part. Mirroring turns the sign of the odd columns, so that mirrored copies
need no hash of their own. The limit of 40 differing signs was set on 3.2 million pairs of different chest X-rays: the
nearest differ by 43, while JPEG quality 30, half the size, a fifth more brightness or 2 percent cut off each side
change fewer than 40 for nine copies in ten.

Pairs within the limit are then looked at: the correlation of what is left of both at 32 x 32 without their coarse parts
is at least 0.90 for such copies, and below that for look-alikes (the anatomy of two chests agrees in the coarse parts).

Reference: Zauner, Implementation and benchmarking of perceptual image hash functions, 2010 (the DCT hash).

Shapes: N, M images; W = 8 words of 64 bits, four for the whole image, four for its inner part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

WORDS = 8
LIMIT = 40
LIKENESS = 0.9
MOST_PAIRS = 1_000_000_000
_SIDE, _KEPT, _MARGIN = 32, 16, 0.04
_BLOCK = 1 << 18
_COARSE = 8
_ALIGNMENTS = ((0.0, 0.0), (0.02, 0.0), (0.04, 0.0), (0.0, 0.02), (0.0, 0.04))

_waves_KS = np.cos(np.pi * (np.arange(_SIDE)[None] + 0.5) * np.arange(_KEPT)[:, None] / _SIDE).astype(np.float32)
_mirror_KK = np.tile(np.arange(_KEPT) % 2 == 1, (_KEPT, 1))


@dataclass(frozen=True)
class NearPair:
    """Rows of two images that look alike; ``distance`` counts differing signs of 255."""

    a: int
    b: int
    distance: int
    mirrored: bool


def perceptual_hash(small: Image.Image) -> tuple[int, ...]:
    """Eight 64-bit numbers from a small grey picture (64 x 64 will do)."""
    words: list[int] = []
    for margin in (0.0, _MARGIN):
        pixels_SS = _inner(small, margin)
        signs_KK = _waves_KS @ pixels_SS @ _waves_KS.T > 0
        signs_KK[0, 0] = False
        words.extend(_pack(signs_KK).tolist())
    return tuple(words)


def near_pairs(a_NW: np.ndarray, b_MW: np.ndarray, limit: int = LIMIT) -> list[NearPair]:
    """Every pair within ``limit`` signs, whole against whole or whole against inner part, as it is or mirrored.

    Args:
        a_NW, b_MW: uint64 hashes, one row per image.
    """
    whole, inner = slice(0, 4), slice(4, 8)
    flip_4 = _pack(_mirror_KK)
    found: dict[tuple[int, int], tuple[int, bool]] = {}
    for part_a, part_b in ((whole, whole), (inner, whole), (whole, inner)):
        for mirrored in (False, True):
            a_N4 = a_NW[:, part_a] ^ flip_4 if mirrored else a_NW[:, part_a]
            for a, b, distance in _within(np.ascontiguousarray(a_N4), np.ascontiguousarray(b_MW[:, part_b]), limit):
                if (a, b) not in found or distance < found[a, b][0]:
                    found[a, b] = (distance, mirrored)
    return [NearPair(a, b, *found[a, b]) for a, b in sorted(found)]


def likeness(a: Image.Image, b: Image.Image, mirrored: bool) -> float:
    """Correlation of the finer parts of two small grey pictures, at the best of five alignments."""
    if mirrored:
        b = b.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return max(_correlation(_fine(_inner(a, left)), _fine(_inner(b, right))) for left, right in _ALIGNMENTS)


def _inner(small: Image.Image, margin: float) -> np.ndarray:
    width, height = small.size
    box = (width * margin, height * margin, width * (1 - margin), height * (1 - margin))
    return np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BOX, box), dtype=np.float32)


def _fine(pixels_SS: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(pixels_SS)
    coarse = picture.resize((_COARSE, _COARSE), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
    return pixels_SS - np.asarray(coarse)


def _correlation(a_SS: np.ndarray, b_SS: np.ndarray) -> float:
    a_SS, b_SS = a_SS - a_SS.mean(), b_SS - b_SS.mean()
    norm = float(np.sqrt((a_SS**2).sum() * (b_SS**2).sum()))
    return float((a_SS * b_SS).sum()) / norm if norm > 0 else 0.0


def _within(a_N4: np.ndarray, b_M4: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    rows = max(1, _BLOCK // max(1, len(b_M4)))
    b_4M = np.ascontiguousarray(b_M4.T)
    hits = []
    for start in range(0, len(a_N4), rows):
        block = a_N4[start : start + rows]
        # Half of the signs already exceed the limit for nearly every pair of different images.
        half = np.bitwise_count(block[:, :1] ^ b_4M[0]) + np.bitwise_count(block[:, 1:2] ^ b_4M[1])
        left, right = np.nonzero(half <= limit)
        distance = np.bitwise_count(block[left] ^ b_M4[right]).sum(axis=1)
        for k in np.flatnonzero(distance <= limit):
            hits.append((start + int(left[k]), int(right[k]), int(distance[k])))
    return hits


def _pack(signs_KK: np.ndarray) -> np.ndarray:
    return np.packbits(signs_KK).view("<u8").astype(np.uint64)
