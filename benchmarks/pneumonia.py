"""The HATR paper's comparison on the real chest X-rays, at the size of the machine at hand; resumable run by run.

    python benchmarks/pneumonia.py run --data chest_xray --plan cpu       # hours; skips what is already recorded
    python benchmarks/pneumonia.py summary --plan cpu                     # the table and the paired differences

Each finished run leaves one small file under ``benchmarks/results/pneumonia_PLAN/``: recipe, machine, epochs, metrics
with intervals, and the test logits in the order of the sorted image names, so that every difference can be computed
again. The test split is scored once per run; the number of scorings stands in the summary.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import load_recipe
from medloom.evaluation.comparison import holm, mean_and_sd, seeds_difference
from medloom.evaluation.predictions import Predictions, from_logits, read_csv
from medloom.files import RunDirectory, write_json, write_text
from medloom.workflows.environment import environment

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PAPER = {
    "resnet50": (0.873, 0.945),
    "conv2d": (0.827, 0.920),
    "vit": (0.851, 0.930),
    "hatr_resnet": (0.914, 0.960),
    "hatr_conv2d": (0.882, 0.950),
}


@dataclass(frozen=True)
class Planned:
    """One run: a name for the table, its recipe, its seed and what is changed in the recipe."""

    name: str
    recipe: str
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return f"{self.name}-seed{self.seed}"


def plan(which: str) -> list[Planned]:
    """The order puts one seed of everything first, so that an interrupted sitting still tells something."""
    if which == "default":
        return [Planned("pneumonia", "pneumonia", seed) for seed in (0, 1, 2)]
    prefix, trunk, vit = (
        ("pneumonia_cpu", "resnet18", "vit") if which == "cpu" else ("pneumonia", "resnet50", "vit_small")
    )
    pairs = ["conv2d", "hatr_conv2d", trunk, f"hatr_{trunk}"]
    runs = [Planned(name, f"{prefix}_{name}", 0) for name in (*pairs, vit)]
    small = "hatr_conv2d"
    one_scale, no_overlap, no_weight = (
        "model.options.scales=[[2,1]]",
        "model.options.overlap=false",
        "model.options.weighting=false",
    )
    runs += [
        Planned("ablation_one_scale", f"{prefix}_{small}", 0, (one_scale,)),
        Planned("ablation_no_overlap", f"{prefix}_{small}", 0, (no_overlap,)),
        Planned("ablation_no_weighting", f"{prefix}_{small}", 0, (no_weight,)),
        Planned("ablation_direct_connection", f"{prefix}_{small}", 0, (one_scale, no_overlap, no_weight)),
    ]
    runs += [Planned(name, f"{prefix}_{name}", seed) for seed in (1, 2) for name in pairs]
    return sorted(runs, key=lambda r: r.name == vit)  # the slowest last


def run_all(data: Path, which: str, runs: Path, minutes: float | None) -> None:
    """Run what is not recorded yet, one after the other, until the time is up."""
    started = time.monotonic()
    folder = RESULTS / f"pneumonia_{which}"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [p for p in plan(which) if not (folder / f"{p.file_name}.json").exists()]
    for k, planned in enumerate(todo):
        spent = (time.monotonic() - started) / 60
        if minutes is not None and spent > minutes:
            print(f"time is up after {spent:.0f} minutes; {len(todo) - k} runs remain", flush=True)
            return
        print(f"[{k + 1}/{len(todo)}] {planned.file_name}", flush=True)
        place = runs / f"{which}-{planned.file_name}"
        command = [sys.executable, "-m", "medloom.cli", "train", str(PROJECT / "recipes" / f"{planned.recipe}.yaml")]
        command += ["--data", str(data), "--out", str(place), "--seed", str(planned.seed), "--json"]
        command += [part for o in planned.overrides for part in ("--set", o)]
        if (place / "recipe.yaml").exists():
            command.append("--resume")
        before = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"  failed with {done.returncode}: {done.stderr.strip()[-300:]}", flush=True)
            continue
        record(planned, RunDirectory(place), folder, time.monotonic() - before)


def record(planned: Planned, run: RunDirectory, folder: Path, seconds: float) -> None:
    """Distil a run directory into one small committed file."""
    metrics = json.loads(run.metrics.read_text())
    part = metrics["splits"]["test"]
    table = read_csv(run.predictions("test"))
    order = np.argsort(np.array(table.ids))
    patients = {name: k for k, name in enumerate(dict.fromkeys(np.array(table.groups)[order].tolist()))}
    log = [json.loads(line) for line in run.log.read_text().splitlines()]
    epochs = [e for e in log if e["event"] == "epoch"]
    point = part["operating_points"][0]
    write_json(
        folder / f"{planned.file_name}.json",
        {
            "name": planned.name,
            "recipe": planned.recipe,
            "overrides": list(planned.overrides),
            "seed": planned.seed,
            "recipe_sha256": load_recipe(run.recipe).hash,
            "data_sha256": json.loads(run.split.read_text())["hash"],
            "parameters": _parameters(run),
            "environment": json.loads(run.environment.read_text()),
            "minutes": round(seconds / 60, 2),
            "epochs": [
                {
                    k: round(e[k], 5)
                    for k in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_auc", "seconds")
                }
                for e in epochs
            ],
            "val": {k: metrics["splits"]["val"]["metrics"][k] for k in ("auc", "accuracy")},
            "test": {k: part["metrics"][k] for k in ("auc", "average_precision", "brier", "ece")},
            "operating_point": {k: point[k] for k in ("rule", "threshold", "counts", "metrics")},
            "test_scorings": metrics["test_scorings"],
            "predictions": {
                "classes": list(table.classes),
                "order": "sorted image names",
                "patients": [patients[g] for g in np.array(table.groups)[order].tolist()],
                "labels": table.labels[order].tolist(),
                "logit_difference": [round(float(d), 4) for d in (table.logits[:, 1] - table.logits[:, 0])[order]],
            },
        },
    )


def summary(which: str) -> dict[str, Any]:
    """The table over seeds and the paired difference of each HATR to its trunk; ablations against the full model."""
    folder = RESULTS / f"pneumonia_{which}"
    found = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for one in found:
        by_name.setdefault(one["name"], {})[one["seed"]] = one
    rows = {name: _row(seeds) for name, seeds in by_name.items()}
    pairs = [("hatr_conv2d", "conv2d"), ("hatr_resnet18", "resnet18"), ("hatr_resnet50", "resnet50")]
    pairs += [(name, "hatr_conv2d") for name in by_name if name.startswith("ablation")]
    differences = []
    for a, b in pairs:
        seeds = sorted(by_name.get(a, {}).keys() & by_name.get(b, {}).keys())
        if seeds:
            tables = [(recorded_table(by_name[a][s]), recorded_table(by_name[b][s])) for s in seeds]
            found_difference = seeds_difference(tables, "auc", resamples=2000, seed=0)
            differences.append({"a": a, "b": b, "seeds": seeds, "auc": found_difference})
    p_values = [d["auc"]["p"] for d in differences if d["auc"]["p"] is not None]
    for d, p in zip([d for d in differences if d["auc"]["p"] is not None], holm(p_values), strict=True):
        d["p_holm"] = p
    whole: dict[str, Any] = {
        "what": f"plan {which}: chest X-rays, official 624 test images, threshold fixed on validation",
        "environment": environment(),
        "test_scorings": sum(one["test_scorings"] for one in found),
        "rows": rows,
        "differences": differences,
        "paper": {name: {"accuracy": a, "auc": u} for name, (a, u) in PAPER.items()},
    }
    ratio = _epoch_ratio(rows)
    if ratio:
        whole["epoch_time_ratio_hatr_resnet_over_hatr_conv2d"] = {"ours": ratio, "paper": 1.2}
    write_json(RESULTS / f"pneumonia_{which}.json", whole)
    write_text(RESULTS / f"pneumonia_{which}.md", markdown(whole))
    return whole


def markdown(whole: dict[str, Any]) -> str:
    """The same as a table to read."""
    lines = [
        f"{whole['what']}.",
        "",
        "| model | parameters | seeds | AUC | accuracy | sensitivity | specificity | minutes |",
        "|---|---:|---:|---|---|---|---|---:|",
    ]
    for name, row in sorted(whole["rows"].items(), key=lambda item: -item[1]["auc"]["mean"]):
        cells = [_spread(row[k]) for k in ("auc", "accuracy", "sensitivity", "specificity")]
        lines.append(
            f"| {name} | {row['parameters']:,} | {len(row['seeds'])} | {' | '.join(cells)} | {row['minutes']:.1f} |"
        )
    lines += [
        "",
        "| a | b | seeds | AUC a - b (95 % interval, patients and seeds) | p (Holm) |",
        "|---|---|---:|---|---:|",
    ]
    for d in whole["differences"]:
        e = d["auc"]["difference"]
        value = "not estimable" if e["value"] is None else f"{e['value']:+.4f} ({e['low']:+.4f} to {e['high']:+.4f})"
        lines.append(f"| {d['a']} | {d['b']} | {len(d['seeds'])} | {value} | {d.get('p_holm', float('nan')):.3f} |")
    return "\n".join(lines) + "\n"


def _row(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    runs = [seeds[s] for s in sorted(seeds)]
    one_seed = runs[0]["test"]["auc"]
    return {
        "parameters": runs[0]["parameters"],
        "seeds": sorted(seeds),
        "auc": mean_and_sd([r["test"]["auc"]["value"] for r in runs]),
        "auc_interval_of_first_seed": [one_seed["low"], one_seed["high"]],
        **{
            k: mean_and_sd([r["operating_point"]["metrics"][k]["value"] for r in runs])
            for k in ("accuracy", "sensitivity", "specificity")
        },
        "val_auc": mean_and_sd([r["val"]["auc"]["value"] for r in runs]),
        "minutes": float(np.mean([r["minutes"] for r in runs])),
        "epoch_seconds": float(np.median([e["seconds"] for r in runs for e in r["epochs"]])),
    }


def recorded_table(one: dict[str, Any]) -> Predictions:
    """The test answers of a recorded run; ids are places in the order of the sorted image names."""
    p = one["predictions"]
    z = np.array(p["logit_difference"])
    return from_logits(
        [str(i) for i in range(len(z))],
        [str(k) for k in p["patients"]],
        [None] * len(z),
        np.array(p["labels"]),
        np.stack([np.zeros_like(z), z], axis=1),
        p["classes"],
    )


def _epoch_ratio(rows: dict[str, Any]) -> float | None:
    resnet = next((rows[n] for n in ("hatr_resnet50", "hatr_resnet18") if n in rows), None)
    if resnet is None or "hatr_conv2d" not in rows:
        return None
    return round(resnet["epoch_seconds"] / rows["hatr_conv2d"]["epoch_seconds"], 3)


def _parameters(run: RunDirectory) -> int:
    return int(json.loads((run.bundle / "model.json").read_text())["provenance"]["parameters"])


def _spread(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f}" + (f" ± {value['sd']:.3f}" if value["sd"] is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("run", "summary"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--plan", choices=("cpu", "paper", "default"), default="cpu")
    parser.add_argument("--runs", type=Path, default=PROJECT / "runs" / "bench")
    parser.add_argument("--minutes", type=float, help="start no run after this many")
    arguments = parser.parse_args()
    if arguments.step == "run":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        run_all(arguments.data, arguments.plan, arguments.runs, arguments.minutes)
    print(markdown(summary(arguments.plan)))


if __name__ == "__main__":
    main()
