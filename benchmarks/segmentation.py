"""Do hybrids beat a U-Net of equal budget? Lungs within and across two hospitals, hippocampus in 3D; resumable.

    python benchmarks/segmentation.py run --plan lungs_sites --data lung_masks      # each hospital against the other
    python benchmarks/segmentation.py run --plan lungs_folds --data lung_masks      # five folds within both
    python benchmarks/segmentation.py run --plan hippocampus --data hippocampus
    python benchmarks/segmentation.py summary

The claim that is tested: hybrids gain 3 to 8 Dice points across centres. Every model has the same recipe but for its
name; the difference to the U-Net is paired by case, with an interval over resampled patients and p values corrected
for the number of comparisons (Holm). A finished run leaves one small file with the measures of every case, so that
each difference can be computed again. Each run answers its test cases once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import load_recipe
from medloom.evaluation.case_table import CaseTable, join_tables, read_cases
from medloom.evaluation.segmentation import MEASURES
from medloom.evaluation.segmentation_comparison import differences_of_cases
from medloom.evaluation.segmentation_summary import summarise_segmentation
from medloom.files import RunDirectory, write_json, write_text
from medloom.workflows.environment import environment

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
MODELS = {
    "lungs": ("unet", "transunet", "maxvit_unet"),
    "hippocampus": ("unet_3d", "transunet_3d", "maxvit_unet_3d"),
}
SITES = {"MCUCXR": "Montgomery", "CHNCXR": "Shenzhen"}
PUBLISHED = {"lungs": "a published hybrid: Dice 0.957 (arXiv 2408.04290); good U-Nets: 0.97 to 0.98",
             "hippocampus": "nnU-Net: Dice about 0.90 (anterior) and 0.89 (posterior)"}  # fmt: skip
KEPT = ("dice", "hd95", "nsd", "assd", "trivial_dice")


@dataclass(frozen=True)
class Planned:
    """One run: the group of runs that it is compared in, its model, and what is changed in the recipe."""

    group: str
    model: str
    part: str
    overrides: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return f"{self.group}-{self.model}-{self.part}"

    @property
    def recipe(self) -> str:
        return f"{self.group.partition('_')[0]}_{self.model}"


def plan(which: str) -> list[Planned]:
    """Part by part over all models, so that an interrupted sitting still compares like with like."""
    models = MODELS[which.partition("_")[0]]
    if which == "lungs_sites":
        parts = [(f"on_{SITES[s].lower()}", (f"data.test_sites=[{s}]", "data.test_fraction=0")) for s in SITES]
    elif which == "lungs_folds":
        parts = [(f"fold{k}", ("data.folds=5", f"data.fold={k}", "data.test_fraction=0")) for k in range(5)]
    else:
        parts = [("seed0", ())]
    return [Planned(which, model, part, changes) for part, changes in parts for model in models]


def run_all(data: Path, which: str, runs: Path, minutes: float | None) -> None:
    """Run what is not recorded yet, one after the other, until the time is up."""
    started = time.monotonic()
    folder = RESULTS / "segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [p for p in plan(which) if not (folder / f"{p.file_name}.json").exists()]
    for k, planned in enumerate(todo):
        spent = (time.monotonic() - started) / 60
        if minutes is not None and spent > minutes:
            print(f"time is up after {spent:.0f} minutes; {len(todo) - k} runs remain", flush=True)
            return
        print(f"[{k + 1}/{len(todo)}] {planned.file_name}", flush=True)
        place = runs / planned.file_name
        command = [sys.executable, "-m", "medloom.cli", "train", str(PROJECT / "recipes" / f"{planned.recipe}.yaml")]
        command += ["--data", str(data), "--out", str(place), "--json"]
        command += [part for o in planned.overrides for part in ("--set", o)]
        if (place / "recipe.yaml").exists():
            command.append("--resume")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"  failed with {done.returncode}: {done.stderr.strip()[-300:]}", flush=True)
            continue
        record(planned, RunDirectory(place), folder)


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


def summary() -> dict[str, Any]:
    """Per group the table of the models, and each hybrid minus the U-Net, paired by case."""
    found = [json.loads(p.read_text()) for p in sorted((RESULTS / "segmentation").glob("*.json"))]
    groups: dict[str, Any] = {}
    for group in dict.fromkeys(one["group"] for one in found):
        runs = [one for one in found if one["group"] == group]
        models = [m for m in MODELS[group.partition("_")[0]] if any(r["model"] == m for r in runs)]
        shared = sorted(set.intersection(*({r["part"] for r in runs if r["model"] == m} for m in models)))
        if not shared:
            continue
        tables = {
            m: join_tables([_table(r) for part in shared for r in runs if (r["model"], r["part"]) == (m, part)])
            for m in models
        }
        parts = {"all": tables} if len(shared) == 1 or group.endswith("folds") else {
            part: {m: _table(next(r for r in runs if (r["model"], r["part"]) == (m, part))) for m in models}
            for part in shared
        }  # fmt: skip
        groups[group] = {
            "published": PUBLISHED[group.partition("_")[0]],
            "parts": {name: _compared(of, runs, models) for name, of in parts.items()},
            "runs": len(runs),
            "test_scorings": sum(r["test_scorings"] for r in runs),
        }
    whole = {"claim": "hybrids gain 3 to 8 Dice points", "environment": environment(), "groups": groups}
    write_json(RESULTS / "segmentation.json", whole)
    write_text(RESULTS / "segmentation.md", markdown(whole))
    return whole


def _compared(tables: dict[str, CaseTable], runs: list[dict[str, Any]], models: list[str]) -> dict[str, Any]:
    rows = {}
    for name, table in tables.items():
        metrics = summarise_segmentation(table)["splits"]["test"]
        own = [r for r in runs if r["model"] == name]
        rows[name] = {
            "parameters": own[0]["parameters"],
            "cases": len(table),
            "patients": metrics["patients"],
            **{m: metrics["metrics"][m] for m in ("dice", "hd95", "nsd")},
            "structures": {s: v["metrics"]["dice"] for s, v in metrics["structures"].items()},
            "minutes": float(np.mean([r["minutes"] for r in own])),
        }
    return {
        "rows": rows,
        "differences": {m: differences_of_cases(tables, models[0], m) for m in ("dice", "hd95")},
    }


def markdown(whole: dict[str, Any]) -> str:
    """The same as tables to read."""
    lines = [f"Claim: {whole['claim']}. Every model has the same recipe and budget; differences are paired by case."]
    for group, values in whole["groups"].items():
        for part, found in values["parts"].items():
            lines += ["", f"**{group}{'' if part == 'all' else ', tested ' + part.replace('_', ' ')}** "
                      f"({values['published']})", "",
                      "| model | parameters | cases | Dice | of each structure | HD95 | NSD | minutes a run |",
                      "|---|---:|---:|---|---|---|---|---:|"]  # fmt: skip
            for name, row in found["rows"].items():
                each = ", ".join(f"{s} {_entry(e)}" for s, e in row["structures"].items())
                dice, far, near = (_entry(row[m]) for m in ("dice", "hd95", "nsd"))
                head = f"{name} | {row['parameters']:,} | {row['cases']}"
                lines.append(f"| {head} | {dice} | {each} | {far} | {near} | {row['minutes']:.1f} |")
            lines += ["", "| hybrid minus U-Net | Dice points | p (Holm) | better, worse in cases | HD95 |",
                      "|---|---|---:|---|---|"]  # fmt: skip
            for d, far in zip(found["differences"]["dice"], found["differences"]["hd95"], strict=True):
                p = "" if d["p_holm"] is None else f"{d['p_holm']:.3f}"
                lines.append(
                    f"| {d['model']} | {_entry(d['difference'], 100, '+.2f')} | {p} "
                    f"| {d['better']['a']}, {d['better']['b']} | {_entry(far['difference'], 1, '+.2f')} |"
                )
    return "\n".join(lines) + "\n"


def _entry(entry: dict[str, Any], scale: float = 1.0, shape: str = ".3f") -> str:
    if entry["value"] is None:
        return "not estimable"
    value = format(entry["value"] * scale, shape)
    if entry["low"] is None:
        return value
    return f"{value} ({format(entry['low'] * scale, shape)} to {format(entry['high'] * scale, shape)})"


def _table(one: dict[str, Any]) -> CaseTable:
    c = one["cases"]
    shape = (len(c["ids"]), len(c["structures"]))
    values = {m: np.full(shape, np.nan) for m in MEASURES}
    for name, rows in c["values"].items():
        values[name] = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
    # Lesions were not kept: a structure here is an organ.
    for name in ("lesions_found", "lesions_missed", "lesions_invented"):
        values[name] = np.zeros(shape)
    patients = tuple(f"{one['part']}:{p}" for p in c["patients"])
    return CaseTable(
        tuple(c["ids"]), patients, tuple(c["sites"]), tuple(c["structures"]), values, "test",
        c["distance_unit"], c["size_unit"], c["tolerance"],
    )  # fmt: skip


def _plain(values_NK: np.ndarray) -> list[list[float | None]]:
    return [[None if not np.isfinite(v) else round(float(v), 5) for v in row] for row in values_NK]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("--plan", choices=["lungs_sites", "lungs_folds", "hippocampus"], required=True)
    running.add_argument("--data", type=Path, required=True)
    running.add_argument("--runs", type=Path, default=Path("runs") / "segmentation")
    running.add_argument("--minutes", type=float, help="start no run after so many")
    verbs.add_parser("summary")
    arguments = parser.parse_args()
    if arguments.verb == "summary":
        print(markdown(summary()))
    else:
        run_all(arguments.data.resolve(), arguments.plan, arguments.runs, arguments.minutes)


if __name__ == "__main__":
    main()
