"""Pillow's many ways of holding a picture, to three: grey, colour, float. One documented rule per mode.

| stored as | becomes | note |
|---|---|---|
| L, and RGB or YCbCr with three equal channels | ``(H, W)`` uint8 | - |
| 1 (one bit), 2 and 4 bits | ``(H, W)`` uint8, spread over 0..255 | yes (one bit) |
| I;16 in PNG, TIFF, PGM | ``(H, W)`` uint16, never scaled down | - |
| P | the palette's colours, grey where they are | - |
| LA, RGBA, PA, or a transparent colour | laid on black | yes |
| CMYK | RGB; inverted only where Adobe's marker says so | yes |
| 16-bit colour, 16-bit grey with alpha | 8 bits, the upper byte: Pillow has no more | yes |
| F, I (signed and 32-bit integers) | ``(H, W)`` float32, range unknown | - |
| LAB, HSV and the rest | refused, D107 | - |
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import JpegImagePlugin

from medloom.errors import DataError

ALPHA = "alpha laid on black"
CMYK = "CMYK converted to RGB"
ONE_BIT = "one bit per pixel"
UPPER_BYTE = "16-bit colour read at 8 bits"
ROTATED = "rotated by the EXIF tag"
INVERTED = "white-is-zero inverted"
BURNED_IN = "text may be burned into the pixels"

_EXIF_ORIENTATION = 274
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_ALPHA_MODES = ("LA", "La", "RGBA", "RGBa", "PA")


def to_pixels(handle: Any, data: bytes, file_type: str) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Load an opened Pillow file: pixels ``(H, W)`` or ``(H, W, 3)``, significant bits, notes.

    Args:
        handle: a Pillow image file, not yet loaded.
        data: the bytes of the file.

    Raises:
        DataError: D107 for colours without a rule. Pillow's own exceptions pass through.
    """
    grey = _luminance(handle, data) if file_type == "jpeg" and handle.mode == "RGB" else None
    if grey is not None:
        pixels, bits, notes = grey, 8, list[str]()
    else:
        handle.load()
        pixels, bits, notes = _by_mode(handle, data, file_type)
        pixels = merge_equal_channels(pixels)
    # To a TIFF Pillow itself applies the tag while loading, and then removes it.
    orientation = handle.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        pixels = orient(pixels, orientation)
        notes.append(ROTATED)
    return pixels, bits, tuple(notes)


def to_labels(handle: Any, data: bytes, file_type: str) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """As ``to_pixels``, but of a palette the indices: in a mask they are the structures, and the colours decoration."""
    if handle.mode != "P":
        return to_pixels(handle, data, file_type)
    handle.load()
    return orient(np.asarray(handle), handle.getexif().get(_EXIF_ORIENTATION, 1)), 8, ()


def merge_equal_channels(pixels: np.ndarray) -> np.ndarray:
    """``(H, W)`` for a colour array whose channels are equal, else the array itself; contiguous."""
    if pixels.ndim == 3:
        flat = np.ascontiguousarray(pixels).reshape(-1)
        red = flat[0::3]
        if (
            np.array_equal(red[:64], flat[1:192:3])
            and np.array_equal(red, flat[1::3])
            and np.array_equal(red, flat[2::3])
        ):
            pixels = pixels[:, :, 0]
    return np.ascontiguousarray(pixels)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo one of the eight EXIF orientations (CIPA DC-008, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _luminance(handle: Any, data: bytes) -> np.ndarray | None:
    """The Y of a three-component JPEG whose chroma is neutral everywhere; None for colour.

    With Cb = Cr = 128 the conversion to RGB gives R = G = B = Y exactly, so that it can be left out.
    """
    if handle.info.get("adobe_transform") == 0:
        return None
    draft = JpegImagePlugin.JpegImageFile(io.BytesIO(data), "")
    draft.draft("YCbCr", None)
    try:
        draft.load()
    except OSError:  # stored as RGB, or damaged: the full decoding decides which
        return None
    flat = np.asarray(draft).reshape(-1)
    neutral = (flat[1:192:3] == 128).all() and (flat[1::3] == 128).all() and (flat[2::3] == 128).all()
    return np.ascontiguousarray(flat[0::3]).reshape(draft.size[::-1]) if neutral else None


def _by_mode(handle: Any, data: bytes, file_type: str) -> tuple[np.ndarray, int, list[str]]:
    mode = handle.mode
    notes = [UPPER_BYTE] if _reads_upper_byte(handle, data, file_type) else []
    if mode in _ALPHA_MODES or "transparency" in handle.info:
        rgba = np.asarray(handle.convert("RGBA"))
        colour, alpha = rgba[:, :, :3].astype(np.uint16), rgba[:, :, 3:]
        return ((colour * alpha + 127) // 255).astype(np.uint8), 8, [*notes, ALPHA]
    if mode == "L":
        return np.asarray(handle), 8, notes
    if mode in ("RGB", "P", "YCbCr", "RGBX"):
        return np.asarray(handle if mode == "RGB" else handle.convert("RGB")), 8, notes
    if mode == "1":
        return np.asarray(handle.convert("L")), 8, [*notes, ONE_BIT]
    if mode == "CMYK":
        if file_type == "jpeg" and "adobe" not in handle.info:  # Pillow inverts every CMYK JPEG, marked or not
            handle = handle.point(lambda value: 255 - value)
        return np.asarray(handle.convert("RGB")), 8, [*notes, CMYK]
    if mode.startswith("I;16"):
        pixels = np.asarray(handle).astype(np.uint16)
        bits = _tiff_bits(handle) if file_type == "tiff" else 16
        if file_type == "tiff" and handle.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
            return np.uint16((1 << bits) - 1) - pixels, bits, [*notes, INVERTED]
        return pixels, bits, notes
    if mode == "I" and file_type == "pnm":
        return np.asarray(handle).astype(np.uint16), 16, notes
    if mode in ("I", "F"):
        return np.asarray(handle).astype(np.float32), 0, notes
    raise DataError("D107", mode, f"no rule for colours of mode {mode}", "Save it as grey or RGB")


def _reads_upper_byte(handle: Any, data: bytes, file_type: str) -> bool:
    if file_type == "png":
        return data[24] == 16 and data[25] != 0  # IHDR: bit depth, then colour type (0 is grey)
    return file_type == "tiff" and not handle.mode.startswith("I") and 16 in _tag_bits(handle)


def _tiff_bits(handle: Any) -> int:
    bits = max(_tag_bits(handle), default=16)
    return bits if 8 < bits <= 16 else 16


def _tag_bits(handle: Any) -> tuple[int, ...]:
    bits = handle.tag_v2.get(_TIFF_BITS, ())
    return bits if isinstance(bits, tuple) else (int(bits),)
