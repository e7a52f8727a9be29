"""What kind of image a file is: by its ending a candidate, by its first bytes the thing itself."""

from __future__ import annotations

import os

from medloom.data.dicom_stream import has_mark, looks_bare
from medloom.errors import DataError

# A suffix only makes a file a candidate; its first bytes decide.
SINGLE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".pgm", ".ppm", ".pnm"))
DICOM_SUFFIXES = frozenset((".dcm", ".dicom"))
SUFFIXES = SINGLE_SUFFIXES | DICOM_SUFFIXES | frozenset((".tif", ".tiff", ".gif", ".png"))
_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
)
_STRANGERS = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"%PDF", "a PDF"),
    (b"<", "HTML or XML text"),
    (b"\x1f\x8b", "gzip data"),
    (b"RIFF", "a WebP image or other RIFF data"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
)


def is_candidate(path: str) -> bool:
    """Whether a regular file may be an image: by its ending, or, of archives that give none, by DICOM's mark."""
    name = os.path.basename(path)  # noqa: PTH119 - a million files
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if ending in SUFFIXES:
        return True
    if (ending and not ending[1:].isdecimal()) or name.casefold() == "dicomdir":  # UIDs are names too, with dots
        return False
    try:
        with open(path, "rb") as handle:  # noqa: PTH123
            return has_mark(handle.read(132))
    except OSError:
        return False


def file_type_of(data: bytes, place: str) -> str:
    """``jpeg``, ``png``, ``tiff``, ``gif``, ``bmp``, ``pnm`` or ``dicom``.

    Raises:
        DataError: D101 no bytes at all; D102 something else.
    """
    if not data:
        raise DataError("D101", place, "the file has zero bytes", "Copy it again, or list it in data.exclude")
    if has_mark(data):  # first, as the preamble before it may imitate another format
        return "dicom"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(b"BM") and data[6:10] == b"\0\0\0\0":
        return "bmp"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "pnm"
    if looks_bare(data):
        return "dicom"
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    what = next((f"is {name}" for magic, name in _STRANGERS if head.startswith(magic)), "is no image known here")
    raise DataError("D102", place, f"the content {what}", "Put the image there, or list it in data.exclude")
