"""A DICOM radiograph, from a file or an upload, as the same ``Image`` that every other picture becomes.

Checks come before decoding and decoding before meaning: structure (``dicom_stream``), header (``dicom_header``), pixels
against header (``dicom_codecs``), then modality, window and polarity in one table (``dicom_pixels``). What was done is
told in ``Image.notes``. Uncompressed files need no package; which compressed ones need which stands in docs/dicom.md.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medloom.data.dicom_codecs import keeps_containers, read_frame
from medloom.data.dicom_header import (
    GREY,
    PALETTE,
    Header,
    PixelFormat,
    check_expected,
    header_of,
    instance_hash,
    may_show_text,
    patient_hash,
    pixel_format,
)
from medloom.data.dicom_pixels import (
    OVERLAY,
    SQUARED,
    grey_table,
    palette_colours,
    stored_codes,
)
from medloom.data.dicom_shape import PIXEL_MEASURES, make_square, pixel_aspect, pixel_spacing
from medloom.data.dicom_stream import Stream, has_mark, looks_bare, walk_stream
from medloom.data.images import Image, check_content, check_size
from medloom.data.modes import BURNED_IN, merge_equal_channels
from medloom.errors import DataError

MAX_FILE = 2 << 30
MAX_SKEW = 0.01
"""A pixel whose sides differ by less is square."""


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file are of DICOM, with or without its preamble."""
    return has_mark(head) or looks_bare(head)


def is_dicom_file(path: str | Path) -> bool:
    """The same of a file; False where it cannot be read (reading it will say why)."""
    try:
        with Path(path).open("rb") as handle:
            return is_dicom(handle.read(132))
    except OSError:
        return False


def read_dicom(
    source: bytes | str | Path,
    name: str,
    *,
    frames: str = "refuse",
    max_megapixels: float = 64.0,
    frame: int = 0,
    expect: Mapping[str, Sequence[str]] | None = None,
) -> Image:
    """Decode one image.

    Args:
        source: content, or where it lies.
        name: how errors name it.
        frames: ``refuse`` a file of several frames, or read its ``first``; with ``all``, number ``frame`` is read.
        max_megapixels: cap on the declared size, checked before decoding.
        expect: ``modality``, ``body_part`` and ``view`` to the values that are taken; a file that does not say passes.

    Returns:
        Grey levels at the depth of the stored bits, white bright, or 8-bit RGB; ``instance`` is a hash of its UID.
        Text that may be burned in is a note (``modes.BURNED_IN``); who trains leaves such images out (M216).

    Raises:
        DataError: M202-M215, M217, M218 (docs/errors.md); D110, D111, D112, D114.
    """
    data = source if isinstance(source, bytes) else _content(Path(source), name)
    stream = walk_stream(data, name)
    header = header_of(stream, name)
    fmt = pixel_format(header)
    check_expected(header, expect or {})
    instance = instance_hash(header)
    check_size(fmt.columns, fmt.rows, name, max_megapixels)
    if fmt.frames > 1 and frames == "refuse":
        remedy = "Say --set data.frames=first, or =all; a series is a volume"
        raise DataError("M205", name, f"holds {fmt.frames} frames", remedy)
    number = frame if frames == "all" else 0
    if not 0 <= number < fmt.frames:
        raise DataError("M205", name, f"holds {fmt.frames} frames, and number {number} was asked for", "Audit it anew")
    measures = [item for group in frame_groups(header, fmt, number) for item in group.items(PIXEL_MEASURES)]
    aspect = pixel_aspect(header, measures)
    aspect = 1.0 if abs(aspect - 1) < MAX_SKEW else aspect
    width, height = fmt.columns * max(1.0, 1 / aspect), fmt.rows * max(1.0, aspect)
    check_size(round(width), round(height), name, max_megapixels)
    pixels, bits, notes = displayed(stream, header, fmt, number)
    spacing, stated = pixel_spacing(header, measures)
    if aspect != 1.0:
        pixels = make_square(pixels, aspect)
        if spacing is not None:  # the picture covers what it covered before
            spacing = (spacing[0] * fmt.rows / pixels.shape[0], spacing[1] * fmt.columns / pixels.shape[1])
        notes = (*notes, SQUARED)
    if may_show_text(header):
        notes = (*notes, BURNED_IN)
    pixels = merge_equal_channels(pixels)
    check_content(pixels, name)
    mode = f"{fmt.photometric};{fmt.stored}"
    return Image(
        pixels, bits, mode, "dicom", len(data), notes, instance=instance, spacing=spacing, spacing_from=stated
    )  # fmt: skip


def displayed(
    stream: Stream, header: Header, fmt: PixelFormat, frame: int
) -> tuple[np.ndarray, int, tuple[str, ...]]:  # fmt: skip
    """Levels of one frame as they are to be seen, their bits, and notes."""
    raw = read_frame(stream, header, fmt, frame)
    if fmt.samples == 3:
        return raw, 8, ()
    codes, overlays = stored_codes(raw, header, fmt, whole=keeps_containers(stream.syntax))
    marks = (OVERLAY,) if overlays else ()
    if fmt.photometric == PALETTE:
        colours, notes = palette_colours(codes, header, fmt)
        return colours, 8, (*marks, *notes)
    assert fmt.photometric in GREY
    grey = grey_table(codes, header, fmt, frame_groups(header, fmt, frame))
    return grey.table[codes], grey.bits, (*marks, *grey.notes)


def frame_groups(header: Header, fmt: PixelFormat, frame: int) -> tuple[Header, ...]:
    """What an enhanced multi-frame object says of one frame, before what it says of all.

    Raises:
        DataError: M209, another number of groups than of frames.
    """
    own, shared = header.items(0x52009230), header.items(0x52009229)
    if own and len(own) != fmt.frames:
        told = f"{len(own)} descriptions of frames for {fmt.frames} frames"
        raise DataError("M209", header.place, told, "Export it again from the archive")
    return (*own[frame : frame + 1], *shared[:1])


def count_dicom_frames(data: bytes | memoryview, place: str) -> int:
    """How many frames the header declares."""
    return pixel_format(header_of(walk_stream(data, place), place)).frames


def read_patient(path: str | Path, place: str, key: bytes | None = None) -> str | None:
    """The patient of a file as a hash of issuer and id (see ``dicom_header.patient_hash``), read without its pixels.

    Raises:
        DataError: D114, M211-M214.
    """
    try:
        with Path(path).open("rb") as handle:
            if Path(path).stat().st_size == 0:
                return None
            # Not closed by hand: views of it live in the elements, and go with them.
            view = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as problem:
        raise DataError("D114", place, f"cannot be read ({problem.strerror})", "Correct its permissions") from None
    if not is_dicom(bytes(view[:132])):
        return None
    return patient_hash(header_of(walk_stream(view, place), place), key)


def _content(path: Path, name: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise DataError("M213", name, f"a file of {size:,} bytes", "Split it, or leave it out")
        return path.read_bytes()
    except OSError as problem:
        raise DataError("D114", name, f"cannot be read ({problem.strerror})", "Correct its permissions") from None
