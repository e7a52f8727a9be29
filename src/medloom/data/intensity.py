"""Intensity rules as tables: grey level of the file -> brightness in [0, 255].

Every rule is a table over the file's levels (256 or 65536 entries), so it is monotone, fast, and the same everywhere.

- ``none``: the range that the bit depth gives, ``255 v / (2^bits - 1)``. Values above it (a wrong depth in the header)
  are white.
- ``percentile``: the levels below which the two percentages of the pixels lie become 0 and 255, linear between.
- ``equalize``: global histogram equalisation, ``255 (cdf(v) - cdf_min) / (N - cdf_min)`` with cdf_min the count of the
  darkest level that occurs. Leaving that level out is what makes it fit for radiographs: a black border of any width
  maps to 0 and does not change what happens to the body. Deeper images are equalised at their own depth.

A colour image has one table for its three channels, from all their values together: hues keep their order.
"""

from __future__ import annotations

import numpy as np
from PIL import Image as PIL

from medloom.errors import DataError


def to_integers(pixels: np.ndarray, bits: int, *, fixed_range: bool) -> tuple[np.ndarray, int]:
    """Levels as uint8 or uint16 with their number of bits; float images become 16 bits.

    Args:
        fixed_range: the rule needs a range that all images share. A float file declares none, so it must keep to
            [0, 1]; otherwise the image's own minimum and maximum span the levels.

    Raises:
        DataError: D107 a float image outside [0, 1] where the range is fixed, or an unknown type; D111 not finite.
    """
    if pixels.dtype == np.uint8:
        return pixels, min(bits or 8, 8)
    if pixels.dtype == np.uint16:
        return pixels, bits or 16
    if pixels.dtype.kind != "f":
        raise DataError("D107", "image", f"pixels of type {pixels.dtype}", "Convert it to 8 or 16 bit grey")
    if not np.isfinite(pixels).all():
        raise DataError("D111", "image", "values that are not finite", "Leave the image out")
    low, high = (0.0, 1.0) if fixed_range else (float(pixels.min()), float(pixels.max()))
    if fixed_range and (float(pixels.min()) < low or float(pixels.max()) > high):
        raise DataError(
            "D107",
            "image",
            f"float values from {float(pixels.min()):g} to {float(pixels.max()):g}, and the file declares no range",
            "Scale them to [0, 1], or choose preprocess.intensity=percentile",
        )
    span = high - low or 1.0
    return np.rint((pixels.astype(np.float64) - low) * (65535.0 / span)).astype(np.uint16), 16


def to_grey(levels: np.ndarray) -> np.ndarray:
    """``(H, W)`` luminance (ITU-R BT.601) of ``(H, W, 3)``, at the same depth; grey passes through."""
    if levels.ndim == 2:
        return levels
    if levels.dtype == np.uint8:
        return np.asarray(PIL.fromarray(np.ascontiguousarray(levels)).convert("L"))
    weights = np.array([0.299, 0.587, 0.114])
    return np.rint(levels.astype(np.float64) @ weights).astype(levels.dtype)


def curve(levels: np.ndarray, bits: int, rule: str, percentiles: tuple[float, float]) -> np.ndarray | None:
    """Table from level to brightness, float32 in [0, 255], or None where 8-bit levels already are the brightness.

    Args:
        levels: uint8 or uint16, any shape.
        bits: significant bits of the file.
        rule: ``none``, ``percentile`` or ``equalize``.
        percentiles: for ``percentile``, in percent.
    """
    top = 2**bits - 1
    size = 256 if levels.dtype == np.uint8 else 65536
    level = np.arange(size, dtype=np.float64)
    if rule == "none":
        return None if top == 255 and size == 256 else _table(level / top)
    count = np.bincount(levels.reshape(-1), minlength=size)
    cdf = np.cumsum(count)
    if rule == "equalize":
        darkest = count[np.flatnonzero(count)[0]]
        return _table((cdf - darkest) / max(int(cdf[-1] - darkest), 1))
    low, high = (int(np.searchsorted(cdf, p / 100 * cdf[-1])) for p in percentiles)
    if high <= low:  # nearly constant: its own extremes are all that is left to stretch
        low, high = (int(np.flatnonzero(count)[k]) for k in (0, -1))
    return _table((level - low) / max(high - low, 1))


def _table(share: np.ndarray) -> np.ndarray:
    return (np.clip(share, 0.0, 1.0) * 255.0).astype(np.float32)
