"""Masks of pictures under the geometry of ``Preprocess``: onto the model's grid, and the model's answer back.

Each structure is resized as a share of the pixel and the largest share wins: nearest neighbours would fray every
border. A mask is never rotated or cut otherwise than its image, because the same ``Preprocess`` resizes both.

Shapes: H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image as PIL

from medloom.data.images import Image
from medloom.data.preprocess import Preprocess
from medloom.errors import UsageError


def mask_to_model(mask_HW: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Positions of the structures, uint8 ``(H, W)`` of the file, to uint8 of ``preprocess.size``; borders that padding
    adds are background (0).

    Raises:
        DataError: D128 another size than the model's under ``resize: none``.
    """
    plain = Preprocess(size=preprocess.size, resize=preprocess.resize, channels="grey", mean=(0.5,), std=(0.5,))
    best = np.zeros(preprocess.size, dtype=np.uint8)
    out = np.zeros(preprocess.size, dtype=np.uint8)
    present = [int(k) for k in np.unique(mask_HW)]
    # The background comes last: where nothing has a larger share it is left, so padding needs no rule of its own.
    for position in [*(k for k in present if k), *(k for k in present if not k)]:
        inside = np.where(mask_HW == position, 255, 0).astype(np.uint8)
        share = plain.to_uint8(Image(inside, 8, "L", "array", 0))[..., 0]
        larger = share > best
        best[larger] = share[larger]
        out[larger] = position
    return out


def restore_mask(logits_KHW: np.ndarray, preprocess: Preprocess, original_size: tuple[int, int]) -> np.ndarray:
    """The model's answer as positions uint8 ``(H, W)`` on the pixels of the file.

    Logits (or probabilities) are resized and then compared, so a border runs where two classes are equal and not along
    the coarse pixels of the model.

    Args:
        logits_KHW: of ``preprocess.size``.
        original_size: height and width of the image, after its EXIF rotation.

    Raises:
        UsageError: U226 under ``resize: crop``, of which nothing is known outside the cut.
    """
    height, width = original_size
    best = np.full((height, width), -np.inf, dtype=np.float32)
    out = np.zeros((height, width), dtype=np.uint8)
    for position, sized in enumerate(planes_on_file(logits_KHW, preprocess, original_size)):
        larger = sized > best
        best[larger] = sized[larger]
        out[larger] = position
    return out


def planes_on_file(
    logits_KHW: np.ndarray, preprocess: Preprocess, original_size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The logits of one class after another, float32 ``(H, W)`` on the pixels of the file.

    Raises:
        UsageError: U226 as ``restore_mask``.
    """
    if logits_KHW.shape[1:] != tuple(preprocess.size):
        raise ValueError(f"expected (K, {preprocess.size[0]}, {preprocess.size[1]}), got {logits_KHW.shape}")
    if preprocess.resize == "crop":
        told = "crop leaves parts of the image out, for which there would be no mask"
        raise UsageError("U226", "preprocess.resize", told, "Use squash, pad or none with masks")
    height, width = original_size
    if preprocess.resize == "none" and tuple(preprocess.size) != (height, width):
        raise ValueError(f"an image of {height} x {width} under resize none, the model's is {preprocess.size}")
    left, top, right, bottom = _inner_box(preprocess, height, width)
    for plane in logits_KHW:
        # Cut first: a resize with a box would look at its neighbours outside, which are padding.
        sized = np.ascontiguousarray(plane[top:bottom, left:right], dtype=np.float32)
        if sized.shape != (height, width):
            sized = np.asarray(PIL.fromarray(sized).resize((width, height), PIL.Resampling.BILINEAR))
        yield sized


def require_restorable(preprocess: Preprocess) -> None:
    """Refuse before training what ``restore_mask`` would refuse after it.

    Raises:
        UsageError: U226 under ``resize: crop``.
    """
    restore_mask(np.zeros((1, *preprocess.size), dtype=np.float32), preprocess, preprocess.size)


def _inner_box(preprocess: Preprocess, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the image on the model's grid; less than all of it where it was padded."""
    target_h, target_w = preprocess.size
    if preprocess.resize != "pad":
        return 0, 0, target_w, target_h
    inner_h, inner_w = preprocess.inner_size(height, width)
    top, left = (target_h - inner_h) // 2, (target_w - inner_w) // 2
    return left, top, left + inner_w, top + inner_h
