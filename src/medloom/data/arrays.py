"""MedMNIST's npz: ``{train,val,test}_{images,labels}``, grey or colour, any size, one label or many.

Shapes and types are read from the headers, and held against the sizes that the archive declares, before an array is
loaded; pickled members are refused. Arrays are loaded once per process.

Reference: Yang et al., MedMNIST v2, Scientific Data 10:41, 2023.
"""

from __future__ import annotations

import math
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.data.medmnist_sets import set_of_file
from medloom.data.records import SPLITS, Dataset, Record
from medloom.errors import DataError

if TYPE_CHECKING:
    from medloom.config import DataConfig

_REMEDY = "Write {train,val,test}_images of uint8 (N, H, W) or (N, H, W, 3) and *_labels of integers (N, 1) or (N, K)"
_loading = threading.Lock()
_loaded: dict[tuple[str, int, int], dict[str, np.ndarray]] = {}


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def open_npz(path: Path, config: DataConfig) -> Dataset:
    """Records of a MedMNIST file; ids are ``train/17``.

    Classes are those of ``config.classes``, else the published names where the file bears a set's name
    (``chestmnist_64.npz``) and their number fits, else ``0 .. K-1``.

    Raises:
        DataError: D116 key missing, wrong shape or type, labels outside the classes; D115 empty; D114 unreadable.
    """
    headers = _headers(path)
    splits = [s for s in SPLITS if f"{s}_images" in headers or f"{s}_labels" in headers]
    if not splits:
        raise DataError("D116", path, f"no *_images among its {len(headers)} arrays", _REMEDY)
    for split in splits:
        _check_pair(path, split, headers)
    arrays = {split: _labels(path, split) for split in splits}
    widths = {labels.shape[1] for labels in arrays.values()}
    if len(widths) > 1:
        raise DataError("D116", path, f"label columns differ between splits: {sorted(widths)}", _REMEDY)
    several = widths.pop() > 1
    if config.multi_label is not None and config.multi_label != several:
        raise DataError(
            "D116", path, f"labels are {'many' if several else 'one'} per image", "Leave data.multi_label out"
        )
    classes = _classes(path, arrays, several, config.classes)
    records = []
    for split in splits:
        rows = arrays[split]
        for index, row in enumerate(rows):
            labels = tuple(int(k) for k in np.flatnonzero(row)) if several else (int(row[0]),)
            records.append(Record(id=f"{split}/{index}", path=path.name, index=index, labels=labels, split=split))
    return Dataset(path.stem, path, classes, tuple(records), several)


def array_row(path: Path, record: Record) -> np.ndarray:
    """``(H, W)`` or ``(H, W, 3)`` pixels of a record. The array is named by the id: splits may be drawn anew.

    Raises:
        DataError: D116 when the file no longer holds the row; D114 when it cannot be read.
    """
    array = _array(path, f"{record.id.split('/')[0]}_images")
    if record.index is None or not 0 <= record.index < len(array):
        raise DataError("D116", record.id, f"{path.name} has no such row", "Audit the data set anew")
    row: np.ndarray = array[record.index]
    return row[:, :, 0] if row.ndim == 3 and row.shape[2] == 1 else row


def _headers(path: Path) -> dict[str, _Header]:
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as handle:
                    version = np.lib.format.read_magic(handle)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(handle)
                    start = handle.tell()
                name = member.filename.removesuffix(".npy")
                if dtype.hasobject:
                    raise DataError("D116", f"{path} {name}", "holds pickled objects", _REMEDY)
                if start + math.prod(shape) * dtype.itemsize != member.file_size:
                    raise DataError("D116", f"{path} {name}", f"its header says {shape}, its size does not", _REMEDY)
                headers[name] = _Header(shape, dtype)
    except OSError as problem:
        raise DataError("D114", path, f"cannot be read ({problem.strerror or problem})", "Correct its path") from None
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as problem:
        raise DataError("D116", path, f"not a whole npz file ({problem})", "Copy it again") from None
    return headers


def _check_pair(path: Path, split: str, headers: dict[str, _Header]) -> None:
    for kind in ("images", "labels"):
        if f"{split}_{kind}" not in headers:
            raise DataError("D116", path, f"the array {split}_{kind} is missing", _REMEDY)
    images, labels = headers[f"{split}_images"], headers[f"{split}_labels"]
    if images.dtype not in (np.uint8, np.uint16):
        raise DataError("D116", f"{path} {split}_images", f"pixels are {images.dtype}", _REMEDY)
    if len(images.shape) not in (3, 4) or (len(images.shape) == 4 and images.shape[3] not in (1, 3)):
        raise DataError("D116", f"{path} {split}_images", f"its shape is {images.shape}", _REMEDY)
    if labels.dtype.kind not in "biu" or len(labels.shape) not in (1, 2) or math.prod(labels.shape[1:]) < 1:
        raise DataError("D116", f"{path} {split}_labels", f"labels are {labels.dtype} of shape {labels.shape}", _REMEDY)
    if images.shape[0] != labels.shape[0]:
        raise DataError(
            "D116", f"{path} {split}", f"{images.shape[0]} images but {labels.shape[0]} labels", "Write one per image"
        )
    if images.shape[0] == 0:
        raise DataError("D115", f"{path} {split}", "the split is empty", "Leave its arrays out, or fill them")


def _labels(path: Path, split: str) -> np.ndarray:
    labels = _array(path, f"{split}_labels")
    return (labels[:, None] if labels.ndim == 1 else labels).astype(np.int64)


def _classes(
    path: Path, arrays: dict[str, np.ndarray], several: bool, named: tuple[str, ...] | None
) -> tuple[str, ...]:
    low = min(int(a.min()) for a in arrays.values())
    high = max(int(a.max()) for a in arrays.values())
    count = next(iter(arrays.values())).shape[1] if several else high + 1
    classes = named if named is not None else _published(path.stem, count, several)
    if low < 0 or (several and (high > 1 or len(classes) != count)) or (not several and high >= len(classes)):
        for split, labels in arrays.items():
            bad = (labels < 0) | (labels > 1 if several else labels >= len(classes))
            if bad.any():
                row, column = (int(v) for v in np.argwhere(bad)[0])
                raise DataError(
                    "D116",
                    f"{path} {split}_labels row {row}",
                    f"label {labels[row, column]} is outside the classes",
                    _REMEDY,
                )
        raise DataError("D116", path, f"{count} label columns but {len(classes)} classes", "Correct data.classes")
    return classes


def _published(stem: str, count: int, several: bool) -> tuple[str, ...]:
    """The labels that the file's name promises, where as many columns (or no more classes) are there."""
    found = set_of_file(stem)
    if found is not None and (count == len(found.labels) if several else count <= len(found.labels)):
        return found.labels
    return tuple(str(k) for k in range(max(count, 1)))


def _array(path: Path, name: str) -> np.ndarray:
    """An array of the file, loaded once per process and version of the file."""
    try:
        facts = path.stat()
        key = (str(path), facts.st_mtime_ns, facts.st_size)
        with _loading:
            if key not in _loaded:
                _loaded.clear()  # one file at a time: MedMNIST at 224 takes gigabytes
            arrays = _loaded.setdefault(key, {})
            if name not in arrays:
                with np.load(path, allow_pickle=False) as archive:
                    arrays[name] = archive[name]
            return arrays[name]
    except OSError as problem:
        raise DataError("D114", path, f"cannot be read ({problem.strerror or problem})", "Correct its path") from None
    except KeyError:
        raise DataError("D116", path, f"the array {name} is missing", "Audit the data set anew") from None
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as problem:
        raise DataError("D103", f"{path} {name}", f"truncated or damaged ({problem})", "Copy it again") from None
    except MemoryError:
        raise DataError("D110", f"{path} {name}", "too large for this machine's memory", "Use a smaller size") from None
