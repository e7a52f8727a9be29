"""Images and their masks on the grid of the model, decoded once and read from disk when they are touched.

The twin of ``cache`` for cases of many sizes. A cache folder is named by what decides its bytes, so that another image,
mask or setting is another folder, and a stale one is never read.

Shapes: C channels, S the spatial axes: (H, W), or (X, Y, Z) of a volume.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.data.build_lock import building
from medloom.data.records import Dataset, Record
from medloom.data.volume_source import is_volume_case
from medloom.errors import DataError, ResourceError
from medloom.files import atomic_directory, sha256_file, sha256_json, sweep_orphans, write_json

PLACES = 512
"""Voxels per structure and case that are remembered as places to centre a patch on."""

FORMAT = 1
Case = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Cases:
    """Cases of a data set, in the order of its records.

    Attributes:
        pixels: per case ``(C, *S)`` uint8 (images) or uint16 (volumes).
        labels: per case ``(*S)`` uint8: positions in ``Dataset.classes``, 0 the background.
        places: per case, structure to ``(M, axes)`` int32 voxels in it, at most ``PLACES``.
        key: SHA-256 of what decided all of this.
    """

    pixels: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    places: tuple[dict[int, np.ndarray], ...]
    key: str

    def __len__(self) -> int:
        return len(self.pixels)


def build_cases(
    dataset: Dataset,
    make: Callable[[Record], Case],
    decides: dict[str, Any],
    directory: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Cases:
    """Make every case, or open the folder that holds them already.

    Args:
        make: record to pixels ``(C, *S)`` and labels ``(*S)``.
        decides: what else than the records decides the bytes: the geometric part of the preprocessing.
        directory: made when missing.
        progress: called with cases done and cases in all.

    Raises:
        DataError: what ``make`` raised; D115 without records. ResourceError: T404, T405.
    """
    if not len(dataset):
        raise DataError("D115", dataset.name, "no cases", "Check the path and the excluded files")
    directory = Path(directory)
    rows = [
        # The spacing, as equal voxels of another size are resampled otherwise; of pictures it only measures answers.
        [
            r.pixel_hash,
            r.mask_hash or sha256_file(dataset.root / str(r.mask)),
            list(r.spacing or ()) if is_volume_case(r) else [],
        ]
        for r in dataset.records
    ]
    key = sha256_json({"format": FORMAT, "values": dataset.label_values, "decides": decides, "rows": rows})
    folder = directory / f"cases-{key[:32]}"
    with building(directory):
        found = _open(folder, key)
        if found is None:
            sweep_orphans(directory)
            with atomic_directory(folder) as temp:
                _write(temp, dataset, make, key, progress)
            found = _open(folder, key)
    if found is None:
        raise ResourceError("T405", folder, "what was just written does not read back", "Use another disk for it")
    return found


def _write(
    folder: Path,
    dataset: Dataset,
    make: Callable[[Record], Case],
    key: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Plain writes of one case after another: on a full disk they fail with an error, while a memory map dies."""
    index: list[dict[str, Any]] = []
    places: dict[str, np.ndarray] = {}
    kind = None
    with (folder / "pixels").open("wb") as pixel_file, (folder / "labels").open("wb") as label_file:
        for position, record in enumerate(dataset.records):
            pixels, labels = make(record)
            kind = kind or pixels.dtype
            assert pixels.dtype == kind
            assert labels.dtype == np.uint8
            assert pixels.shape[1:] == labels.shape
            index.append({"shape": list(pixels.shape), "pixels": pixel_file.tell(), "labels": label_file.tell()})
            pixel_file.write(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes())
            label_file.write(np.ascontiguousarray(labels).tobytes())
            for structure in np.unique(labels)[np.unique(labels) > 0].tolist():
                places[f"{position}.{structure}"] = _places(labels, structure)
            if progress is not None:
                progress(position + 1, len(dataset))
    np.savez(folder / "places.npz", **places)  # type: ignore[arg-type]
    write_json(folder / "index.json", {"key": key, "dtype": str(kind), "cases": index})


def _places(labels: np.ndarray, structure: int) -> np.ndarray:
    """Voxels of a structure, evenly over their order, so that nothing is left to chance."""
    inside = np.flatnonzero(labels.reshape(-1) == structure)
    chosen = inside[np.linspace(0, len(inside) - 1, min(PLACES, len(inside))).astype(np.int64)]
    return np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)


def _open(folder: Path, key: str) -> Cases | None:
    """The cases, or None where there is no folder or not the one that its name promises."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["key"] != key:
            return None
        kind = np.dtype(index["dtype"]).newbyteorder("<")
        pixels, labels = (np.memmap(folder / name, dtype=np.uint8, mode="r") for name in ("pixels", "labels"))
        with np.load(folder / "places.npz", allow_pickle=False) as archive:
            stored: dict[int, dict[int, np.ndarray]] = {}
            for name in archive.files:
                position, structure = map(int, name.split("."))
                stored.setdefault(position, {})[structure] = archive[name]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    whole_pixels, whole_labels, places = [], [], []
    for position, case in enumerate(index["cases"]):
        shape, start, begin = tuple(case["shape"]), case["pixels"], case["labels"]
        length = int(np.prod(shape))
        raw = pixels[start : start + length * kind.itemsize]
        mask = labels[begin : begin + int(np.prod(shape[1:]))]
        if len(raw) != length * kind.itemsize or len(mask) != int(np.prod(shape[1:])):
            return None
        whole_pixels.append(raw.view(kind).reshape(shape))
        whole_labels.append(mask.reshape(shape[1:]))
        places.append(stored.get(position, {}))
    return Cases(tuple(whole_pixels), tuple(whole_labels), tuple(places), key)
