"""How the axes of a volume lie in the patient: orientation, spacing, and the way back, from a 4 x 4 matrix in mm.

World coordinates are RAS+: right, anterior, superior. An axis of an array is named by where it runs to: R or L, A or P,
S or I. Turning an array only permutes and flips its axes, so that no voxel value changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from medloom.errors import DataError

NAMES = (("L", "R"), ("P", "A"), ("I", "S"))
MOST_MM, LEAST_MM = 50.0, 0.01
"""Voxels outside are no clinical image: a spacing of 0.001 is one in metres."""


@dataclass(frozen=True)
class Orientation:
    """Which axis of the stored array each axis of the RAS+ array is, and whether it runs the other way.

    Attributes:
        axes: for right, anterior, superior: the axis of the stored array that runs along it.
        flips: for right, anterior, superior: whether that axis runs to the left, posterior, inferior.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """A view whose last three axes run to the right, anterior, superior; earlier axes stay."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + a for a in self.axes))
        return turned[(..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))]

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """The inverse of ``to_canonical``, a view too."""
        lead = array.ndim - 3
        turned = array[(..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))]
        return turned.transpose(*range(lead), *(lead + int(a) for a in np.argsort(self.axes)))


AS_STORED = Orientation()


def orientation_of(affine: np.ndarray) -> Orientation:
    """The assignment of array axes to right, anterior and superior under which they point along them best.

    All six assignments are compared (sum of the absolute cosines), so that an oblique volume never has two of its
    axes sent to one direction.
    """
    cosines_WA = affine[:3, :3] / spacing_of(affine)
    order = max(permutations(range(3)), key=lambda p: (round(sum(abs(cosines_WA[w, p[w]]) for w in range(3)), 9), p))
    flips = tuple(bool(cosines_WA[w, order[w]] < 0) for w in range(3))
    return Orientation((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))


def axis_codes(affine: np.ndarray) -> str:
    """Where each axis of the array runs to, ``"RAS"``, ``"LPI"`` ..."""
    orientation = orientation_of(affine)
    letters = [""] * 3
    for world, (axis, flip) in enumerate(zip(orientation.axes, orientation.flips)):
        letters[axis] = NAMES[world][0 if flip else 1]
    return "".join(letters)


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """``(3,)`` mm between neighbours along each axis of the array."""
    return np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))


def canonical_affine(affine: np.ndarray, shape: tuple[int, ...], orientation: Orientation) -> np.ndarray:
    """The matrix of the array that ``orientation.to_canonical`` gives; ``shape`` is that of the stored one."""
    return np.asarray(affine, dtype=np.float64) @ _index_step(shape, orientation)


def stored_affine(affine: np.ndarray, shape: tuple[int, ...], orientation: Orientation) -> np.ndarray:
    """The inverse of ``canonical_affine``; ``shape`` is that of the stored array here too."""
    return np.asarray(affine, dtype=np.float64) @ np.linalg.inv(_index_step(shape, orientation))


def _index_step(shape: tuple[int, ...], orientation: Orientation) -> np.ndarray:
    """From the index in the turned array to the index in the stored one."""
    step = np.zeros((4, 4))
    step[3, 3] = 1.0
    for world, (axis, flip) in enumerate(zip(orientation.axes, orientation.flips)):
        step[axis, world] = -1.0 if flip else 1.0
        step[axis, 3] = shape[axis] - 1 if flip else 0.0
    return step


def resampled_affine(affine: np.ndarray, shape: tuple[int, ...], new_shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of a grid of other size over the same field of view: the outer faces of both coincide."""
    ratio = np.asarray(shape, dtype=np.float64) / np.asarray(new_shape, dtype=np.float64)
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = (ratio - 1) / 2
    return np.asarray(affine, dtype=np.float64) @ step


def farthest_corner(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between the places that two matrices give to the eight corner voxels."""
    corners_48 = np.ones((4, 8))
    corners_48[:3] = np.array([[(c >> a & 1) * (shape[a] - 1) for c in range(8)] for a in range(3)])
    return float(np.sqrt((((one - other) @ corners_48)[:3] ** 2).sum(axis=0)).max())


def check_affine(affine: np.ndarray, place: str) -> None:
    """Refuse a matrix from which no place in the patient follows.

    Raises:
        DataError: N301 NaN or infinite; N302 axes of no length or in one plane; N307 a spacing that no scanner makes.
    """
    remedy = "Write the file again from its source, with the right header"
    if not np.isfinite(affine).all():
        raise DataError("N301", place, "the affine holds NaN or infinity", remedy)
    spacing = spacing_of(affine)
    if not (spacing > 0).all():
        raise DataError("N302", place, "the affine has an axis of no length", remedy)
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise DataError("N302", place, "the affine puts its three axes into one plane", remedy)
    if spacing.max() > MOST_MM or spacing.min() < LEAST_MM:
        shown = " x ".join(f"{s:.4g}" for s in spacing)
        raise DataError(
            "N307",
            place,
            f"a spacing of {shown} mm, outside {LEAST_MM:g} to {MOST_MM:g}",
            "Correct the header; lengths in metres need their unit in xyzt_units",
        )
