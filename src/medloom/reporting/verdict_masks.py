"""The top and the end of a report about masks: the sentence, its numbers, and how to make them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.reporting.page import number
from medloom.reporting.recorded import Recorded
from medloom.reporting.sections_segmentation import split_shown, within
from medloom.reporting.wording import SPLITS, per_cent, plural


def verdict(found: Recorded) -> dict[str, Any]:
    """The sentence on top, and its numbers."""
    name, part = split_shown(found)
    if not part:
        return {"sentence": "This run has no recorded test result.", "tiles": [], "how": ""}
    content, facts, whole = found.metrics or {}, (found.metrics or {})["segmentation"], part["metrics"]
    level, unit = per_cent(content["confidence"]), facts["distance_unit"]
    owners = f" of {plural(part['patients'], 'patient')}" if content["unit"] == "patient" else ""
    over = f" over {len(part['structures'])} structures" if len(part["structures"]) > 1 else ""
    dice = whole["dice"]
    sentence = (
        f"On {plural(part['n'], f'{SPLITS.get(name, name)} case')}{owners}, mean Dice{over} is {_told(dice, level)}"
    )
    if dice.get("baseline") is not None:
        sentence += f", where the {facts['trivial']} reaches {number(dice['baseline'])}"
    hd95, middle = whole["hd95"], part["medians"]["hd95"]
    if hd95.get("value") is not None:
        sentence += f"; HD95 is {hd95['value']:.2f} {unit} in the mean and {middle['value']:.2f} in the median"
    missed, invented = part["outcomes"]["missed"], part["outcomes"]["invented"]
    sentence += f". {plural(missed, 'structure was', 'structures were').capitalize()} missed and {invented} invented."
    path = f"splits.{name}.metrics"
    trivial = "" if dice.get("baseline") is None else f"mean shape: {number(dice['baseline'])}"

    def tile(measure: str, label: str, than: str, scale: bool) -> dict[str, Any]:
        head = {"label": label, "entry": whole[measure], "name": measure, "path": f"{path}.{measure}"}
        return head | {"baseline": than, "scale": scale}

    tiles = [
        tile("dice", "Dice", trivial, True),
        tile("nsd", f"NSD at {within(facts)}", "", True),
        tile("hd95", f"HD95, {unit}", f"median: {number(middle.get('value'))}", False),
        tile("size_error_relative", "Size error", "share of the true size, without sign", True),
    ]
    how = f"Bars: {level} intervals over resampled {content['unit']}s, from 0 to 1."
    how += " Orange diamond: the trivial answer." if facts["trivial"] else ""
    return {"sentence": sentence, "tiles": tiles, "how": how}


def recompute(found: Recorded) -> dict[str, Any]:
    """A script that makes the main numbers again, and where the others come from."""
    import yaml

    name, _ = split_shown(found)
    content = found.metrics or {}
    draws, unit = content.get("resamples", 2000), content.get("unit", "patient")
    level = per_cent(content.get("confidence", 0.95))
    rows = [
        ("Counts, splits", "records.csv", "one row per image, with split, patient and pixel hash"),
        ("Every number per case", f"cases_{name}.csv", "medloom.evaluation.segmentation.score_case, of both masks"),
        ("Means, medians, counts", f"cases_{name}.csv", "summarise_segmentation, with its seed"),
        ("Intervals", f"cases_{name}.csv", f"{level}, {draws} resamples of {unit}s (BCa, else percentile)"),
        ("Training curves", "log.jsonl", "events called epoch"),
    ]
    recipe = yaml.safe_dump(found.recipe, sort_keys=False, allow_unicode=True, width=110) if found.recipe else ""
    return {"rows": rows, "script": _script(name), "recipe": recipe}


def _script(split: str) -> str:
    return f"""\
import csv
import numpy as np

with open("cases_{split}.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
    rows = list(csv.DictReader(file))
for structure in dict.fromkeys(r["structure"] for r in rows):
    of = [r for r in rows if r["structure"] == structure]
    for measure in ("dice", "hd95", "nsd", "assd"):
        values = [float(r[measure]) for r in of if r[measure]]
        print(structure, measure, np.mean(values), np.median(values), len(values))
    print(structure, "missed", sum(r["outcome"] == "missed" for r in of))
by_case = {{}}
for r in rows:
    if r["dice"]:
        by_case.setdefault(r["id"], []).append(float(r["dice"]))
print("all", "dice", np.mean([np.mean(v) for v in by_case.values()]))
"""


def _told(entry: Mapping[str, Any], level: str) -> str:
    if entry.get("value") is None:
        return str(entry.get("note") or "not estimable")
    bounds = "" if entry.get("low") is None else f" ({level} interval {entry['low']:.3f}–{entry['high']:.3f})"
    return f"{entry['value']:.3f}{bounds}"
