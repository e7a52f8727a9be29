"""Decoding: every fault of an image file to its code."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import COLOUR, GREY, RAMP, encoded, png, refused
from PIL import Image as PillowImage
from PIL import ImageFile

from medloom.data.images import decode_file, read_image_bytes
from medloom.errors import DataError


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


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_D114_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(GREY, "PNG"))
    path.chmod(0)
    with pytest.raises(DataError) as caught:
        decode_file(path)
    assert caught.value.code == "D114"
