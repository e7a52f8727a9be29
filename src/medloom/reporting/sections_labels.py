"""Sections of the report where an image may bear many labels: a row or a panel per label, and one list of those that
are too rare to judge, instead of fourteen of everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.reporting import plots_labels
from medloom.reporting.page import number
from medloom.reporting.recorded import Recorded
from medloom.reporting.sections_evidence import split_of
from medloom.reporting.wording import METRICS, per_cent, plural

MOST_PANELS = 30
AT_HALF = ("recall", "precision", "f1", "specificity")
AT_CUT = ("sensitivity", "specificity", "precision", "npv")


def applies(found: Recorded) -> bool:
    """Whether the run's labels are many."""
    return (found.metrics or {}).get("task") == "multi_label"


def discrimination(found: Recorded) -> dict[str, Any]:
    """The table of labels, what calling nothing would reach, and the curves."""
    test, val = split_of(found), split_of(found, "val")
    table = test.get("per_class") or {}
    points = {p["class"]: p for p in test.get("operating_points") or []}
    rows, short, panels = [], [], []
    for name, values in table.items():
        path = f"splits.test.per_class.{name}"
        if values["auc"]["value"] is None:
            short.append(name)
        rows.append(
            {
                "name": name,
                "positives": values["positives"],
                "share": values["positives"] / max(values["positives"] + values["negatives"], 1),
                "reason": "" if values["auc"]["value"] is not None else values["auc"]["note"],
                "auc": values["auc"],
                "ap": values["average_precision"],
                "path": path,
                "note": "no interval" if values["auc"]["value"] is not None and values["auc"]["low"] is None else "",
            }
        )
    for name, pair in (test.get("curves") or {}).items():
        for kind, metric in (("roc", "auc"), ("pr", "average_precision")):
            if pair[kind] is None:
                continue
            panels.append(
                {
                    "kind": kind,
                    "label": name,
                    "value": number(table[name][metric]["value"]),
                    "curve": pair[kind],
                    "reference": ((val.get("curves") or {}).get(name) or {}).get(kind),
                    "point": _point(points.get(name), kind),
                }
            )
    level = per_cent((found.metrics or {}).get("confidence", 0.95))
    drawn = []
    for kind, what in (("roc", "ROC curves, with the AUC"), ("pr", "Precision-recall curves, with their area")):
        own = [p for p in panels if p["kind"] == kind][:MOST_PANELS]
        if own:
            note = f"{what}. Solid: test, with its pointwise {level} band over resampled patients. Dashed: validation. "
            note += "Dotted: no skill."
            if any(p["point"] for p in own):
                note += " Point: the threshold that validation chose."
            drawn.append({"svg": plots_labels.curve_grid(f"curves-{kind}", own), "note": note})
    return {
        "rows": rows,
        "level": level,
        "short": _short(short) if short else "",
        "plots": drawn,
        "nothing": nothing(test),
    }


def nothing(test: Mapping[str, Any]) -> str:
    """What calling no finding in any image reaches here: the answer that every accuracy must be held against."""
    whole = test.get("metrics") or {}
    if not whole or "exact_match" not in whole:
        return ""
    cells, rows = whole["accuracy"], whole["exact_match"]
    if cells.get("baseline") is None or cells.get("value") is None:
        return ""
    beside = "no more than" if cells["value"] <= cells["baseline"] else "beside"
    return (
        f"Calling no finding in any image is right for {number(cells['baseline'], 'accuracy')} of all label cells "
        f"(label-wise accuracy) and for every label of {number(rows['baseline'], 'accuracy')} of the images (exact "
        f"match). The model, at a probability of one half, reaches {number(cells['value'], 'accuracy')} and "
        f"{number(rows['value'], 'accuracy')}, {beside} that: with rare findings these two say little, AUC and average "
        "precision more."
    )


def decisions(found: Recorded) -> dict[str, Any]:
    """Labels at their thresholds, those without, and all of them at one half."""
    test = split_of(found)
    rows: list[dict[str, Any]] = []
    without: dict[str, list[str]] = {}
    for k, p in enumerate(test.get("operating_points") or []):
        path = f"splits.test.operating_points[{k}]"
        if p["threshold"] is None:
            reason = str(p["reason"] or "").removeprefix("no operating point: ")
            without.setdefault(_kind(reason), []).append(f"{p['class']} ({_figures(reason)})")
            continue
        rows.append(
            {
                "name": p["class"],
                "threshold": f"{p['threshold']:.4f}",
                "counts": [p["counts"][c] for c in ("tp", "fp", "fn", "tn")],
                "cells": [{"entry": p["metrics"][n], "name": n, "path": f"{path}.metrics.{n}"} for n in AT_CUT],
            }
        )
    half = []
    for name, values in (test.get("per_class") or {}).items():
        cells = [{"entry": values[c], "name": c, "path": f"splits.test.per_class.{name}.{c}"} for c in AT_HALF]
        tables = (test.get("confusion") or {}).get(name) or [[0, 0], [0, 0]]
        half.append({"name": name, "n": values["positives"], "called": tables[0][1] + tables[1][1], "cells": cells})
    return {
        "rows": rows,
        "columns": [METRICS[n] for n in AT_CUT],
        "without": [f"{reason}: {', '.join(names)}." for reason, names in without.items()],
        "half": half,
        "half_columns": [METRICS[n] for n in AT_HALF],
    }


def calibration(found: Recorded) -> dict[str, Any]:
    """Reliability and scores of the labels that can be judged, and their slopes."""
    part = split_of(found).get("calibration") or {}
    before, after = part.get("before") or {}, part.get("after") or {}
    rows, panels, short = [], [], []
    for name, content in (after.get("questions") or {}).items():
        if content["intercept"]["value"] is None:
            short.append(name)
            continue
        path = f"splits.test.calibration.after.questions.{name}"
        rows.append({"name": name, "slope": content["slope"], "intercept": content["intercept"], "path": path})
        first = ((before.get("questions") or {}).get(name) or {}).get("reliability")
        panels.append({"label": name, "value": "", "before": first, "after": content["reliability"]})
    drawn = []
    if panels:
        note = "Observed share over probability, each label on its own scale; on the dotted line 0.1 means one in ten. "
        note += "Blue: after calibration, with Wilson intervals that count patients. Grey: before."
        drawn.append({"svg": plots_labels.reliability_grid(panels[:MOST_PANELS]), "note": note})
    if found.test is not None and len(found.test) and rows:
        cuts = {p["class"]: p["threshold"] for p in split_of(found).get("operating_points") or []}
        table, shown = found.test, []
        for row in rows[:MOST_PANELS]:
            k = table.classes.index(row["name"])
            yes, score = table.positives[:, k], table.probabilities[:, k]
            shown.append({"label": row["name"], "value": "", "threshold": cuts.get(row["name"]),
                          "with": score[yes], "without": score[~yes]})  # fmt: skip
        note = "Test images with the finding upwards, without it downwards, as shares of their side. Scale: log odds."
        note += " Dashed: the threshold." if any(c is not None for c in cuts.values()) else ""
        drawn.append({"svg": plots_labels.score_grid(shown), "note": note})
    whole = [
        {"label": METRICS[n], "entry": after[n], "before": before.get(n), "name": n,
         "path": f"splits.test.calibration.after.{n}", "before_path": f"splits.test.calibration.before.{n}"}
        for n in ("ece", "brier", "log_loss") if after.get(n)
    ]  # fmt: skip
    told = f"Temperature {after['temperature']:.4f}, fitted on validation; 1 changes nothing." if after else ""
    return {"plots": drawn, "whole": whole, "rows": rows, "short": _short(short) if short else "", "temperature": told}


def subgroups(found: Recorded) -> dict[str, Any]:
    """One table per column: labels down, groups across, AUC in the cells."""
    part = split_of(found).get("subgroups") or {}
    tables: dict[str, dict[str, Any]] = {}
    for k, r in enumerate(part.get("rows") or []):
        table = tables.setdefault(str(r["column"]), {"groups": {}, "labels": {}})
        table["groups"][r["group"]] = (r["n"], r["patients"])
        cell = {"entry": r["auc"], "positives": r["positives"], "path": f"splits.test.subgroups.rows[{k}].auc"}
        table["labels"].setdefault(r["class"], {})[r["group"]] = cell
    shown = []
    for column, table in tables.items():
        names = [g for g in table["groups"] if any(_judged(own, g) for own in table["labels"].values())]
        rows = [
            {"name": label, "cells": [own.get(g) for g in names]}
            for label, own in table["labels"].items()
            if any(_judged(own, g) for g in names)
        ]
        absent = [label for label in table["labels"] if label not in {row["name"] for row in rows}]
        heads = [{"name": g, "n": table["groups"][g][0], "patients": table["groups"][g][1]} for g in names]
        dropped = [g for g in table["groups"] if g not in names]
        shown.append({"column": column, "heads": heads, "rows": rows, "absent": absent, "dropped": dropped})
    return {"tables": shown}


def verdict(found: Recorded, unit: str, level: str) -> str:
    """The first sentence: how many labels the mean is of, and what accuracy is worth here."""
    test = split_of(found)
    entry, n = test["metrics"]["auc"], len((found.metrics or {})["classes"])
    judged = sum(v["auc"]["value"] is not None for v in test["per_class"].values())
    which = f"{judged} of {n} labels" if judged < n else f"{n} labels"
    if entry["value"] is None:
        return f"On {plural(test['n'], 'test image')}{unit}, no label has enough positives to be judged"
    bounds = "" if entry["low"] is None else f" ({level} interval {number(entry['low'])}–{number(entry['high'])})"
    cells = test["metrics"]["accuracy"]
    return (
        f"On {plural(test['n'], 'test image')}{unit}, mean AUC over {which} is {number(entry['value'])}{bounds}; "
        f"label-wise accuracy is {number(cells['value'], 'accuracy')}, where calling no finding at all reaches "
        f"{number(cells['baseline'], 'accuracy')}"
    )


def _judged(own: Mapping[str, Any], group: str) -> bool:
    return group in own and own[group]["entry"]["value"] is not None


def _point(at: Mapping[str, Any] | None, kind: str) -> tuple[float, float] | None:
    values = {k: v["value"] for k, v in ((at or {}).get("metrics") or {}).items()}
    pair = (values.get("sensitivity"), values.get("precision"))
    if kind == "roc":
        clear = values.get("specificity")
        pair = (None if clear is None else 1 - clear, values.get("sensitivity"))
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])


def _short(names: list[str]) -> str:
    return f"Too few test images with the finding, or without it, or of too few patients to judge: {', '.join(names)}."


def _kind(reason: str) -> str:
    """Reasons that differ in their figures alone are one reason."""
    if "D124" in reason:
        return "Too few images in validation to choose a threshold on (D124: 50 with and 50 without the finding)"
    return "Too few images in validation" if "needed" in reason or reason.startswith("0 ") else reason.capitalize()


def _figures(reason: str) -> str:
    """The scarce side's count: ``18 positives``; negatives alone where they are what is short."""
    first, _, second = reason.split(",")[0].removesuffix(" in validation").partition(" and ")
    count, other = first.split(" ")[0], second.split(" ")[0]
    return second if second and count.isdigit() and other.isdigit() and int(other) < int(count) else first
