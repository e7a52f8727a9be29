"""Masks from their files: every value is a structure that is known, or the file is refused by name.

A mask holds whole numbers, one per structure; ``Dataset.label_values`` says which, and everything downstream sees their
positions in it (uint8, 0 the background).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medloom.data.images import decode_mask
from medloom.data.records import Dataset, Record
from medloom.data.volumes import Volume, in_order_of, is_volume, read_nifti, require_same_grid
from medloom.errors import DataError

MOST_VALUES = 64
"""More different numbers in one data set are grey values and not structures."""


def picture_labels(dataset: Dataset, record: Record, size: tuple[int, int], max_megapixels: float = 64.0) -> np.ndarray:
    """The mask of a picture as positions in ``dataset.label_values``, uint8 ``(H, W)``.

    Args:
        size: height and width of the image, which the mask must have.

    Raises:
        DataError: N309 another size, fractions, a value that no structure has; the D-codes of decoding.
    """
    place = str(record.mask)
    values, file_type = _picture(dataset.root / place, place, max_megapixels)
    if values.shape != size:
        sizes = " and ".join(f"{h} x {w}" for h, w in (values.shape, size))
        told = f"the mask and its image {record.path} have {sizes} pixels"
        raise DataError("N309", place, told, "Draw the mask on the image itself")
    return to_positions(values, dataset.label_values, place, file_type)


def volume_labels(dataset: Dataset, record: Record, image: Volume, prefer: str = "refuse") -> Volume:
    """The mask of a volume as positions in ``dataset.label_values``, on the grid and in the order of its image's file.

    Its affine is the image's: resampled by their own, two headers that agree within tolerance may round to two shapes.

    Args:
        image: as read or canonical.

    Raises:
        DataError: N309 another grid, fractions, a value that no structure has; the codes of ``read_nifti``.
    """
    place = str(record.mask)
    mask = read_nifti(dataset.root / place, prefer=prefer, place=place)  # type: ignore[arg-type]
    if image.kind == "dicom":
        mask = in_order_of(mask, image)
    require_same_grid(image, mask, place)
    positions = to_positions(mask.array, dataset.label_values, place, "nifti")
    return Volume(positions, image.stored_affine, mask.kind, mask.header)


def to_positions(values: np.ndarray, label_values: Sequence[int], place: str, file_type: str) -> np.ndarray:
    """Positions in ``label_values``, uint8 of the same shape.

    Raises:
        DataError: N309 fractions, or a value that is not listed, with how often it occurs.
    """
    whole = _whole(values, place)
    table = np.full(65536, 255, dtype=np.uint8)
    table[list(label_values)] = np.arange(len(label_values), dtype=np.uint8)
    outside = (whole < 0) | (whole > 65535) if whole.dtype not in (np.uint8, np.uint16) else np.zeros(1, dtype=bool)
    if not outside.any():
        known = np.zeros(65536, dtype=bool)
        known[list(label_values)] = True
        if known[whole].all():
            return table[whole]
        outside = ~known[whole]
    strange = whole[outside]
    told = (
        f"the value {int(strange.flat[0])} in {strange.size:,} places{_of(file_type)}, where structures are stored as "
    )
    told += ", ".join(map(str, label_values))
    raise DataError("N309", place, told, _remedy(file_type))


def values_in(root: Path, mask: str, max_megapixels: float) -> frozenset[int]:
    """The different numbers in one mask.

    Raises:
        DataError: N309 fractions, or grey values where structures are wanted; the codes of reading.
    """
    path = root / mask
    if is_volume(mask):
        # Only its numbers are wanted: where it lies is judged beside its image.
        values, file_type = read_nifti(path, prefer="sform", place=mask).array, "nifti"
    else:
        values, file_type = _picture(path, mask, max_megapixels)
    whole = _whole(values, mask)
    if whole.dtype in (np.uint8, np.uint16):
        found = np.flatnonzero(np.bincount(whole.reshape(-1)))
    else:
        found = np.unique(whole)
    # JPEG never keeps a border sharp: two values may survive in a mask of one block, three are its ringing.
    if len(found) > (2 if file_type == "jpeg" else MOST_VALUES):
        told = f"{len(found)} different values from {found[0]} to {found[-1]}{_of(file_type)}: no numbers of structures"
        raise DataError("N309", mask, told, _remedy(file_type))
    if len(found) and (found[0] < 0 or found[-1] > 65535):
        raise DataError("N309", mask, f"values from {found[0]} to {found[-1]}", "Store structures as 0 to 65535")
    return frozenset(int(v) for v in found)


def _picture(path: Path, place: str, max_megapixels: float) -> tuple[np.ndarray, str]:
    image = decode_mask(path, max_megapixels=max_megapixels, place=place)
    if image.pixels.ndim == 3:
        told = "the mask is a colour picture"
        raise DataError("N309", place, told, "Save one number per structure, as a grey or indexed PNG")
    return image.pixels, image.file_type


def _whole(values: np.ndarray, place: str) -> np.ndarray:
    """The same as integers; a float file may hold them exactly, and nothing is rounded to make it so."""
    if values.dtype.kind != "f":
        return values
    whole = np.rint(values)
    if (whole != values).any():
        off = values[whole != values]
        told = f"fractions such as {float(off.flat[0]):.6g} in {off.size:,} places, where structures have whole numbers"
        raise DataError("N309", place, told, "Save the mask as integers, resampled by nearest neighbour if at all")
    return whole.astype(np.int64)


def _of(file_type: str) -> str:
    return " of a JPEG" if file_type == "jpeg" else ""


def _remedy(file_type: str) -> str:
    if file_type == "jpeg":
        return "JPEG changes values along every border: save masks as PNG, from their source"
    return "Correct the mask, or say in data.classes and data.label_values what its values mean"
