"""The edge default from end to end: what it answers on the test images, what eight bits changed, how fast it is here.

    medloom train recipes/pneumonia_edge.yaml --data chest_xray
    medloom export runs/pneumonia_edge && medloom quantize runs/pneumonia_edge
    python benchmarks/pneumonia_edge.py --run runs/pneumonia_edge --images chest_xray/test/NORMAL [--pruned runs/...]

Accuracy is read from the run, nothing is scored anew; speed is measured now (``medloom benchmark``). The goals: under
5 ms an image at batch 1 on two cores, an AUC within 0.01 of the best model, a cold start under 1.5 s.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medloom.evaluation.comparison import paired_difference
from medloom.evaluation.predictions import read_csv
from medloom.files import RunDirectory, write_json
from medloom.machine import instructions
from medloom.workflows.benchmark import benchmark
from medloom.workflows.environment import environment
from pneumonia import recorded_table

RESULTS = Path(__file__).parent / "results"
BEST = RESULTS / "pneumonia_default.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pruned", type=Path, help="what ``medloom prune`` made of it")
    parser.add_argument("--images", type=Path, required=True, help="files to time the whole way on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "pneumonia_edge.json")
    arguments = parser.parse_args()
    runs = {"edge": arguments.run, **({"edge, pruned": arguments.pruned} if arguments.pruned else {})}
    bundles = [folder for run in runs.values() for folder in (run / "bundle", run / "bundle-int8") if folder.exists()]
    load = round(os.getloadavg()[0], 2)
    rows = benchmark(bundles, images=arguments.images, threads=arguments.threads).values["rows"]
    names = {str(run): name for name, run in runs.items()}
    for row in rows:  # a place on this machine tells nobody anything
        row["bundle"] = f"{names[str(Path(row['bundle']).parent)]}, {Path(row['bundle']).name}"
    write_json(
        arguments.out,
        {
            "question": "the edge default: accuracy of its run, what eight bits changed, milliseconds here",
            "goal": {"ms at batch 1": 5, "auc below the best": 0.01, "cold start, s": 1.5},
            "best": json.loads(BEST.read_text(encoding="utf-8"))["rows"]["pneumonia"]["auc"],
            "less_the_best": less_the_best(arguments.run),
            "runs": {name: accuracy(run) for name, run in runs.items()},
            "load_before": load,
            "environment": {**environment(), "instructions": instructions(), "threads": arguments.threads},
            "speed": rows,
        },
    )


def less_the_best(folder: Path) -> dict[str, Any]:
    """AUC on the test images, less that of the best model, for each recorded seed of that; paired by patient."""
    mine = read_csv(RunDirectory(folder).predictions("test"))
    mine = mine.select(np.argsort(mine.ids))  # theirs stand in the order of the sorted names
    found = {}
    for path in sorted(BEST.with_suffix("").glob("*.json")):
        theirs = recorded_table(json.loads(path.read_text(encoding="utf-8")))
        if not np.array_equal(theirs.labels, mine.labels):
            raise SystemExit(f"{path.name} is about other test images")
        theirs = replace(theirs, ids=mine.ids, patients=mine.patients)
        paired = paired_difference(mine, theirs, "auc", resamples=2000, min_positives=10, seed=0)
        found[path.stem] = paired["difference"]
    return found


def accuracy(folder: Path) -> dict[str, Any]:
    """Of the run: the test measures, minutes, and what quantising and pruning it said; no ids."""
    run = RunDirectory(folder)
    whole = json.loads(run.metrics.read_text(encoding="utf-8"))
    test = whole["splits"]["test"]
    log = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in log if line["event"] == "epoch"]
    found: dict[str, Any] = {
        "parameters": json.loads((run.bundle / "model.json").read_text(encoding="utf-8"))["provenance"]["parameters"],
        "epochs": len(epochs),
        "minutes": round(sum(e["seconds"] + e["val_seconds"] for e in epochs) / 60, 1),
        "test_scorings": whole["test_scorings"],
        "val_auc": whole["splits"]["val"]["metrics"]["auc"],
        "auc": test["metrics"]["auc"],
        "accuracy_at_the_threshold": test["operating_points"][0]["metrics"]["accuracy"],
    }
    if (report := folder / "bundle-int8.json").exists():
        networks = json.loads(report.read_text(encoding="utf-8"))["networks"]
        found["int8"] = {
            name: {
                "layers": each["layers"],
                "layers_in_float": len(each["float_layers"]),
                **{split: _judged(each[split]) for split in ("val", "test") if split in each},
            }
            for name, each in networks.items()
        }
    if (report := folder / "compression.json").exists():
        said = json.loads(report.read_text(encoding="utf-8"))
        found["pruned"] = {key: said[key] for key in ("before", "after", "steps", "speed", "target")}
        found["pruned"] |= {name: _judged(said[name]) for name in ("gate", "test") if said[name]}
    return found


def _judged(gate: dict[str, Any]) -> dict[str, Any]:
    return {"n": gate["n"], "passed": gate["passed"], "reasons": gate["reasons"], **_without_ids(gate)}


def _without_ids(gate: dict[str, Any]) -> dict[str, Any]:
    parts = {part: gate[part] for part in ("auc", "shift", "flips")}
    return {
        part: {k: v for k, v in values.items() if k != "id" and not isinstance(v, list)}
        for part, values in parts.items()
    }


if __name__ == "__main__":
    main()
