"""From a recipe's data section to cases and masks ready to learn from, each decision written down before the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import Recipe
from medloom.data.audit import gate
from medloom.data.case_cache import Cases, build_cases
from medloom.data.case_restore import Case, Grid
from medloom.data.images import decode
from medloom.data.label_maps import picture_labels, volume_labels
from medloom.data.mask_geometry import mask_to_model, require_restorable
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, Record, read_csv
from medloom.data.splits import make_splits
from medloom.data.structures import require_structures
from medloom.data.volume_preprocess import VolumePreprocess, pixel_statistics
from medloom.data.volumes import canonical, is_volume, read_nifti
from medloom.errors import DataError, UsageError
from medloom.files import RunDirectory, write_json
from medloom.workflows.audit import examine, write_audit
from medloom.workflows.prepare import cache_folder
from medloom.workflows.progress import Progress


@dataclass(frozen=True, eq=False)
class PreparedCases:
    """All records of a run with their splits, images and masks of all of them, and how they become model input."""

    dataset: Dataset
    preprocess: Grid
    cases: Cases

    def rows(self, split: str) -> np.ndarray:
        """Positions of one split's records, which are also their places in the cache."""
        return np.array([i for i, r in enumerate(self.dataset.records) if r.split == split], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class StoredCase:
    """One case on the grid of its file: what an answer is brought back to and judged on.

    Attributes:
        image: pixels ``(H, W)`` or ``(H, W, 3)``, or voxels ``(X, Y, Z)`` to the right, anterior and superior.
        labels: positions ``(H, W)`` or ``(X, Y, Z)``, likewise.
        spacing: mm of a pixel or voxel along those axes; None where the file states none.
        file: the image, or the volume as it was read.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, ...] | None
    file: Case


def prepare_cases(recipe: Recipe, run: RunDirectory, *, resume: bool, quiet: bool) -> PreparedCases:
    """Audit, refuse or go on, split, and decode; writes audit, records and split into the run directory.

    Raises:
        DataError: what the audit refuses and the recipe does not accept; D115 an empty split; N312 a structure that no
            training mask holds; what reading a case raises.
        UsageError: U228 data without masks; U226 a recipe that contradicts them; T411, on resume, other data.
    """
    path = Path(str(recipe.data.path))
    scan, found = examine(path, recipe.data, prefer=recipe.volume.prefer, quiet=quiet)
    check_kind(recipe, scan.dataset)
    if not resume:
        write_audit(scan, found, recipe.data, run.root, prefer=recipe.volume.prefer)
    gate(found, recipe.data.accept)
    # How many images a structure has says nothing of how many pixels: no validation part is too small to be kept.
    split = make_splits(scan.dataset, recipe.data.model_copy(update={"min_val_per_class": 1}), recipe.train.seed)
    for name in ("train", "val"):
        if not any(r.split == name for r in split.dataset.records):
            raise DataError("D115", f"split {name}", "there are no cases in it", "Set data.val_fraction above 0")
    require_structures(split.dataset)
    if resume:
        before = read_csv(run.records, path)
        if before.hash() != split.dataset.hash():
            raise UsageError("T411", path, "the data changed since the run began", "Start a new run on the new data")
    else:
        split.dataset.write_csv(run.records)
        write_json(run.split, split.as_dict())
    with Progress("reading cases", quiet=quiet) as step:
        return load_cases(recipe, run, split.dataset, progress=step)


def check_kind(recipe: Recipe, dataset: Dataset) -> None:
    """Masks there must be, and a recipe that fits images or volumes, as the data have them.

    Raises:
        UsageError: U228 no masks; U226 a part of the recipe that belongs to the other kind.
    """
    if not dataset.label_values:
        remedy = "Give images/ and masks/, imagesTr/ and labelsTr/ or a table with both columns, or choose a classifier"
        raise UsageError(
            "U228", f"model {recipe.model.name}", "it answers with masks, and these data have none", remedy
        )
    patch, volumes = recipe.segmentation.patch, holds_volumes(dataset)
    if volumes and (patch is None or len(patch) != 3):
        told = "these are volumes, and of volumes patches of three lengths are learnt"
        remedy = "Let medloom data plan write the recipe, or set e.g. segmentation.patch=[48,48,48]"
        raise UsageError("U226", "segmentation.patch", told, remedy)
    if not volumes and patch is not None:
        told = "these are images, which are learnt whole"
        raise UsageError("U226", "segmentation.patch", told, "Leave it out, and set preprocess.size")
    if not volumes and recipe.augment.elastic > 0:
        raise UsageError("U226", "augment.elastic", "it deforms volumes, and these are images", "Leave it out")


def holds_volumes(dataset: Dataset) -> bool:
    """Whether the cases are volumes and not images."""
    return is_volume(dataset.records[0].path)


def load_cases(recipe: Recipe, run: RunDirectory, dataset: Dataset, progress: Progress | None = None) -> PreparedCases:
    """Read every case once into the cache beside the run directories (or find it there), and settle the statistics."""
    if holds_volumes(dataset):
        grid = VolumePreprocess.from_config(recipe.volume)

        def volume_case(record: Record) -> tuple[np.ndarray, np.ndarray]:
            volume = read_nifti(dataset.file(record), prefer=grid.prefer, place=record.id)
            mask = volume_labels(dataset, record, volume, grid.prefer)
            return grid.to_uint16(volume), grid.labels(mask, tuple(range(len(dataset.classes))))

        cases = build_cases(dataset, volume_case, grid.geometric_part(), cache_folder(run), progress=progress)
        found = PreparedCases(dataset, grid, cases)
        if not grid.mean:
            statistics = pixel_statistics([cases.pixels[i] for i in found.rows("train")])
            found = PreparedCases(dataset, VolumePreprocess.from_config(recipe.volume, statistics), cases)
        return found
    flat = Preprocess.from_config(recipe.preprocess)
    require_restorable(flat)

    def image_case(record: Record) -> tuple[np.ndarray, np.ndarray]:
        image = decode(dataset, record, recipe.data)
        labels = picture_labels(dataset, record, image.pixels.shape[:2], recipe.data.max_megapixels)
        pixels = np.moveaxis(flat.to_uint8(image), -1, 0)
        return np.ascontiguousarray(pixels), mask_to_model(labels, flat)

    decides: dict[str, Any] = {**flat.geometric_part(), "frames": recipe.data.frames}
    cases = build_cases(dataset, image_case, decides, cache_folder(run), progress=progress)
    found = PreparedCases(dataset, flat, cases)
    if not flat.mean:
        stacked = np.stack([np.moveaxis(cases.pixels[i], 0, -1) for i in found.rows("train")])
        found = PreparedCases(dataset, Preprocess.from_config(recipe.preprocess, stacked), cases)
    return found


def stored_case(prepared: PreparedCases, record: Record, recipe: Recipe) -> StoredCase:
    """The truth of one case as its file has it."""
    dataset, grid = prepared.dataset, prepared.preprocess
    if isinstance(grid, Preprocess):
        image = decode(dataset, record, recipe.data)
        labels = picture_labels(dataset, record, image.pixels.shape[:2], recipe.data.max_megapixels)
        return StoredCase(image.pixels, labels, record.spacing, image)
    volume = read_nifti(dataset.file(record), prefer=grid.prefer, place=record.id)
    mask = volume_labels(dataset, record, volume, grid.prefer)
    # Judged upright, so that spacing and planes mean the same in every case.
    upright = canonical(volume)
    return StoredCase(upright.array, canonical(mask).array, upright.spacing, volume)
