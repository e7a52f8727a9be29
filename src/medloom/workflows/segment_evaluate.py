"""``medloom evaluate`` for bundles that draw masks: another data set, answered from file to mask and judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medloom.config import Recipe, load_recipe
from medloom.data.case_restore import upright
from medloom.data.largest_piece import keep_largest
from medloom.data.records import Dataset
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.errors import DataError, UsageError, check_accept
from medloom.evaluation.case_table import CaseTable, case_table
from medloom.evaluation.segmentation_summary import summarise_segmentation
from medloom.files import RunDirectory, make_folder, write_json
from medloom.reporting.report import write_report
from medloom.workflows.evaluate import about, as_name, check_overlap
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress, number
from medloom.workflows.segment_truth import judged, stored_case


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
    metrics["evaluation"] = about(label, bundle.hash, scanned, config, seen=seen, own_test=own_test)
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
    pipeline, names, cases = bundle.pipeline, bundle.classes[1:], []
    tolerance, prefer = recipe.segmentation.tolerance, recipe.volume.prefer
    with Progress("answering", quiet=quiet) as step:
        for record in dataset.records:
            file = pipeline.open(dataset.file(record), record.id)
            positions = pipeline.positions(file)
            found = upright(keep_largest(positions) if pipeline.keep_largest else positions, file)
            case = stored_case(dataset, record, file, prefer=prefer, max_megapixels=max_megapixels)
            cases.append(judged(record, case, found, len(names), tolerance))
            step(len(cases), len(dataset))
    return case_table(cases, names, split="external", tolerance=tolerance)


def _text(metrics: dict[str, Any], dataset: Dataset) -> list[str]:
    part = metrics["splits"]["test"]
    lines = [f"{dataset.name}: {part['n']} cases, {part['patients']} patients"]
    lines += [f"{name} {number(part['metrics'][name])}" for name in ("dice", "hd95", "nsd")]
    lines += [f"  {name}: Dice {number(values['metrics']['dice'])}" for name, values in part["structures"].items()]
    return lines + list(dataset.notices)
