"""DICOM's bytes before their meaning: lengths, nesting, counts, file meta (FAULTS M206-M208, M211-M214)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_files import NATIVE, SECRETS, dataset, meta, picture, radiograph, secretive, written
from medloom.data import dicom_stream
from medloom.data.dicom import read_dicom
from medloom.data.dicom_stream import MAX_DEPTH, MAX_ELEMENTS, looks_bare, walk_stream
from medloom.data.images import decode_file, read_image_bytes
from medloom.errors import DataError


def refused(data: bytes) -> DataError:
    with pytest.raises(DataError) as caught:
        read_dicom(data, "x.dcm")
    return caught.value


def element(tag: int, vr: bytes, length: int) -> bytes:
    """The header of an explicit little-endian element of a long type."""
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length)


def nested(depth: int) -> Dataset:
    inner = Dataset()
    inner.CodeValue = "1"
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = Sequence([inner])
        inner = outer
    return inner


@pytest.mark.parametrize("syntax", NATIVE)
def test_M207_M208_rows_and_columns_that_are_not_those_of_the_data(syntax: str) -> None:
    stored = picture(128, 128)
    for side, code in ((64, "M208"), (127, "M208"), (129, "M207"), (65535, None)):
        problem = refused(radiograph(stored, syntax=syntax, Rows=side, Columns=side))
        assert problem.code == (code or "D110")
    assert refused(radiograph(stored, syntax=syntax, Rows=0)).code == "M207"
    assert refused(radiograph(stored, syntax=syntax, Rows=8000, Columns=8000)).code == "M207"
    with pytest.raises(DataError, match="M207"):
        read_dicom(radiograph(stored, syntax=syntax, NumberOfFrames=4), "x", frames="first")


def test_M208_four_small_frames_are_not_made_of_one_picture() -> None:
    """64 x 64 over the data of 128 x 128: elsewhere a film of four frames comes out."""
    assert "32,768 are there" in refused(radiograph(picture(128, 128), Rows=64, Columns=64)).problem


@pytest.mark.parametrize(
    ("uid", "word"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.11", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "key object"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "encapsulated document"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "waveform"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "radiotherapy"),
        ("1.2.840.10008.1.3.10", "directory"),
        ("1.2.3.4.5", "SOP class 1.2.3.4.5"),
    ],
)
def test_M206_objects_without_an_image_are_named(uid: str, word: str) -> None:
    problem = refused(radiograph(SOPClassUID=uid, PixelData=None))
    assert problem.code == "M206"
    assert word in problem.problem


@pytest.mark.parametrize("name", ["FloatPixelData", "DoubleFloatPixelData"])
def test_M206_floating_point_pixels(name: str) -> None:
    problem = refused(radiograph(PixelData=None, **{name: bytes(40 * 32 * 8)}))
    assert problem.code == "M206"
    assert "floating" in problem.problem


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_M211_a_length_beyond_the_file(syntax: str) -> None:
    """Four gigabytes declared in a file of a few kilobytes; elsewhere the first elements come back quietly."""
    data = bytearray(radiograph(syntax=syntax))
    order = ">" if syntax == "big" else "<"
    length = struct.pack(order + "I", 40 * 32 * 2)
    at = bytes(data).rindex(length)
    data[at : at + 4] = struct.pack(order + "I", 0xFFFFFFFE)
    problem = refused(bytes(data))
    assert problem.code == "M211"
    assert "4,294,967,294" in problem.problem


@pytest.mark.parametrize("syntax", NATIVE)
def test_M211_every_cut_is_found(syntax: str) -> None:
    data = radiograph(picture(16, 16), syntax=syntax)
    for end in range(132, len(data) - (syntax == "deflated")):  # its last byte is padding
        assert refused(data[:end]).code in ("M206", "M207", "M209", "M211", "M214"), end


def test_M211_disorder_and_unknown_types() -> None:
    body = struct.pack("<HH2sH", 0x28, 0x10, b"US", 2) + b"\x10\0"
    assert refused(meta() + body + body).code == "M211"
    assert refused(meta() + struct.pack("<HH2sH", 0x28, 0x10, b"QQ", 2) + b"\x10\0").code == "M211"
    assert refused(meta() + element(0x00091010, b"OB", 0xFFFFFFFF)).code == "M211"
    sequence = element(0x00081140, b"SQ", 8)
    assert refused(meta() + sequence + struct.pack("<HHI", 0x28, 0x10, 0)).code == "M211"
    assert refused(meta() + element(0x00081140, b"SQ", 0xFFFFFFFF)).code == "M211"


def test_M211_what_follows_the_pixels_is_padding_or_refused() -> None:
    data = radiograph()
    assert (read_dicom(data + bytes(10), "x").pixels == read_dicom(data, "x").pixels).all()
    padded = data + element(0xFFFCFFFC, b"OB", 4) + bytes(4)
    assert (read_dicom(padded, "x").pixels == read_dicom(data, "x").pixels).all()
    assert refused(data + b"trailing words").code == "M211"


@pytest.mark.parametrize("syntax", NATIVE)
def test_M212_nesting_has_an_end(syntax: str) -> None:
    made = dataset(picture())
    made.ContentSequence = Sequence([nested(5)])
    assert read_dicom(written(made, syntax), "x").pixels.size
    if syntax != "implicit":
        # Of a length that is written down, and of one that is not: pydicom writes the first kind here.
        made.ContentSequence = Sequence([nested(200)])
        assert refused(written(made, syntax)).code == "M212"
    opened = struct.pack("<HH2sHI", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    assert refused(meta() + opened * (MAX_DEPTH + 1)).code == "M212"
    assert refused(meta() + opened * 20_000).code == "M212"


def test_M213_too_many_elements_or_too_large_a_one(monkeypatch: pytest.MonkeyPatch) -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    assert refused(meta() + element(0x0040A730, b"SQ", 8 * MAX_ELEMENTS + 8) + item * (MAX_ELEMENTS + 1)).code == "M213"
    many = [
        struct.pack("<HH2sHH", 9 + 2 * (k // 0x6000), 0x1000 + k % 0x6000, b"US", 2, 0) for k in range(MAX_ELEMENTS + 1)
    ]
    assert refused(meta() + b"".join(many)).code == "M213"
    monkeypatch.setattr(dicom_stream, "MAX_VALUE", 1000)
    made = dataset(picture())
    made.add_new(0x00110010, "LO", "MAKER")
    made.add_new(0x00111001, "OB", bytes(2000))
    assert refused(written(made)).code == "M213"


def test_M214_legal_files_without_preamble_or_meta(tmp_path: Path) -> None:
    expected = read_dicom(radiograph(), "x").pixels
    for syntax in ("explicit", "implicit", "big"):
        data = radiograph(syntax=syntax)
        assert looks_bare(data[132:])
        assert (read_image_bytes(data[132:], "no preamble").pixels == expected).all()
        length = struct.unpack("<I", data[140:144])[0]
        bare = data[144 + length :]
        assert (read_image_bytes(bare, "no meta").pixels == expected).all()
        (tmp_path / "scan.dcm").write_bytes(bare)
        assert (decode_file(tmp_path / "scan.dcm").pixels == expected).all()


@pytest.mark.parametrize(
    "data", [b"BM" + bytes(40), b"\0" * 200, b"\2\0\0\0 no", b"\x08\0\x05\0\xff\xff\xff\xff" + bytes(9)]
)
def test_M214_other_bytes_are_not_taken_for_bare_dicom(data: bytes) -> None:
    assert not looks_bare(data)


def test_M214_a_meta_group_of_a_wrong_length() -> None:
    data = bytearray(radiograph())
    data[140:144] = struct.pack("<I", struct.unpack("<I", data[140:144])[0] + 2)
    assert refused(bytes(data)).code == "M214"


def test_M214_a_transfer_syntax_that_is_no_uid() -> None:
    data = radiograph()
    assert refused(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.1000X.1.2.1\0", 1)).code == "M214"


def test_M214_a_deflate_bomb_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_stream, "INFLATED_FLOOR", 1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    problem = refused(meta("1.2.840.10008.1.2.1.99") + packed)
    assert problem.code == "M214"
    assert "unpack to more than" in problem.problem


def test_M214_damaged_and_cut_deflate_streams() -> None:
    data = radiograph(syntax="deflated")
    assert refused(data[:-200]).code == "M214"
    start = data.index(b"1.2.840.10008.1.2.1.99") + 400
    assert refused(data[:start] + bytes(8) + data[start + 8 :]).code in ("M214", "M211")


def test_errors_hold_nothing_that_names_a_person() -> None:
    """Every secret is in the file, and every value is bent in turn; no message may repeat one."""
    good = written(secretive(dataset(picture(), Modality="CT", BodyPartExamined="HAND")))
    assert all(value.encode() in good for value in SECRETS.values())
    texts = []
    for at in range(132, len(good) - 40 * 32 * 2):
        data = bytearray(good)
        data[at] ^= 0xFF
        try:
            read_dicom(bytes(data), "x.dcm", expect={"modality": ("DX",)})
        except DataError as problem:
            texts.append(f"{problem} {problem.as_dict()}")
    assert len(texts) > 500
    words = [part for value in SECRETS.values() for part in value.replace("^", " ").split() if len(part) > 4]
    assert not [text for text in texts if any(word in text for word in (*words, "SECRET"))]


def test_the_walk_keeps_views_and_copies_nothing() -> None:
    data = radiograph(picture(256, 256))
    stream = walk_stream(data, "x")
    pixels = stream.elements[0x7FE00010].value
    assert pixels.obj is data
    assert len(pixels) == 256 * 256 * 2
