"""Do hybrids beat a U-Net of equal budget? Lungs within and across two hospitals, hippocampus in 3D; resumable.

    python benchmarks/segmentation.py run --plan lungs_sites --data lung_masks      # each hospital against the other
    python benchmarks/segmentation.py run --plan lungs_folds --data lung_masks      # five folds within both
    python benchmarks/segmentation.py run --plan hippocampus --data hippocampus
    python benchmarks/segmentation.py run --plan hippocampus --data hippocampus --set train.epochs=5 --minutes 60
    python benchmarks/segmentation.py summary

The claim that is tested: hybrids gain 3 to 8 Dice points across centres. Every model has the same recipe but for its
name; the difference to the U-Net is paired by case, with an interval over resampled patients and p values corrected
for the number of comparisons (Holm). A finished run leaves one small file with the measures of every case, so that
each difference can be computed again. Each run answers its test cases once.

``--set`` holds for all models of the plan alike, stands in their files' names and in the tables, and such runs are
compared among themselves alone. What ``--minutes`` ends is saved, and goes on the next time; a run that is past its
training is waited for.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medloom.config import load_recipe
from medloom.evaluation.case_table import read_cases
from medloom.files import RunDirectory, write_json
from segmentation_tables import MODELS, RESULTS, markdown, summary

PROJECT = Path(__file__).resolve().parents[1]
SITES = {"MCUCXR": "Montgomery", "CHNCXR": "Shenzhen"}
KEPT = ("dice", "hd95", "nsd", "assd", "trivial_dice")


@dataclass(frozen=True)
class Planned:
    """One run: the group of runs that it is compared in, its model, and what is changed in the recipe.

    ``overrides`` make the part, ``common`` is what all models of the plan were given besides.
    """

    group: str
    model: str
    part: str
    overrides: tuple[str, ...] = ()
    common: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        changed = "".join("-" + re.sub(r"[^A-Za-z0-9.]+", "_", o) for o in self.common)
        return f"{self.group}-{self.model}-{self.part}{changed}"

    @property
    def recipe(self) -> str:
        return f"{self.group.partition('_')[0]}_{self.model}"


def plan(which: str, common: tuple[str, ...] = ()) -> list[Planned]:
    """Part by part over all models, so that an interrupted sitting still compares like with like."""
    models = MODELS[which.partition("_")[0]]
    if which == "lungs_sites":
        parts = [(f"on_{SITES[s].lower()}", (f"data.test_sites=[{s}]", "data.test_fraction=0")) for s in SITES]
    elif which == "lungs_folds":
        parts = [(f"fold{k}", ("data.folds=5", f"data.fold={k}", "data.test_fraction=0")) for k in range(5)]
    else:
        parts = [("seed0", ())]
    return [Planned(which, model, part, changes, common) for part, changes in parts for model in models]


def run_all(data: Path, planned: list[Planned], runs: Path, minutes: float | None) -> list[str]:
    """Run what is not recorded yet, one after the other, until the time is up.

    Returns:
        What failed; the others ran all the same.
    """
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    folder = RESULTS / "segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [p for p in planned if not (folder / f"{p.file_name}.json").exists()]
    failed: list[str] = []
    for k, one in enumerate(todo):
        left = None if ends is None else ends - time.monotonic()
        if left is not None and left <= 0:
            print(f"time is up; {len(todo) - k} runs remain", flush=True)
            break
        print(f"[{k + 1}/{len(todo)}] {one.file_name}", flush=True)
        run = RunDirectory(runs / one.file_name)
        if not (run.report.exists() and run.metrics.exists()):
            code, said = train_one(one, data, run, left)
            if code is None:
                print(f"time is up: {one.file_name} goes on the next time; {len(todo) - k} runs remain", flush=True)
                break
            if code:
                print(f"  failed with {code}: {said.strip()[-300:]}", flush=True)
                failed.append(one.file_name)
                continue
        record(one, run, folder)
    return failed


def train_one(planned: Planned, data: Path, run: RunDirectory, seconds: float | None) -> tuple[int | None, str]:
    """Train, or go on with what was begun. Exit code, None where it was stopped for time, and what it said."""
    command = [sys.executable, "-m", "medloom.cli", "train", str(PROJECT / "recipes" / f"{planned.recipe}.yaml")]
    command += ["--data", str(data), "--out", str(run.root), "--json"]
    command += [part for o in (*planned.overrides, *planned.common) for part in ("--set", o)]
    if run.recipe.exists():
        command.append("--resume")
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, said = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Once the test cases are being scored the rest is minutes, and going on would score them again.
        if not run.ledger.exists():
            child.terminate()  # the run ends the step in hand, saves, and leaves
            child.communicate()
            return None, ""
        _, said = child.communicate()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    return child.returncode, said


def record(planned: Planned, run: RunDirectory, folder: Path) -> None:
    """Distil a run directory into one small committed file."""
    metrics = json.loads(run.metrics.read_text())
    table = read_cases(run.cases("test"))
    log = [json.loads(line) for line in run.log.read_text().splitlines()]
    epochs = [e for e in log if e["event"] == "epoch"]
    patients = {name: k for k, name in enumerate(dict.fromkeys(table.groups.tolist()))}
    write_json(
        folder / f"{planned.file_name}.json",
        {
            "group": planned.group,
            "model": planned.model,
            "part": planned.part,
            "recipe": planned.recipe,
            "overrides": list(planned.overrides),
            "common": list(planned.common),
            "recipe_sha256": load_recipe(run.recipe).hash,
            "data_sha256": json.loads(run.split.read_text())["hash"],
            "parameters": int(json.loads((run.bundle / "model.json").read_text())["provenance"]["parameters"]),
            "environment": json.loads(run.environment.read_text()),
            "minutes": round(sum(e["seconds"] + e["val_seconds"] for e in epochs) / 60, 2),
            "epochs": [
                {k: round(e[k], 5) for k in ("train_loss", "train_dice", "val_loss", "val_dice", "seconds")}
                for e in epochs
            ],
            "test_scorings": metrics["test_scorings"],
            "test": {k: metrics["splits"]["test"]["metrics"][k] for k in ("dice", "hd95", "nsd", "assd")},
            "cases": {
                "ids": list(table.ids),
                "patients": [patients[g] for g in table.groups.tolist()],
                "sites": list(table.sites),
                "structures": list(table.structures),
                "distance_unit": table.distance_unit,
                "size_unit": table.size_unit,
                "tolerance": table.tolerance,
                "values": {m: _plain(table.values[m]) for m in (*KEPT, "size_truth", "size_answer")},
            },
        },
    )


def _plain(values_NK: np.ndarray) -> list[list[float | None]]:
    return [[None if not np.isfinite(v) else round(float(v), 5) for v in row] for row in values_NK]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("--plan", choices=["lungs_sites", "lungs_folds", "hippocampus"], required=True)
    running.add_argument("--data", type=Path, required=True)
    running.add_argument("--runs", type=Path, default=Path("runs") / "segmentation")
    running.add_argument("--minutes", type=float, help="save and stop after so many; the same command goes on")
    running.add_argument("--models", nargs="+", choices=sorted({m for names in MODELS.values() for m in names}))
    running.add_argument(
        "--set", dest="common", action="append", default=[], help="for all models alike, e.g. train.epochs=5"
    )
    verbs.add_parser("summary")
    arguments = parser.parse_args()
    if arguments.verb == "summary":
        print(markdown(summary()))
    else:
        planned = plan(arguments.plan, tuple(sorted(arguments.common)))
        planned = [p for p in planned if not arguments.models or p.model in arguments.models]
        failed = run_all(arguments.data.resolve(), planned, arguments.runs, arguments.minutes)
        if failed:
            sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
