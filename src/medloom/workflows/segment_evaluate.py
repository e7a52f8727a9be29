"""``medloom evaluate`` for bundles that draw masks: another data set, answered from file to mask and judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medloom.config import Recipe, load_recipe
from medloom.data.images import Image
from medloom.data.label_maps import picture_labels, volume_labels
from medloom.data.largest_piece import keep_largest
from medloom.data.records import Dataset, Record
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume, canonical
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.errors import DataError, UsageError, check_accept
from medloom.evaluation.case_table import Case, CaseTable, case_table
from medloom.evaluation.segmentation import score_case, units
from medloom.evaluation.segmentation_summary import summarise_segmentation
from medloom.files import RunDirectory, make_folder, write_json
from medloom.reporting.report import write_report
from medloom.workflows.evaluate import as_name, check_overlap
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress, number
from medloom.workflows.score import now


def evaluate_masks(
    bundle: SegmenterBundle,
    home: RunDirectory | None,
    recipe: Recipe,
    *,
    data: str | Path,
    name: str | None,
    overrides: Sequence[str],
    accept: Sequence[str],
    out: str | Path | None,
    quiet: bool,
) -> Outcome:
    """Write ``cases.csv`` and ``metrics.json`` into ``RUN/evaluations/NAME`` (or ``out``), and the run's report anew.

    Args:
        home: the run that the bundle lies in; None of a bare bundle.
        overrides: of the recipe's ``data`` part.

    Raises:
        UsageError: U212 the name is taken. DataError: D116 other structures than the model's, D117 training images
            among them; what reading a case raises.
    """
    config = load_recipe({"data": {"classes": list(bundle.classes)}}, tuple(overrides)).data
    config = config.model_copy(update={"accept": tuple(sorted({*config.accept, *check_accept(accept)}))})
    listed = open_dataset(data, config)
    if tuple(listed.classes) != tuple(bundle.classes) or not listed.label_values:
        told = f"structures are {', '.join(listed.classes)}; the model knows {', '.join(bundle.classes)}"
        raise DataError("D116", data, told, "Name each with --set data.classes=[background, ...]")
    label = name or as_name(listed.name)
    place = Path(out) if out is not None else _home(home) / "evaluations" / label
    if (place / "metrics.json").exists():
        raise UsageError("U212", place, "an evaluation is already there", "Name another with --name")
    prefer = recipe.volume.prefer
    with Progress("reading images", quiet=quiet) as step:
        scanned = scan(listed, config, prefer=prefer, progress=step)
    dataset = scanned.dataset
    seen, own_test = check_overlap(home, dataset, data, config)
    table = _judged(bundle, dataset, recipe, config.max_megapixels, quiet)
    metrics = summarise_segmentation(table, config=recipe.evaluation, seed=recipe.train.seed)
    metrics["evaluation"] = {
        "name": label,
        "time": now(),
        "bundle": bundle.hash,
        "data": dataset.hash(),
        "excluded": [[e.id, e.code] for e in scanned.excluded],
        "notices": list(dataset.notices),
        "own_test_images": own_test,
        "seen_images": seen,
        "accepted": list(config.accept),
    }
    make_folder(place)
    table.write_csv(place / "cases.csv")
    write_json(place / "metrics.json", metrics)
    lines = _text(metrics, dataset)
    if home is not None:
        lines.append(f"open {write_report(home)}")
    return Outcome({"evaluation": label, "place": place, "metrics": metrics}, tuple(lines))


def _home(home: RunDirectory | None) -> Path:
    assert home is not None
    return home.root


def _judged(bundle: SegmenterBundle, dataset: Dataset, recipe: Recipe, max_megapixels: float, quiet: bool) -> CaseTable:
    """Every case answered by the bundle's own pipeline, and judged on the grid of its file."""
    names, cases = bundle.classes[1:], []
    tolerance = recipe.segmentation.tolerance
    with Progress("answering", quiet=quiet) as step:
        for record in dataset.records:
            truth, answer, spacing = _answered(bundle, dataset, record, max_megapixels)
            values = score_case(truth, answer, len(names), spacing, tolerance=tolerance)
            distance, size = units(truth.ndim, spacing)
            cases.append(Case(record.id, record.patient, record.site, values, distance, size))
            step(len(cases), len(dataset))
    return case_table(cases, names, split="external", tolerance=tolerance)


def _answered(bundle: SegmenterBundle, dataset: Dataset, record: Record, max_megapixels: float) -> tuple[Any, Any, Any]:
    """Truth and answer as positions, and the spacing along their axes."""
    pipeline = bundle.pipeline
    file = pipeline.open(dataset.file(record), record.id)
    positions = pipeline.positions(file)
    if pipeline.keep_largest:
        positions = keep_largest(positions)
    if isinstance(file, Image):
        height, width = file.pixels.shape[:2]
        return picture_labels(dataset, record, (height, width), max_megapixels), positions, record.spacing
    assert isinstance(pipeline.preprocess, VolumePreprocess)
    truth = volume_labels(dataset, record, file, pipeline.preprocess.prefer)
    upright = canonical(truth)
    return upright.array, canonical(Volume(positions, file.affine)).array, upright.spacing


def _text(metrics: dict[str, Any], dataset: Dataset) -> list[str]:
    part = metrics["splits"]["test"]
    lines = [f"{dataset.name}: {part['n']} cases, {part['patients']} patients"]
    lines += [f"{name} {number(part['metrics'][name])}" for name in ("dice", "hd95", "nsd")]
    lines += [f"  {name}: Dice {number(values['metrics']['dice'])}" for name, values in part["structures"].items()]
    return lines + list(dataset.notices)
