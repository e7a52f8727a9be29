"""From a recipe's data section to pixels and labels ready to learn from, each decision written down before the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medloom.config import Recipe
from medloom.data.records import Dataset, read_csv
from medloom.errors import DataError, GateError, UsageError
from medloom.evaluation.operating_point import GATE
from medloom.files import RunDirectory, write_json
from medloom.workflows.audit import audit_split, examine, pass_gate, write_audit
from medloom.workflows.progress import Progress

if TYPE_CHECKING:
    from medloom.data.cache import PixelCache
    from medloom.data.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Prepared:
    """All records of a run with their splits, the pixels of all of them, and how they become model input."""

    dataset: Dataset
    preprocess: Preprocess
    cache: PixelCache

    def rows(self, split: str) -> np.ndarray:
        """Positions of one split's records, which are also their rows in the cache."""
        return np.array([i for i, r in enumerate(self.dataset.records) if r.split == split], dtype=np.int64)


def prepare(recipe: Recipe, run: RunDirectory, *, resume: bool, quiet: bool) -> Prepared:
    """Audit, refuse or go on, split, and decode; writes audit, records and split into the run directory.

    Near duplicates are looked for once more between the parts that were made here.

    Raises:
        DataError: what the audit refuses and the recipe does not accept; D115 an empty split; D104, on resume, pixels.
        GateError: D124, too few validation images to choose a threshold on, where classes exclude each other.
        UsageError: U228 data with masks in place of labels; U221, U223 a loss or a sampling that the labels contradict;
            T411, on resume, when the data are not those of the run.
    """
    from medloom.data.splits import make_splits
    from medloom.training.objective import check_objective

    path = Path(str(recipe.data.path))
    scan, found = examine(path, recipe.data, quiet=quiet)
    if scan.dataset.label_values:
        told = "it answers with classes, and what these data have is masks"
        remedy = "Choose a segmenter (medloom models), or give class folders or a table with labels"
        raise UsageError("U228", f"model {recipe.model.name}", told, remedy)
    if not resume:
        write_audit(scan, found, recipe.data, run.root)
    pass_gate(found, recipe.data.accept, quiet=quiet)
    split = make_splits(scan.dataset, recipe.data, recipe.train.seed)
    for name in ("train", "val"):
        if not any(r.split == name for r in split.dataset.records):
            raise DataError("D115", f"split {name}", "there are no images in it", "Set data.val_fraction above 0")
    check_validation(split.dataset, recipe.data.accept, resume=resume)
    check_objective(recipe, multi_label=split.dataset.multi_label, n_classes=len(split.dataset.classes))
    few = few_positives(split.dataset, recipe)
    if few is not None:
        Progress("splitting", quiet=quiet).keep(few)
    if resume:
        require_same_data(read_csv(run.records, path), split.dataset, path)
    else:
        audit_split(scan, found, split.dataset, recipe.data, run.root)
        split.dataset.write_csv(run.records)
        write_json(run.split, replace(split, notices=(*split.notices, *filter(None, [few]))).as_dict())
    with Progress("decoding", quiet=quiet) as step:
        return load_pixels(recipe, run, split.dataset, progress=step)


def require_same_data(recorded: Dataset, found: Dataset, path: Path) -> None:
    """Refuse to go on with a run whose data are no longer those that it recorded.

    Raises:
        DataError: D104, some images hold other pixels under the same name, which only the record can tell.
        UsageError: T411, anything else differs; with other names, or where every image differs, it is another data set.
    """
    if recorded.hash() == found.hash():
        return
    was, now = ({r.id: r.pixel_hash for r in part.records} for part in (recorded, found))
    changed = [name for name in now if now[name] != was[name]] if now.keys() == was.keys() else []
    if 0 < len(changed) < len(was):
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        remedy = "Put the file back as it was, or start a new run on the new data"
        raise DataError("D104", changed[0] + more, "its pixels are not those that the run recorded", remedy)
    raise UsageError("T411", path, "the data changed since the run began", "Start a new run on the new data")


def check_validation(dataset: Dataset, accept: Sequence[str], *, resume: bool) -> None:
    """Refuse before training what ``evaluation.operating_point.gate`` would refuse after it, where labels exclude.

    Raises:
        GateError: D124, each class has too few validation images, or too few of the others, for a threshold.
    """
    labels = [r.labels[0] for r in dataset.records if r.split == "val"] if not dataset.multi_label else []
    if not labels or "D124" in accept:
        return
    asked = (1,) if len(dataset.classes) == 2 else tuple(range(len(dataset.classes)))
    counts = [(labels.count(k), len(labels) - labels.count(k)) for k in asked]
    if all(min(pair) < GATE for pair in counts):
        raise GateError(
            "D124",
            "split val",
            f"{counts[0][0]} images of '{dataset.classes[asked[0]]}' and {counts[0][1]} others are too few to choose a "
            f"threshold on ({GATE} of each)",
            "Give validation more patients (data.val_fraction), or go on all the same: "
            f"{'--resume ' if resume else ''}--accept D124",
        )


def few_positives(dataset: Dataset, recipe: Recipe) -> str | None:
    """The sentence that names the labels of many for which validation is too small to choose a threshold (D124)."""
    rows = dataset.select("val").targets() if dataset.multi_label else None
    if rows is None:
        return None
    least = recipe.evaluation.min_positives if "D124" in recipe.data.accept else GATE
    counts = {name: (int(n), len(rows) - int(n)) for name, n in zip(dataset.classes, rows.sum(axis=0))}
    short = [f"{name} {pair[0]}" for name, pair in counts.items() if min(pair) < least]
    if not short:
        return None
    which = f"{len(short)} of {len(counts)}" if len(short) < len(counts) else f"All {len(counts)}"
    more = "" if "D124" in recipe.data.accept else f"; --accept D124 lowers that to {recipe.evaluation.min_positives}"
    return (
        f"{which} labels go without a threshold, as validation has fewer than {least} images with the finding or "
        f"without it (D124): {', '.join(short)}{more}."
    )


def load_pixels(recipe: Recipe, run: RunDirectory, dataset: Dataset, progress: Progress | None = None) -> Prepared:
    """Decode once into the cache beside the run directories (or find it there), and settle the statistics."""
    from medloom.data.cache import build_cache
    from medloom.data.preprocess import Preprocess

    draft = Preprocess.from_config(recipe.preprocess)
    cache = build_cache(dataset, draft, recipe.data, cache_folder(run), progress=progress)
    prepared = Prepared(dataset, draft, cache)
    preprocess = Preprocess.from_config(recipe.preprocess, cache.pixels, prepared.rows("train"))
    return Prepared(dataset, preprocess, cache)


def cache_folder(run: RunDirectory) -> Path:
    """Decoded pixels are shared by the runs that lie side by side."""
    return run.root.parent / ".cache"
