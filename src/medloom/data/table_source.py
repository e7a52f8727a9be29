"""Records from a table of images. Columns are found by usual names, or named in the recipe; the rest are covariates.

Labels stand in one column (several joined by ``|``), or, where ``data.classes`` are themselves columns, in one column
per class holding 1, 0, -1 (uncertain) or nothing (not mentioned, so 0).
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from medloom.config import DataConfig
from medloom.data.folders import frames_of, listed
from medloom.data.formats import SUFFIXES as IMAGE_SUFFIXES
from medloom.data.labels import TRAIN_AND_VAL, UNCERTAIN, Words, class_notices, settle, split_of, tidy
from medloom.data.records import Dataset, Record
from medloom.data.tables import Table, read_table
from medloom.errors import DataError

IMAGE_COLUMNS = (
    *("image", "image_path", "path", "file", "file_path", "filepath", "filename", "file_name"),
    *("image_file", "image_index", "image_id", "img", "img_path", "name"),
)
LABEL_COLUMNS = (
    *("label", "labels", "finding_labels", "findings", "finding", "class", "target", "diagnosis"),
    *("dx", "category", "y"),
)
SPLIT_COLUMNS = ["split", "official_split", "dataset_split", "partition", "subset"]
MASK_COLUMNS = ("mask", "mask_path", "mask_file")
_IMAGE_FOLDERS = ("", "images/")
_TRUE, _FALSE = frozenset(("1", "true", "yes")), frozenset(("0", "false", "no", ""))


def open_table(path: Path, config: DataConfig) -> Dataset:
    """Records of a table; image paths are relative to its folder (or to ``images/`` in it).

    Raises:
        DataError: D113 an image outside the folder; D114 unreadable; D115 empty; D116 whatever is wrong with the
            table, with its line.
    """
    table = read_table(path, config.encoding)
    root = path.parent
    image_column = find_column(table, config.image_column, IMAGE_COLUMNS, "data.image_column")
    if image_column is None:
        raise DataError("D116", path, "no column names the images", columns_hint(table, "data.image_column"))
    split_column = None
    if config.split_column != "none":
        split_column = find_column(table, config.split_column, SPLIT_COLUMNS, "data.split_column")
    named = None if config.mask_column == "none" else config.mask_column
    mask_column = find_column(table, named, MASK_COLUMNS, "data.mask_column")
    wide = _wide_columns(table, config)
    label_column = None if wide else find_column(table, config.label_column, LABEL_COLUMNS, "data.label_column")
    if label_column is None and not wide:
        raise DataError("D116", path, "no column holds the labels", columns_hint(table, "data.label_column"))
    paths = image_paths(table, image_column, root)
    if wide:
        words = [_wide_words(table, row, wide, config) for row in range(len(table.rows))]
        several = config.multi_label is not False
    else:
        assert label_column is not None
        words = [tuple(cell.split("|")) for cell in table.column(label_column)]
        several = any("|" in cell for cell in table.column(label_column)) and not config.rename
        several = several if config.multi_label is None else config.multi_label
    rows = [(table.place(k), w) for k, w in enumerate(words) if w is not None]
    classes, settled = settle(rows, config, several)
    positions = iter(settled)
    splits = [None] * len(paths) if split_column is None else splits_in(table, split_column)
    ignored = find_column(table, None, SPLIT_COLUMNS, "") if config.split_column == "none" else None
    masks: list[str | None] = [None] * len(paths)
    if mask_column is not None and config.mask_column != "none":
        masks = mask_paths(table, mask_column, root, needed=named is not None)
    # A mask is known for the diseased: as a covariate its name would give the answer away.
    spoken_for = (image_column, label_column, split_column, mask_column, ignored, *wide.values())
    covariates = [c for c in table.columns if c not in spoken_for]
    columns = [table.columns.index(c) for c in covariates]
    records, left_out = [], 0
    for row, (file, split, mask) in enumerate(zip(paths, splits, masks)):
        labels = None if words[row] is None else next(positions)
        if labels is None:
            left_out += 1
            continue
        extra = {c: table.rows[row][k] for c, k in zip(covariates, columns) if table.rows[row][k]}
        record = Record(file, file, labels=labels, mask=mask, split=split, covariates=extra)
        records.extend(frames_of(root, record, config))
    used = ", ".join(filter(None, (image_column, label_column or "one column per class", split_column)))
    notices = [f"columns read as image, label, split: {used}", *class_notices(classes, several)]
    gone = 0 if mask_column is None else sum(map(bool, table.column(mask_column))) - sum(m is not None for m in masks)
    if gone and config.mask_column != "none":
        notices.append(f"{gone} masks that stand in column {mask_column} are not there, and were passed over")
    if ignored:
        notices.append(f"the splits in column {ignored} were not used, as data.split_column is none")
    if left_out:
        notices.append(f"{left_out} rows were left out by data.rename or data.uncertain")
    if split_column and any(cell.casefold() in TRAIN_AND_VAL for cell in table.column(split_column)):
        notices.append("split 'train_val' was read as train")
    notices += files_without_row(root, paths)
    name = root.name if path.stem.lower() in ("labels", "table", "metadata", "index", "data") else path.stem
    return Dataset(name, root, classes, tuple(records), several, tuple(notices))


def looks_like_table(path: Path, config: DataConfig) -> bool:
    """Whether it has an image column whose first entry is a file: then it, and not the folders, says what is what."""
    try:
        table = read_table(path, config.encoding)
        column = find_column(table, config.image_column, IMAGE_COLUMNS, "data.image_column")
        return column is not None and _locate(path.parent, table.column(column)[0])[0] is not None
    except DataError as problem:
        # A table of such a name was meant: let its own error be read.
        return problem.code == "D116" and path.stem.lower() in ("labels", "table")


def find_column(table: Table, named: str | None, usual: Sequence[str], key: str) -> str | None:
    """The column that the recipe names, else the first with a usual name."""
    if named is not None:
        if named not in table.columns:
            raise DataError("D116", f"{table.path.name}:1", f"there is no column {named!r}", columns_hint(table, key))
        return named
    spelled = {c.casefold().replace(" ", "_").replace("-", "_"): c for c in reversed(table.columns)}
    return next((spelled[name] for name in usual if name in spelled), None)


def columns_hint(table: Table, key: str) -> str:
    """A remedy that lists the columns."""
    return f"Name it in {key}; the columns are {', '.join(table.columns)}"


def splits_in(table: Table, column: str) -> list[str | None]:
    """The split of each row; all rows have one, or none."""
    splits = [split_of(cell, table.place(row)) for row, cell in enumerate(table.column(column))]
    if None in splits and any(splits):
        row = splits.index(None)
        raise DataError("D116", table.place(row), "no split, where other rows have one", "Fill it in")
    return splits


def _wide_columns(table: Table, config: DataConfig) -> dict[str, str]:
    """Class name to column, where every class is a column."""
    spelled = {tidy(c).casefold(): c for c in table.columns}
    found = {name: spelled[name.casefold()] for name in config.classes or () if name.casefold() in spelled}
    return found if config.label_column is None and found and len(found) == len(config.classes or ()) else {}


def _wide_words(table: Table, row: int, wide: dict[str, str], config: DataConfig) -> Words | None:
    words = []
    for name, column in wide.items():
        cell = tidy(table.rows[row][table.columns.index(column)]).casefold()
        if cell in UNCERTAIN:
            if config.uncertain == "refuse":
                raise DataError(
                    "D116", table.place(row), f"uncertain label {cell!r} of {name}", "Set data.uncertain to a policy"
                )
            if config.uncertain == "drop":
                return None
            cell = "1" if config.uncertain == "positive" else "0"
        if cell not in _TRUE | _FALSE:
            raise DataError("D116", table.place(row), f"label {cell!r} of {name}", "Write 1, 0, or -1 for uncertain")
        if cell in _TRUE:
            words.append(name)
    return tuple(words)


def image_paths(table: Table, column: str, root: Path, *, folders: bool = False) -> list[str]:
    """Paths below the root, each a regular file, each once.

    Args:
        folders: take a folder for an image too, that of a DICOM series.
    """
    inside: dict[str, bool] = {}
    first: dict[str, int] = {}
    missing, paths = [], []
    for row, cell in enumerate(table.column(column)):
        if not cell or "\0" in cell:
            raise DataError("D116", table.place(row), "names no image", "Fill it in, or take the row out")
        path, facts = _locate(root, cell)
        if path is None or facts is None:
            missing.append(row)
            continue
        if path in first:
            other = table.place(first[path])
            raise DataError("D116", table.place(row), f"{path} stands in {other} too", "Keep one row per image")
        first[path] = row
        folder = os.path.dirname(path)  # noqa: PTH120 - a million rows
        if folder not in inside:
            inside[folder] = (root / folder).resolve().is_relative_to(root)
        if not inside[folder] or (stat.S_ISLNK(facts.st_mode) and not (root / path).resolve().is_relative_to(root)):
            raise DataError("D113", table.place(row), f"{path} leads out of {root.name}", "Move it there")
        if not (root / path).is_file() and not (folders and path != "." and (root / path).is_dir()):
            raise DataError("D116", table.place(row), f"{path} is not a file", "Correct the path")
        paths.append(path)
    if missing:
        cell = table.column(column)[missing[0]]
        more = f", nor {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(
            "D116",
            table.place(missing[0]),
            f"there is no file {cell}{more}",
            f"Give paths relative to {root.name}/ or {root.name}/images/, or take the rows out",
        )
    return paths


def mask_paths(table: Table, column: str, root: Path, *, needed: bool) -> list[str | None]:
    """Masks below the root; a cell may be empty, where none was drawn.

    Args:
        needed: the recipe names the column, so each file that stands in it must be there; else those that are not are
            passed over, as most models read no masks.
    """
    found: list[str | None] = []
    for row, cell in enumerate(table.column(column)):
        path = _locate(root, cell)[0] if cell and "\0" not in cell else None
        if path is not None and not ((root / path).resolve().is_relative_to(root) and (root / path).is_file()):
            path = None
        if cell and path is None and needed:
            remedy = f"Give paths relative to {root.name}/, or leave the cell empty where there is no mask"
            raise DataError("D116", table.place(row), f"there is no mask {cell}", remedy)
        found.append(path)
    return found


def _locate(root: Path, cell: str) -> tuple[str | None, os.stat_result | None]:
    """The path as it is spelled on disk: other slashes and other spellings of accented letters are tried."""
    spellings = dict.fromkeys((cell, cell.replace("\\", "/")))
    spellings = dict.fromkeys((*spellings, *(unicodedata.normalize(f, s) for s in spellings for f in ("NFC", "NFD"))))
    for folder in _IMAGE_FOLDERS:
        for spelling in spellings:
            path = os.path.normpath(root / folder / spelling)
            relative = os.path.relpath(path, root).replace(os.sep, "/") if path.startswith(str(root)) else None
            if relative is None or relative.startswith("../"):
                if Path(path).exists():
                    raise DataError("D113", cell, f"leads out of {root.name}", "Put the image below the table's folder")
                continue
            try:
                return relative, os.lstat(path)
            except OSError:
                continue
    return None, None


def files_without_row(root: Path, paths: Sequence[str]) -> list[str]:
    """A notice about images beside those of the table: forgotten rows look just like that."""
    known = set(paths)
    extra = []
    for folder in sorted({os.path.dirname(path) for path in paths}):  # noqa: PTH120
        for name in sorted(os.listdir(root / folder)):  # noqa: PTH208
            path = f"{folder}/{name}" if folder else name
            if path not in known and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and name[0] != ".":  # noqa: PTH122
                extra.append(path)
    return [f"[D116] {len(extra)} image files have no row in the table: {listed(extra)}"] if extra else []
