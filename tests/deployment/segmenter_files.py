"""Volumes that a segmenter is given as files, and the table that it leaves."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from medloom.data.volumes import Volume, write_nifti


def store(path: Path, volume: Volume) -> Path:
    """A volume as a scanner's NIfTI: 16 bits, its header's two places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, volume.array.clip(0, 65535).astype(np.uint16), volume)
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    text = (folder / "volumes.csv").read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))
