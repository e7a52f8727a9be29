"""Stored samples to an image that looks as its maker meant it, in the one order that the standard allows.

bits above the stored ones off -> modality (rescale or LUT) -> values of interest (LUT, else the first window, else a
rule of ours) -> polarity. All of it is one table over the codes that the pixels can hold, made in double precision: a
pixel is looked up once, so that two files of the same picture (MONOCHROME1 and 2, another slope) end in equal levels.

Polarity comes last. Inverted earlier, a window would cut the other end of the range.

Reference: DICOM PS3.3 sections C.7.6.3.1, C.11.1, C.11.2, C.11.6; PS3.4 annex N.2 (the order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medloom.data.dicom_header import PALETTE, Header, PixelFormat
from medloom.data.modes import INVERTED, UPPER_BYTE
from medloom.errors import DataError

PERCENTILES = (0.5, 99.5)
"""Of the pixels' own values: the range shown where a file of more than 8 bits names none."""

WINDOW = "DICOM window applied"
SIGMOID = "DICOM sigmoid window applied"
VOI_TABLE = "DICOM VOI table applied"
OWN_RANGE = "no DICOM window: range from the 0.5 and 99.5 percentiles"
STORED_RANGE = "no DICOM window: range of the stored bits"
OVERLAY = "overlay bits masked off"
SQUARED = "pixels made square"

_REPAIR = "Export it again from the archive, or list it in data.exclude"
_MODALITY_TABLES, _VOI_TABLES = 0x00283000, 0x00283010


def stored_codes(raw: np.ndarray, header: Header, fmt: PixelFormat, *, whole: bool) -> tuple[np.ndarray, bool]:
    """Grey samples without the bits above ``BitsStored``, as unsigned codes, and whether overlays were in those.

    Args:
        whole: the upper bits were stored too, so that they must extend a sign; most codecs keep the lower ones alone.

    Raises:
        DataError: M209, bits are set there that no overlay declares (a wrong depth or sign in the header).
    """
    if fmt.stored == fmt.allocated:
        return raw, False
    high = raw >> fmt.stored
    codes = raw & ((1 << fmt.stored) - 1)
    overlays = 0
    for group in range(0x6000, 0x6020, 2):
        position = header.short(group << 16 | 0x0102)
        if position is not None and position >= fmt.stored and (group << 16 | 0x3000) not in header:
            overlays |= 1 << (position - fmt.stored)
    high = high & ~np.array(overlays, dtype=raw.dtype)
    if fmt.signed:
        ones = (1 << (fmt.allocated - fmt.stored)) - 1 & ~overlays
        negative = codes >> (fmt.stored - 1) == 1
        good = (high == np.where(negative, ones, 0)) | (~np.bool_(whole) & (high == 0))
    else:
        good = high == 0
    if not good.all():
        told = f"bits above the {fmt.stored} stored ones are set in {int(np.size(good) - good.sum())} pixels"
        raise DataError("M209", header.place, f"{told}, and no overlay is declared there", _REPAIR)
    return codes, overlays > 0


@dataclass(frozen=True)
class Grey:
    """How codes become levels.

    Attributes:
        table: level of each code, uint8 or uint16.
        bits: of the levels, at least 8.
        notes: what was applied.
    """

    table: np.ndarray
    bits: int
    notes: tuple[str, ...]


def grey_table(
    codes: np.ndarray, header: Header, fmt: PixelFormat, shared: Sequence[Header] = ()
) -> Grey:  # fmt: skip
    """The table from code to level of a grey image.

    Args:
        shared: items of the frame's functional groups, which come before the top level.

    Raises:
        DataError: M203 a window or table that cannot be, M204 a rescaling that cannot be.
    """
    values_V = code_values(fmt)
    values_V, (low, high) = modality_values(values_V, header, shared)
    bits = max(8, fmt.stored)
    share_V, notes = _of_interest(values_V, low, high, codes, header, fmt, shared)
    inverse = header.text(0x20500020).upper() == "INVERSE"
    if fmt.photometric == "MONOCHROME1" or inverse:  # one statement made twice, not two inversions (PS3.3 C.8.11.1)
        share_V, notes = 1.0 - share_V, [*notes, INVERTED]
    levels_V = np.rint(np.clip(share_V, 0.0, 1.0) * ((1 << bits) - 1))
    return Grey(levels_V.astype(np.uint8 if bits == 8 else np.uint16), bits, tuple(notes))


def code_values(fmt: PixelFormat) -> np.ndarray:
    """The number that each code stands for, float64: two's complement where the pixels are signed."""
    code_V = np.arange(1 << fmt.stored, dtype=np.float64)
    return np.where(code_V >= 1 << (fmt.stored - 1), code_V - (1 << fmt.stored), code_V) if fmt.signed else code_V


def modality_values(
    values_V: np.ndarray, header: Header, shared: Sequence[Header] = ()
) -> tuple[np.ndarray, tuple[float, float]]:  # fmt: skip
    """Values after the modality transformation (for CT, Hounsfield units), and the range that they can have.

    Raises:
        DataError: M204, a slope of 0, one of the pair missing, a table that does not fit its description.
    """
    tables = header.items(_MODALITY_TABLES)
    if tables:
        table_T, first, bits = _lookup_table(tables[0], values_V, "M204")
        return table_T[np.clip(values_V - first, 0, len(table_T) - 1).astype(np.int64)], (0.0, float((1 << bits) - 1))
    transformed = [inner for group in shared for inner in group.items(0x00289145)]
    source = transformed[0] if transformed else header
    intercept, slope = source.numbers(0x00281052, "M204"), source.numbers(0x00281053, "M204")
    if len(intercept) != len(slope) or len(slope) > 1:
        raise DataError("M204", header.place, "rescale slope and intercept are not a pair", _REPAIR)
    if slope and slope[0] == 0:
        raise DataError("M204", header.place, "the rescale slope is 0", _REPAIR)
    if slope:
        with np.errstate(over="ignore"):
            values_V = values_V * slope[0] + intercept[0]
    low, high = float(values_V.min()), float(values_V.max())
    if not -1e15 < low < high < 1e15 or len(np.unique(values_V[[0, 1]])) < 2:
        raise DataError("M204", header.place, "rescaling takes the pixels out of range", _REPAIR)
    return values_V, (low, high)


def _of_interest(
    values_V: np.ndarray,
    low: float,
    high: float,
    codes: np.ndarray,
    header: Header,
    fmt: PixelFormat,
    shared: Sequence[Header],
) -> tuple[np.ndarray, list[str]]:
    """Brightness in [0, 1] of each code, before polarity: VOI table, first usable window, or the range by rule."""
    windowed = [inner for group in shared for inner in group.items(0x00289132)]
    source = windowed[0] if windowed else header
    tables = source.items(_VOI_TABLES)
    if tables:
        table_T, first, bits = _lookup_table(tables[0], values_V, "M203")
        place_V = np.clip(np.rint(values_V) - first, 0, len(table_T) - 1).astype(np.int64)
        return table_T[place_V] / ((1 << bits) - 1), [VOI_TABLE]
    centres, widths = source.numbers(0x00281050, "M203"), source.numbers(0x00281051, "M203")
    if len(centres) != len(widths):
        raise DataError("M203", header.place, "window centres and widths are not pairs", _REPAIR)
    form = source.text(0x00281056).upper() or "LINEAR"
    if form not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DataError("M203", header.place, "the window is of a form that the standard lacks", _REPAIR)
    least = 1.0 if form == "LINEAR" else np.finfo(np.float64).tiny
    if widths and widths[0] >= least:
        c, w = centres[0], widths[0]
        if form == "SIGMOID":
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values_V - c) / w, -700, 700))), [SIGMOID]
        if form == "LINEAR_EXACT":
            return np.clip((values_V - c) / w + 0.5, 0.0, 1.0), [WINDOW]
        if w == 1.0:
            return (values_V > c - 0.5).astype(np.float64), [WINDOW]
        return np.clip((values_V - (c - 0.5)) / (w - 1.0) + 0.5, 0.0, 1.0), [WINDOW]
    if fmt.stored <= 8:
        return (values_V - low) / (high - low), [STORED_RANGE]
    bottom, top = _own_range(values_V, codes, header, fmt)
    return np.clip((values_V - bottom) / (top - bottom), 0.0, 1.0), [OWN_RANGE]


def _own_range(values_V: np.ndarray, codes: np.ndarray, header: Header, fmt: PixelFormat) -> tuple[float, float]:
    """The percentiles of the image's own values, leaving out its padding; all of it where they coincide."""
    count_V = np.bincount(codes.reshape(-1), minlength=len(values_V))
    padding = header.words(0x00280120, signed=fmt.signed)
    if len(padding) == 1:
        limit = header.words(0x00280121, signed=fmt.signed)
        ends = sorted((int(padding[0]), int(limit[0]) if len(limit) == 1 else int(padding[0])))
        stored_V = code_values(fmt)
        inside_V = np.where((stored_V >= ends[0]) & (stored_V <= ends[1]), 0, count_V)
        count_V = inside_V if inside_V.any() else count_V
    order = np.argsort(values_V, kind="stable")
    cdf = np.cumsum(count_V[order])
    bottom, top = (float(values_V[order[np.searchsorted(cdf, p / 100 * cdf[-1])]]) for p in PERCENTILES)
    if top <= bottom:
        present_V = values_V[count_V > 0]
        bottom, top = float(present_V.min()), float(present_V.max())
    return bottom, top if top > bottom else bottom + 1.0


def _lookup_table(item: Header, values_V: np.ndarray, code: str) -> tuple[np.ndarray, int, int]:
    """Entries float64, the value of the first, and bits, of an item of a modality or VOI LUT sequence."""
    described = item.words(0x00283002)
    if len(described) != 3:
        raise DataError(code, item.place, "a look-up table without a description", _REPAIR)
    count, first, bits = (int(word) for word in described)
    count = count or 65536
    if float(values_V.min()) < 0 and first > 32767:  # the type follows that of the values (PS3.3 C.11.1.1)
        first -= 65536
    data = item.elements[0x00283006].value if 0x00283006 in item else memoryview(b"")
    if not 8 <= bits <= 16 or len(data) not in (2 * count, *((count, count + count % 2) if bits == 8 else ())):
        told = f"a look-up table of {count} entries of {bits} bits in {len(data)} bytes"
        raise DataError(code, item.place, told, _REPAIR)
    if len(data) == 2 * count:
        table_T = item.words(0x00283006).astype(np.float64)
    else:
        table_T = np.frombuffer(data, np.uint8)[:count].astype(np.float64)
    if table_T.max() > (1 << bits) - 1 or table_T.max() == table_T.min():
        raise DataError(code, item.place, f"a look-up table that does not keep to its {bits} bits, or is flat", _REPAIR)
    return table_T, first, bits


def palette_colours(codes: np.ndarray, header: Header, fmt: PixelFormat) -> tuple[np.ndarray, tuple[str, ...]]:
    """RGB of a PALETTE COLOR image, uint8 (the upper byte of 16-bit entries).

    Raises:
        DataError: M210, tables that are short or unlike, or an index beyond them.
    """
    assert fmt.photometric == PALETTE
    planes = []
    described = [header.words(0x00281101 + k) for k in range(3)]
    if any(len(d) != 3 for d in described) or any((d != described[0]).any() for d in described):
        raise DataError("M210", header.place, "palettes that are missing, segmented or unlike", _REPAIR)
    count, first, bits = (int(word) for word in described[0])
    count = count or 65536
    if bits not in (8, 16):
        raise DataError("M210", header.place, f"a palette of {bits} bits", _REPAIR)
    if int(codes.max()) >= first + count or int(codes.min()) < first:
        told = f"pixels of {int(codes.min())} to {int(codes.max())} for a palette of {first} to {first + count - 1}"
        raise DataError("M210", header.place, told, _REPAIR)
    for k in range(3):
        data = header.elements[0x00281201 + k].value if 0x00281201 + k in header else memoryview(b"")
        if len(data) not in (count * bits // 8, *((count + count % 2,) if bits == 8 else ())):
            told = f"a palette of {count} entries of {bits} bits in {len(data)} bytes"
            raise DataError("M210", header.place, told, _REPAIR)
        entries = np.frombuffer(data, np.uint8)[:count] if bits == 8 else header.words(0x00281201 + k) >> 8
        planes.append(entries.astype(np.uint8)[codes.astype(np.int64) - first])
    return np.stack(planes, axis=2), (UPPER_BYTE,) if bits == 16 else ()
