"""What ``segmentation.py`` found, as tables: each hybrid minus the U-Net, paired by case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medloom.evaluation.case_table import CaseTable, join_tables
from medloom.evaluation.segmentation import MEASURES
from medloom.evaluation.segmentation_comparison import differences_of_cases
from medloom.evaluation.segmentation_summary import summarise_segmentation
from medloom.files import write_json, write_text
from medloom.workflows.environment import environment

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "lungs": ("unet", "transunet", "maxvit_unet"),
    "hippocampus": ("unet_3d", "transunet_3d", "maxvit_unet_3d", "transunet_3d_small", "swin_unetr"),
}
PUBLISHED = {"lungs": "a published hybrid: Dice 0.957 (arXiv 2408.04290); good U-Nets: 0.97 to 0.98",
             "hippocampus": "nnU-Net: Dice about 0.90 (anterior) and 0.89 (posterior)"}  # fmt: skip


def summary() -> dict[str, Any]:
    """Per group the table of the models, and each hybrid minus the U-Net, paired by case."""
    found = [json.loads(p.read_text()) for p in sorted((RESULTS / "segmentation").glob("*.json"))]
    groups: dict[str, Any] = {}
    for group, common in dict.fromkeys((one["group"], tuple(one.get("common", ()))) for one in found):
        runs = [one for one in found if (one["group"], tuple(one.get("common", ()))) == (group, common)]
        models = [m for m in MODELS[group.partition("_")[0]] if any(r["model"] == m for r in runs)]
        shared = sorted(set.intersection(*({r["part"] for r in runs if r["model"] == m} for m in models)))
        if not shared or models[0] != MODELS[group.partition("_")[0]][0]:
            continue  # nothing to hold against the U-Net yet
        tables = {
            m: join_tables([_table(r) for part in shared for r in runs if (r["model"], r["part"]) == (m, part)])
            for m in models
        }
        # Folds are one test set together; each hospital is a question of its own.
        parts = {"all": tables} if not group.endswith("sites") else {
            part: {m: _table(next(r for r in runs if (r["model"], r["part"]) == (m, part))) for m in models}
            for part in shared
        }  # fmt: skip
        groups[f"{group}, {', '.join(common)} for every model" if common else group] = {
            "common": list(common),
            "compared": shared,
            "published": PUBLISHED[group.partition("_")[0]],
            "parts": {
                name: _compared(of, [r for r in runs if r["part"] in ([name] if name in shared else shared)], models)
                for name, of in parts.items()
            },
            "runs": len(runs),
            "test_scorings": sum(r["test_scorings"] for r in runs),
        }
    whole = {"claim": "hybrids gain 3 to 8 Dice points", "environment": environment(), "groups": groups}
    write_json(RESULTS / "segmentation.json", whole)
    write_text(RESULTS / "segmentation.md", markdown(whole))
    return whole


def _minutes(run: dict[str, Any]) -> float:
    """Of training, by the median epoch: one that was held up by other work, or stopped for a while, counts no more."""
    seconds = [epoch["seconds"] for epoch in run["epochs"]]
    return float(np.median(seconds)) * len(seconds) / 60


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
            "epochs": sorted({len(r["epochs"]) for r in own}),
            "minutes": float(np.mean([_minutes(r) for r in own])),
        }
    return {
        "rows": rows,
        "distance_unit": next(iter(tables.values())).distance_unit,
        "differences": {m: differences_of_cases(tables, models[0], m) for m in ("dice", "hd95")},
    }


def markdown(whole: dict[str, Any]) -> str:
    """The same as tables to read."""
    lines = [f"Claim: {whole['claim']}. Every model has the same recipe and budget; differences are paired by case."]
    for group, values in whole["groups"].items():
        for part, found in values["parts"].items():
            unit = found["distance_unit"]
            lines += ["", f"**{group}{'' if part == 'all' else ', tested ' + part.replace('_', ' ')}** "
                      f"({values['published']})", "",
                      "| model | parameters | epochs | cases | Dice | of each structure "
                      f"| HD95, {unit} | NSD | minutes of training |",
                      "|---|---:|---:|---:|---|---|---|---|---:|"]  # fmt: skip
            for name, row in found["rows"].items():
                each = ", ".join(f"{s} {_entry(e)}" for s, e in row["structures"].items())
                dice, far, near = (_entry(row[m]) for m in ("dice", "hd95", "nsd"))
                epochs = " or ".join(map(str, row["epochs"]))
                head = f"{name} | {row['parameters']:,} | {epochs} | {row['cases']}"
                lines.append(f"| {head} | {dice} | {each} | {far} | {near} | {row['minutes']:.1f} |")
            lines += ["", f"| hybrid minus U-Net | Dice points | p (Holm) | better, worse in cases | HD95, {unit} |",
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
