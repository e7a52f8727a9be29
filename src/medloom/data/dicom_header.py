"""The header of a DICOM image as values that fit each other: pixel format, identity, what it was taken of.

Values are held against the type that the standard gives them, and the numbers of the pixel format against each other,
before any pixel is touched. Errors tell sizes, codes and classes, never text that could name a person: no identifiers,
names, dates or descriptions are even read, but for the two that are hashed.

Reference: DICOM PS3.3 sections C.7.6.3 (image pixel), C.12.1 (SOP common); PS3.5 section 6.2; PS3.15 annex E.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medloom.data.dicom_stream import PIXEL_DATA, Element, Stream
from medloom.errors import DataError

Group = Mapping[int, Element]

MAX_FRAMES = 10_000
GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
EXPECTABLE = {"modality": 0x00080060, "body_part": 0x00180015, "view": 0x00185101}
"""What a recipe or a bundle may declare of its images, and where a file says it."""

_SPELLED = {0x00080060: "Modality", 0x00180015: "BodyPartExamined", 0x00185101: "ViewPosition"}
_BINARY_FORMS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_SHORT_TAGS = (0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
_TEXT_VRS = frozenset(("CS", "DS", "IS", "UI", "LO", "SH", "UN"))
_REPAIR = "Export it again from the archive, or list it in data.exclude"
# Classes without an image of their own, by the start of their UID (PS3.4 annex B.5; 1.3.10 is PS3.10's directory).
_NOT_IMAGES = (
    ("1.2.840.10008.1.3.10", "a media directory (DICOMDIR)"),
    ("1.2.840.10008.5.1.4.1.1.88.59", "a key object selection"),
    ("1.2.840.10008.5.1.4.1.1.88.", "a structured report"),
    ("1.2.840.10008.5.1.4.1.1.104.", "an encapsulated document (PDF, CDA or model)"),
    ("1.2.840.10008.5.1.4.1.1.11.", "a presentation state"),
    ("1.2.840.10008.5.1.4.1.1.9.", "a waveform"),
    ("1.2.840.10008.5.1.4.1.1.481.", "a radiotherapy object"),
    ("1.2.840.10008.5.1.4.1.1.66", "raw data, a registration or a segmentation"),
    ("1.2.840.10008.5.1.4.1.1.67", "a value mapping"),
)
# Ultrasound, secondary capture, photographs and endoscopy: where text stands in the pixels unless somebody says not.
_OFTEN_BURNED = ("US", "SC", "OT", "XC", "ES")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."


@dataclass(frozen=True)
class PixelFormat:
    """What the header says of the pixels, checked against itself (bits are per sample)."""

    rows: int
    columns: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    signed: bool
    frames: int

    @property
    def frame_values(self) -> int:
        return self.rows * self.columns * self.samples


@dataclass(frozen=True)
class Header:
    """Typed access to a group of elements: the whole file, or an item of a sequence."""

    elements: Group
    little: bool
    place: str

    def __contains__(self, tag: int) -> bool:
        found = self.elements.get(tag)
        return found is not None and (len(found.value) > 0 or bool(found.items) or found.fragments is not None)

    def text(self, tag: int) -> str:
        """A value of an ASCII type, without its padding; empty where there is none."""
        found = self.elements.get(tag)
        if found is None:
            return ""
        if found.vr not in _TEXT_VRS or len(found.value) > 4096:
            raise self.broken(tag, "is of a wrong type")
        return bytes(found.value).decode("ascii", "replace").strip(" \0")

    def numbers(self, tag: int, code: str = "M209") -> tuple[float, ...]:
        """Values of DS or IS, or of a binary number."""
        found = self.elements.get(tag)
        if found is None or not len(found.value):
            return ()
        if found.vr in _BINARY_FORMS:
            form = ("<" if self.little else ">") + _BINARY_FORMS[found.vr]
            if len(found.value) % struct.calcsize(form):
                raise self.broken(tag, "is of a wrong length", code)
            return tuple(float(value) for (value,) in struct.iter_unpack(form, found.value))
        parts = self.text(tag).split("\\")
        if not all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", part.strip()) for part in parts):
            raise self.broken(tag, "is no number", code)
        values = tuple(float(part) for part in parts)
        if not all(math.isfinite(value) for value in values):
            raise self.broken(tag, "is not finite", code)
        return values

    def short(self, tag: int) -> int | None:
        """The single value of a US element, None where there is none; Implicit VR does not write the type."""
        found = self.elements.get(tag)
        if found is None or not len(found.value):
            return None
        if found.vr not in ("US", "UN") or len(found.value) != 2:
            raise self.broken(tag, "is not one 16-bit number")
        return int(struct.unpack(("<" if self.little else ">") + "H", found.value)[0])

    def words(self, tag: int, *, signed: bool = False) -> np.ndarray:
        """16-bit values of an element whatever its type, int64; bytes where their number is odd are refused."""
        found = self.elements.get(tag)
        data = self.elements[tag].value if found is not None else memoryview(b"")
        if len(data) % 2:
            raise self.broken(tag, "is of an odd length")
        return np.frombuffer(data, ("<" if self.little else ">") + ("i2" if signed else "u2")).astype(np.int64)

    def items(self, tag: int) -> tuple[Header, ...]:
        """The items of a sequence."""
        found = self.elements.get(tag)
        if found is None:
            return ()
        if found.vr != "SQ":
            raise self.broken(tag, "is no sequence")
        return tuple(Header(item, self.little, self.place) for item in found.items)

    def broken(self, tag: int, what: str, code: str = "M209") -> DataError:
        return DataError(code, self.place, f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) {what}", _REPAIR)


def header_of(stream: Stream, place: str) -> Header:
    """The top level of a file."""
    return Header(stream.elements, stream.little, place)


def pixel_format(header: Header) -> PixelFormat:
    """The pixel format, every number present and in agreement with the others.

    Raises:
        DataError: M206 no image in it (naming its class), M209 numbers that contradict each other, M205 frames beyond
            any use, M207 no rows or columns.
    """
    if PIXEL_DATA not in header:
        raise DataError("M206", header.place, f"{_what(header)}, without the pixels of an image", "Leave it out")
    photometric = header.text(0x00280004)
    given = {tag: header.short(tag) for tag in _SHORT_TAGS}
    planar = given.pop(0x00280006)
    numbers = [value for value in given.values() if value is not None]
    if len(numbers) < len(given) or not photometric:
        raise DataError("M209", header.place, "a number of the pixel format is missing", _REPAIR)
    samples, rows, columns, allocated, stored, high, signed = numbers
    if not rows or not columns:
        raise DataError("M207", header.place, f"declares {rows} rows and {columns} columns", _REPAIR)
    frames = header.numbers(0x00280008) or (1.0,)
    if len(frames) != 1 or frames[0] != int(frames[0]) or frames[0] < 1:
        raise header.broken(0x00280008, "is no number of frames")
    if frames[0] > MAX_FRAMES:
        raise DataError(
            "M205", header.place, f"declares {frames[0]:.0f} frames, more than {MAX_FRAMES}", "Leave it out"
        )
    told = f"{samples} samples of {stored} bits in {allocated}, the highest bit {high}"
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1 or signed not in (0, 1):
        raise DataError("M209", header.place, f"pixels that cannot be: {told}", _REPAIR)
    known = photometric in GREY or photometric == PALETTE or photometric in COLOUR
    if not known or samples != (3 if photometric in COLOUR else 1):
        raise DataError("M209", header.place, f"{told}, in colours that do not fit", _REPAIR)
    if samples == 3 and (planar not in (0, 1) or (allocated, stored, signed) != (8, 8, 0)):
        raise DataError(
            "M209", header.place, f"colour other than of 8 bits: {told}", "Export it with 8 bits per colour"
        )
    if photometric == PALETTE and signed:
        raise DataError("M210", header.place, "a palette with negative indices", _REPAIR)
    return PixelFormat(
        rows, columns, samples, photometric, planar or 0, allocated, stored, bool(signed), int(frames[0])
    )


def check_expected(header: Header, expect: Mapping[str, Sequence[str]]) -> None:
    """Refuse an image of something else than what was declared; where the file does not say, it passes.

    Raises:
        DataError: M215.
    """
    for name, allowed in expect.items():
        said = header.text(EXPECTABLE[name]).upper()
        if said and said not in {word.upper() for word in allowed}:
            shown = f" is {said}" if re.fullmatch(r"[A-Z0-9_ ]{1,16}", said) else ""
            told = f"{_SPELLED[EXPECTABLE[name]]}{shown}, wanted is {' or '.join(allowed)}"
            raise DataError("M215", header.place, told, "Give the image that the model was made for")


def may_show_text(header: Header) -> bool:
    """Whether text could be burned in (M216): the file says so, or is of a kind that often has it and is silent."""
    said = header.text(0x00280301).upper()
    kinds = {header.text(0x00080060).upper(), header.text(0x00080064).upper()}
    often = bool(kinds & set(_OFTEN_BURNED)) or f"{header.text(0x00080016)}.".startswith(_SECONDARY_CAPTURE)
    return said == "YES" or (said != "NO" and often)


def instance_hash(header: Header) -> str:
    """SHA-256 of the SOP instance UID, empty where the file has none: equal for copies, and no identifier itself.

    Raises:
        DataError: M218, no UID at all (``[0-9.]``, at most 64).
    """
    return _uid_hash(header, 0x00080018, "SOP")


def series_hash(header: Header) -> str:
    """The same of the series instance UID."""
    return _uid_hash(header, 0x0020000E, "series")


def _uid_hash(header: Header, tag: int, what: str) -> str:
    uid = header.text(tag)
    if uid and not (len(uid) <= 64 and re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", uid, re.ASCII)):
        raise DataError("M218", header.place, f"the {what} instance UID is no UID", _REPAIR)
    return hashlib.sha256(uid.encode("ascii")).hexdigest() if uid else ""


def patient_hash(header: Header, key: bytes | None) -> str | None:
    """A name for the patient that does not tell who it is, from issuer and id; None where the file has no id.

    Args:
        key: the site's secret (HMAC-SHA256). Ids can be guessed, so that a plain hash, without a key, only hides them.
    """
    parts = []
    for tag in (0x00100021, 0x00100020):
        found = header.elements.get(tag)
        parts.append(b"" if found is None else bytes(found.value).strip(b" \0"))
    if not parts[1]:
        return None
    message = b"\\".join(parts)
    digest = hashlib.sha256(b"medloom patient\0" + message) if key is None else hmac.new(key, message, "sha256")
    return "dicom-" + digest.hexdigest()[:20]


def _what(header: Header) -> str:
    uid = header.text(0x00080016)
    for start, name in _NOT_IMAGES:
        if uid.startswith(start):
            return name
    if 0x7FE00008 in header or 0x7FE00009 in header:
        return "an image of floating-point pixels"
    if 0x00041220 in header.elements:
        return "a media directory (DICOMDIR)"
    return f"SOP class {uid}" if re.fullmatch(r"[\d.]{5,64}", uid, re.ASCII) else "an object of unknown class"
