"""A DICOM series, as a folder of slices or one multi-frame file, to a ``Volume``.

Where a slice lies is read from its position and orientation alone; instance numbers, names and the slice thickness say
other things. What does not fill a straight, evenly spaced stack is refused: a volume with a hole in it, or one that
leans, measures wrongly in silence.

DICOM's axes run to the left, posterior and superior (LPS), a volume's to the right, anterior and superior (RAS).

Reference: DICOM PS3.3 sections C.7.6.1 (image plane), C.7.6.2, C.7.6.16 (functional groups), C.11.1 (rescaling).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medloom.data.dicom import MAX_FILE, frame_groups, is_dicom_file
from medloom.data.dicom_codecs import keeps_containers, read_frame
from medloom.data.dicom_header import (
    GREY,
    Header,
    PixelFormat,
    check_expected,
    header_of,
    instance_hash,
    may_show_text,
    pixel_format,
    series_hash,
)
from medloom.data.dicom_pixels import code_values, modality_values, stored_codes
from medloom.data.dicom_stream import PIXEL_DATA, Stream, walk_stream
from medloom.data.geometry import check_affine
from medloom.data.volumes import Volume
from medloom.errors import DataError

MAX_SLICES = 10_000
MAX_VOXELS = 1 << 29
SAME_DIRECTION = 1e-3
"""Largest difference of a cosine, and the share of a spacing, that rounding in a header explains."""

_GEOMETRY = (
    "Export the whole series again",
    "Make it straight with the archive's tool (dcm2niix, say) and give the NIfTI",
)
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane: where it lies and the values in it.

    Attributes:
        origin: ``(3,)`` mm, the centre of its first voxel, in LPS.
        along: ``(2, 3)`` directions of a row's pixels and of a column's, unit vectors.
        spacing: mm between the rows (down a column), then between the columns.
        step: distance to the next slice that the file claims; used for a single slice only.
        values: ``(rows, columns)``, rescaled.
    """

    place: str
    origin: np.ndarray
    along: np.ndarray
    spacing: tuple[float, float]
    step: float | None
    values: np.ndarray
    instance: str


def group_series(folder: str | Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """The images below a folder by series, in a stable order; keys are hashes of the series instance UIDs.

    Files that are not DICOM, or hold no image (reports, presentation states, a directory), are left out. Damaged ones
    (D114, M211-M214) come second: any series of their folder may miss a slice. D114 a folder that cannot be read.
    """
    groups, damaged = dict[str, list[Path]](), list[Path]()
    for path in series_files(Path(folder)):
        try:
            stream, header = _open(path, str(path))
            if PIXEL_DATA in stream.elements:
                groups.setdefault(series_hash(header), []).append(path)
        except DataError:
            damaged.append(path)
    return groups, damaged


def read_series(
    source: str | Path | Sequence[Path],
    *,
    expect: Mapping[str, Sequence[str]] | None = None,
    burned_in: Literal["exclude", "keep"] = "keep",
    place: str | None = None,
) -> Volume:
    """Read one series.

    Args:
        source: a folder with one series in it, one file, or the files of a series (see ``group_series``).
        expect: ``modality``, ``body_part``, ``view`` to what is taken, as in ``dicom.read_dicom``.
        burned_in: ``exclude`` refuses slices that may show text (M216), which a model could learn.
        place: how errors name it.

    Returns:
        Array ``(columns, rows, slices)`` of rescaled values (Hounsfield units for CT), int16 or int32 where they are
        whole numbers, else float32; slices in the order of their positions.

    Raises:
        DataError: D114, D115; the M-codes of ``read_dicom``; M220 several series, or planes that do not belong
            together; M221 slices missing, doubled or uneven; M222 a leaning stack; N307 a spacing that cannot be.
    """
    paths, place = _paths(source, place)
    planes: list[Slice] = []
    first: dict[str, str] = {}
    for path in paths:
        stream, header = _open(path, f"{place}/{path.name}" if len(paths) > 1 else place)
        if PIXEL_DATA not in stream.elements and len(paths) > 1:
            continue
        first.setdefault(series_hash(header), "/".join(path.parts[-2:]))
        if len(first) > 1:
            told = f"holds two series, that of {' and that of '.join(first.values())}"
            raise DataError("M220", place, told, "Give the folder of one series")
        check_expected(header, expect or {})
        if burned_in == "exclude" and may_show_text(header):
            told = "text may be burned into the pixels: the file says so, or is of a kind that often has"
            raise DataError("M216", header.place, told, "Look at it; where there is none, set data.burned_in=keep")
        planes += _slices(stream, header)
        if planes[0].values.size * len(planes) > MAX_VOXELS or len(planes) > MAX_SLICES:
            raise DataError("M213", place, f"more than {MAX_SLICES} slices or {MAX_VOXELS:,} voxels", "Split it")
    if not planes:
        raise DataError("D115", place, "no DICOM images in it", "Give the folder of a series")
    return stack(planes, place)


def stack(planes: Sequence[Slice], place: str) -> Volume:
    """Slices to a volume: order and spacing from geometry.

    Raises:
        DataError: M218, M220, M221, M222, N307.
    """
    first = planes[0]
    _check_alike(planes, place)
    normal = np.cross(first.along[0], first.along[1])
    ordered = sorted(planes, key=lambda plane: float(plane.origin @ normal))
    step = _step(ordered, normal, place)
    affine = np.eye(4)
    affine[:3, 0] = _TO_RAS @ first.along[0] * first.spacing[1]
    affine[:3, 1] = _TO_RAS @ first.along[1] * first.spacing[0]
    affine[:3, 2] = _TO_RAS @ step
    affine[:3, 3] = _TO_RAS @ ordered[0].origin
    check_affine(affine, place)
    array = np.stack([plane.values.T for plane in ordered], axis=2)
    return Volume(_compact(array), affine, "dicom")


def _check_alike(planes: Sequence[Slice], place: str) -> None:
    first = planes[0]
    seen: dict[str, Slice] = {}
    for plane in planes:
        if plane.values.shape != first.values.shape:
            sizes = " and ".join("x".join(map(str, p.values.shape)) for p in (first, plane))
            raise DataError("M220", place, f"slices of {sizes} pixels in one series", _GEOMETRY[0])
        if np.abs(plane.along - first.along).max() > SAME_DIRECTION:
            raise DataError("M220", place, "slices of different directions in one series (a localizer?)", _GEOMETRY[0])
        if any(abs(a - b) > SAME_DIRECTION * a for a, b in zip(first.spacing, plane.spacing)):
            raise DataError("M220", place, "slices of different pixel spacing in one series", _GEOMETRY[0])
        twin = seen.setdefault(plane.instance, plane) if plane.instance else plane
        if twin is not plane and not np.array_equal(twin.values, plane.values):
            told = f"{twin.place} and {plane.place} differ under one SOP instance UID"
            raise DataError("M218", place, told, "Keep the right one of them")


def _step(ordered: Sequence[Slice], normal: np.ndarray, place: str) -> np.ndarray:
    """From one slice to the next, ``(3,)`` mm in LPS, the same for all of them.

    A missing slice shows as a distance from the straight line of at least half a step, rounding of positions does not.
    """
    count = len(ordered)
    if count == 1:
        if not ordered[0].step:
            told = "one slice, without a thickness or a spacing between slices"
            raise DataError("M221", place, told, "Give the whole series, or read it as an image")
        return np.asarray(normal * ordered[0].step)
    heights = np.array([plane.origin @ normal for plane in ordered])
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    doubled = int((gaps < max(0.01, 0.1 * usual)).sum())
    if doubled:
        told = f"{doubled} of {count} slices lie where another lies (several phases, echoes or copies)"
        raise DataError("M221", place, told, "Keep one of each, or split the series")
    step = (ordered[-1].origin - ordered[0].origin) / (count - 1)
    rise = float(step @ normal)
    off = np.abs(heights - heights[0] - np.arange(count) * rise)
    if off.max() > max(0.05 * usual, min(0.1, 0.25 * usual)):
        missing = int(sum(round(gap / usual) - 1 for gap in gaps))
        told = f"{missing} slices are missing" if missing > 0 else "slices that are not evenly spaced"
        raise DataError("M221", place, f"{told} ({usual:.3g} mm apart, at most {gaps.max():.3g})", _GEOMETRY[0])
    lean = step - rise * normal
    drift = float(np.linalg.norm(lean)) * (count - 1)
    if drift > 0.5 * min(ordered[0].spacing):
        tilt = np.degrees(np.arctan2(np.linalg.norm(lean), rise))
        raise DataError("M222", place, f"the stack leans by {tilt:.1f} degrees (gantry tilt)", _GEOMETRY[1])
    return np.asarray(normal * rise)


def _slices(stream: Stream, header: Header) -> list[Slice]:
    """The planes of one file; of a multi-frame one each frame, placed by its functional groups."""
    fmt = pixel_format(header)
    if fmt.photometric not in GREY:
        raise DataError("M220", header.place, "colours, and a volume has one value per voxel", "Read it as an image")
    if fmt.frames * fmt.rows * fmt.columns > MAX_VOXELS:
        raise DataError("M213", header.place, f"more than {MAX_VOXELS:,} voxels", "Split it")
    instance = instance_hash(header)
    planes = []
    for frame in range(fmt.frames):
        groups = frame_groups(header, fmt, frame)
        origin = _first(header, groups, 0x00209113, 0x00200032)
        along = _first(header, groups, 0x00209116, 0x00200037)
        spacing = _first(header, groups, 0x00289110, 0x00280030)
        if len(origin) != 3 or len(along) != 6 or len(spacing) != 2:
            told = "position, orientation or pixel spacing of a slice is missing"
            raise DataError("M220", header.place, told, "Read it as images, not as a volume")
        directions = np.array(along).reshape(2, 3)
        lengths = np.linalg.norm(directions, axis=1)
        if np.abs(lengths - 1).max() > 0.01 or abs(directions[0] @ directions[1]) > 0.01:
            raise DataError("M220", header.place, "an orientation whose axes are not at right angles", _GEOMETRY[0])
        claimed = _first(header, groups, 0x00289110, 0x00180088) or _first(header, groups, 0x00289110, 0x00180050)
        step = claimed[0] if claimed and claimed[0] > 0 else None
        values = _values(stream, header, fmt, frame, groups)
        name = instance if fmt.frames == 1 else ""
        unit, between = directions / lengths[:, None], (spacing[0], spacing[1])
        planes.append(Slice(header.place, np.array(origin), unit, between, step, values, name))
    return planes


def _values(stream: Stream, header: Header, fmt: PixelFormat, frame: int, groups: Sequence[Header]) -> np.ndarray:
    raw = read_frame(stream, header, fmt, frame)
    codes, _ = stored_codes(raw, header, fmt, whole=keeps_containers(stream.syntax))
    table_V, _ = modality_values(code_values(fmt), header, groups)
    if np.array_equal(table_V, np.rint(table_V)) and np.abs(table_V).max() < 2**31:
        return table_V.astype(np.int32)[codes]
    return table_V.astype(np.float32)[codes]


def _first(header: Header, groups: Sequence[Header], sequence: int, tag: int) -> tuple[float, ...]:
    """A value from the frame's own group, else the shared one, else the top level."""
    for group in groups:
        for item in group.items(sequence):
            if found := item.numbers(tag, "M220"):
                return found
    return header.numbers(tag, "M220")


def _compact(array: np.ndarray) -> np.ndarray:
    """Whole numbers in 16 bits where they fit; float32 where some slices are no whole numbers."""
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype.kind == "i" and array.min() >= -32768 and array.max() <= 32767:
        return np.ascontiguousarray(array, dtype=np.int16)
    return np.ascontiguousarray(array)


def _paths(source: str | Path | Sequence[Path], place: str | None) -> tuple[list[Path], str]:
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
        return paths, place or (paths[0].parent.name if paths else "series")
    path = Path(source)
    return (series_files(path) if path.is_dir() else [path]), place or str(source)


def series_files(folder: Path) -> list[Path]:
    """The DICOM files below a folder, in a stable order; D114 a folder that cannot be read."""

    def refuse(problem: OSError) -> None:
        told = f"cannot be read ({problem.strerror})"
        raise DataError("D114", problem.filename or folder, told, "Correct its permissions") from None

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink() and is_dicom_file(path):
                found.append(path)
    return found


def _open(path: Path, place: str) -> tuple[Stream, Header]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise DataError("M213", place, f"a file of more than {MAX_FILE:,} bytes", "Split it, or leave it out")
        stream = walk_stream(path.read_bytes(), place)
    except OSError as problem:
        raise DataError("D114", place, f"cannot be read ({problem.strerror})", "Correct its permissions") from None
    return stream, header_of(stream, place)
