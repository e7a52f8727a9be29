"""Images with their masks, as folders or as a table: pictures, NIfTI volumes in the layouts of nnU-Net and MSD, series.

| layout | split |
|---|---|
| ``images/a.png`` ``masks/a.png`` (or ``a_mask.png``, ``labels/``, ``segmentations/``) | none |
| ``train/images/a.png`` ``train/masks/a.png``, or ``images/train/a.png`` ``masks/train/a.png`` | by folder |
| ``imagesTr/a_0000.nii.gz`` ``labelsTr/a.nii.gz``, and ``imagesTs/`` with ``labelsTs/`` | Tr train, Ts test, if both |
| a folder of one DICOM series, ``images/a/*`` or ``images/a/b/*``, for the image of a NIfTI mask | as above |
| a table with a column of images and one of masks | by its column |

Names of structures come from ``data.classes`` or ``dataset.json``; their numbers from ``data.label_values``,
``dataset.json``, or the masks themselves. An image without its mask, and a mask without its image, are refused: which
of them was meant to be empty nobody can know.
"""

from __future__ import annotations

import re
from pathlib import Path

from medloom.config import DataConfig
from medloom.data.case_places import Place, find_places, mask_stems
from medloom.data.folders import Walk, left_out_by, listed
from medloom.data.labels import SPLIT_NAMES
from medloom.data.records import Dataset, Record
from medloom.data.structures import settle_structures
from medloom.data.table_source import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    MASK_COLUMNS,
    SPLIT_COLUMNS,
    columns_hint,
    files_without_row,
    find_column,
    image_paths,
    mask_paths,
    splits_in,
)
from medloom.data.tables import read_table
from medloom.errors import DataError

_PART_SPLITS = {"tr": "train", "ts": "test"}
_CHANNEL = re.compile(r"_(\d{4})$")
_PAIR_REMEDY = "Bring the missing file, or list the other in data.exclude"


def has_mask_folders(root: Path, found: Walk) -> bool:
    """Whether a tree has images and masks in folders named for them."""
    images, masks = find_places(root, found, "auto")
    return bool(images) and bool(masks)


def holds_masks(path: Path, config: DataConfig) -> bool:
    """Whether a table names images and masks, and no labels: then the masks are what is to be learnt."""
    table = read_table(path, config.encoding)
    has_labels = bool(config.label_column) or find_column(table, None, LABEL_COLUMNS, "") is not None
    wide = {c.casefold() for c in table.columns} & {c.casefold() for c in config.classes or ()}
    named = None if config.mask_column == "none" else config.mask_column
    return not has_labels and not wide and find_column(table, named, MASK_COLUMNS, "data.mask_column") is not None


def open_mask_folder(root: Path, config: DataConfig, found: Walk) -> Dataset:
    """Records of a tree of images and masks.

    Raises:
        DataError: D115 nothing there; D116 volumes and pictures together; N306 several channels of one case; N309 masks
            whose values do not fit; N313 an image or a mask without the other.
    """
    images, masks = find_places(root, found, config.source)
    if not images or not masks:
        missing = "images" if not images else "masks"
        remedy = "Arrange images/ and masks/, imagesTr/ and labelsTr/, or give a table with both columns"
        raise DataError("D115", root, f"no {missing} in a folder named so", remedy)
    kinds = {place.volume for place in (*images, *masks)}
    if len(kinds) > 1:
        raise DataError("D116", root, "volumes and pictures in one data set", "Set data.source to nifti or masks")
    left_out = left_out_by(config)
    excluded = [place for place in images if left_out(place.path)]
    images = [place for place in images if not left_out(place.path)]
    pairs, notices = _pair(images, masks, excluded)
    several_parts = len({_part(place) for place, _ in pairs}) > 1
    classes, values, labels, told = settle_structures(root, [mask for _, mask in pairs], config, found.others)
    records = tuple(
        Record(
            place.path, place.path, labels=labels.get(mask, ()), mask=mask,
            split=_part(place) if several_parts else None,
        )
        for place, mask in pairs
    )  # fmt: skip
    links = tuple(notice for notice in found.notices() if notice.startswith("[D113]"))
    return Dataset(root.name, root, classes, records, True, (*links, *notices, *told), values)


def open_mask_table(path: Path, config: DataConfig) -> Dataset:
    """Records of a table with a column of images and one of masks; all other columns are covariates.

    Raises:
        DataError: D113-D116 as ``open_table``; N309 masks whose values do not fit; N313 a row without a mask.
    """
    table, root = read_table(path, config.encoding), path.parent
    image_column = find_column(table, config.image_column, IMAGE_COLUMNS, "data.image_column")
    named = None if config.mask_column == "none" else config.mask_column
    mask_column = find_column(table, named, MASK_COLUMNS, "data.mask_column")
    for column, what, key in ((image_column, "images", "image_column"), (mask_column, "masks", "mask_column")):
        if column is None:
            raise DataError("D116", path, f"no column names the {what}", columns_hint(table, f"data.{key}"))
    assert image_column is not None
    assert mask_column is not None
    split_column = None
    if config.split_column != "none":
        split_column = find_column(table, config.split_column, SPLIT_COLUMNS, "data.split_column")
    paths = image_paths(table, image_column, root, folders=True)
    masks = mask_paths(table, mask_column, root, needed=True)
    left_out = left_out_by(config)
    for row, mask in enumerate(masks):
        if mask is None and not left_out(paths[row]):
            raise DataError("N313", table.place(row), f"{paths[row]} has no mask", _PAIR_REMEDY)
    kept = [row for row, mask in enumerate(masks) if mask is not None]
    names = [str(masks[row]) for row in kept]
    classes, values, labels, told = settle_structures(root, names, config, ("dataset.json",))
    splits = [None] * len(paths) if split_column is None else splits_in(table, split_column)
    covariates = [c for c in table.columns if c not in (image_column, mask_column, split_column)]
    columns = [table.columns.index(c) for c in covariates]
    records = []
    for row in kept:
        extra = {c: table.rows[row][k] for c, k in zip(covariates, columns) if table.rows[row][k]}
        file, mask = paths[row], str(masks[row])
        records.append(
            Record(file, file, labels=labels.get(mask, ()), mask=mask, split=splits[row], covariates=extra)
        )  # fmt: skip
    used = ", ".join(filter(None, (image_column, mask_column, split_column)))
    notices = [f"columns read as image, mask, split: {used}", *told, *files_without_row(root, paths)]
    name = root.name if path.stem.lower() in ("labels", "table", "metadata", "index", "data") else path.stem
    return Dataset(name, root, classes, tuple(records), True, tuple(notices), values)


def _part(place: Place) -> str | None:
    """The split that a file's folders name."""
    words = [folder.casefold() for folder in place.group]
    return next((split for w in words if (split := _PART_SPLITS.get(w) or SPLIT_NAMES.get(w))), None)


def _pair(images: list[Place], masks: list[Place], excluded: list[Place]) -> tuple[list[tuple[Place, str]], list[str]]:
    """Image and mask of equal group and stem; what is left over on either side is refused, but for unlabelled tests."""
    by_key: dict[tuple[tuple[str, ...], str], str] = {}
    for mask in masks:
        for stem in mask_stems(mask):
            other = by_key.setdefault((mask.group, stem), mask.path)
            if other != mask.path:
                raise DataError("N313", mask.path, f"two masks of one image, the other is {other}", "Keep one")
    masked_groups = {mask.group for mask in masks}
    pairs: list[tuple[Place, str]] = []
    owner: dict[str, str] = {}
    alone: list[str] = []
    unlabelled: list[str] = []
    for image in images:
        mask_path = _mask_of(image, by_key)
        if mask_path is None:
            tested = _part(image) == "test" and image.group not in masked_groups
            (unlabelled if tested else alone).append(image.path)
            continue
        other = owner.setdefault(mask_path, image.path)
        if other != image.path:
            if _CHANNEL.search(image.stem) and image.volume:
                told = f"several channels of one case, {other} and this one, where one is read"
                raise DataError("N306", image.path, told, "Keep the channel that is meant, or list the others")
            raise DataError("N313", image.path, f"two images of one mask, the other is {other}", "Keep one")
        pairs.append((image, mask_path))
    if alone:
        more = f", nor have {len(alone) - 1} others" if len(alone) > 1 else ""
        raise DataError("N313", alone[0], f"the image has no mask{more}", _PAIR_REMEDY)
    spoken_for = {_mask_of(image, by_key) for image in excluded}
    lonely = sorted({mask.path for mask in masks} - owner.keys() - spoken_for)
    if lonely:
        more = f", nor have {len(lonely) - 1} others" if len(lonely) > 1 else ""
        raise DataError("N313", lonely[0], f"the mask has no image{more}", "Bring the image, or take the mask away")
    notices = []
    if unlabelled:
        notices.append(f"{len(unlabelled)} test images have no masks and were left out: {listed(unlabelled)}")
    return pairs, notices


def _mask_of(image: Place, by_key: dict[tuple[tuple[str, ...], str], str]) -> str | None:
    found = by_key.get((image.group, image.stem))
    if found is None and image.volume:
        found = by_key.get((image.group, _CHANNEL.sub("", image.stem)))
    return found
