"""``open_dataset``: an image folder, a table, a MedMNIST file or h5 patches become records. Nothing is decoded here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medloom.config import DataConfig
from medloom.data.arrays import open_npz
from medloom.data.dicom_source import RULE as BY_TAG
from medloom.data.dicom_source import all_dicom, assign_dicom_patients, only_dicom
from medloom.data.folders import left_out_by, open_folder, walk
from medloom.data.mask_sources import has_mask_folders, holds_masks, open_mask_folder, open_mask_table
from medloom.data.patches import SUFFIXES as PATCH_SUFFIXES
from medloom.data.patches import is_patch_file, open_patches
from medloom.data.patients import assign_patients, assign_sites
from medloom.data.records import Dataset
from medloom.data.table_source import looks_like_table, open_table
from medloom.data.tables import SUFFIXES as TABLE_SUFFIXES
from medloom.errors import DataError

_MASKED = ("masks", "nifti")
_EITHER = ("auto", "dicom")
_TABLE_NAMES = ("table", "labels", "metadata", "index", "records", "data")


def open_dataset(path: str | Path, config: DataConfig) -> Dataset:
    """List the records of a data set, with labels, splits, patients and sites as the recipe's ``data`` part says.

    A folder with a folder of images and one of masks in it is read by those (unless a table there says what the images
    show); a folder with one table whose images exist is read by its table, a folder with one npz file by that file,
    one with files named as PatchCamelyon's by those, any other folder by its class folders; ``config.source``
    overrides.

    Raises:
        DataError: D113-D116, D126 (see ``folders``, ``tables``, ``arrays``, ``patches``); of masks N306, N309, N313.
        UsageError: U204 for a bad patient or site rule.
    """
    path = Path(path)
    try:
        root = path.resolve(strict=True)
        is_file = root.is_file()
    except (OSError, RuntimeError) as problem:  # RuntimeError: a loop of links
        reason = getattr(problem, "strerror", None) or "a loop of links"
        raise DataError("D114", path, f"cannot be read ({reason})", "Give a folder, a table, or an npz file") from None
    dataset = _open_file(root, config) if is_file else _open_directory(root, config)
    dataset = _without_excluded(only_dicom(dataset) if config.source == "dicom" else dataset, config)
    if not dataset.records:
        raise DataError("D115", path, "no image is left", "Look at data.exclude and data.rename")
    if config.patient != BY_TAG:
        dataset = dataset.with_records(assign_patients(dataset.records, config.patient))
    unknown = all(record.patient is None for record in dataset.records)
    if config.patient == BY_TAG or (config.patient == "auto" and unknown and all_dicom(dataset)):
        dataset = assign_dicom_patients(dataset, config)
    return dataset.with_records(assign_sites(dataset.records, config.site))


def _open_file(path: Path, config: DataConfig) -> Dataset:
    suffix = path.suffix.lower()
    if config.source == "medmnist" or (config.source == "auto" and suffix == ".npz"):
        return open_npz(path, config)
    if config.source in ("table", "dicom", *_MASKED) or (config.source == "auto" and suffix in TABLE_SUFFIXES):
        return _open_table(path, config)
    if suffix in PATCH_SUFFIXES:
        raise DataError("D116", path, "an h5 file holds patches or labels, not both", "Give the folder of both")
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DataError("D116", path, "spreadsheets are not read", "Save it as CSV (UTF-8)")
    raise DataError("D116", path, "neither a folder, nor a table, nor an npz file", "Give one of them")


def _open_directory(root: Path, config: DataConfig) -> Dataset:
    if config.source == "folder":
        return open_folder(root, config)
    found = walk(root)
    files = [root / name for name in found.others if "/" not in name]
    tables = [file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
    chosen = _one_table([table for table in tables if looks_like_table(table, config)])
    if chosen is None and (config.source in _MASKED or (config.source in _EITHER and has_mask_folders(root, found))):
        return open_mask_folder(root, config, found)
    if chosen is not None and config.source in _MASKED:
        return open_mask_table(chosen, config)
    arrays = [file for file in files if file.suffix.lower() == ".npz"]
    patches = [file.name for file in files if is_patch_file(file.name)]
    if config.source == "h5" or (config.source == "auto" and patches and not found.images):
        return open_patches(root, patches, config)
    if config.source == "medmnist" or (config.source == "auto" and len(arrays) == 1 and not found.images):
        if len(arrays) != 1:
            raise DataError("D116", root, f"{len(arrays)} npz files in the folder", "Name the one to read")
        return open_npz(arrays[0], config)
    if config.source == "table":
        chosen = _one_table(tables)
        if chosen is None:
            raise DataError("D116", root, f"{len(tables)} tables in the folder", "Name the one to read")
    return open_folder(root, config, found) if chosen is None else _open_table(chosen, config)


def _open_table(path: Path, config: DataConfig) -> Dataset:
    if config.source in _MASKED or (config.source in _EITHER and holds_masks(path, config)):
        return open_mask_table(path, config)
    return open_table(path, config)


def _one_table(tables: list[Path]) -> Path | None:
    named = [table for name in _TABLE_NAMES for table in tables if table.stem.lower() == name]
    if len(tables) == 1 or named:
        return named[0] if named else tables[0]
    return None


def _without_excluded(dataset: Dataset, config: DataConfig) -> Dataset:
    """Leave out what ``data.exclude`` lists, as ids or as shell patterns."""
    if not config.exclude:
        return dataset
    left_out = left_out_by(config)
    kept = tuple(r for r in dataset.records if not left_out(r.id))
    notice = f"{len(dataset) - len(kept)} images were left out by data.exclude"
    return replace(dataset, records=kept, notices=(*dataset.notices, notice))
