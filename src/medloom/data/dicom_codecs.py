"""Pixel data of a DICOM file to samples, for the transfer syntaxes of docs/dicom.md; every other is refused by name.

Uncompressed pixels need no package. Compressed ones are decoded by pydicom's plugins, a chosen one per syntax where two
could round differently, and only after the codestream's own header was held against the file's: a decoder given other
sizes than it was told returns other pixels, not an error.

Reference: DICOM PS3.5 sections 8.2 and annexes A, G; ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 annex A (JPEG 2000).
"""

from __future__ import annotations

import logging
import struct
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from medloom.data.dicom_header import Header, PixelFormat
from medloom.data.dicom_stream import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, PIXEL_DATA, Stream
from medloom.errors import DataError


@dataclass(frozen=True)
class Codec:
    """One compressed transfer syntax.

    Attributes:
        plugins: pydicom's plugins that decode it, the first that is there is taken.
        package: what to install where none is.
        frame_types: codes of JPEG's start-of-frame marker that the syntax allows; 0x51 stands for JPEG 2000.
    """

    name: str
    plugins: tuple[str, ...]
    package: str
    frame_types: tuple[int, ...] = ()


_J2K = (("pylibjpeg", "pillow"), "pylibjpeg[openjpeg]", (0x51,))
_HTJ2K = (("pylibjpeg",), "pylibjpeg[openjpeg]", (0x51,))
_JLS = (("pyjpegls",), "pyjpegls", (0xF7,))
NATIVE = {
    IMPLICIT: "Implicit VR Little Endian",
    EXPLICIT: "Explicit VR Little Endian",
    DEFLATED: "Deflated Explicit VR Little Endian",
    BIG_ENDIAN: "Explicit VR Big Endian",
}
CODECS = {
    "1.2.840.10008.1.2.4.50": Codec("JPEG Baseline", ("pillow",), "pydicom", (0xC0,)),
    "1.2.840.10008.1.2.4.51": Codec("JPEG Extended", ("pillow",), "pydicom", (0xC0, 0xC1)),
    "1.2.840.10008.1.2.4.57": Codec("JPEG Lossless", ("gdcm",), "python-gdcm", (0xC3,)),
    "1.2.840.10008.1.2.4.70": Codec("JPEG Lossless SV1", ("gdcm",), "python-gdcm", (0xC3,)),
    "1.2.840.10008.1.2.4.80": Codec("JPEG-LS Lossless", *_JLS),
    "1.2.840.10008.1.2.4.81": Codec("JPEG-LS Near-Lossless", *_JLS),
    "1.2.840.10008.1.2.4.90": Codec("JPEG 2000 Lossless", *_J2K),
    "1.2.840.10008.1.2.4.91": Codec("JPEG 2000", *_J2K),
    "1.2.840.10008.1.2.4.201": Codec("HTJ2K Lossless", *_HTJ2K),
    "1.2.840.10008.1.2.4.202": Codec("HTJ2K Lossless RPCL", *_HTJ2K),
    "1.2.840.10008.1.2.4.203": Codec("HTJ2K", *_HTJ2K),
    # Not pylibjpeg's, 13 times faster: on damaged data it panics, which is no exception that can be handled.
    "1.2.840.10008.1.2.5": Codec("RLE Lossless", ("pydicom",), "pydicom"),
}
# Known by name, and decoded nowhere here: films, retired processes, servers that must be asked.
REFUSED = {
    "1.2.840.10008.1.2.4.92": "JPEG 2000 Multi-component Lossless",
    "1.2.840.10008.1.2.4.93": "JPEG 2000 Multi-component",
    "1.2.840.10008.1.2.4.94": "JPIP Referenced",
    "1.2.840.10008.1.2.4.95": "JPIP Referenced Deflate",
    **{f"1.2.840.10008.1.2.4.{n}": "MPEG video" for n in ("100", "100.1", "101", "101.1", "102", "102.1", "103")},
    **{f"1.2.840.10008.1.2.4.{n}": "MPEG video" for n in ("103.1", "104", "104.1", "105", "105.1", "106", "106.1")},
    **{f"1.2.840.10008.1.2.4.{n}": "HEVC video" for n in ("107", "108")},
    **{f"1.2.840.10008.1.2.4.{n}": "JPEG XL" for n in ("110", "111", "112")},
    "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame",
}
_CONVERT = "Convert it to Explicit VR Little Endian (dcmdjpeg, gdcmconv), or ask the archive for that"
_COPY = "Copy it again from its source, or list it in data.exclude"
_quiet = threading.Lock()


def syntax_name(uid: str) -> str:
    """The name of a transfer syntax, or its UID where it has none here."""
    codec = CODECS.get(uid)
    return NATIVE.get(uid) or (codec.name if codec else REFUSED.get(uid, f"transfer syntax {uid[:64]}"))


def keeps_containers(uid: str) -> bool:
    """Whether a syntax stores the bits above the significant ones too: the uncompressed ones and RLE do."""
    return uid in NATIVE or not CODECS[uid].frame_types


def read_frame(stream: Stream, header: Header, fmt: PixelFormat, frame: int) -> np.ndarray:
    """Samples of one frame as they are stored: ``(H, W)`` uint8 or uint16 codes, or ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: M202 a syntax that is not decoded here, or a package that is missing (named); M207, M208 fewer or
            more data than the header declares; M209 a codestream of another depth or sign; M211 damaged.
    """
    element = stream.elements[PIXEL_DATA]
    if stream.syntax in NATIVE:
        if element.fragments is not None:
            raise DataError("M211", header.place, "compressed pixels in an uncompressed transfer syntax", _COPY)
        return _native(element.value, element.vr, stream, header, fmt, frame)
    codec = CODECS.get(stream.syntax)
    if codec is None:
        told = f"{syntax_name(stream.syntax)} is not decoded by any package that is used here"
        raise DataError("M202", header.place, told, _CONVERT)
    if element.fragments is None:
        raise DataError("M211", header.place, f"{codec.name} whose pixels are not encapsulated", _COPY)
    data = _frame_bytes(element.fragments, header, fmt, frame)
    _check_codestream(codec, data, header, fmt)
    return _decode(stream.syntax, codec, data, header, fmt)


def _native(
    data: memoryview, vr: str, stream: Stream, header: Header, fmt: PixelFormat, frame: int
) -> np.ndarray:  # fmt: skip
    size = fmt.allocated // 8
    values = fmt.frame_values * 2 // 3 if fmt.photometric == "YBR_FULL_422" else fmt.frame_values
    expected = values * size * fmt.frames
    told = f"the header declares {fmt.frames} x {fmt.rows} x {fmt.columns} x {fmt.samples} values, {expected:,} bytes"
    if len(data) < expected:
        raise DataError("M207", header.place, f"{told}, and {len(data):,} are there", _COPY)
    if len(data) > expected + expected % 2:
        raise DataError("M208", header.place, f"{told}, and {len(data):,} are there", _COPY)
    part = data[frame * values * size : (frame + 1) * values * size]
    if size == 2:
        raw: np.ndarray = np.frombuffer(part, "<u2" if stream.little else ">u2").astype(np.uint16)
    else:
        raw = np.frombuffer(part, np.uint8)
        # PS3.5 annex A.3: as OW, two pixels are one word, and its bytes change places. Frames of odd size share one.
        if not stream.little and vr == "OW":
            whole = np.frombuffer(data[: len(data) // 2 * 2], np.uint8).reshape(-1, 2)[:, ::-1].reshape(-1)
            raw = whole[frame * values : (frame + 1) * values]
    if fmt.samples == 1:
        return raw.reshape(fmt.rows, fmt.columns)
    if fmt.photometric == "YBR_FULL_422":
        if fmt.columns % 2 or fmt.planar:
            raise DataError("M209", header.place, "halved colours of an odd width, or in planes", _COPY)
        pairs = raw.reshape(-1, 4)  # Y, Y, Cb, Cr
        raw = np.stack([pairs[:, (0, 1)], pairs[:, (2, 2)], pairs[:, (3, 3)]], axis=2).reshape(-1)
    elif fmt.planar:
        raw = raw.reshape(3, -1).T.reshape(-1)
    colour = raw.reshape(fmt.rows, fmt.columns, 3)
    return colour if fmt.photometric == "RGB" else to_rgb(colour)


def to_rgb(ybr: np.ndarray) -> np.ndarray:
    """YBR_FULL to RGB, uint8 (PS3.3 section C.7.6.3.1.2, ITU-R BT.601 over the full range)."""
    y, cb, cr = (ybr[..., k].astype(np.float32) - (128.0 if k else 0.0) for k in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.rint(np.clip(rgb, 0, 255)).astype(np.uint8)


def _frame_bytes(fragments: tuple[memoryview, ...], header: Header, fmt: PixelFormat, frame: int) -> bytes:
    """The fragments of one frame, joined: one each, or by the offset table."""
    if len(fragments) < 2:
        raise DataError("M207", header.place, "no compressed pixels in it", _COPY)
    table, parts = fragments[0], fragments[1:]
    if fmt.frames == 1:
        return b"".join(parts)
    if len(parts) == fmt.frames:
        return bytes(parts[frame])
    if len(table) != 4 * fmt.frames:
        told = f"{len(parts)} pieces for {fmt.frames} frames, and no table of where they begin"
        raise DataError("M208" if len(parts) > fmt.frames else "M207", header.place, told, _COPY)
    begins = [start for (start,) in struct.iter_unpack("<I", table)]
    at, places = 0, []
    for part in parts:
        places.append(at)
        at += 8 + len(part)
    if begins[0] != 0 or sorted(set(begins)) != begins or not set(begins) <= set(places):
        raise DataError("M211", header.place, "the table of frames does not fit the pieces", _COPY)
    end = begins[frame + 1] if frame + 1 < fmt.frames else at
    return b"".join(part for start, part in zip(places, parts) if begins[frame] <= start < end)


def _check_codestream(codec: Codec, data: bytes, header: Header, fmt: PixelFormat) -> None:
    """Size, components and depth that the compressed frame itself declares, against the header's."""
    if not codec.frame_types:  # RLE: one segment per byte of a sample, the most significant first
        count = struct.unpack_from("<I", data)[0] if len(data) >= 64 else 0
        starts = struct.unpack_from("<15I", data, 4)[:count] if len(data) >= 64 and count <= 15 else ()
        good = len(starts) == count and list(starts) == sorted(set(starts)) and starts[:1] == (64,)
        if not good or starts[-1] >= len(data):
            raise DataError("M211", header.place, "damaged RLE data", _COPY)
        if count != fmt.samples * fmt.allocated // 8:
            told = f"RLE of {count} segments for {fmt.samples} samples of {fmt.allocated} bits"
            raise DataError("M209", header.place, told, _COPY)
        return
    found = _size_of(data)
    whole = data.rstrip(b"\0").endswith(b"\xff\xd9") or data[:-1].endswith(b"\xff\xd9")  # padded to even length
    if found is None or not whole:
        raise DataError("M211", header.place, f"{codec.name} data that are damaged or cut off", _COPY)
    kind, rows, columns, samples, bits, signed = found
    if kind not in codec.frame_types:
        raise DataError("M211", header.place, f"the pixels are not {codec.name}", _COPY)
    if kind == 0xC1 and bits != 8:
        told = f"{codec.name} of {bits} bits, which no package that is used here decodes"
        raise DataError("M202", header.place, told, _CONVERT)
    if (rows, columns) != (fmt.rows, fmt.columns):
        told = f"declares {fmt.rows} x {fmt.columns} pixels, and the compressed image has {rows} x {columns}"
        more = fmt.rows * fmt.columns > rows * columns
        raise DataError("M207" if more else "M208", header.place, told, _COPY)
    wrong_sign = signed is not None and signed != fmt.signed
    if samples != fmt.samples or not fmt.stored <= bits <= fmt.allocated or wrong_sign:
        told = f"the compressed image has {samples} samples of {bits} bits, the header {fmt.samples} of {fmt.stored}"
        sign = ", and another sign" if wrong_sign else ""
        raise DataError("M209", header.place, f"{told}{sign}", "Export it again from the archive")


def _size_of(data: bytes) -> tuple[int, int, int, int, int, bool | None] | None:
    """Frame type, rows, columns, samples, bits and sign (None: not told) of a JPEG, JPEG-LS or JPEG 2000 stream."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 45:
        right, bottom, left, top = struct.unpack_from(">IIII", data, 8)
        samples, depth = struct.unpack_from(">HB", data, 40)
        return 0x51, bottom - top, right - left, samples, (depth & 127) + 1, depth > 127
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            if length < 8 or at + 10 > len(data):
                return None
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return marker, rows, columns, samples, bits, None
        if marker in (0xD8, 0xD9, 0xDA) or length < 2:
            return None
        at += 2 + length
    return None


def _decode(uid: str, codec: Codec, data: bytes, header: Header, fmt: PixelFormat) -> np.ndarray:
    try:
        from pydicom.encaps import encapsulate
        from pydicom.pixels import get_decoder
    except Exception:  # noqa: BLE001 - beside a folder named dl, the import of gdcm in it dies of something else
        told = f"{codec.name} pixels need the package pydicom, and it cannot be imported"
        remedy = "Install medloom[dicom]; work in no folder that holds one named dl"
        raise DataError("M202", header.place, told, remedy) from None
    for name in ("openjpeg", "pylibjpeg"):  # what they would print stands in our error, without the file's words
        if not logging.getLogger(name).handlers:
            logging.getLogger(name).addHandler(logging.NullHandler())
    decoder = get_decoder(uid)
    plugin = next((name for name in codec.plugins if name in decoder.available_plugins), None)
    if plugin is None:
        told = f"{codec.name} pixels need the package {codec.package}"
        raise DataError("M202", header.place, told, f"pip install '{codec.package}', or install medloom[dicom]")
    options: dict[str, Any] = {
        "rows": fmt.rows,
        "columns": fmt.columns,
        "number_of_frames": 1,
        "samples_per_pixel": fmt.samples,
        "photometric_interpretation": fmt.photometric,
        "planar_configuration": fmt.planar,
        "bits_allocated": fmt.allocated,
        "bits_stored": fmt.stored,
        "pixel_representation": int(fmt.signed),
        "pixel_keyword": "PixelData",
        # What lies above the stored bits is looked at here, not shifted away.
        "correct_unused_bits": False,
        "apply_j2k_sign_correction": False,
        "apply_jls_sign_correction": False,
    }
    if fmt.samples > 1 or not codec.frame_types:
        # Of colours pydicom has opinions, told as warnings; of RLE data that are too long, a warning is all it has, and
        # here they are damaged. Filters of warnings belong to the whole process: hence the lock.
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore" if codec.frame_types else "error")
            return _called(decoder, encapsulate([data]), plugin, codec, header, fmt, options)
    return _called(decoder, encapsulate([data]), plugin, codec, header, fmt, options)


def _called(
    decoder: Any, data: bytes, plugin: str, codec: Codec, header: Header, fmt: PixelFormat, options: dict[str, Any]
) -> np.ndarray:
    """What any codec raises becomes ours; its text is left out, as it may repeat what stands in the file."""
    try:
        array, told = decoder.as_array(data, index=0, validate=False, decoding_plugin=plugin, **options)
    except MemoryError:
        raise DataError(
            "D110", header.place, "too large for this machine's memory", "Lower data.max_megapixels"
        ) from None
    except Exception:  # noqa: BLE001 - ten kinds were seen
        raise DataError("M211", header.place, f"{codec.name} data that cannot be decoded", _COPY) from None
    shape = (fmt.rows, fmt.columns) if fmt.samples == 1 else (fmt.rows, fmt.columns, 3)
    if array.shape != shape or array.dtype.kind not in "iu" or array.dtype.itemsize > 2:
        raise DataError("M211", header.place, f"{codec.name} data of another size than declared", _COPY)
    if fmt.samples == 3 and str(told["photometric_interpretation"]) != "RGB":
        array = to_rgb(array)
    whole = np.ascontiguousarray(array.astype(f"{array.dtype.kind}{fmt.allocated // 8}"))  # extends a sign
    return whole.view(f"u{whole.dtype.itemsize}")
