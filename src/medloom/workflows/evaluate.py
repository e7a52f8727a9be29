"""``medloom evaluate``: another data set, scored by the bundle with the threshold that validation chose."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.config import DataConfig, load_recipe
from medloom.data.records import Dataset
from medloom.errors import DataError, UsageError, check_accept
from medloom.files import RunDirectory, write_json
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress, number
from medloom.workflows.score import now, open_test, predictions_of

if TYPE_CHECKING:
    from medloom.data.scan import Scan

BLOCK = 256
AT_THRESHOLD = ("accuracy", "balanced_accuracy", "sensitivity", "specificity")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def evaluate(
    run: str | Path,
    *,
    data: str | Path,
    name: str | None = None,
    relabel: Sequence[str] = (),
    overrides: Sequence[str] = (),
    accept: Sequence[str] = (),
    out: str | Path | None = None,
    quiet: bool = True,
) -> Outcome:
    """Score ``data`` and write predictions and metrics into ``RUN/evaluations/NAME`` (or ``out``, for a bare bundle).

    Threshold and temperature are the bundle's; nothing is tuned here. When the images hold images that the run was
    trained or validated on, the evaluation is refused (D117). When they are the run's own test images, that is one
    more scoring of the test split and stands in the ledger.

    Args:
        name: letters, digits, ``._-``; without one, the data set's, with other characters replaced.
        relabel: ``THEIRS=OURS`` class names; images whose label is not named are left out, with a count.

    Raises:
        UsageError: U218 malformed ``relabel``, U216 no place to write, U219 ``name``, U212 the name is taken.
        DataError: D116 labels that the model does not know or that the data do not hold, D117 training images among
            them.
    """
    from medloom.data.scan import scan
    from medloom.data.sources import open_dataset
    from medloom.deployment.bundle import load
    from medloom.deployment.bundle_segmenter import SegmenterBundle
    from medloom.evaluation.summary import summarise

    if name is not None and not NAME.fullmatch(name):
        raise UsageError("U219", name, "not a name for an evaluation", "Use letters, digits, '.', '_' and '-'")
    renames = _renames(relabel)
    bundle = load(run)
    home = RunDirectory(Path(run))
    is_run = home.recipe.exists()
    if out is None and not is_run:
        raise UsageError("U216", run, "a bare bundle has no run directory to write into", "Give a run directory")
    recipe = load_recipe(home.recipe) if is_run else load_recipe({})
    keys = [o if o.startswith("data.") else f"data.{o}" for o in overrides]
    if isinstance(bundle, SegmenterBundle):
        from medloom.workflows.segment_evaluate import evaluate_masks

        if renames:
            remedy = "Name them in order with --set data.classes=[background, ...]"
            raise UsageError("U218", run, "--map renames labels, and this model draws masks", remedy)
        return evaluate_masks(
            bundle, home if is_run else None, recipe, data=data, name=name, overrides=keys, accept=accept, out=out,
            quiet=quiet,
        )  # fmt: skip
    config = load_recipe({"data": {"classes": list(bundle.classes), "rename": renames}}, keys).data
    config = config.model_copy(update={"accept": tuple(sorted({*config.accept, *check_accept(accept)}))})
    _refuse_unknown_labels(data, config, renames)
    listed = open_dataset(data, config)
    if renames and listed.records[0].path.endswith(".npz"):
        raise UsageError("U218", data, "labels of an npz file are numbers, which --map does not rename", "Leave it out")
    label = name or as_name(listed.name)
    place = Path(out) if out is not None else home.root / "evaluations" / label
    if (place / "metrics.json").exists():
        raise UsageError("U212", place, "an evaluation is already there", "Name another with --name")
    with Progress("reading images", quiet=quiet) as step:
        scanned = scan(listed, config, progress=step)
    dataset = scanned.dataset
    if tuple(dataset.classes) != tuple(bundle.classes):
        raise DataError(
            "D116",
            data,
            f"classes are {', '.join(dataset.classes)}; the model knows {', '.join(bundle.classes)}",
            "Name each with --map THEIRS=OURS",
        )
    seen, own_test = check_overlap(home if is_run else None, dataset, data, config)
    logits_NK = _logits(bundle, dataset, config, quiet)
    table = predictions_of(dataset, "external", logits_NK, bundle.pipeline.temperature)
    decision = bundle.document["operating_point"]
    metrics = summarise(
        table,
        operating_points=decision,
        temperature=bundle.pipeline.temperature,
        config=recipe.evaluation,
        seed=recipe.train.seed,
    )
    metrics["evaluation"] = about(label, bundle.hash, scanned, config, seen=seen, own_test=own_test)
    place.mkdir(parents=True, exist_ok=True)
    table.write_csv(place / "predictions.csv")
    write_json(place / "metrics.json", metrics)
    lines = _text(label, metrics, dataset)
    if is_run:
        from medloom.reporting.report import write_report

        lines.append(f"open {write_report(home)}")
    return Outcome({"evaluation": label, "place": place, "metrics": metrics}, tuple(lines))


def _renames(relabel: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for item in relabel:
        theirs, equals, ours = item.partition("=")
        if not equals or not theirs or "=" in ours:
            raise UsageError("U218", item, "not a pair of class names", "Write --map THEIRS=OURS")
        pairs[theirs] = ours
    if pairs:
        pairs.setdefault("*", "")
    return pairs


def about(name: str, bundle: str, scanned: Scan, config: DataConfig, *, seen: int, own_test: int) -> dict[str, Any]:
    """What ``metrics.json`` says of an evaluation itself."""
    return {
        "name": name,
        "time": now(),
        "bundle": bundle,
        "data": scanned.dataset.hash(),
        "excluded": [[e.id, e.code] for e in scanned.excluded],
        "notices": list(scanned.dataset.notices),
        "own_test_images": own_test,
        "seen_images": seen,
        "accepted": list(config.accept),
    }


def as_name(text: str) -> str:
    """The name of a data set as one that a folder and ``--name`` take."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".-") or "data"


def _refuse_unknown_labels(data: str | Path, config: DataConfig, renames: dict[str, str]) -> None:
    """A misspelt THEIRS would leave its images out without a word (D116)."""
    from medloom.data.labels import NO_FINDING, tidy
    from medloom.data.sources import open_dataset

    if not renames:
        return
    # Renaming drops the source's own words, so the list is made once more without it; nothing is decoded for that.
    # Several labels a row, unsure ones left out: the most lenient reading, for the names alone.
    lenient: dict[str, Any] = {"rename": {}, "classes": None, "multi_label": True, "uncertain": "drop"}
    try:
        found = open_dataset(data, config.model_copy(update=lenient)).classes
    except DataError:
        return  # the reading that counts says what is wrong
    known = {name.casefold(): name for name in found}
    for theirs in renames:
        word = tidy(theirs).casefold()
        if word != "*" and word not in known and word not in NO_FINDING:
            near = difflib.get_close_matches(word, known, n=3) or sorted(known)[:8]
            names = ", ".join(repr(known[key]) for key in near)
            raise DataError("D116", data, f"no image has the label {theirs!r}", f"Labels there are: {names}")


def check_overlap(run: RunDirectory | None, dataset: Dataset, data: str | Path, config: DataConfig) -> tuple[int, int]:
    """Images of ``dataset`` that the run learnt from, and images that are its test split's; zeros without a run.

    A scoring of test images is entered in the run's ledger, before it happens.

    Raises:
        DataError: D117, it learnt from some of them.
    """
    from medloom.data.records import read_csv

    if run is None:
        return 0, 0
    used = read_csv(run.records, run.root).records
    learnt = {r.pixel_hash for r in used if r.split in ("train", "val")}
    tested = {r.pixel_hash for r in used if r.split == "test"}
    mine = [r.pixel_hash for r in dataset.records]
    seen, own_test = sum(h in learnt for h in mine), sum(h in tested for h in mine)
    if seen and "D117" not in config.accept:
        told = f"{seen} images were used in training or validation"
        raise DataError("D117", data, told, "Leave them out, or --accept D117 says so in the report")
    if own_test:
        open_test(run, f"evaluate {data}", dataset.hash())
    return seen, own_test


def _logits(bundle: Any, dataset: Dataset, config: DataConfig, quiet: bool) -> np.ndarray:
    from medloom.data.images import decode

    parts = []
    with Progress("scoring", quiet=quiet) as step:
        for start in range(0, len(dataset), BLOCK):
            block = dataset.records[start : start + BLOCK]
            pixels = np.stack([bundle.preprocess.to_uint8(decode(dataset, r, config)) for r in block])
            parts.append(bundle.pipeline.logits(pixels))
            step(start + len(block), len(dataset))
    return np.concatenate(parts)


def _text(name: str, metrics: dict[str, Any], dataset: Dataset) -> list[str]:
    """The AUC, then what the frozen threshold gives; the most probable class counts only where no threshold does."""
    part = metrics["splits"]["test"]
    lines = [
        f"{name}: {part['n']} images, {part['patients']} patients",
        f"auc {number(part['metrics']['auc'])}",
    ]
    points = part.get("operating_points") or []
    for point in points:
        if not point.get("metrics"):
            lines.append(f"no decision for {point['class']}: {point.get('reason') or 'no threshold was chosen'}")
            continue
        lines.append(f"at the frozen threshold {point['threshold']:.3f} for {point['class']}:")
        lines += [
            f"  {key.replace('_', ' ')} {number(point['metrics'][key])}"
            for key in AT_THRESHOLD
            if key in point["metrics"]
        ]
    if not points:
        shown = [key for key in ("accuracy", "balanced_accuracy") if key in part["metrics"]]
        lines += [f"{key.replace('_', ' ')} {number(part['metrics'][key])} ({part['decision']})" for key in shown]
    return lines + list(dataset.notices)
