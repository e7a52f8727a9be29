"""DICOM radiographs: what every tag does to the picture (FAULTS M201, M203-M205, M209, M210, M215-M217)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PIL
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from dicom_files import NATIVE, dataset, picture, radiograph, written
from medloom.data.dicom import read_dicom
from medloom.data.dicom_pixels import OVERLAY, OWN_RANGE, SIGMOID, SQUARED, STORED_RANGE, VOI_TABLE, WINDOW
from medloom.data.images import Image, decode_file, read_image_bytes
from medloom.data.modes import BURNED_IN, INVERTED
from medloom.errors import DataError


def read(data: bytes, **options: Any) -> Image:
    return read_dicom(data, "x.dcm", **options)


def refused(data: bytes, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(data, **options)
    return caught.value


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


def test_M205_several_frames_are_refused_unless_one_is_asked_for() -> None:
    frames = np.stack([picture(seed=k) for k in range(3)])
    data = radiograph(frames, WindowCenter=2048, WindowWidth=4096)
    assert refused(data).code == "M205"
    assert np.abs(read(data, frames="first").pixels.astype(int) - frames[0]).max() <= 1
    assert np.abs(read(data, frames="all", frame=2).pixels.astype(int) - frames[2]).max() <= 1
    assert refused(data, frames="all", frame=3).code == "M205"
    assert refused(radiograph(NumberOfFrames=20_000)).code == "M205"


@pytest.mark.parametrize(
    "tags",
    [
        {"BitsStored": 17, "HighBit": 16},
        {"HighBit": 15},
        {"BitsStored": 0, "HighBit": 0},
        {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
        {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0},
        {"BitsAllocated": 12},
        {"PixelRepresentation": 2},
        {"SamplesPerPixel": 3},
        {"SamplesPerPixel": 0},
        {"PhotometricInterpretation": "MONOCHROME3"},
        {"PhotometricInterpretation": None},
        {"BitsStored": None},
        {"NumberOfFrames": 0},
        {"NumberOfFrames": -2},
    ],
    ids=str,
)
def test_M209_a_pixel_format_that_contradicts_itself(tags: dict[str, Any]) -> None:
    assert refused(radiograph(**tags)).code == "M209"


def test_M209_rows_of_another_type() -> None:
    made = dataset(picture())
    del made.Rows
    made.add_new(0x00280010, "UL", 40)
    assert refused(written(made)).code == "M209"


@pytest.mark.parametrize("tags", [{"BitsStored": 10, "HighBit": 9}, {"PixelRepresentation": 1}], ids=str)
def test_M209_a_depth_or_a_sign_that_the_pixels_deny(tags: dict[str, Any]) -> None:
    """Twelve bits under a header of ten; unsigned values above half the range under a header of signed ones."""
    assert refused(radiograph(**tags)).code == "M209"


def test_M209_signed_values_under_a_header_of_unsigned_ones() -> None:
    stored = picture().astype(np.int16) - 2048
    assert refused(radiograph(stored, PixelRepresentation=0)).code == "M209"
    assert read(radiograph(stored)).bits == 12


@pytest.mark.parametrize("syntax", NATIVE)
def test_M210_palette_colours(syntax: str) -> None:
    stored = (picture(bits=8) // 8).astype(np.uint8)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    made = dataset(stored, bits=8, **tags)
    colours = np.random.default_rng(3).integers(0, 256, (3, 32)).astype(np.uint16)
    for k, name in enumerate(("Red", "Green", "Blue")):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [32, 0, 16])
        order = ">u2" if syntax == "big" else "<u2"
        setattr(made, f"{name}PaletteColorLookupTableData", (colours[k] * 256).astype(order).tobytes())
    data = written(made, syntax)
    assert (read(data).pixels == colours.T[stored]).all()


@pytest.mark.parametrize("change", ["short table", "index beyond", "unlike", "missing", "bits"])
def test_M210_palettes_that_do_not_fit(change: str) -> None:
    stored = np.tile(np.arange(32, dtype=np.uint8), (16, 1))
    made = dataset(stored, bits=8, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        entries = 20 if change == "index beyond" else 32
        described = [entries - (name == "Blue" and change == "unlike"), 0, 12 if change == "bits" else 16]
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", described)
        size = 2 * (entries - 4 * (change == "short table"))
        if not (change == "missing" and name == "Green"):
            setattr(made, f"{name}PaletteColorLookupTableData", bytes(size))
    assert refused(written(made)).code == "M210"


def test_M215_another_modality_body_part_or_view_is_refused_and_silence_passes() -> None:
    expect = {"modality": ("CR", "DX"), "body_part": ("CHEST",), "view": ("PA", "AP")}
    good = {"BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    assert read(radiograph(**good), expect=expect).pixels.size
    assert read(radiograph(Modality=None), expect=expect).pixels.size
    for tags, word in (
        ({"Modality": "CT"}, "Modality is CT"),
        ({"BodyPartExamined": "HAND"}, "BodyPartExamined is HAND"),
        ({"ViewPosition": "LL"}, "ViewPosition is LL"),
    ):
        problem = refused(radiograph(**{**good, **tags}), expect=expect)
        assert problem.code == "M215"
        assert word in problem.problem
        assert read(radiograph(**{**good, **tags})).pixels.size


@pytest.mark.parametrize(
    ("tags", "suspected"),
    [
        ({}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"BurnedInAnnotation": "NO"}, False),
        ({"Modality": "US"}, True),
        ({"Modality": "OT"}, True),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, False),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4", "Modality": "CR"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, False),
    ],
    ids=str,
)
def test_M216_text_in_the_pixels_is_noted(tags: dict[str, Any], suspected: bool) -> None:
    assert (BURNED_IN in read(radiograph(**tags)).notes) is suspected


def test_M217_overlays_in_the_high_bits_are_masked_off() -> None:
    stored = picture()
    drawn = stored | np.uint16(1 << 14)
    made = dataset(drawn, WindowCenter=2048, WindowWidth=4096)
    assert refused(written(made)).code == "M209"
    made.add_new(0x60000010, "US", 40)
    made.add_new(0x60000100, "US", 16)
    made.add_new(0x60000102, "US", 14)
    image = read(written(made))
    assert OVERLAY in image.notes
    assert np.abs(image.pixels.astype(int) - stored).max() <= 1


@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ({"PixelAspectRatio": [2, 1]}, (80, 32)),
        ({"PixelAspectRatio": [1, 2]}, (40, 64)),
        ({"PixelSpacing": [0.3, 0.2]}, (60, 32)),
        ({"ImagerPixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, (40, 32)),
        ({"PixelSpacing": [0.143, 0.1435]}, (40, 32)),
    ],
    ids=str,
)
def test_M217_pixels_that_are_not_square_become_so(tags: dict[str, Any], shape: tuple[int, int]) -> None:
    image = read(radiograph(**tags))
    assert image.pixels.shape == shape
    assert (SQUARED in image.notes) is (shape != (40, 32))
    assert image.pixels.dtype == np.uint16


@pytest.mark.parametrize("ratio", [[0, 1], [1, 100], [5]])
def test_M217_a_ratio_that_cannot_be(ratio: list[int]) -> None:
    assert refused(radiograph(PixelAspectRatio=ratio)).code == "M217"


def test_M217_squaring_keeps_to_the_cap_on_pixels() -> None:
    stored = picture(200, 200, 8)
    assert refused(radiograph(stored, bits=8, PixelAspectRatio=[9, 1]), max_megapixels=0.3).code == "D110"


def test_M218_a_uid_of_letters() -> None:
    data = radiograph()
    uid = b"1.2.826.0.1.3680043.8.498.1"
    at = data.rindex(uid)
    assert refused(data[:at] + uid.replace(b"826", b"8X6") + data[at + len(uid) :]).code == "M218"
    assert read(data).instance == read(radiograph(WindowCenter=9, WindowWidth=90)).instance != ""


def test_D110_D111_D112_hold_for_dicom_too() -> None:
    assert refused(radiograph(), max_megapixels=0.001).code == "D110"
    assert refused(radiograph(np.full((40, 32), 7, np.uint16))).code == "D111"
    assert refused(radiograph(picture(4, 300))).code == "D112"


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


def test_every_way_in_reads_dicom(tmp_path: Path) -> None:
    data = radiograph()
    path = tmp_path / "1.2.826.1"
    path.write_bytes(data)
    expected = read(data)
    for image in (decode_file(path), read_image_bytes(data, "upload"), read_image_bytes(data[132:], "bare")):
        assert (image.pixels == expected.pixels).all()
        assert image.file_type == "dicom"
    assert decode_file(path).size_bytes == len(data)


def test_a_preamble_that_imitates_another_format_is_dicom_all_the_same() -> None:
    data = radiograph()
    assert read_image_bytes(b"II*\0" + data[4:], "dual").file_type == "dicom"


def test_M215_the_real_files_with_wrong_tags_are_the_ones_refused(real_data: Path) -> None:
    expect = {"modality": ("DX", "CR"), "body_part": ("CHEST",)}
    told = {}
    for path in sorted((real_data / "dicom").glob("*.dcm")):
        try:
            decode_file(path, expect=expect)
        except DataError as problem:
            told[path.name] = problem.problem.split(",")[0]
    assert sorted(told.values()) == ["BodyPartExamined is RIBCAGE", "Modality is CT"]


def test_M201_a_real_film_and_its_honest_negative_are_one_picture(real_data: Path) -> None:
    film = decode_file(real_data / "dicom" / "test2.dcm").pixels
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BurnedInAnnotation": "NO"}
    assert (read(radiograph(255 - film, bits=8, **tags)).pixels == film).all()


def test_M201_M218_a_real_file_whose_tag_alone_was_changed_is_a_negative_under_the_same_uid(real_data: Path) -> None:
    """Equal stored pixels under both tags cannot both be right: the tag is obeyed, and the audit finds the pair."""
    one, two = (decode_file(real_data / "dicom" / f"cr_jpeg_monochrome{k}.dcm") for k in (1, 2))
    assert (one.pixels.astype(int) + two.pixels == 255).all()
    assert one.instance == two.instance != ""


def test_real_radiographs_are_bright_where_the_body_is(real_data: Path) -> None:
    for k in range(1, 7):
        image = decode_file(real_data / "dicom" / f"test{k}.dcm")
        small = np.asarray(PIL.fromarray(image.pixels).resize((8, 8), PIL.Resampling.BOX)).astype(int)
        assert image.pixels.shape == (1024, 1024)
        assert small[2:6, 3:5].mean() > small[0, [0, -1]].mean()
