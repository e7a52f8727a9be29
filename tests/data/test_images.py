"""Decoding: every stored form of depth, colour and orientation to its pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import COLOUR, GREY, RAMP, encoded, png, refused
from PIL import Image as PillowImage

from medloom.data.images import decode_file, read_image_bytes
from medloom.data.modes import ALPHA, CMYK, INVERTED, ONE_BIT, ROTATED, UPPER_BYTE, orient


def test_a_wrong_suffix_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "scan.jpg"
    path.write_bytes(encoded(GREY, "PNG"))
    image = decode_file(path)
    assert image.file_type == "png"
    np.testing.assert_array_equal(image.pixels, GREY)


def test_D105_sixteen_bits_keep_their_values() -> None:
    deep = (RAMP * 54).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        image = read_image_bytes(encoded(deep, form), "x")
        assert (image.bits, image.pixels.dtype) == (16, np.uint16)
        np.testing.assert_array_equal(image.pixels, deep)
    pgm = b"P5 30 40 65535\n" + deep.astype(">u2").tobytes()
    np.testing.assert_array_equal(read_image_bytes(pgm, "x").pixels, deep)


def test_D105_big_endian_and_white_is_zero_tiff() -> None:
    deep = (RAMP * 54).astype(np.uint16)
    for order, photometric in (("<", 0), ("<", 1), (">", 1)):
        image = read_image_bytes(tiff16(deep, order, photometric), "x")
        np.testing.assert_array_equal(image.pixels, deep if photometric else 65535 - deep)
        assert (INVERTED in image.notes) == (photometric == 0)
    assert refused(tiff16(deep, ">", 0)).code == "D107"  # Pillow does not read this one


def test_D105_colour_of_sixteen_bits_is_read_at_eight_and_told() -> None:
    wide = np.stack([RAMP * 54, RAMP * 50, RAMP * 20], axis=2).astype(np.uint16)
    image = read_image_bytes(png16_rgb(wide), "x")
    np.testing.assert_array_equal(image.pixels, (wide >> 8).astype(np.uint8))
    assert (image.bits, image.notes) == (8, (UPPER_BYTE,))


def test_D107_transparency_is_laid_on_black() -> None:
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:10] = 0
    want = np.where(alpha == 0, 0, GREY)
    for picture in (
        PillowImage.merge("LA", [PillowImage.fromarray(GREY), PillowImage.fromarray(alpha)]),
        PillowImage.merge("RGBA", [PillowImage.fromarray(GREY)] * 3 + [PillowImage.fromarray(alpha)]),
    ):
        image = read_image_bytes(encoded(picture, "PNG"), "x")
        np.testing.assert_array_equal(image.pixels, want)
        assert image.notes == (ALPHA,)


def test_D107_a_transparent_colour_is_black_too() -> None:
    image = read_image_bytes(encoded(PillowImage.fromarray(GREY), "PNG", transparency=200), "x")
    np.testing.assert_array_equal(image.pixels, np.where(GREY == 200, 0, GREY))
    assert image.notes == (ALPHA,)


def test_D107_palette_gives_its_colours_and_grey_where_they_are() -> None:
    picture = PillowImage.fromarray(GREY)
    picture.putpalette([v for k in range(256) for v in (255 - k, 255 - k, 255 - k)])
    np.testing.assert_array_equal(read_image_bytes(encoded(picture, "PNG"), "x").pixels, 255 - GREY)
    picture.putpalette([v for k in range(256) for v in (k, 0, 255 - k)])
    image = read_image_bytes(encoded(picture, "PNG"), "x")
    np.testing.assert_array_equal(image.pixels, np.stack([GREY, GREY * 0, 255 - GREY], axis=2))


def test_D107_cmyk_follows_adobes_marker() -> None:
    ink = PillowImage.new("CMYK", (32, 32), (0, 0, 0, 40))
    ink.paste((0, 0, 0, 220), (0, 0, 16, 32))
    marked = read_image_bytes(encoded(ink, "JPEG", quality=95), "x")
    assert marked.notes == (CMYK,)
    assert marked.pixels[5, 25] > 200 > 60 > marked.pixels[5, 5]
    # Pillow stores ink inverted, as Adobe does, and marks it. Without the marker ink is taken as it stands.
    data = encoded(ink.point(lambda value: 255 - value), "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    plain = read_image_bytes(data[:start] + data[start + 2 + length :], "x")
    assert np.abs(plain.pixels.astype(int) - marked.pixels).max() <= 3


def test_D107_one_bit_and_float() -> None:
    bits = GREY > 100
    image = read_image_bytes(encoded(PillowImage.fromarray(bits), "PNG"), "x")
    np.testing.assert_array_equal(image.pixels, bits * np.uint8(255))
    assert image.notes == (ONE_BIT,)
    values = (RAMP / 100 - 5).astype(np.float32)
    image = read_image_bytes(encoded(values, "TIFF"), "x")
    np.testing.assert_array_equal(image.pixels, values)
    assert (image.bits, image.pixels.dtype) == (0, np.float32)


def test_D107_colours_without_a_rule() -> None:
    lab = PillowImage.merge("LAB", [PillowImage.fromarray(GREY)] * 3)
    assert refused(encoded(lab, "TIFF")).code == "D107"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_D108_all_eight_orientations(form: str, orientation: int) -> None:
    upright = np.zeros((48, 32), np.uint8)
    upright[:24, :16], upright[:24, 16:], upright[24:, :16] = 60, 120, 180
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    exif = PillowImage.Exif()
    exif[274] = orientation
    options = {"exif": exif} if form != "TIFF" else {"tiffinfo": {274: orientation}}
    if form == "JPEG":
        options["quality"] = 95
    for stored in (orient(upright, inverse), np.stack([orient(upright, inverse)] * 3, axis=2)):
        image = read_image_bytes(encoded(stored, form, **options), "x")
        assert image.pixels.shape == upright.shape
        assert np.abs(image.pixels.astype(int) - upright).max() <= 6
        if form != "TIFF":  # Pillow turns a TIFF while loading, and tells nobody
            assert (ROTATED in image.notes) == (orientation != 1)


def test_equal_channels_become_one_and_colour_stays() -> None:
    grey_of_three = np.stack([GREY] * 3, axis=2)
    for form in ("PNG", "JPEG", "BMP"):
        image = read_image_bytes(encoded(grey_of_three, form), "x")
        assert image.pixels.shape == GREY.shape
        assert image.mode == "RGB"
    np.testing.assert_array_equal(read_image_bytes(encoded(COLOUR, "PNG"), "x").pixels, COLOUR)


def test_a_grey_jpeg_of_three_channels_equals_pillows_own_reading(real_data: Path) -> None:
    for path in sorted((real_data / "chest_xray/test/NORMAL").iterdir())[:20]:
        with PillowImage.open(path) as picture:
            want = np.asarray(picture)
        pixels = decode_file(path).pixels
        for channel in range(3):
            np.testing.assert_array_equal(pixels, want[:, :, channel])


def test_a_colour_jpeg_equals_pillows_own_reading() -> None:
    data = encoded(COLOUR, "JPEG", quality=90)
    np.testing.assert_array_equal(read_image_bytes(data, "x").pixels, np.asarray(PillowImage.open(io.BytesIO(data))))
    stored_as_rgb = encoded(COLOUR, "JPEG", quality=90, keep_rgb=True)
    assert np.abs(read_image_bytes(stored_as_rgb, "x").pixels.astype(int) - COLOUR).mean() < 8


def png16_rgb(pixels: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 16, 2, zlib.compress(rows))


def tiff16(pixels: np.ndarray, order: str, photometric: int) -> bytes:
    """A one-strip grey TIFF from its parts (TIFF 6.0)."""
    height, width = pixels.shape
    body = pixels.astype(f"{order}u2").tobytes()
    entries = [
        (256, width), (257, height), (258, 16), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
        (279, len(body)),
    ]  # fmt: skip
    ifd = struct.pack(f"{order}H", len(entries))
    ifd += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return head + body + ifd + struct.pack(f"{order}I", 0)
