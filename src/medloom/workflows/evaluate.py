"""``medloom evaluate``: another data set, scored by the bundle with the threshold that validation chose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import DataConfig, load_recipe
from medloom.data.records import Dataset
from medloom.errors import DataError, UsageError
from medloom.files import RunDirectory, write_json
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress, number
from medloom.workflows.score import now, open_test, predictions_of

BLOCK = 256


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
        relabel: ``THEIRS=OURS`` class names; images whose label is not named are left out, with a count.

    Raises:
        UsageError: U218 malformed ``relabel``, U216 no place to write.
        DataError: D116 labels that the model does not know, D117 training images among them.
    """
    from medloom.data.scan import scan
    from medloom.data.sources import open_dataset
    from medloom.deployment.bundle import load
    from medloom.evaluation.summary import summarise

    bundle = load(run)
    home = RunDirectory(Path(run))
    is_run = home.recipe.exists()
    if out is None and not is_run:
        raise UsageError("U216", run, "a bare bundle has no run directory to write into", "Give a run directory")
    recipe = load_recipe(home.recipe) if is_run else load_recipe({})
    keys = [o if o.startswith("data.") else f"data.{o}" for o in overrides]
    config = load_recipe({"data": {"classes": list(bundle.classes), "rename": _renames(relabel)}}, keys).data
    config = config.model_copy(update={"accept": tuple(sorted({*config.accept, *accept}))})
    with Progress("reading images", quiet=quiet) as step:
        scanned = scan(open_dataset(data, config), config, progress=step)
    dataset = scanned.dataset
    if tuple(dataset.classes) != tuple(bundle.classes):
        raise DataError(
            "D116",
            data,
            f"classes are {', '.join(dataset.classes)}; the model knows {', '.join(bundle.classes)}",
            "Name each with --map THEIRS=OURS",
        )
    seen, own_test = _overlap(home, dataset) if is_run else (0, 0)
    if seen and "D117" not in config.accept:
        raise DataError("D117", data, f"{seen} images were used in training or validation", "Leave them out")
    if own_test:
        open_test(home, f"evaluate {data}", dataset.hash())
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
    label = name or dataset.name
    metrics["evaluation"] = {
        "name": label,
        "time": now(),
        "bundle": bundle.hash,
        "data": dataset.hash(),
        "excluded": [[e.id, e.code] for e in scanned.excluded],
        "notices": list(dataset.notices),
        "own_test_images": own_test,
        "accepted": list(config.accept),
    }
    place = Path(out) if out is not None else home.root / "evaluations" / label
    place.mkdir(parents=True, exist_ok=True)
    table.write_csv(place / "predictions.csv")
    write_json(place / "metrics.json", metrics)
    lines = _text(metrics, dataset)
    if is_run:
        from medloom.reporting.report import write_report

        lines.append(f"open {write_report(home)}")
    return Outcome({"evaluation": label, "place": place, "metrics": metrics}, tuple(lines))


def _renames(relabel: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for item in relabel:
        theirs, equals, ours = item.partition("=")
        if not equals or not theirs:
            raise UsageError("U218", item, "not a pair of class names", "Write --map THEIRS=OURS")
        pairs[theirs] = ours
    if pairs:
        pairs.setdefault("*", "")
    return pairs


def _overlap(run: RunDirectory, dataset: Dataset) -> tuple[int, int]:
    """Images of ``dataset`` that the run learnt from, and images that are its test split's."""
    from medloom.data.records import read_csv

    used = read_csv(run.records, run.root).records
    learnt = {r.pixel_hash for r in used if r.split in ("train", "val")}
    tested = {r.pixel_hash for r in used if r.split == "test"}
    mine = [r.pixel_hash for r in dataset.records]
    return sum(h in learnt for h in mine), sum(h in tested for h in mine)


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


def _text(metrics: dict[str, Any], dataset: Dataset) -> list[str]:
    part = metrics["splits"]["test"]
    shown = [f"{key} {number(part['metrics'][key])}" for key in ("auc", "accuracy", "balanced_accuracy")]
    lines = [f"{dataset.name}: {part['n']} images, {part['patients']} patients", ", ".join(shown)]
    for point in part.get("operating_points") or []:
        if point.get("metrics"):
            lines.append(
                f"at the frozen threshold {point['threshold']:.3f} for {point['class']}: "
                f"sensitivity {number(point['metrics']['sensitivity'])}, "
                f"specificity {number(point['metrics']['specificity'])}"
            )
    return lines + list(dataset.notices)
