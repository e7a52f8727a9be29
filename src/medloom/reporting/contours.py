"""Outlines of structures over grey pictures: what lies under a border stays visible, as no colour is laid on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Okabe and Ito's colours that stand out on grey, told apart with any colour vision.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))


def outlined(
    grey_HW: np.ndarray, positions_HW: np.ndarray, *, size: int = 256, colours: Sequence[tuple[int, int, int]] = COLOURS
) -> np.ndarray:
    """A grey picture with the outline of every structure, uint8 ``(h, w, 3)`` with its longer side ``size``.

    Lines are one pixel wide at the size shown, drawn inside of their structure.

    Args:
        grey_HW: uint8.
        positions_HW: 0 background, structure k in ``colours[(k - 1) % len(colours)]``.
    """
    height, width = grey_HW.shape
    scale = size / max(height, width)
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(np.ascontiguousarray(grey_HW)).resize(shown, Image.Resampling.BICUBIC)
    out_HWC = np.repeat(np.asarray(picture)[:, :, None], 3, axis=2)
    for structure in [int(k) for k in np.unique(positions_HW) if k]:
        share = Image.fromarray(np.where(positions_HW == structure, 255, 0).astype(np.uint8))
        inside = np.asarray(share.resize(shown, Image.Resampling.BILINEAR)) > 127
        out_HWC[_rim(inside)] = colours[(structure - 1) % len(colours)]
    return out_HWC


def _rim(inside: np.ndarray) -> np.ndarray:
    """Pixels inside that touch the outside with an edge; the picture's own border is no outside."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rim: np.ndarray = inside & ~core
    return rim
