"""Decoding: every stored form to pixels, every fault to its code."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageFile

from medloom.data.images import decode_file, read_image_bytes
from medloom.data.modes import ALPHA, CMYK, INVERTED, ONE_BIT, ROTATED, UPPER_BYTE, orient
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


def outcome(data: bytes) -> str:
    """``image``, or the code of the refusal; any other exception fails the test."""
    try:
        read_image_bytes(data, "x")
    except DataError as problem:
        return problem.code
    return "image"


def test_D101_zero_bytes() -> None:
    assert refused(b"").code == "D101"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"hello, this is text", "no image"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"\xef\xbb\xbf  <svg xmlns='x'/>", "HTML or XML"),
        (b"PK\x03\x04" + bytes(40), "ZIP"),
        (b"BM is how this text begins", "no image"),
    ],
)
def test_D102_other_content_under_an_image_name(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=word) as caught:
        decode_file(path)
    assert caught.value.code == "D102"


def test_a_wrong_suffix_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "scan.jpg"
    path.write_bytes(encoded(GREY, "PNG"))
    image = decode_file(path)
    assert image.file_type == "png"
    np.testing.assert_array_equal(image.pixels, GREY)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM"])
def test_D103_truncated_at_every_thirtieth_is_never_pixels(form: str) -> None:
    rng = np.random.default_rng(0)
    data = encoded(rng.integers(0, 255, (64, 48), dtype=np.uint8), form)
    for cut in range(len(data) // 30, len(data) - max(20, len(data) // 30), len(data) // 30):
        assert refused(data[:cut]).code in {"D102", "D103"}


def test_D103_truncated_jpeg_colour_and_grey_of_three_channels() -> None:
    for pixels in (COLOUR, np.stack([GREY] * 3, axis=2)):
        data = encoded(pixels, "JPEG")
        assert refused(data[: len(data) // 2]).code == "D103"


def test_D103_truncation_is_never_tolerated_by_import() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM"]), seed=st.integers(0, 2**32 - 1))
def test_D104_flipped_bits_give_an_image_or_a_coded_error(form: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = np.frombuffer(encoded(COLOUR, form), dtype=np.uint8).copy()
    for _ in range(int(rng.integers(1, 6))):
        data[rng.integers(len(data))] ^= np.uint8(1 << rng.integers(8))
    assert outcome(data.tobytes()) in {"image", "D102", "D103", "D107", "D109", "D110", "D111", "D112"}


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF89a", b"P5 "])
)
def test_D102_D103_arbitrary_bytes_are_refused_with_a_code(tail: bytes, head: bytes) -> None:
    assert outcome(head + tail) in {"D101", "D102", "D103", "D110", "D112"}


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


@pytest.mark.parametrize("form", ["GIF", "TIFF"])
def test_D109_several_frames(tmp_path: Path, form: str) -> None:
    frames = [PillowImage.fromarray(np.roll(GREY, k * 5, axis=0)) for k in range(3)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    problem = refused(data)
    assert problem.code == "D109"
    assert "3 frames" in problem.problem
    np.testing.assert_array_equal(read_image_bytes(data, "x", frames="first").pixels, GREY)
    path = tmp_path / "movie"
    path.write_bytes(data)
    np.testing.assert_array_equal(decode_file(path, frames="all", frame=2).pixels, np.asarray(frames[2]))


@pytest.mark.parametrize("side", [30_000, 13_000])
def test_D110_bombs_are_refused_by_their_header(side: int) -> None:
    bomb = png(side, side, 8, 0, zlib.compress(bytes(1000)))
    problem = refused(bomb)
    assert problem.code == "D110"
    assert f"{side} x {side}" in problem.problem


def test_D110_the_cap_is_the_recipes() -> None:
    data = encoded(np.tile(GREY, (30, 30)), "PNG")
    assert refused(data, max_megapixels=1.0).code == "D110"
    assert read_image_bytes(data, "x", max_megapixels=2.0).pixels.shape == (1200, 900)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_D111_constant(value: int) -> None:
    problem = refused(encoded(np.full((32, 32), value, np.uint8), "PNG"))
    assert problem.code == "D111"
    assert ("all black" in problem.problem) == (value == 0)
    assert refused(encoded(np.full((32, 32, 3), (value, 9, 9), np.uint8), "PNG")).code == "D111"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_D111_not_finite(bad: float) -> None:
    values = RAMP.astype(np.float32)
    values[3, 4] = bad
    assert refused(encoded(values, "TIFF")).code == "D111"


def test_D111_one_pixel_that_differs_is_enough() -> None:
    spot = np.zeros((64, 64), np.uint8)
    spot[13, 57] = 1
    assert read_image_bytes(encoded(spot, "PNG"), "x").pixels.sum() == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (7, 7), (20, 300)])
def test_D112_tiny_or_extreme(shape: tuple[int, int]) -> None:
    assert refused(encoded(np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape), "PNG")).code == "D112"


def test_D114_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("absent.png", "folder.png"):
        with pytest.raises(DataError) as caught:
            decode_file(tmp_path / name)
        assert caught.value.code == "D114"


def test_D126_names_are_shown_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nerror[D999] b.png"
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        decode_file(path)
    assert "\n" not in str(caught.value)


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


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_D114_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(GREY, "PNG"))
    path.chmod(0)
    with pytest.raises(DataError) as caught:
        decode_file(path)
    assert caught.value.code == "D114"


def png(width: int, height: int, depth: int, colour: int, body: bytes) -> bytes:
    """A PNG from its parts (W3C PNG, section 11)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


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
