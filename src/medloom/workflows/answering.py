"""One batch of what ``medloom predict`` was asked: files in, rows out, in its own process or in another."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image as PIL

from medloom.data.dicom_archive import read_archive
from medloom.data.volumes import write_nifti
from medloom.deployment.bundle import Bundle
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.deployment.runtime import Picture
from medloom.deployment.segmenter import Segmentation
from medloom.errors import DataError
from medloom.files import make_folder, write_bytes

Windows = Callable[[int, int], None]


@dataclass(frozen=True)
class Item:
    """One image or case to answer, in plain values that another process can be told.

    Attributes:
        name: what its row calls it.
        files: what is read; several of a DICOM series.
        member: number of a file in an archive, from 1.
        series: the files are slices of one volume, be it a single one.
        mask: where its mask goes, below the folder of answers.
    """

    name: str
    files: tuple[str, ...]
    member: int | None = None
    series: bool = False
    mask: str | None = None


def answer(
    model: Bundle | SegmenterBundle,
    items: Sequence[Item],
    *,
    folder: Path | None = None,
    batch_size: int = 32,
    windows: Windows | None = None,
) -> Iterator[dict[str, Any]]:
    """A row of plain values for each of ``items``, in order; masks are written below ``folder`` on the way.

    Args:
        windows: called with the windows of a case that are done, and how many it has.

    Raises:
        DataError: M219 an archive that is not opened. ResourceError: T404, T405 a mask cannot be written.
    """
    if isinstance(model, Bundle):
        for item, found in zip(items, model.stream(_pictures(items), batch_size=batch_size), strict=True):
            yield {**found.as_dict(), "id": item.name}
        return
    assert folder is not None
    sources = [tuple(map(Path, item.files)) if item.series else Path(item.files[0]) for item in items]
    told = None if windows is None else (lambda _, done, total: windows(done, total))
    for item, drawn in zip(items, model.stream(sources, progress=told), strict=True):
        if drawn.mask is not None:
            assert item.mask is not None
            make_folder((folder / item.mask).parent)
            write_mask(folder / item.mask, drawn)
        kept = item.mask if drawn.mask is not None else None
        yield {**drawn.as_dict(), "id": item.name, "mask": kept}


def write_mask(path: Path, answer: Segmentation) -> None:
    """The mask as PNG or NIfTI, whole or not at all.

    Raises:
        ResourceError: T404, T405.
    """
    assert answer.mask is not None
    if answer.volume is not None:
        write_nifti(path, answer.mask, answer.volume)
        return
    data = io.BytesIO()
    PIL.fromarray(answer.mask).save(data, format="PNG")
    write_bytes(path, data.getvalue())


def _pictures(items: Sequence[Item]) -> Iterator[Picture]:
    """Files, and the members of archives, one by one."""
    for (file, packed), group in groupby(items, key=lambda item: (item.files[0], item.member is not None)):
        if not packed:
            yield from (Path(file) for _ in group)
            continue
        members = {item.member for item in group if item.member is not None}
        found = 0
        for _, data in read_archive(file, members):
            yield data
            found += 1
        if found < len(members):
            raise DataError("M219", file, "it changed while it was read", "Run again when it is whole")
