"""NIfTI files for tests, written by nibabel, and broken on purpose."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

FIELDS = {
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "slope": (112, "2f"),
    "units": (123, "B"),
    "codes": (252, "2h"),
    "quatern": (256, "6f"),
    "srow": (280, "12f"),
    "magic": (344, "4s"),
}


def volume_of(shape: tuple[int, int, int] = (9, 7, 5), kind: str = "int16", seed: int = 0) -> np.ndarray:
    """Voxels that are all different places."""
    return np.random.default_rng(seed).integers(0, 200, shape).astype(kind)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    """An honest file, with sform and qform both set."""
    image = nibabel.Nifti1Image(array, np.diag([1.5, 2.0, 3.0, 1.0]) if affine is None else affine)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def spoil(path: Path, **values: tuple[Any, ...]) -> Path:
    """Write numbers into the header of a file, past every check of a library."""
    packed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for name, numbers in values.items():
        offset, code = FIELDS[name]
        struct.pack_into(f"<{code}", data, offset, *numbers)
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    return path
