"""Transfer syntaxes of DICOM: decoded as pydicom does, or refused by name (FAULTS M202, M207-M209, M211)."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image as PIL
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from dicom_files import dataset, meta, picture, written
from medloom.data.dicom import read_dicom
from medloom.data.dicom_codecs import CODECS, NATIVE, REFUSED, read_frame, syntax_name, to_rgb
from medloom.data.dicom_header import header_of, pixel_format
from medloom.data.dicom_stream import walk_stream
from medloom.errors import DataError

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "dicom.md"
ODD = {
    "J2K_pixelrep_mismatch.dcm": "M209",  # its codestream says another sign than its header
    "MR_small_padded.dcm": "M208",
    "MR_truncated.dcm": "M211",
    "GDCMJ2K_TextGBR.dcm": "M211",  # JPEG 2000 in the boxes of a JP2 file, which DICOM forbids
    "JPEG2000-embedded-sequence-delimiter.dcm": "M208",
    "JPEG-lossy.dcm": "M202",
    "JPGExtended.dcm": "M202",
    "SC_rgb_jpeg.dcm": "M211",  # implicit elements in an explicit syntax
    "badVR.dcm": "M209",
    "meta_missing_tsyntax.dcm": "M209",  # pixels, and no word of their format
    "nested_priv_SQ.dcm": "M209",
    "liver_1frame.dcm": "M209",
    "liver_expb_1frame.dcm": "M209",
}


def refused(data: bytes, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_dicom(data, "x.dcm", **options)
    return caught.value


def compressed(made: Dataset, uid: UID, frames: list[bytes]) -> bytes:
    made.PixelData = encapsulate(frames)
    made["PixelData"].is_undefined_length = True
    made["PixelData"].VR = "OB"
    return written(made, uid)


def by_pydicom(pixels: np.ndarray, uid: UID, bits: int, **tags: Any) -> bytes:
    made = dataset(pixels, bits=bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits, **tags)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.compress(uid, pixels, generate_instance_uid=False)
    return written(made, uid)


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    PIL.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


def _raw(data: bytes, name: str) -> tuple[np.ndarray | None, str, int]:
    try:
        stream = walk_stream(data, name)
        header = header_of(stream, name)
        fmt = pixel_format(header)
        return read_frame(stream, header, fmt, 0), "", fmt.samples
    except DataError as problem:
        return None, problem.code, 0


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.dcm")))
def test_the_samples_of_pydicom_are_read_as_by_pydicom_or_refused_by_code(name: str) -> None:
    data = (SAMPLES / name).read_bytes()
    found, code, samples = _raw(data, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = pydicom.dcmread(io.BytesIO(data), force=True)
        if found is None:
            depth, colour = known.get("BitsAllocated", 0), known.get("SamplesPerPixel") == 3
            usual = {"M206", "M211"} if "PixelData" not in known else {"M209"} if depth == 32 or colour else set()
            assert code in ({ODD[name]} if name in ODD else usual)
            return
        assert name not in ODD
        expected = pixel_array(known, index=0)
    expected = expected.astype(expected.dtype.newbyteorder("="))
    if expected.dtype.kind == "i":
        expected = expected.view(f"u{expected.dtype.itemsize}")
    assert found.shape == expected.shape
    # Colours that pydicom turns with tables of its own may be a level away.
    assert np.abs(found.astype(int) - expected).max() <= (2 if samples == 3 else 0)


@pytest.mark.parametrize("uid", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: UID(uid).name)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_M202_lossless_syntaxes_keep_every_bit(uid: UID, bits: int) -> None:
    stored = picture(bits=bits)
    image = read_dicom(by_pydicom(stored, uid, bits), "x")
    assert np.abs(image.pixels.astype(int) - stored).max() <= 1
    assert image.bits == bits


@pytest.mark.parametrize("uid", [RLELossless, JPEG2000Lossless], ids=lambda uid: UID(uid).name)
def test_M202_signed_pixels_survive_compression(uid: UID) -> None:
    stored = picture().astype(np.int16) - 2048
    native = read_dicom(written(dataset(stored, WindowCenter=0, WindowWidth=4096)), "x")
    made = dataset(stored, WindowCenter=0, WindowWidth=4096)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.compress(uid, stored, generate_instance_uid=False)
    assert (read_dicom(written(made, uid), "x").pixels == native.pixels).all()


def test_M202_jpeg_baseline_grey_and_colour() -> None:
    grey = picture(64, 64, 8)
    data = jpeg(grey)
    image = read_dicom(compressed(dataset(grey, bits=8), JPEGBaseline8Bit, [data]), "x")
    assert (image.pixels == np.asarray(PIL.open(io.BytesIO(data)))).all()
    colour = np.stack([picture(64, 64, 8, seed=k) for k in range(3)], axis=2)
    data = jpeg(colour)
    made = dataset(colour, bits=8, PhotometricInterpretation="YBR_FULL_422")
    image = read_dicom(compressed(made, JPEGBaseline8Bit, [data]), "x")
    assert np.abs(image.pixels.astype(int) - np.asarray(PIL.open(io.BytesIO(data)))).max() <= 2


@pytest.mark.parametrize("table", [True, False])
def test_M205_M207_frames_in_several_pieces_need_their_table(table: bool) -> None:
    frames = [picture(64, 64, 8, seed=k) for k in range(2)]
    packed = [jpeg(frame) for frame in frames]
    made = dataset(np.stack(frames), bits=8)
    made.PixelData = encapsulate(packed, fragments_per_frame=2, has_bot=table)
    made["PixelData"].is_undefined_length = True
    made["PixelData"].VR = "OB"
    data = written(made, JPEGBaseline8Bit)
    if not table:
        assert refused(data, frames="first").code == "M208"
        return
    for k in range(2):
        image = read_dicom(data, "x", frames="all", frame=k)
        assert (image.pixels == np.asarray(PIL.open(io.BytesIO(packed[k])))).all()


@pytest.mark.parametrize("uid", REFUSED)
def test_M202_a_syntax_that_is_not_decoded_is_named(uid: str) -> None:
    data = compressed(dataset(picture(bits=8), bits=8), JPEGBaseline8Bit, [b"anything"])
    length = struct.unpack("<I", data[140:144])[0]
    problem = refused(meta(uid) + data[144 + length :])
    assert problem.code == "M202"
    assert REFUSED[uid] in problem.problem


def test_M202_an_unknown_syntax_is_named_by_its_uid() -> None:
    problem = refused(compressed(dataset(picture(bits=8), bits=8), UID("1.2.3.4.5"), [b"anything"]))
    assert problem.code == "M202"
    assert "1.2.3.4.5" in problem.problem


def test_M202_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = by_pydicom(picture(), JPEGLSLossless, 12)
    monkeypatch.setattr(get_decoder(JPEGLSLossless), "_available", {})
    problem = refused(data)
    assert (problem.code, "pyjpegls" in problem.problem, "pyjpegls" in problem.remedy) == ("M202", True, True)
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    problem = refused(data)
    assert problem.code == "M202"
    assert "medloom[dicom]" in problem.remedy


def test_uncompressed_files_need_no_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(dataset(picture()))
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert read_dicom(data, "x").bits == 12


@pytest.mark.parametrize("uid", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda uid: UID(uid).name)
@pytest.mark.parametrize(
    ("tags", "codes"),
    [
        ({"Rows": 20}, ("M207", "M208", "M211")),
        ({"Rows": 80}, ("M207", "M211")),
        ({"Columns": 16}, ("M207", "M208", "M211")),
        ({"Rows": 32, "Columns": 40}, ("M207", "M208")),
        ({"BitsStored": 10, "HighBit": 9}, ("M209",)),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, ("M209",)),
    ],
    ids=str,
)
def test_M207_M208_M209_a_compressed_image_of_another_form(
    uid: UID, tags: dict[str, Any], codes: tuple[str, ...]
) -> None:
    data = by_pydicom(picture(), uid, 12)
    if uid == RLELossless and tags == {"Rows": 32, "Columns": 40}:
        pytest.skip("RLE holds no sizes: an image of as many pixels cannot be told")
    made = pydicom.dcmread(io.BytesIO(data))
    for name, value in tags.items():
        setattr(made, name, value)
    assert refused(written(made, uid)).code in codes


@pytest.mark.parametrize("uid", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda uid: UID(uid).name)
def test_M211_a_compressed_frame_cut_anywhere(uid: UID) -> None:
    """The pieces are whole as DICOM; what is in them is not."""
    made = pydicom.dcmread(io.BytesIO(by_pydicom(picture(), uid, 12)))
    frame = bytes(pydicom.encaps.get_frame(made.PixelData, 0, number_of_frames=1))
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        cut = frame[: int(share * len(frame)) // 2 * 2]
        assert refused(compressed(made, uid, [cut])).code == "M211", share


def test_M211_rle_data_that_are_too_long_are_damaged_whatever_the_filter_of_warnings() -> None:
    made = pydicom.dcmread(io.BytesIO(by_pydicom(picture(), RLELossless, 12)))
    made.Rows = 20
    data = written(made, RLELossless)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert refused(data).code == "M211"
    assert not told


def test_M211_pixels_of_another_syntax_than_the_header_says() -> None:
    frame = jpeg(picture(64, 64, 8))
    for uid in CODECS:
        if uid not in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"):
            assert refused(compressed(dataset(picture(64, 64, 8), bits=8), UID(uid), [frame])).code == "M211", uid


def test_M211_native_and_encapsulated_are_not_confused() -> None:
    native = written(dataset(picture()))
    assert refused(native.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1)).code == "M211"


def test_full_range_colours_come_back() -> None:
    grey = np.arange(256, dtype=np.uint8)
    ybr = np.stack([grey, np.full(256, 128, np.uint8), np.full(256, 128, np.uint8)], axis=1)
    assert (to_rgb(ybr) == grey[:, None]).all()
    assert (to_rgb(np.array([[76, 85, 255]], np.uint8)) == [[254, 0, 0]]).all()


def test_M202_the_documented_matrix_is_the_one_that_holds() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for uid in (*NATIVE, *CODECS, *REFUSED):
        assert syntax_name(uid) in text, uid
    for codec in CODECS.values():
        assert codec.package in text


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("signed", [False, True])
def test_M202_lossless_files_of_another_writer(tmp_path: Path, compressor: str, signed: bool) -> None:
    """SimpleITK writes JPEG Lossless SV1 and JPEG 2000; its own reading is the expectation."""
    stored = picture(48, 40, 16).astype(np.int32) - (32768 if signed else 0)
    image = SimpleITK.GetImageFromArray(stored.astype(np.int16 if signed else np.uint16)[None])
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetCompressor(compressor)
    writer.UseCompressionOn()
    writer.SetFileName(str(tmp_path / "x.dcm"))
    writer.Execute(image)
    data = (tmp_path / "x.dcm").read_bytes()
    stream = walk_stream(data, "x")
    assert stream.syntax == {"JPEG": "1.2.840.10008.1.2.4.70", "JPEG2000": "1.2.840.10008.1.2.4.90"}[compressor]
    header = header_of(stream, "x")
    raw = read_frame(stream, header, pixel_format(header), 0)
    assert (raw.view(np.int16 if signed else np.uint16) == stored).all()
