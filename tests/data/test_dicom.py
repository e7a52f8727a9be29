"""DICOM radiographs: from stored values to levels of brightness (FAULTS M201, M203, M204, M217)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_reading import read, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PIL
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from dicom_files import NATIVE, dataset, picture, radiograph, written
from medloom.data.dicom_pixels import OWN_RANGE, SIGMOID, STORED_RANGE, VOI_TABLE, WINDOW
from medloom.data.images import decode_file
from medloom.data.modes import INVERTED


def table(values: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(values), first, bits])
    item.add_new(0x00283006, "OW", np.array(values, "<u2").tobytes())
    return item


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_every_native_syntax_and_depth_gives_the_same_picture(syntax: str, bits: int) -> None:
    stored = picture(bits=bits)
    image = read(radiograph(stored, bits=bits, syntax=syntax, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits))
    assert (image.bits, image.file_type, image.mode) == (bits, "dicom", f"MONOCHROME2;{bits}")
    assert image.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.abs(image.pixels.astype(int) - stored).max() <= 1
    assert image.notes == (WINDOW,)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 900, "WindowWidth": 700}])
def test_M201_monochrome1_and_its_monochrome2_twin_are_one_picture(bits: int, window: dict[str, int]) -> None:
    """The twin holds the complement, and its window the complement of the window."""
    stored, top = picture(bits=bits), 2**bits - 1
    scaled = {k: v if bits == 12 else v // 16 for k, v in window.items()}
    mirrored = {**scaled, "WindowCenter": top + 1 - scaled["WindowCenter"]} if scaled else {}
    white = read(radiograph(stored, bits=bits, **scaled))
    complement = (top - stored).astype(stored.dtype)
    black = read(radiograph(complement, bits=bits, PhotometricInterpretation="MONOCHROME1", **mirrored))
    assert INVERTED in black.notes
    assert INVERTED not in white.notes
    # A percentile is the value below which a share lies, so that from above it may be the neighbouring one.
    assert np.abs(white.pixels.astype(int) - black.pixels).max() <= (1 if bits == 8 or window else 0.02 * top)


def test_M201_a_window_cuts_before_the_inversion() -> None:
    stored = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (16, 1))
    image = read(radiograph(stored, PhotometricInterpretation="MONOCHROME1", WindowCenter=512, WindowWidth=1024))
    assert (image.pixels[:, stored[0] >= 1024] == 0).all()
    assert image.pixels[0, 0] == 4095


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_M217_presentation_lut_inverse_and_monochrome1_are_one_statement(
    photometric: str, shape: str | None, inverted: bool
) -> None:
    plain = read(radiograph(WindowCenter=2048, WindowWidth=4096)).pixels.astype(int)
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    image = read(radiograph(WindowCenter=2048, WindowWidth=4096, **tags))
    assert (image.pixels == (4095 - plain if inverted else plain)).all()
    assert (INVERTED in image.notes) is inverted


@pytest.mark.parametrize("form", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -100), (-2, 3000)])
def test_M203_windows_as_the_standard_writes_them(form: str, slope: float, intercept: float) -> None:
    """pydicom's own arithmetic is the second opinion."""
    made = dataset(picture(), WindowCenter=700, WindowWidth=900, VOILUTFunction=form)
    made.RescaleSlope, made.RescaleIntercept = slope, intercept
    image = read(written(made))
    stored = apply_modality_lut(picture().astype(np.int32), made)
    shown = apply_voi_lut(stored, made)
    # Its range runs from the lowest code's value to the highest one's, downwards under a negative slope.
    expected = (shown - intercept) / (4095 * slope) * 4095
    assert np.abs(image.pixels - expected).max() <= 1
    assert image.notes == (SIGMOID if form == "SIGMOID" else WINDOW,)


def test_M203_the_first_of_several_windows_counts() -> None:
    several = read(radiograph(WindowCenter=[900, 100], WindowWidth=[600, 50]))
    assert (several.pixels == read(radiograph(WindowCenter=900, WindowWidth=600)).pixels).all()


def test_M203_without_a_window_percentiles_of_its_own_pixels() -> None:
    stored = picture() // 8 + 1000
    image = read(radiograph(stored))
    low, high = np.percentile(stored, [0.5, 99.5])
    expected = np.clip((stored - low) / (high - low), 0, 1) * 4095
    assert np.abs(image.pixels - expected).max() < 0.02 * 4095
    assert image.notes == (OWN_RANGE,)
    assert (image.pixels.min(), image.pixels.max()) == (0, 4095)


def test_M203_without_a_window_eight_bits_are_shown_as_stored() -> None:
    stored = picture(bits=8)
    image = read(radiograph(stored, bits=8))
    assert (image.pixels == stored).all()
    assert image.notes == (STORED_RANGE,)


@pytest.mark.parametrize("width", [0, -5, 0.4])
def test_M203_a_window_of_no_width_is_no_window(width: float) -> None:
    image = read(radiograph(WindowCenter=500, WindowWidth=width))
    assert image.notes == (OWN_RANGE,)
    assert (image.pixels == read(radiograph()).pixels).all()


def test_M203_a_table_of_values_comes_before_a_window() -> None:
    stored = picture()
    curve = [min(255, int(255 * (k / 4095) ** 2)) for k in range(4096)]
    image = read(radiograph(stored, WindowCenter=5, WindowWidth=6, VOILUTSequence=[table(curve, 0, 8)]))
    assert np.abs(image.pixels - np.array(curve)[stored] / 255 * 4095).max() <= 1
    assert image.notes == (VOI_TABLE,)


def test_M203_a_table_that_starts_below_zero_and_ends_early_holds_its_ends() -> None:
    stored = picture()
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": [table([0, 50, 255], 65536 - 100, 8)]}
    image = read(radiograph(stored, **tags))
    value = stored.astype(int) - 1024
    assert (image.pixels[value <= -100] == 0).all()
    assert (image.pixels[value >= -98] == 4095).all()


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 500},
        {"WindowCenter": [1, 2], "WindowWidth": 5},
        {"WindowCenter": 1, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
        {"VOILUTSequence": [table([0, 4000], 0, 8)]},
        {"VOILUTSequence": [table([7, 7, 7], 0, 8)]},
        {"VOILUTSequence": [Dataset()]},
    ],
    ids=["no width", "unequal", "form", "beyond its bits", "flat", "empty"],
)
def test_M203_windows_and_tables_that_cannot_be(tags: dict[str, Any]) -> None:
    assert refused(radiograph(**tags)).code == "M203"


def test_M203_a_window_that_is_no_number() -> None:
    data = radiograph(WindowCenter=1234, WindowWidth=77)
    assert refused(data.replace(b"1234", b"12x4")).code == "M203"


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0, 5), (2, None), (None, -1024), (1e300, 0), (1, 1e300)]
)  # fmt: skip
def test_M204_rescaling_that_cannot_be(slope: float | None, intercept: float | None) -> None:
    assert refused(radiograph(RescaleSlope=slope, RescaleIntercept=intercept)).code == "M204"


def test_M204_a_negative_slope_turns_the_picture() -> None:
    stored = picture(bits=8)
    image = read(radiograph(stored, bits=8, RescaleSlope=-1, RescaleIntercept=255))
    assert (image.pixels == 255 - stored).all()


def test_M204_signed_pixels_and_a_large_slope_do_not_overflow() -> None:
    stored = (picture(bits=16).astype(np.int32) - 32768).astype(np.int16)
    tags = {"RescaleSlope": 1000, "RescaleIntercept": -7, "WindowCenter": 0, "WindowWidth": 65536000}
    image = read(radiograph(stored, bits=16, **tags))
    assert np.abs(image.pixels - (stored.astype(np.float64) + 32768)).max() <= 1


def test_M204_a_modality_table() -> None:
    stored = picture(bits=8)
    curve = [(255 - k) * 16 for k in range(256)]
    tags = {"ModalityLUTSequence": [table(curve, 0, 12)], "WindowCenter": 2048, "WindowWidth": 4096}
    image = read(radiograph(stored, bits=8, **tags))
    assert np.abs(image.pixels.astype(int) - (255 - stored)).max() <= 1
    assert refused(radiograph(stored, bits=8, ModalityLUTSequence=[table([1, 1], 0, 12)])).code == "M204"


@given(
    bits=st.integers(9, 16),
    slope=st.floats(0.01, 100) | st.floats(-100, -0.01),
    intercept=st.floats(-5000, 5000),
    invert=st.booleans(),
    signed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_levels_follow_the_values_and_never_turn(
    bits: int, slope: float, intercept: float, invert: bool, signed: bool
) -> None:
    """Brightness rises with the value (falls, inverted), whatever the way the values are stored."""
    stored = picture(24, 20, bits)
    if signed:
        stored = (stored.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    tags = {"RescaleSlope": f"{slope:.6g}", "RescaleIntercept": f"{intercept:.6g}"}
    image = read(radiograph(stored, bits=bits, PhotometricInterpretation=f"MONOCHROME{1 if invert else 2}", **tags))
    order = np.argsort(stored.reshape(-1), kind="stable")
    rise = np.diff(image.pixels.reshape(-1)[order].astype(int))
    assert (rise <= 0 if (slope < 0) != invert else rise >= 0).all()
    assert image.pixels.max() == 2**bits - 1
    assert image.pixels.min() == 0


def test_M201_a_real_film_and_its_honest_negative_are_one_picture(real_data: Path) -> None:
    film = decode_file(real_data / "dicom" / "test2.dcm").pixels
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BurnedInAnnotation": "NO"}
    assert (read(radiograph(255 - film, bits=8, **tags)).pixels == film).all()


def test_real_radiographs_are_bright_where_the_body_is(real_data: Path) -> None:
    for k in range(1, 7):
        image = decode_file(real_data / "dicom" / f"test{k}.dcm")
        small = np.asarray(PIL.fromarray(image.pixels).resize((8, 8), PIL.Resampling.BOX)).astype(int)
        assert image.pixels.shape == (1024, 1024)
        assert small[2:6, 3:5].mean() > small[0, [0, -1]].mean()
