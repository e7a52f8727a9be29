"""``medloom train --folds N``: every patient is tested once, by a model that never saw him; one page for all folds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import Recipe, load_recipe
from medloom.errors import UsageError
from medloom.evaluation.case_table import CaseTable, join_tables, read_cases
from medloom.evaluation.segmentation_summary import summarise_segmentation
from medloom.files import RunDirectory, make_folder, write_json
from medloom.reporting.folds_page import write_folds_page
from medloom.workflows.progress import Progress, duration, number
from medloom.workflows.train import resolve, train

SHOWN = {"segmentation": ("dice", "hd95", "nsd"), "classification": ("auc", "accuracy", "balanced_accuracy")}


@dataclass(frozen=True)
class Folds:
    """What cross-validation found; ``exit_code`` is that of a fold that was stopped."""

    root: Path
    values: dict[str, Any]
    seconds: float
    exit_code: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"run": str(self.root), "seconds": round(self.seconds, 1), **self.values}

    def text(self) -> str:
        if self.exit_code:
            return f"stopped and saved; the same command with --resume and --out {self.root} goes on"
        lines = []
        for fold in self.values["folds"]:
            shown = ", ".join(f"{name} {number(entry)}" for name, entry in fold["metrics"].items())
            lines.append(f"fold {fold['fold']}: {shown}; {fold['n']} cases")
        for name, found in self.values["over_folds"].items():
            lines.append(f"{name} over the folds: {found['mean']:.4f}, deviation {found['sd']:.4f}")
        if "together" in self.values:
            dice = self.values["together"]["splits"]["test"]["metrics"]["dice"]
            lines.append(f"all cases together: Dice {number(dice)}")
        return "\n".join([*lines, f"finished in {duration(self.seconds)}", f"open {self.root / 'folds.html'}"])


def cross_validate(
    recipe: str | Path | dict[str, Any] | Recipe,
    folds: int,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    accept: Sequence[str] = (),
    quiet: bool = True,
) -> Folds:
    """Train once per fold into ``OUT/fold0`` ..., then put the test cases of all folds together.

    Folds that are finished are taken as they are, one that was interrupted goes on, with ``resume``. Neither is taken
    from another recipe, number of folds, seed or data set: the numbers of two experiments are no cross-validation.

    Raises:
        UsageError: U211 no data; U212 there is something already and ``resume`` is not set; U235 folds that cannot be
            cut; T411 folds of another recipe or of other data; and what ``train`` raises.
        DataError: D104 images whose pixels are no longer those that a finished fold recorded.
    """
    started = time.monotonic()
    resolved = resolve(recipe, data=data, overrides=overrides, seed=seed, accept=accept)
    if resolved.data.path is None:
        raise UsageError("U211", "data", "no data set given", "Name it with --data PATH")
    name = f"{resolved.name}-folds" if seed is None else f"{resolved.name}-seed{seed}-folds"
    root = Path(out) if out is not None else Path("runs") / name
    if root.exists() and any(root.iterdir()) and not resume:
        raise UsageError("U212", root, "something is already there", "Go on with --resume, or name another with --out")
    make_folder(root)
    told = Progress("folds", quiet=quiet)
    runs = [RunDirectory(root / f"fold{fold}") for fold in range(folds)]
    finished = [fold for fold, run in enumerate(runs) if run.report.exists() and run.metrics.exists()]
    if finished:
        _require_same({fold: runs[fold] for fold in finished}, folds, resolved, quiet=quiet)
    for fold, run in enumerate(runs):
        if fold in finished:
            continue
        told.keep(f"fold {fold} of {folds}")
        done = train(resolved, out=run.root, overrides=_overrides(folds, fold), resume=run.recipe.exists(), quiet=quiet)
        if done.exit_code:
            return Folds(root, {"folds": []}, time.monotonic() - started, done.exit_code)
    values = collect(root, folds, resolved)
    write_json(root / "folds.json", values)
    write_folds_page(root, values)
    return Folds(root, values, time.monotonic() - started)


def collect(root: Path, folds: int, recipe: Recipe) -> dict[str, Any]:
    """The numbers of every fold, their mean and deviation, and where masks are answered all cases together."""
    listed, tables = [], []
    for fold in range(folds):
        run = RunDirectory(root / f"fold{fold}")
        metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
        task = "segmentation" if metrics["task"] == "segmentation" else "classification"
        part = metrics["splits"]["test"]
        shown = {name: _entry(part, name) for name in SHOWN[task]}
        listed.append({"fold": fold, "n": part["n"], "metrics": {k: v for k, v in shown.items() if v}})
        if task == "segmentation":
            tables.append(read_cases(run.cases("test")))
    over = {}
    for name in listed[0]["metrics"]:
        found = [f["metrics"][name]["value"] for f in listed if f["metrics"].get(name, {}).get("value") is not None]
        if len(found) == folds:
            over[name] = {"mean": float(np.mean(found)), "sd": float(np.std(found, ddof=1))}
    values: dict[str, Any] = {"recipe": recipe.name, "model": recipe.model.name, "folds": listed, "over_folds": over}
    if tables:
        together: CaseTable = join_tables(tables)
        together.write_csv(root / "cases_test.csv")
        values["together"] = summarise_segmentation(together, config=recipe.evaluation, seed=recipe.train.seed)
    return values


def _overrides(folds: int, fold: int) -> tuple[str, ...]:
    return f"data.folds={folds}", f"data.fold={fold}"


def _require_same(finished: dict[int, RunDirectory], folds: int, recipe: Recipe, *, quiet: bool) -> None:
    """Refuse folds that another recipe, number of folds or seed made, or other data, as a resumed run would be.

    Recipes first, as they need no look at the data; these are read once for all folds.

    Raises:
        UsageError: T411 with the difference. DataError: D104; what opening and reading the data raise.
    """
    from medloom.data.records import read_csv
    from medloom.data.scan import scan
    from medloom.data.sources import open_dataset
    from medloom.data.splits import make_splits
    from medloom.workflows.prepare import require_same_data
    from medloom.workflows.run_steps import check_recipe, device_of, with_number_format

    device = device_of(recipe)
    own = {
        fold: with_number_format(load_recipe(recipe.as_dict(), _overrides(folds, fold)), device) for fold in finished
    }
    for fold, run in finished.items():
        check_recipe(own[fold], run)
    path = Path(str(recipe.data.path))
    with Progress("reading images", quiet=quiet) as step:
        dataset = scan(open_dataset(path, recipe.data), recipe.data, prefer=recipe.volume.prefer, progress=step).dataset
    for fold, run in finished.items():
        now = make_splits(dataset, own[fold].data, own[fold].train.seed).dataset
        require_same_data(read_csv(run.records, path), now, run.records)


def _entry(part: dict[str, Any], name: str) -> dict[str, Any] | None:
    """An entry of a split, or of its one operating point."""
    if name in part["metrics"]:
        entry: dict[str, Any] = part["metrics"][name]
        return entry
    points = [p for p in part.get("operating_points") or [] if p["metrics"]]
    return points[0]["metrics"].get(name) if len(points) == 1 else None
