"""From a recipe's data section to cases and masks ready to learn from, each decision written down before the next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import DataConfig, Recipe
from medloom.data.case_cache import Cases, build_cases
from medloom.data.case_restore import Case, Grid, to_pixels
from medloom.data.images import Image, decode
from medloom.data.label_maps import picture_labels, volume_labels
from medloom.data.mask_geometry import mask_to_model, require_restorable
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, Record, read_csv
from medloom.data.splits import make_splits
from medloom.data.structures import require_structures
from medloom.data.volume_preprocess import VolumePreprocess, pixel_statistics
from medloom.data.volume_source import is_volume_case, read_case_volume
from medloom.data.volumes import Volume
from medloom.errors import DataError, UsageError
from medloom.files import RunDirectory, write_json
from medloom.workflows.audit import audit_split, examine, pass_gate, write_audit
from medloom.workflows.prepare import cache_folder, require_same_data
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


def prepare_cases(recipe: Recipe, run: RunDirectory, *, resume: bool, quiet: bool) -> PreparedCases:
    """Audit, refuse or go on, split, and decode; writes audit, records and split into the run directory.

    Near duplicates are looked for once more between the parts that were made here.

    Raises:
        DataError: what the audit refuses and the recipe does not accept; D115 an empty split; N312 a structure that no
            training mask holds; D104, on resume, other pixels; what reading a case raises.
        UsageError: U228 data without masks; U226 a recipe that contradicts them; T411, on resume, other data.
    """
    path = Path(str(recipe.data.path))
    scan, found = examine(path, recipe.data, prefer=recipe.volume.prefer, quiet=quiet)
    check_kind(recipe, scan.dataset)
    if not resume:
        write_audit(scan, found, recipe.data, run.root, prefer=recipe.volume.prefer)
    pass_gate(found, recipe.data.accept, quiet=quiet)
    split = make_splits(scan.dataset, recipe.data, recipe.train.seed)
    for name in ("train", "val"):
        if not any(r.split == name for r in split.dataset.records):
            raise DataError("D115", f"split {name}", "there are no cases in it", "Set data.val_fraction above 0")
    require_structures(split.dataset)
    if resume:
        require_same_data(read_csv(run.records, path), split.dataset, path)
    else:
        audit_split(scan, found, split.dataset, recipe.data, run.root, recipe.volume.prefer)
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
    if volumes and recipe.data.pixel_spacing is not None:
        told = "these are volumes, whose files state the spacing of their voxels"
        raise UsageError("U226", "data.pixel_spacing", told, "Leave it out")
    if not volumes and recipe.augment.elastic > 0:
        raise UsageError("U226", "augment.elastic", "it deforms volumes, and these are images", "Leave it out")


def holds_volumes(dataset: Dataset) -> bool:
    """Whether the cases are volumes and not images."""
    return is_volume_case(dataset.records[0])


def open_case(dataset: Dataset, record: Record, grid: Grid, config: DataConfig) -> Case:
    """The image, or the volume in the order of its file.

    Raises:
        DataError: N307 a volume too large on the model's grid; what reading it raises.
    """
    if isinstance(grid, Preprocess):
        return decode(dataset, record, config)
    volume = read_case_volume(dataset, record, config, grid.prefer)
    grid.grid(volume, record.id)  # refused here by name, before its voxels are worked on
    return volume


def load_cases(recipe: Recipe, run: RunDirectory, dataset: Dataset, progress: Progress | None = None) -> PreparedCases:
    """Read every case once into the cache beside the run directories (or find it there), and settle the statistics."""
    volumes = holds_volumes(dataset)
    grid: Grid = VolumePreprocess.from_config(recipe.volume) if volumes else Preprocess.from_config(recipe.preprocess)
    if isinstance(grid, Preprocess):
        require_restorable(grid)

    def made(record: Record) -> tuple[np.ndarray, np.ndarray]:
        file = open_case(dataset, record, grid, recipe.data)
        if isinstance(grid, VolumePreprocess):
            assert isinstance(file, Volume)
            mask = volume_labels(dataset, record, file, grid.prefer)
            return grid.to_uint16(file), grid.labels(mask, tuple(range(len(dataset.classes))))
        assert isinstance(file, Image)
        labels = picture_labels(dataset, record, file.pixels.shape[:2], recipe.data.max_megapixels)
        return to_pixels(file, grid), mask_to_model(labels, grid)

    decides: dict[str, Any] = {**grid.geometric_part(), "frames": recipe.data.frames}
    cases = build_cases(dataset, made, decides, cache_folder(run), progress=progress)
    found = PreparedCases(dataset, grid, cases)
    if grid.mean:
        return found
    learnt = [cases.pixels[i] for i in found.rows("train")]
    if isinstance(grid, VolumePreprocess):
        return replace(found, preprocess=VolumePreprocess.from_config(recipe.volume, pixel_statistics(learnt)))
    stacked = np.stack([np.moveaxis(pixels, 0, -1) for pixels in learnt])
    return replace(found, preprocess=Preprocess.from_config(recipe.preprocess, stacked))
