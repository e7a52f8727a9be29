"""Sections of the report about what the model can do: all from metrics.json, the histograms from the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medloom.evaluation.predictions import Predictions
from medloom.evaluation.questions import questions
from medloom.reporting import plots
from medloom.reporting.page import clock
from medloom.reporting.recorded import Recorded
from medloom.reporting.wording import LABEL_METRICS, METRICS, RULES, SPLITS, per_cent, plural

_ON_A_SCALE = {"brier_skill", "log_loss", "slope", "intercept"}
_MOST_PANELS = 16


def split_of(found: Recorded, name: str = "test") -> dict[str, Any]:
    """One split of metrics.json, empty when there is none."""
    return ((found.metrics or {}).get("splits") or {}).get(name) or {}


def row(entry: Mapping[str, Any], name: str, path: str, label: str | None = None) -> dict[str, Any]:
    """One number with all that a table shows of it."""
    return {
        "label": label or METRICS.get(name, name.replace("_", " ")),
        "entry": entry,
        "name": name,
        "path": path,
        "scale": name not in _ON_A_SCALE,
        "note": (entry.get("note") or "") if entry.get("value") is not None else "",
    }


def curves(found: Recorded) -> dict[str, Any]:
    """ROC and precision-recall of every question."""
    test, val = split_of(found), split_of(found, "val")
    points = {p["class"]: p for p in test.get("operating_points") or []}
    panels = []
    for name, pair in (test.get("curves") or {}).items():
        at = (points.get(name) or {}).get("metrics") or {}
        value = {key: (at.get(key) or {}).get("value") for key in ("sensitivity", "specificity", "precision")}
        for kind in ("roc", "pr"):
            x, y = value["sensitivity"], value["precision"]
            if kind == "roc" and value["specificity"] is not None:
                x, y = 1 - value["specificity"], value["sensitivity"]
            title = f"{'ROC' if kind == 'roc' else 'PR'}: {name}"
            reference = ((val.get("curves") or {}).get(name) or {}).get(kind)
            point = None if x is None or y is None else (x, y)
            panels.append({"kind": kind, "title": title, "curve": pair[kind], "reference": reference, "point": point})
    if len(panels) > 2:
        panels.sort(key=lambda p: p["kind"], reverse=True)
    confidence = (found.metrics or {}).get("confidence", 0.95)
    note = (
        f"Solid: test. Shaded: {per_cent(confidence)} band, pointwise, over resampled patients. Dashed: validation. "
        "Point: the threshold that validation chose."
    )
    if len(panels) > 2 * _MOST_PANELS:
        note += f" The first {_MOST_PANELS} of {len(panels) // 2} labels are drawn; all are in the tables."
        panels = [p for kind in ("roc", "pr") for p in [q for q in panels if q["kind"] == kind][:_MOST_PANELS]]
    return {"plot": plots.curve_panels("curves", panels, confidence) if panels else "", "note": note}


def metrics(found: Recorded) -> dict[str, Any]:
    """The table of all whole-split metrics."""
    test, content = split_of(found), found.metrics or {}
    if not test:
        return {"rows": [], "caption": "", "level": "", "note": ""}
    unit = content.get("unit", "patient")
    many = content.get("task") == "multi_label"
    own = LABEL_METRICS if many else {}
    trivial = "calling no finding in any image" if many else "always the commonest class"
    return {
        "rows": [row(e, n, f"splits.test.metrics.{n}", own.get(n)) for n, e in test["metrics"].items()],
        "caption": f"{plural(test['n'], 'image')}, {plural(test['patients'], 'patient')}; answer: {test['decision']}",
        "level": per_cent(content["confidence"]),
        "note": f"Intervals: {content['resamples']} resamples of {unit}s. Trivial: {trivial}; for AUC "
        "a coin, for average precision the share of positives, for Brier score and log loss the constant prevalence; "
        "the orange diamond on each scale. Precision, recall and F1 are means over the "
        f"{'labels' if many else 'classes'}.",
    }


def decisions(found: Recorded) -> dict[str, Any]:
    """Confusion and rates at the frozen threshold, predictive values, table per class."""
    test, classes = split_of(found), (found.metrics or {}).get("classes") or []
    frozen, one = found.operating_point or {}, len(test.get("operating_points") or []) == 1
    points: list[dict[str, Any]] = []
    for k, p in enumerate(test.get("operating_points") or []):
        path = f"splits.test.operating_points[{k}]"
        others = next((c for c in classes if c != p["class"]), "rest") if len(classes) == 2 else f"not {p['class']}"
        points.append(
            {
                "class": p["class"],
                "reason": p["reason"],
                "threshold_text": "" if p["threshold"] is None else f"{p['threshold']:.4f}",
                "matrix": matrix(p["confusion"], [others, p["class"]]) if p["confusion"] else None,
                "rows": [row(e, n, f"{path}.metrics.{n}") for n, e in (p["metrics"] or {}).items()],
                "prevalence": [
                    {**v, "text": per_cent(v["prevalence"]), "path": f"{path}.predictive_values[{i}]"}
                    for i, v in enumerate(p["predictive_values"] or [])
                ],
                "counts": [p["counts"][c] for c in ("tp", "fp", "fn", "tn")] if p["counts"] else [],
                "prevalence_plot": plots.prevalence(p["predictive_values"]) if p["predictive_values"] and one else "",
            }
        )
    binary = (found.metrics or {}).get("task") == "binary"
    tables = test.get("confusion") or []
    matrices = []
    if isinstance(tables, list) and tables and not (binary and points and points[0]["matrix"]):
        matrices = [matrix(tables, list(classes), f"Test images, answer: {test['decision']}")]
    return {
        "how": _how(frozen),
        "points": points,
        "point_columns": [METRICS[n] for n in ("sensitivity", "specificity", "precision", "npv")],
        "prevalences": next(([v["text"] for v in p["prevalence"]] for p in points if p["prevalence"]), []),
        "matrices": matrices,
        "matrix_title": "Confusion of the classes",
        **_per_class(test),
    }


def matrix(counts: list[list[int]], names: list[str], caption: str = "") -> dict[str, Any]:
    """A confusion matrix with shares of the row and a shade for each cell."""
    rows = []
    for name, line in zip(names, counts):
        total = max(sum(line), 1)
        cells = []
        for n in line:
            share = n / total
            # From near white to the page's blue; the figure in the cell says the same without colour.
            red, green, blue = (round(a + (b - a) * share) for a, b in zip((243, 246, 249), (27, 108, 168)))
            cells.append(
                {
                    "n": n,
                    "share": share,
                    "text": f"{100 * share:.1f}\u202f%",
                    "colour": f"#{red:02x}{green:02x}{blue:02x}",
                }
            )
        rows.append({"name": f"truth: {name}", "cells": cells})
    return {"columns": [f"answer: {n}" for n in names], "rows": rows, "caption": caption}


def calibration(found: Recorded) -> dict[str, Any]:
    """Reliability, histograms, and the measures before and after."""
    part = split_of(found).get("calibration") or {}
    before, after = part.get("before") or {}, part.get("after") or {}
    drawn = []
    panels = []
    for name, content in (after.get("questions") or {}).items():
        if "top answer" in (after.get("questions") or {}) and name != "top answer":
            continue
        x = "confidence of the answer" if name == "top answer" else f"probability of {name}"
        first = ((before.get("questions") or {}).get(name) or {}).get("reliability")
        panels.append({"title": f"Reliability: {name}", "x": x, "before": first, "after": content["reliability"]})
    if panels:
        note = (
            f"Observed share in {after.get('bins')} bins of equally many images, with Wilson intervals that count "
            "patients. On the diagonal, 0.8 means eight in ten."
        )
        drawn.append({"svg": plots.reliability(panels[:_MOST_PANELS]), "note": note})
    if found.test is not None and len(found.test):
        thresholds = {p["class"]: p["threshold"] for p in split_of(found).get("operating_points") or []}
        shown = score_panels(found.test, thresholds)[:_MOST_PANELS]
        note = "Every test image once: upwards those that are, downwards those that are not. Scale: log odds."
        note += " Dashed: the threshold." if any(thresholds.values()) else ""
        drawn.append({"svg": plots.scores(shown), "note": note})
    rows = []
    path = "splits.test.calibration"
    for name in ("ece", "brier", "log_loss"):
        if after.get(name):
            rows.append(
                {
                    **row(after[name], name, f"{path}.after.{name}"),
                    "before": before.get(name),
                    "before_path": f"{path}.before.{name}",
                }
            )
    for question, content in (after.get("questions") or {}).items():
        for name in ("slope", "intercept"):
            if content.get(name):
                first = ((before.get("questions") or {}).get(question) or {}).get(name)
                label = METRICS[name] + (f", {question}" if len(after["questions"]) > 1 else "")
                at = f"questions.{question}.{name}"
                line = row(content[name], name, f"{path}.after.{at}", label)
                rows.append({**line, "before": first, "before_path": f"{path}.before.{at}"})
    notes = []
    if after:
        notes.append(f"Temperature {after['temperature']:.4f}, fitted on validation; 1 changes nothing.")
    if rows:
        notes.append(
            "Reference: for calibration error what a perfectly calibrated model would show by chance; for "
            "Brier score and log loss the constant prevalence; for slope 1 and intercept 0, the ideal."
        )
    return {"plots": drawn, "rows": rows, "notes": notes, "wide": len(panels) > 1}


def score_panels(table: Predictions, thresholds: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """What the histograms show: one per question, or right against wrong answers where classes are many."""
    if not table.multi_label and len(table.classes) > 2:
        right = table.probabilities.argmax(axis=1) == table.labels
        top = table.probabilities.max(axis=1)
        values: dict[str, np.ndarray] = {"wrong answers": top[~right], "right answers": top[right]}
        return [{"title": "Confidence on test", "x": "confidence of the answer", "threshold": None, "values": values}]
    panels = []
    for q in questions(table):
        other = f"not {q.name}" if table.multi_label else table.classes[0]
        values = {other: q.score[~q.positive], q.name: q.score[q.positive]}
        x = f"probability of {q.name}"
        panels.append(
            {
                "title": f"Scores on {SPLITS.get(table.split, table.split)}: {q.name}",
                "x": x,
                "threshold": thresholds.get(q.name),
                "values": values,
            }
        )
    return panels


def _per_class(test: Mapping[str, Any]) -> dict[str, Any]:
    columns = ["recall", "precision", "f1", "specificity"]
    table = test.get("per_class") or {}
    if any("auc" in values for values in table.values()) and len(table) > 2:
        columns = ["auc", "average_precision", *columns]
    rows = []
    for name, values in table.items():
        cells = [{"entry": values.get(c), "name": c, "path": f"splits.test.per_class.{name}.{c}"} for c in columns]
        rows.append({"name": name, "n": values["positives"], "cells": cells})
    return {
        "classes": rows,
        "class_columns": [METRICS[c] for c in columns],
        "class_caption": f"Test, answer: {test.get('decision')}" if test else "",
    }


def _how(frozen: Mapping[str, Any]) -> str:
    if not frozen:
        return "The file that says when and how the threshold was fixed is missing."
    validation = frozen.get("validation") or {}
    rule = RULES.get(str(frozen.get("rule")), str(frozen.get("rule")))
    target = frozen.get("target_sensitivity")
    return (
        f"Fixed on {plural(int(validation.get('n', 0)), 'validation image')} before the test images were scored "
        f"({clock(frozen.get('timestamp'))}, sha256 {str(frozen.get('sha256'))[:12]}). Rule: {rule}"
        f"{f' of {per_cent(target)}' if target else ''}. An image is called positive when its calibrated probability "
        "is at least the threshold."
    )
