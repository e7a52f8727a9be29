"""NIfTI-1 and NIfTI-2 files as bytes: the header is judged before a voxel is read, and the voxels before they are used.

Only single files are read (``.nii``, ``.nii.gz``), whichever of the two the name says: the first bytes decide. No more
is ever decompressed than the header declares, and what it declares is held against the size of the file first.

Reference: NIfTI-1.1 and NIfTI-2 header files of the NIfTI Data Format Working Group, nifti.nimh.nih.gov.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medloom.data.geometry import check_affine, farthest_corner
from medloom.errors import DataError

MOST_BYTES = 8 << 30
"""Voxels that a file may declare; a whole-body CT has about one GiB."""

_GZIP_RATIO = 1032  # deflate cannot shrink further
_TAIL = 1 << 20
_APART_MM = 1.0
_AGAIN = "Copy it again, or list it in data.exclude"

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_REFUSED = {
    0: "unknown voxels", 1: "one bit per voxel", 32: "complex numbers", 128: "RGB24 colours", 1536: "128-bit floats",
    1792: "complex numbers", 2048: "complex numbers", 2304: "RGBA32 colours",
}  # fmt: skip
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class Layout:
    """Where the fields of a header lie: offset and struct code of each."""

    size: int
    dim: tuple[int, str]
    datatype: int
    pixdim: tuple[int, str]
    offset: tuple[int, str]
    slope: tuple[int, str]
    codes: tuple[int, str]
    quatern: tuple[int, str]
    srow: tuple[int, str]
    units: tuple[int, str]
    cleared: tuple[tuple[int, int], ...]
    """Stretches that may name a person or a program, or that describe the image and not its mask: not copied."""


NIFTI1 = Layout(
    348, (40, "8h"), 70, (76, "8f"), (108, "f"), (112, "2f"), (252, "2h"), (256, "6f"), (280, "12f"), (123, "B"),
    ((4, 40), (56, 70), (74, 76), (120, 123), (124, 252), (328, 344)),
)  # fmt: skip
NIFTI2 = Layout(
    540, (16, "8q"), 12, (104, "8d"), (168, "q"), (176, "2d"), (344, "2i"), (352, "6d"), (400, "12d"), (500, "i"),
    ((80, 104), (192, 344), (496, 500), (504, 540)),
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says, checked.

    Attributes:
        raw: the header's own bytes, for a mask that is to lie on the same grid.
        order: ``"<"`` or ``">"``.
        shape: three numbers of voxels.
        dtype: of the stored voxels.
        start: of the voxels in the file.
        slope, inter: ``value = slope * stored + inter``; 1 and 0 where the file scales nothing.
        affine: 4 x 4, from voxel index to RAS+ in mm.
    """

    raw: bytes
    layout: Layout
    order: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    start: int
    slope: float
    inter: float
    affine: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(raw: bytes, place: str, prefer: str = "refuse") -> Header:
    """Judge the first 540 bytes (348 for NIfTI-1) of a file.

    Raises:
        DataError: D102 no NIfTI file; N301-N303 places that cannot be or contradict each other; N304 too short;
            N305 sizes that no memory holds; N306 not three axes; N307 spacing; N311 voxels of a kind not read.
    """
    layout, order = _layout(raw, place)
    shape = _shape(unpack(raw, order, layout.dim), place)
    (kind,) = unpack(raw, order, (layout.datatype, "h"))
    if kind not in _TYPES:
        told = _REFUSED.get(kind, f"voxels of the unknown type {kind}")
        raise DataError("N311", place, f"holds {told}", "Save one number per voxel, as integers or floats")
    dtype = np.dtype(order + _TYPES[kind])
    (start,) = unpack(raw, order, layout.offset)
    if not math.isfinite(start) or not layout.size <= start <= 1 << 30:
        raise DataError("N304", place, f"the voxels are said to begin at byte {start:g}", _AGAIN)
    slope, inter = unpack(raw, order, layout.slope)
    if slope == 0 or not math.isfinite(slope):  # the format: then nothing is scaled
        slope, inter = 1.0, 0.0
    if not math.isfinite(inter):
        raise DataError("N311", place, f"the intercept scl_inter is {inter}", "Write the file again")
    affine = _affine(raw, layout, order, shape, place, prefer)
    return Header(raw[: layout.size], layout, order, shape, dtype, int(start), slope, inter, affine)


def read_voxels(path: Path, place: str, prefer: str = "refuse") -> tuple[np.ndarray, Header]:
    """Header and voxels ``(X, Y, Z)`` in the order of the file; scaled ones as float32, others as they are stored.

    Raises:
        DataError: as ``parse_header``; D101 empty, D111 NaN or infinite voxels, D114 unreadable, N304 truncated or
            damaged, N305 more than the file can hold, N310 more in the file than declared.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not size:
                raise DataError("D101", place, "the file has zero bytes", _AGAIN)
            if not packed:
                return _read(file, size, size, place, prefer)
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                return _read(unpacked, size, size * _GZIP_RATIO + 1024, place, prefer)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise DataError("N304", place, f"truncated or damaged gzip data ({problem})", _AGAIN) from None
    except OSError as problem:
        raise DataError("D114", place, f"cannot be read ({problem.strerror or problem})", _AGAIN) from None
    except MemoryError:
        raise DataError("N305", place, "too large for this machine's memory", "Cut or resample it first") from None


def _read(file: BinaryIO | gzip.GzipFile, size: int, most: int, place: str, prefer: str) -> tuple[np.ndarray, Header]:
    header = parse_header(file.read(NIFTI2.size), place, prefer)
    needed = header.start + header.nbytes
    if needed > most or header.nbytes > MOST_BYTES:
        declared = " x ".join(map(str, header.shape))
        code = "N304" if needed <= 8 * most and header.nbytes <= MOST_BYTES else "N305"
        told = f"declares {declared} voxels, {header.nbytes:,} bytes, and the file has {size:,}"
        raise DataError(code, place, told, _AGAIN if code == "N304" else "Correct its header")
    file.seek(header.start)
    data = file.read(header.nbytes)
    if len(data) < header.nbytes:
        told = f"its voxels end after {len(data):,} of {header.nbytes:,} bytes"
        raise DataError("N304", place, told, _AGAIN)
    if len(file.read(_TAIL)) == _TAIL:  # read to the end: there gzip keeps its sum
        raise DataError("N310", place, "goes on for over a megabyte behind its voxels", "Write the file again")
    stored = np.frombuffer(data, dtype=header.dtype).reshape(header.shape, order="F")
    array = stored.astype(header.dtype.newbyteorder("="), copy=False)
    if (header.slope, header.inter) != (1.0, 0.0):
        array = (array * np.float64(header.slope) + header.inter).astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = array.size - int(np.isfinite(array).sum())
        raise DataError(
            "D111", place, f"{bad:,} voxels are NaN or infinite", "Replace them, or list it in data.exclude"
        )
    return array, header


def unpack(raw: bytes, order: str, field: tuple[int, str]) -> tuple:
    """The numbers of a field."""
    return struct.unpack_from(order + field[1], raw, field[0])


def _layout(raw: bytes, place: str) -> tuple[Layout, str]:
    if len(raw) >= 4:
        for order in "<>":
            for layout, magic, at in ((NIFTI1, b"n+1\0", 344), (NIFTI2, b"n+2\0\r\n\x1a\n", 4)):
                if struct.unpack_from(order + "i", raw)[0] != layout.size:
                    continue
                if len(raw) < layout.size:
                    told = f"the header ends after {len(raw)} of {layout.size} bytes"
                    raise DataError("N304", place, told, _AGAIN)
                found = raw[at : at + len(magic)]
                if found == magic:
                    return layout, order
                if found[:3] in (b"ni1", b"ni2") or found[:1] == b"\0":
                    remedy = "Save header and voxels as one .nii file"
                    raise DataError("N311", place, "the header of a pair of files, or of ANALYZE 7.5", remedy)
    raise DataError("D102", place, "the content is no NIfTI file", "Put one there, or list it in data.exclude")


def _shape(dim: tuple[int, ...], place: str) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise DataError("N306", place, f"impossible sizes {list(dim)}", "Write the file again")
    sizes = dim[1 : dim[0] + 1]
    if len(sizes) < 3 or sizes[2] == 1 or any(n > 1 for n in sizes[3:]):
        shown = " x ".join(map(str, sizes))
        what = "one slice" if len(sizes) < 3 or sizes[2] == 1 else "several volumes in one file"
        remedy = "Save it as PNG or TIFF" if what == "one slice" else "Save the one that is meant as a file of its own"
        raise DataError("N306", place, f"{what} ({shown}), where one volume is read", remedy)
    return sizes[0], sizes[1], sizes[2]


def _affine(raw: bytes, layout: Layout, order: str, shape: tuple[int, int, int], place: str, prefer: str) -> np.ndarray:
    """The place in the patient, from sform and qform; they must agree within a millimetre, or ``prefer`` chooses."""
    qform, sform = unpack(raw, order, layout.codes)
    pixdim = unpack(raw, order, layout.pixdim)
    unit = _MILLIMETRES.get(unpack(raw, order, layout.units)[0] & 7, 1.0)
    found: dict[str, np.ndarray] = {}
    if sform > 0:
        found["sform"] = np.vstack([np.array(unpack(raw, order, layout.srow)).reshape(3, 4) * unit, [0, 0, 0, 1]])
    if qform > 0:
        found["qform"] = _from_quaternion(unpack(raw, order, layout.quatern), pixdim, unit, place)
    if not found:
        told = "neither sform nor qform says where the volume lies, so left and right are unknown"
        raise DataError("N302", place, told, "Convert it again from its source")
    if prefer in found:
        found = {prefer: found[prefer]}
    for affine in found.values():
        check_affine(affine, place)
    if len(found) == 2:
        apart = farthest_corner(found["sform"], found["qform"], shape)
        if apart > _APART_MM:
            told = f"sform and qform place it up to {apart:.4g} mm apart"
            raise DataError("N303", place, told, "Find out which is right and set volume.prefer to sform or qform")
    return found.get("sform", found.get("qform", np.eye(4)))


def _from_quaternion(quatern: tuple[float, ...], pixdim: tuple[float, ...], unit: float, place: str) -> np.ndarray:
    """Method 2 of the format: rotation by a unit quaternion, spacing by pixdim, handedness by the sign of pixdim[0]."""
    b, c, d, *shift = quatern
    if not all(map(math.isfinite, (*quatern, *pixdim[1:4]))):
        raise DataError("N301", place, "the qform holds NaN or infinity", "Write the file again from its source")
    if min(pixdim[1:4]) <= 0:
        raise DataError("N307", place, f"a spacing of {list(pixdim[1:4])}", "Correct pixdim in the header")
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < -1e-4:
        raise DataError("N301", place, "the qform is no rotation", "Write the file again from its source")
    if rest < 1e-7:  # half a turn, up to rounding
        a, length = 0.0, math.sqrt(b * b + c * c + d * d)
        b, c, d = b / length, c / length, d / length
    else:
        a = math.sqrt(rest)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    spacing = np.array(pixdim[1:4]) * (1.0, 1.0, -1.0 if pixdim[0] < 0 else 1.0)
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing * unit
    affine[:3, 3] = np.array(shift) * unit
    return affine
