"""The bytes of a DICOM file to its elements, by size arithmetic alone: nothing is allocated, converted or believed.

A reader that trusts lengths gives other pixels without a word when they are wrong. This one walks every element and
asks that they tile the file exactly: each length within what is there, tags rising, delimiters where they belong,
nesting and count under a cap. Values stay views of the file; text that could name a person is never decoded here.

Reference: DICOM PS3.5 (data structures and encoding) sections 6, 7 and annexes A, B; PS3.10 section 7.1 (file meta).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from medloom.errors import DataError

MAX_DEPTH = 32
MAX_ELEMENTS = 100_000
MAX_VALUE = 64 << 20
INFLATED_FLOOR, INFLATED_RATIO, INFLATED_MOST = 64 << 20, 100, 1 << 30

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
PIXEL_DATA = 0x7FE00010

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS")
    + (b"ST", b"TM", b"UI", b"UL", b"US")
)
# What the standard's dictionary says of the sequences that are looked into: Implicit VR does not write it.
_SEQUENCES = frozenset(
    (0x00283000, 0x00283010, 0x52009229, 0x52009230, 0x00289110, 0x00209113, 0x00209116, 0x00289145, 0x00289132)
)
_COPY = "Copy it again from its source, or list it in data.exclude"


@dataclass(frozen=True, slots=True)
class Element:
    """One data element.

    Attributes:
        vr: two letters; ``UN`` where Implicit VR leaves it open.
        value: its bytes, as they lie in the file; empty for a sequence or fragments.
        items: of a sequence.
        fragments: of encapsulated pixel data, the offset table first; None where the pixels are not encapsulated.
    """

    vr: str
    value: memoryview
    items: tuple[dict[int, Element], ...] = ()
    fragments: tuple[memoryview, ...] | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """A file as walked: transfer syntax and the elements of the top level by tag."""

    syntax: str
    little: bool
    elements: dict[int, Element]


def has_mark(head: bytes | memoryview) -> bool:
    """Whether the file says that it is DICOM: ``DICM`` behind the preamble."""
    return bytes(head[128:132]) == b"DICM"


def looks_bare(head: bytes | memoryview) -> bool:
    """Whether the first bytes can be a data set that lost its preamble: group 2 or 8, and a length that is no joke."""
    start = bytes(head[:12])
    if len(start) < 12 or start[:4] not in (b"\2\0\0\0", b"\2\0\1\0", b"\2\0\2\0", b"\2\0\20\0") + _BARE_STARTS:
        return False
    vr = start[4:6]
    if vr in _SHORT_VRS:
        return True
    order = "<" if start[1] == 0 else ">"
    return int(struct.unpack(order + "I", start[4:8])[0]) <= 64


def walk_stream(data: bytes | memoryview, place: str) -> Stream:
    """Read the structure of a DICOM file.

    Raises:
        DataError: M211 lengths that do not fit the file, M212 nesting, M213 too many or too large elements, M214 a file
            meta group or a deflated stream that breaks the rules.
    """
    view = memoryview(data)
    start = 132 if has_mark(view) else 0
    walker = _Walker(view, place, little=True, explicit=True)
    syntax, start = _meta(walker, start, place)
    if syntax == DEFLATED:
        view = memoryview(_inflate(view[start:], place))
        start = 0
    little = syntax != BIG_ENDIAN
    walker = _Walker(view, place, little=little, explicit=syntax != IMPLICIT)
    elements, _ = walker.elements(start, len(view), 0, closed=False)
    return Stream(syntax, little, elements)


def _meta(walker: _Walker, start: int, place: str) -> tuple[str, int]:
    """Transfer syntax, and where the data set begins; the syntax is read off the bytes where no meta group names it."""
    at, last, syntax, declared, body = start, 0, "", None, start
    while at + 8 <= len(walker.data) and walker.data[at] == 2 and walker.data[at + 1] == 0:
        tag, vr, length, value = walker.header(at)
        if tag <= last or length == _UNDEFINED or value + length > len(walker.data):
            raise DataError("M214", place, "the file meta group is damaged", _COPY)
        if tag == 0x00020000 and length == 4:
            declared, body = struct.unpack_from("<I", walker.data, value)[0], value + length
        if tag == 0x00020010 and vr == "UI":
            syntax = bytes(walker.data[value : value + length]).rstrip(b"\0 ").decode("ascii", "replace")
        last, at = tag, value + length
    if declared is not None and declared != at - body:
        told = f"the file meta group has {at - body} bytes and declares {declared}"
        raise DataError("M214", place, told, _COPY)
    if syntax:
        if not all(part.isdecimal() and part.isascii() for part in syntax.split(".")):
            raise DataError("M214", place, "the transfer syntax is not a UID", _COPY)
        return syntax, at
    return _guess(bytes(walker.data[at : at + 8])), at


def _guess(head: bytes) -> str:
    if head[4:6] in _SHORT_VRS | _LONG_VRS:
        return EXPLICIT if head[1:2] == b"\0" else BIG_ENDIAN
    return IMPLICIT


def _inflate(data: memoryview, place: str) -> bytes:
    most = min(INFLATED_MOST, INFLATED_FLOOR + INFLATED_RATIO * len(data))
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = machine.decompress(data, most)
    except zlib.error:
        raise DataError("M214", place, "the deflated data set is damaged", _COPY) from None
    if machine.unconsumed_tail:
        told = f"{len(data):,} deflated bytes unpack to more than {most:,}"
        raise DataError("M214", place, told, "Do not open it; ask where it comes from")
    if not machine.eof:
        raise DataError("M214", place, "the deflated data set is cut off", _COPY)
    return out


class _Walker:
    """One byte order and one way of writing types, over one buffer."""

    def __init__(self, data: memoryview, place: str, *, little: bool, explicit: bool) -> None:
        self.data, self.place, self.explicit, self.little = data, place, explicit, little
        order = "<" if little else ">"
        self._tag = struct.Struct(order + "HH")
        self._u2, self._u4 = struct.Struct(order + "H"), struct.Struct(order + "I")
        self._count = 0

    def header(self, at: int) -> tuple[int, str, int, int]:
        """Tag, VR, length and where the value begins."""
        if at + 8 > len(self.data):
            raise self._broken("it ends inside the header of an element")
        group, number = self._tag.unpack_from(self.data, at)
        tag = group << 16 | number
        if not self.explicit or group == 0xFFFE:
            return tag, "SQ" if tag in _SEQUENCES else "UN", self._u4.unpack_from(self.data, at + 4)[0], at + 8
        vr = bytes(self.data[at + 4 : at + 6])
        if vr in _SHORT_VRS:
            return tag, vr.decode("ascii"), self._u2.unpack_from(self.data, at + 6)[0], at + 8
        if vr not in _LONG_VRS:
            raise self._broken(f"element ({group:04X},{number:04X}) is of a type that does not exist")
        if at + 12 > len(self.data):
            raise self._broken("it ends inside the header of an element")
        return tag, vr.decode("ascii"), self._u4.unpack_from(self.data, at + 8)[0], at + 12

    def elements(self, at: int, end: int, depth: int, *, closed: bool) -> tuple[dict[int, Element], int]:
        """Elements up to ``end``, or, where ``closed``, up to the item's delimiter."""
        if depth > MAX_DEPTH:
            raise DataError("M212", self.place, f"sequences are nested more than {MAX_DEPTH} deep", _COPY)
        found: dict[int, Element] = {}
        last = 0x0000FFFF
        while at < end:
            if depth == 0 and PIXEL_DATA in found and not any(self.data[at:end]):
                return found, end  # zeros behind the pixels: padding by whoever stored it
            tag, vr, length, value = self.header(at)
            if closed and tag == _ITEM_END and length == 0:
                return found, value
            if tag <= last or tag >> 16 == 0xFFFE:
                raise self._broken(f"element {_name(tag)} does not stand in its order")
            self._count += 1
            if self._count > MAX_ELEMENTS:
                raise DataError("M213", self.place, f"more than {MAX_ELEMENTS:,} elements", "Leave it out")
            if length != _UNDEFINED and value + length > end:
                told = f"element {_name(tag)} declares {length:,} bytes and {end - value:,} are left"
                raise self._broken(told)
            found[tag], at = self._element(tag, vr, length, value, end, depth)
            last = tag
        if closed:
            raise self._broken("an item has no end")
        return found, at

    def _element(self, tag: int, vr: str, length: int, value: int, end: int, depth: int) -> tuple[Element, int]:
        nothing = self.data[:0]
        if length == _UNDEFINED:
            if tag == PIXEL_DATA:
                fragments, at = self._fragments(value, end)
                return Element(vr, nothing, fragments=fragments), at
            if vr not in ("SQ", "UN"):
                raise self._broken(f"element {_name(tag)} has no length")
            inner = self
            if vr == "UN" and self.explicit:  # PS3.5 section 6.2.2: of an unknown type, written as Implicit VR
                inner = _Walker(self.data, self.place, little=True, explicit=False)
                inner._count = self._count
            items, at = inner._items(value, end, depth + 1, closed=True)
            self._count = inner._count
            return Element("SQ", nothing, items), at
        if vr == "SQ":
            items, at = self._items(value, value + length, depth + 1, closed=False)
            return Element(vr, nothing, items), at
        if length > MAX_VALUE and tag not in (PIXEL_DATA, 0x7FE00008, 0x7FE00009):
            raise DataError("M213", self.place, f"element {_name(tag)} holds {length:,} bytes", "Leave it out")
        return Element(vr, self.data[value : value + length]), value + length

    def _items(self, at: int, end: int, depth: int, *, closed: bool) -> tuple[tuple[dict[int, Element], ...], int]:
        items: list[dict[int, Element]] = []
        while at < end:
            tag, _, length, value = self.header(at)
            if closed and tag == _SEQUENCE_END and length == 0:
                return tuple(items), value
            if tag != _ITEM or (length != _UNDEFINED and value + length > end):
                raise self._broken("a sequence holds something else than items")
            self._count += 1
            if self._count > MAX_ELEMENTS:  # a hundred thousand empty items are as many
                raise DataError("M213", self.place, f"more than {MAX_ELEMENTS:,} elements", "Leave it out")
            undefined = length == _UNDEFINED
            item, at = self.elements(value, end if undefined else value + length, depth, closed=undefined)
            items.append(item)
        if closed:
            raise self._broken("a sequence has no end")
        return tuple(items), at

    def _fragments(self, at: int, end: int) -> tuple[tuple[memoryview, ...], int]:
        fragments: list[memoryview] = []
        while at < end:
            tag, _, length, value = self.header(at)
            if tag == _SEQUENCE_END and length == 0:
                return tuple(fragments), value
            if tag != _ITEM or length == _UNDEFINED or value + length > end:
                raise self._broken("the compressed pixels are damaged or cut off")
            if len(fragments) >= MAX_ELEMENTS:
                raise DataError("M213", self.place, f"more than {MAX_ELEMENTS:,} fragments", "Leave it out")
            fragments.append(self.data[value : value + length])
            at = value + length
        raise self._broken("the compressed pixels are cut off")

    def _broken(self, what: str) -> DataError:
        return DataError("M211", self.place, what, _COPY)


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


_BARE_STARTS = tuple(
    bytes((8, 0, number, 0)) if little else bytes((0, 8, 0, number))
    for number in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16, 0x18)
    for little in (True, False)
)
