"""A volume from whatever holds one: a NIfTI file, or a DICOM series as a folder, as files, or as one file of frames."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medloom.data.dicom import is_dicom_file
from medloom.data.dicom_series import read_series
from medloom.data.records import Dataset, Record
from medloom.data.volumes import Volume, is_volume, read_nifti

if TYPE_CHECKING:
    from medloom.config import DataConfig


def read_volume(
    source: str | Path | Sequence[Path],
    *,
    prefer: Literal["refuse", "sform", "qform"] = "refuse",
    expect: Mapping[str, Sequence[str]] | None = None,
    burned_in: Literal["exclude", "keep"] = "keep",
    place: str | None = None,
) -> Volume:
    """Read one volume, in the order of its file.

    Args:
        prefer: which place of a NIfTI file counts where its two differ.
        expect: as in ``read_series``, of DICOM.
        burned_in: ``exclude`` refuses DICOM slices that may show text.
        place: how errors name it.

    Raises:
        DataError: the codes of ``read_nifti`` and ``read_series``.
    """
    if isinstance(source, str | Path) and not (Path(source).is_dir() or is_dicom_file(source)):
        return read_nifti(source, prefer=prefer, place=place)
    return read_series(source, expect=expect, burned_in=burned_in, place=place)


def is_volume_case(record: Record) -> bool:
    """Whether a record with a mask is of a volume; the mask tells, as the image may be a folder."""
    return record.mask is not None and is_volume(record.mask)


def read_case_volume(
    dataset: Dataset, record: Record, config: DataConfig, prefer: Literal["refuse", "sform", "qform"] = "refuse"
) -> Volume:
    """The volume of a record to learn from: of DICOM, only what the recipe declares and what shows no text.

    Raises:
        DataError: the codes of ``read_volume``; M215, M216 a series that the recipe does not want.
    """
    expect = {str(name): words for name, words in config.expect.items()}
    path = dataset.file(record)
    return read_volume(path, prefer=prefer, expect=expect, burned_in=config.burned_in, place=record.id)


def sizes_below(path: Path) -> list[tuple[str, int]]:
    """Name and bytes of a file, or of every file below a folder by its path in it; nothing where neither is there.

    The cheap way to see that a series changed; hidden files do not count, as no reader looks at them.
    """
    if not path.is_dir():
        return [(path.name, path.stat().st_size)] if path.exists() else []
    found = []
    for root, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(root).relative_to(path)
        found += [((inside / n).as_posix(), Path(root, n).stat().st_size) for n in sorted(names) if n[0] != "."]
    return found
