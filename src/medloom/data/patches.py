"""PatchCamelyon's layout: ``*_split_{train,valid,test}_{x,y}.h5``, patches in ``x``, labels in ``y``, slides in a CSV.

An x of the published set is 7 GB, so nothing is read but the rows that are asked for; the chunks that the last ones
came from are kept. A file of this format can point at other files (external links, external and virtual storage) and
can declare any size for nothing, so each of those is refused before a pixel is read.

Reference: Veeling et al., arXiv 1806.03962; Ehteshami Bejnordi et al., JAMA 318:2199, 2017 (CAMELYON16).
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.data.labels import SPLIT_NAMES
from medloom.data.records import Dataset, Record
from medloom.data.tables import read_table
from medloom.errors import DataError, UsageError

if TYPE_CHECKING:
    from medloom.config import DataConfig

CLASSES = ("normal", "tumor")
SLIDE = "wsi"
SUFFIXES = (".h5", ".hdf5")

_NAME = re.compile(r"(?P<stem>.+)_split_(?P<split>train|valid|val|test)_(?P<part>x|y)\.h5$")
_REMEDY = "Write x as uint8 (N, H, W, 3) and y as 0 and 1 (N, 1, 1, 1), one pair of files per split"
_FILTERS = (None, "gzip", "lzf", "szip")
_MOST_BYTES = 2**29  # what one row may cost to read: all chunks that it lies in
_MOST_ROWS = 10**8
_OPEN_FILES = 6  # x and y of three splits
_SLOTS = 20011

_reading = threading.Lock()
_opened: OrderedDict[tuple[str, int, int], _Open] = OrderedDict()


@dataclass(frozen=True)
class _Open:
    """A file and its array, held together: the library's memory of decoded chunks goes with the array."""

    file: Any
    array: Any


@dataclass(frozen=True)
class _Pair:
    """The two files of a split."""

    split: str
    x: Path
    y: Path


def is_patch_file(name: str) -> bool:
    """Whether a file bears a name of this layout."""
    return _NAME.match(name) is not None


def open_patches(root: Path, names: Sequence[str], config: DataConfig) -> Dataset:
    """Records of a folder in this layout; ids are ``train/17``, the covariate ``wsi`` is the slide, where a table says.

    Args:
        root: the folder.
        names: the files that lie in it.

    Raises:
        DataError: D116 a file of the pair missing, another key, shape or type, x and y of other lengths, patches of
            several sizes, a table of other length, labels that are none; D113 an array that lies elsewhere; D103 cut
            off; D110 chunks too large; D114 unreadable; D115 empty.
        UsageError: U210, h5py is not installed.
    """
    pairs = _pairs(root, names)
    classes = config.classes or CLASSES
    if len(classes) != 2:
        raise DataError("D116", root, f"two classes are labelled and {len(classes)} are named", "Correct data.classes")
    sizes: dict[tuple[int, ...], str] = {}
    records: list[Record] = []
    for pair in pairs:
        shape = _check_x(pair.x)
        sizes.setdefault(shape[1:3], pair.x.name)
        labels = _labels(pair, shape[0])
        slides = _slides(root, pair, shape[0], config)
        columns = {slide: {SLIDE: slide} for slide in set(slides)}  # shared: there are patches by the hundred thousand
        split = SPLIT_NAMES[pair.split]
        for k, y in enumerate(labels):
            known = columns[slides[k]] if slides else {}
            records.append(Record(f"{split}/{k}", pair.x.name, k, (int(y),), split=split, covariates=known))
    if len(sizes) > 1:
        told = ", ".join(f"{h} x {w} in {name}" for (h, w), name in sizes.items())
        raise DataError("D116", root, f"patches are of several sizes: {told}", "Cut them at one size and magnification")
    return Dataset(root.name, root, tuple(classes), tuple(records))


def patch_row(path: Path, record: Record) -> np.ndarray:
    """``(H, W, 3)`` uint8 of one record.

    Raises:
        DataError: D116 the file no longer holds the row; D103 it cannot be decoded; what ``open_patches`` refuses.
    """
    with _array(path, "x") as stored:
        if record.index is None or not 0 <= record.index < stored.shape[0]:
            raise DataError("D116", record.id, f"{path.name} has no such row", "Audit the data set anew")
        try:
            row: np.ndarray = stored[record.index]
        except (OSError, RuntimeError) as problem:
            raise DataError("D103", record.id, f"not decodable ({_said(problem)})", "Copy the file again") from None
    return row


def _pairs(root: Path, names: Sequence[str]) -> list[_Pair]:
    found: dict[tuple[str, str], Path] = {}
    stems: dict[str, str] = {}
    for name in sorted(names):
        if match := _NAME.match(name):
            stems.setdefault(match["stem"], name)
            found[match["split"], match["part"]] = root / name
    if len(stems) != 1:
        raise DataError("D116", root, f"holds {len(stems)} sets of h5 files, not one", "Give each a folder of its own")
    splits = sorted({split for split, _ in found}, key=("train", "val", "valid", "test").index)
    if len({SPLIT_NAMES[split] for split in splits}) < len(splits):
        raise DataError("D116", root, "both val and valid are there", "Keep one of the two")
    for split in splits:
        for part, other in (("x", "y"), ("y", "x")):
            if (split, part) not in found:
                place = found[split, other].name.replace(f"_{other}.h5", f"_{part}.h5")
                raise DataError("D116", root / place, "is missing", "Both x and y are needed; unpack .gz files first")
    return [_Pair(split, found[split, "x"], found[split, "y"]) for split in splits]


def _check_x(path: Path) -> tuple[int, ...]:
    with _array(path, "x") as stored:
        shape = tuple(map(int, stored.shape))
        if stored.dtype != np.uint8:
            raise DataError("D116", f"{path} x", f"pixels are {stored.dtype}", _REMEDY)
        if len(shape) != 4 or shape[3] != 3 or min(shape[1:3]) < 1:
            raise DataError("D116", f"{path} x", f"its shape is {shape}", _REMEDY)
        if shape[0] == 0:
            raise DataError("D115", f"{path} x", "there are no patches in it", "Leave the split out, or fill it")
        if shape[0] > _MOST_ROWS:
            raise DataError("D110", f"{path} x", f"declares {shape[0]:,} patches", "Split it over several sets")
    return shape


def _labels(pair: _Pair, n: int) -> np.ndarray:
    with _array(pair.y, "y") as stored:
        shape = tuple(stored.shape)
        if stored.dtype.kind not in "biu" or len(shape) < 1 or any(extent != 1 for extent in shape[1:]):
            raise DataError("D116", f"{pair.y} y", f"labels are {stored.dtype} of shape {shape}", _REMEDY)
        if shape[0] != n:
            raise DataError("D116", pair.y, f"{n} patches but {shape[0]} labels", "Copy both files again")
        try:
            labels_N = np.asarray(stored[...]).reshape(n)
        except (OSError, RuntimeError) as problem:
            raise DataError("D103", pair.y, f"not decodable ({_said(problem)})", "Copy the file again") from None
    wrong = np.flatnonzero((labels_N != 0) & (labels_N != 1))
    if len(wrong):
        place = f"{pair.y} y row {wrong[0]}"
        raise DataError("D116", place, f"label {labels_N[wrong[0]]} is neither 0 nor 1", _REMEDY)
    return labels_N


def _slides(root: Path, pair: _Pair, n: int, config: DataConfig) -> list[str]:
    """The slide of each patch, from the table that lies beside; none where there is no such table or column."""
    path = root / pair.x.name.replace("_x.h5", "_meta.csv")
    if not path.is_file():
        return []
    table = read_table(path, config.encoding)
    if SLIDE not in table.columns:
        return []
    if len(table.rows) != n:
        raise DataError("D116", path, f"{len(table.rows)} rows for {n} patches", "Copy it again, or take it away")
    return table.column(SLIDE)


@contextlib.contextmanager
def _array(path: Path, key: str) -> Iterator[Any]:
    """The array ``key`` of a file, for this thread alone. The last few files stay open between calls."""
    h5py = _library()
    with _reading:
        try:
            facts = path.stat()
            name = (str(path), facts.st_mtime_ns, facts.st_size)
            if name not in _opened:
                with path.open("rb"):  # the library tells an unreadable file and a foreign one by the same exception
                    pass
                stale = [old for old in _opened if old[0] == name[0]]
                for old in stale or list(_opened)[: len(_opened) - _OPEN_FILES + 1]:
                    _opened.pop(old).file.close()
                _opened[name] = _open(h5py, path, key)
        except OSError as problem:
            reason = problem.strerror or problem
            raise DataError("D114", path, f"cannot be read ({reason})", "Correct its path") from None
        _opened.move_to_end(name)
        yield _opened[name].array


def _open(h5py: ModuleType, path: Path, key: str) -> _Open:
    try:
        try:
            handle = h5py.File(path, "r")
        except OSError as problem:
            if "lock" not in str(problem):
                raise
            handle = h5py.File(path, "r", locking=False)  # as on network drives; nothing is written here
    except OSError as problem:
        if "truncated" in str(problem) or path.stat().st_size == 0:
            raise DataError("D103", path, f"truncated ({_said(problem)})", "Copy it again") from None
        raise DataError("D116", path, f"no HDF5 file ({_said(problem)})", "Copy it again; unpack .gz first") from None
    try:
        _check_place(h5py, handle, path, key)
        cost, chunks = _row_cost(handle[key]), handle[key].chunks
        if cost > _MOST_BYTES:
            text = f"one row costs {cost:,} bytes to read (chunks of {chunks})"
            raise DataError("D110", f"{path} {key}", text, "Write it with chunks of a few patches")
        # By itself the library keeps few chunks: were a row's more than that, each row would decode them all anew.
        # The setting counts only where nothing else holds the array open.
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(_SLOTS, max(2 * cost, 2**22), 0.75)
        array = h5py.Dataset(h5py.h5d.open(handle.id, key.encode(), access))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as problem:
        handle.close()
        raise DataError("D103", path, f"damaged ({_said(problem)})", "Copy it again") from None
    except DataError:
        handle.close()
        raise
    return _Open(handle, array)


def _check_place(h5py: ModuleType, handle: Any, path: Path, key: str) -> None:
    """That the array is one, and lies in this very file."""
    link = handle.get(key, getlink=True)
    if link is None:
        raise DataError("D116", path, f"the array {key} is not among {_listed(handle)}", _REMEDY)
    elsewhere = "" if isinstance(link, h5py.HardLink) else "a link"
    if not elsewhere:
        stored = handle[key]
        if not isinstance(stored, h5py.Dataset) or stored.shape is None:
            raise DataError("D116", path, f"{key} is no array", _REMEDY)
        if stored.compression not in _FILTERS:
            raise DataError("D116", path, f"{key} is compressed by {stored.compression}", "Write it with gzip")
        elsewhere = "external storage" if stored.external else "a virtual array" if stored.is_virtual else ""
    if elsewhere:
        text = f"{key} is {elsewhere}, which may lead out of the file"
        raise DataError("D113", path, text, "Copy the array itself into the file")


def _row_cost(array: Any) -> int:
    """Bytes that must be decoded for one row: the row, or every chunk that it lies in."""
    if not array.chunks:
        return math.prod(array.shape[1:]) * array.dtype.itemsize
    chunks = math.prod(-(-extent // step) for extent, step in zip(array.shape[1:], array.chunks[1:]))
    return chunks * math.prod(array.chunks) * array.dtype.itemsize


def _listed(handle: Any) -> str:
    names = list(handle.keys())
    return ", ".join(repr(name) for name in names[:5]) + (" ..." if len(names) > 5 else "") if names else "none"


def _said(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:160]


def _library() -> ModuleType:
    try:
        import h5py
    except ImportError:
        raise UsageError(
            "U210",
            "environment",
            "h5 files need the package h5py, which is not installed",
            "Install the extra: pip install 'medloom[slides]'",
        ) from None
    return h5py
