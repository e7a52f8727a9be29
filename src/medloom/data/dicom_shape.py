"""The shape and the size of a DICOM image's pixels, and pixels of another shape made square.

Reference: DICOM PS3.3 sections 10.7.1.3 (what each spacing is measured of) and C.7.6.16.2.1 (pixel measures).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PIL

from medloom.data.dicom_header import Header

MAX_PIXEL_ASPECT = 10.0
SPACINGS = {0x00280030: "PixelSpacing", 0x00181164: "ImagerPixelSpacing", 0x00182010: "NominalScannedPixelSpacing"}
PIXEL_MEASURES = 0x00289110
"""The sequence by which an enhanced object says the spacing of its frames."""


def pixel_aspect(header: Header, measures: Sequence[Header] = ()) -> float:
    """Height over width of a pixel, from its spacing or its aspect ratio; 1 where neither is told.

    Args:
        measures: what an enhanced object says of the frame; it goes before the top level.

    Raises:
        DataError: M217, a ratio that is not positive or beyond use.
    """
    for source, tag in _spacings(header, measures, 0x00280034):  # the last is the aspect ratio
        pair = source.numbers(tag, "M217")
        if not pair:
            continue
        if len(pair) != 2 or min(pair) <= 0 or not 1 / MAX_PIXEL_ASPECT <= pair[0] / pair[1] <= MAX_PIXEL_ASPECT:
            raise source.broken(tag, "gives no shape of pixels", "M217")
        return pair[0] / pair[1]
    return 1.0


def pixel_spacing(header: Header, measures: Sequence[Header] = ()) -> tuple[tuple[float, float] | None, str]:
    """mm between the rows and between the columns, with the element that says so; None where none does.

    PixelSpacing comes first, as it alone may be measured in the patient. What no pixel can have (below 0.01 or above
    50 mm, as N307 of volumes) says nothing.

    Args:
        measures: what an enhanced object says of the frame; it goes before the top level.

    Raises:
        DataError: M217, an element that is no list of numbers.
    """
    for source, tag in _spacings(header, measures):
        pair = source.numbers(tag, "M217")
        if len(pair) == 2 and min(pair) >= 0.01 and max(pair) <= 50:
            return (pair[0], pair[1]), SPACINGS[tag]
    return None, ""


def _spacings(header: Header, measures: Sequence[Header], *more: int) -> list[tuple[Header, int]]:
    """Where a spacing may stand, and under which tag, the best first."""
    return [*((m, 0x00280030) for m in measures), *((header, tag) for tag in (*SPACINGS, *more))]


def make_square(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Pixels of another shape enlarged along their longer side, so that nothing is lost."""
    height, width = pixels.shape[:2]
    size = (width, max(1, round(height * aspect))) if aspect > 1 else (max(1, round(width / aspect)), height)
    if pixels.dtype == np.uint8:
        return np.asarray(PIL.fromarray(pixels).resize(size, PIL.Resampling.BILINEAR))
    large = PIL.fromarray(pixels.astype(np.float32)).resize(size, PIL.Resampling.BILINEAR)
    return np.rint(np.asarray(large)).astype(pixels.dtype)
