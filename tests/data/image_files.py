"""Small images in memory, encoded by Pillow or from their parts, and the refusal to read one."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from medloom.data.images import read_image_bytes
from medloom.errors import DataError

RAMP = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30)
GREY = (RAMP % 251).astype(np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], np.roll(GREY, 7, axis=1)], axis=2)


def encoded(picture: PillowImage.Image | np.ndarray, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture = PillowImage.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(out, form, **options)
    return out.getvalue()


def refused(data: bytes, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_image_bytes(data, "upload", **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    return caught.value


def png(width: int, height: int, depth: int, colour: int, body: bytes) -> bytes:
    """A PNG from its parts (W3C PNG, section 11)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
