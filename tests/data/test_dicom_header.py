"""DICOM radiographs: what a header says of frames, formats and origin (FAULTS M205, M209, M210, M215-M218)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_reading import read, refused

from dicom_files import NATIVE, dataset, picture, radiograph, written
from medloom.data.dicom_pixels import OVERLAY, SQUARED
from medloom.data.images import decode_file, read_image_bytes
from medloom.data.modes import BURNED_IN
from medloom.errors import DataError


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


def test_M201_M218_a_real_file_whose_tag_alone_was_changed_is_a_negative_under_the_same_uid(real_data: Path) -> None:
    """Equal stored pixels under both tags cannot both be right: the tag is obeyed, and the audit finds the pair."""
    one, two = (decode_file(real_data / "dicom" / f"cr_jpeg_monochrome{k}.dcm") for k in (1, 2))
    assert (one.pixels.astype(int) + two.pixels == 255).all()
    assert one.instance == two.instance != ""
