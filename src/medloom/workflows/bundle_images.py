"""Images that a bundle is proved on: those of its run, by patient and split, or those of a folder that was named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import DataConfig, Recipe, load_recipe
from medloom.data.images import decode
from medloom.data.records import Dataset, Record, read_csv
from medloom.data.sources import open_dataset
from medloom.deployment.bundle import Bundle
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.errors import DataError, UsageError, check_accept
from medloom.files import RunDirectory
from medloom.workflows.progress import Progress


@dataclass(frozen=True, eq=False)
class BundleImages:
    """A data set with splits, and how its files are decoded.

    Attributes:
        run: the run that the bundle is of; None of a bare bundle.
        recipe: the run's; of a bare bundle the defaults.
    """

    dataset: Dataset
    config: DataConfig
    recipe: Recipe
    run: RunDirectory | None

    def split(self, name: str) -> Dataset:
        """The records of a split.

        Raises:
            DataError: D115 there is none.
        """
        part = self.dataset.select(name)
        if not len(part):
            raise DataError("D115", f"split {name}", f"{self.dataset.name} has no such images", "Name other --data")
        return part

    def pictures(self, part: Dataset, at: Sequence[int] | np.ndarray) -> list[Any]:
        """Some records of a part: paths, or arrays where images lie in an array file."""
        return [self._picture(part, part.records[int(i)]) for i in at]

    def _picture(self, part: Dataset, record: Record) -> Any:
        return part.file(record) if record.index is None else decode(part, record, self.config).pixels


def run_of(source: str | Path) -> RunDirectory | None:
    """The run directory that ``source``, or the folder around a bundle of that name, is."""
    path = Path(source)
    for root in (path, path.parent if path.name == "bundle" else path):
        home = RunDirectory(root)
        if home.recipe.exists() and home.records.exists():
            return home
    return None


def images_of(
    source: str | Path,
    bundle: Bundle | SegmenterBundle,
    *,
    data: str | Path | None,
    accept: Sequence[str] = (),
    quiet: bool = True,
) -> BundleImages:
    """The images of the bundle's run, or of ``data`` where the bundle is a bare one.

    Args:
        data: of a run: where its images lie now; of a bare bundle: labelled images, split as a recipe would do it
            (by their own folders, else by patient).

    Raises:
        UsageError: U244 a bare bundle without ``data``. DataError: D115, D116, D125 and what reading raises.
    """
    home = run_of(source)
    if home is not None:
        recipe = load_recipe(home.recipe)
        place = Path(str(data if data is not None else recipe.data.path))
        # A table lies beside its images, a folder may hold one array file: where records start is the source's to say.
        root = open_dataset(place, recipe.data).root
        return BundleImages(read_csv(home.records, root), recipe.data, recipe, home)
    if data is None:
        told = "a bare bundle does not say where images lie that it can be proved on"
        raise UsageError("U244", source, told, "Name them with --data DIR, or give the run directory")
    return labelled(bundle, data, accept=accept, quiet=quiet)


def labelled(
    bundle: Bundle | SegmenterBundle, data: str | Path, *, accept: Sequence[str] = (), quiet: bool = True
) -> BundleImages:
    """A folder of labelled images with the bundle's classes, scanned and split.

    Raises:
        DataError: D115, D116 other classes; what reading raises.
    """
    from medloom.data.scan import scan
    from medloom.data.splits import make_splits

    if isinstance(bundle, SegmenterBundle):
        told = "a bare bundle that draws masks is proved on the cases of its run"
        raise UsageError("U244", bundle.root, told, "Give the run directory")
    recipe = load_recipe({"data": {"classes": list(bundle.classes), "accept": list(check_accept(accept))}})
    with Progress("reading images", quiet=quiet) as step:
        scanned = scan(open_dataset(data, recipe.data), recipe.data, progress=step)
    if tuple(scanned.dataset.classes) != tuple(bundle.classes):
        told = f"classes are {', '.join(scanned.dataset.classes)}; the model knows {', '.join(bundle.classes)}"
        raise DataError("D116", data, told, "Give images with the labels of the model")
    split = make_splits(scanned.dataset, recipe.data, recipe.train.seed)
    return BundleImages(split.dataset, recipe.data, recipe, None)
