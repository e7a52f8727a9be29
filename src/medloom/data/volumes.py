"""Volumes in memory: an array and its place in the patient, read from NIfTI and written back onto the same grid.

``canonical`` turns a volume so that its axes run to the right, anterior and superior, which is how models and pages
see every volume; ``Volume.to_stored`` is the exact way back, voxel by voxel.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medloom.data.geometry import (
    AS_STORED,
    Orientation,
    axis_codes,
    canonical_affine,
    farthest_corner,
    orientation_of,
    spacing_of,
    stored_affine,
)
from medloom.data.nifti import NIFTI1, NIFTI2, Layout, read_voxels
from medloom.errors import DataError
from medloom.files import write_bytes

SUFFIXES = (".nii", ".nii.gz")
SAME_GRID_MM = 0.1
"""How far a mask's voxels may lie from the image's; what rounding of a header to single precision may do is less."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume.

    Attributes:
        array: ``(X, Y, Z)``, any real type.
        affine: 4 x 4 float64, from the index in ``array`` to RAS+ in mm.
        kind: where it came from.
        header: the NIfTI header of its file, with which a mask is written back; empty for another kind.
        orientation: how ``array`` was turned from the order of its file; nothing was, unless by ``canonical``.
    """

    array: np.ndarray
    affine: np.ndarray
    kind: Literal["nifti", "dicom", "array"] = "array"
    header: bytes = b""
    orientation: Orientation = AS_STORED

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three axes."""
        x, y, z = self.array.shape[-3:]
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres along the three axes."""
        x, y, z = (float(s) for s in spacing_of(self.affine))
        return x, y, z

    @property
    def codes(self) -> str:
        """Where the axes of ``array`` run to: ``"RAS"`` after ``canonical``."""
        return axis_codes(self.affine)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Voxels along the axes of the file."""
        return tuple(self.shape[w] for w in np.argsort(self.orientation.axes))

    @property
    def stored_affine(self) -> np.ndarray:
        """The matrix of the array in the order of the file."""
        return stored_affine(self.affine, self.stored_shape, self.orientation)

    @property
    def stored_codes(self) -> str:
        """Where the axes of the file run to."""
        return axis_codes(self.stored_affine)

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """An array on this grid, in the order of the file (a view; leading axes such as classes stay in front)."""
        return self.orientation.to_stored(array)


def is_volume(name: str) -> bool:
    """Whether a file's name says NIfTI."""
    return name.lower().endswith(SUFFIXES)


def read_nifti(
    path: str | Path, *, prefer: Literal["refuse", "sform", "qform"] = "refuse", place: str | None = None
) -> Volume:
    """Read one ``.nii`` or ``.nii.gz``, in the order of the file.

    Args:
        prefer: which of the two places counts where sform and qform lie more than 1 mm apart.
        place: how errors name the file; its path when left out.

    Returns:
        Voxels as they are stored, or float32 where the header scales them; lengths in mm whatever unit the file uses.

    Raises:
        DataError: D101, D102, D111, D114, N301-N307, N310, N311; see ``medloom.data.nifti``.
    """
    array, header = read_voxels(Path(path), str(path) if place is None else place, prefer)
    return Volume(array, header.affine, "nifti", header.raw)


def canonical(volume: Volume) -> Volume:
    """The same voxels with axes that run to the right, anterior and superior; ``orientation`` keeps the way back."""
    if volume.orientation != AS_STORED:
        return volume
    orientation = orientation_of(volume.affine)
    affine = canonical_affine(volume.affine, volume.shape, orientation)
    return replace(volume, array=orientation.to_canonical(volume.array), affine=affine, orientation=orientation)


def require_same_grid(image: Volume, mask: Volume, place: str) -> None:
    """Refuse a mask whose voxels are not those of its image.

    Raises:
        DataError: N309 with the difference in voxels or mm.
    """
    remedy = "Resample the mask onto its image, or find the image that it was drawn on"
    if image.stored_shape != mask.stored_shape:
        sizes = " and ".join(" x ".join(map(str, v.stored_shape)) for v in (mask, image))
        raise DataError("N309", place, f"the mask and its image have {sizes} voxels", remedy)
    apart = farthest_corner(image.stored_affine, mask.stored_affine, image.stored_shape)
    if apart > SAME_GRID_MM:
        raise DataError("N309", place, f"the mask lies up to {apart:.4g} mm beside its image", remedy)


def in_order_of(mask: Volume, image: Volume) -> Volume:
    """The mask with its axes in the order of the image's file: voxels move, none changes.

    A DICOM series has no order of its own, and programs write the masks of one with rows or slices turned either way.
    """
    turn = orientation_of(np.linalg.inv(image.stored_affine) @ mask.affine)
    affine = canonical_affine(mask.affine, mask.shape, turn)
    return replace(mask, array=turn.to_canonical(mask.array), affine=affine, header=b"")


def write_nifti(path: str | Path, labels: np.ndarray, like: Volume) -> None:
    """Write a mask, whole or not at all; ``.gz`` in the name packs it.

    Grid, sform, qform and units are those of the file that ``like`` was read from, so that every reader lays the mask
    over the image; for another source both forms say its affine. Texts of the header, which may name a person, and
    extensions are left out.

    Args:
        labels: whole numbers in the order of the file (``like.to_stored``, or ``VolumePreprocess.restore``); stored
            as uint8, above 255 as uint16.
        like: the image, as read or canonical.

    Raises:
        ResourceError: T404, T405 when it cannot be written.
    """
    if labels.shape != like.stored_shape or labels.dtype.kind not in "biu":
        raise ValueError(f"expected whole numbers {like.stored_shape}, got {labels.dtype} {labels.shape}")
    wide = labels.size > 0 and int(labels.max()) > 255
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) > 65535):
        raise ValueError(f"labels from {labels.min()} to {labels.max()} do not fit 16 bits")
    header, order = _mask_header(like, 512 if wide else 2)
    voxels = labels.astype(np.dtype(order + ("u2" if wide else "u1"))).tobytes(order="F")
    data = header + b"\0\0\0\0" + voxels
    write_bytes(path, gzip.compress(data, 6, mtime=0) if str(path).lower().endswith(".gz") else data)


def write_nifti_image(path: str | Path, volume: Volume) -> None:
    """Write a volume of our own making in its own type, with sform and qform, whole or not at all.

    Raises:
        ResourceError: T404, T405 when it cannot be written.
    """
    codes = {np.dtype(np.uint8): (2, 8), np.dtype(np.int16): (4, 16), np.dtype(np.float32): (16, 32)}
    raw = bytearray(_fresh_header(volume))
    _put(raw, "<", NIFTI1.dim, (3, *volume.stored_shape, 1, 1, 1, 1))
    _put(raw, "<", (NIFTI1.datatype, "2h"), codes[volume.array.dtype])
    _put(raw, "<", NIFTI1.offset, (NIFTI1.size + 4,))
    _put(raw, "<", NIFTI1.slope, (1.0, 0.0))
    data = bytes(raw) + b"\0\0\0\0" + volume.to_stored(volume.array).tobytes(order="F")
    write_bytes(path, gzip.compress(data, 6, mtime=0) if str(path).lower().endswith(".gz") else data)


def _mask_header(like: Volume, datatype: int) -> tuple[bytes, str]:
    raw = bytearray(like.header or _fresh_header(like))
    layout = NIFTI1 if len(raw) == NIFTI1.size else NIFTI2
    order = "<" if struct.unpack_from("<i", raw)[0] == layout.size else ">"
    for start, stop in layout.cleared:
        raw[start:stop] = bytes(stop - start)
    _put(raw, order, layout.dim, (3, *like.stored_shape, 1, 1, 1, 1))
    _put(raw, order, (layout.datatype, "2h"), (datatype, 16 if datatype == 512 else 8))
    _put(raw, order, layout.offset, (layout.size + 4,))
    _put(raw, order, layout.slope, (1.0, 0.0))
    return bytes(raw), order


def _fresh_header(like: Volume) -> bytes:
    """A NIfTI-1 header for a volume that came from elsewhere; the qform only where it can say the same."""
    from scipy.spatial.transform import Rotation

    raw = bytearray(NIFTI1.size)
    layout: Layout = NIFTI1
    struct.pack_into("<i", raw, 0, layout.size)
    raw[344:348] = b"n+1\0"
    affine = like.stored_affine
    spacing = spacing_of(affine)
    turn = affine[:3, :3] / spacing
    hand = -1.0 if np.linalg.det(turn) < 0 else 1.0
    orthogonal = bool(np.allclose(turn.T @ turn, np.eye(3), atol=1e-4))
    _put(raw, "<", layout.pixdim, (hand, *spacing, 1.0, 0.0, 0.0, 0.0))
    raw[layout.units[0]] = 2  # millimetres
    if orthogonal:
        x, y, z, w = Rotation.from_matrix(turn * (1.0, 1.0, hand)).as_quat()
        sign = -1.0 if w < 0 else 1.0
        _put(raw, "<", layout.quatern, (sign * x, sign * y, sign * z, *affine[:3, 3]))
    _put(raw, "<", layout.codes, (int(orthogonal), 1))
    _put(raw, "<", layout.srow, tuple(affine[:3].reshape(-1)))
    return bytes(raw)


def _put(raw: bytearray, order: str, field: tuple[int, str], values: tuple[float, ...]) -> None:
    struct.pack_into(order + field[1], raw, field[0], *values)
