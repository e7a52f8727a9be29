"""Sections of the report that set its numbers in context: subgroups, published results, examples, recomputing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.reporting.page import interval, number, picture
from medloom.reporting.pictures import Picture
from medloom.reporting.published import TABLE_2, TEST_IMAGES, WHAT_IT_MEANS, is_the_papers_task
from medloom.reporting.recorded import Recorded
from medloom.reporting.sections_evidence import split_of
from medloom.reporting.token_views import colour_bars, drawn, drawn_scales, told
from medloom.reporting.wording import METRICS, per_cent

_GROUP_METRICS = ("auc", "sensitivity", "specificity")


def subgroups(found: Recorded) -> dict[str, Any]:
    """The table by sex, age, site ..., the columns that nobody gave, and what those columns alone would say."""
    test = split_of(found)
    part = test.get("subgroups") or {}
    blocks: dict[str, list[dict[str, Any]]] = {}
    many = len({r["class"] for r in part.get("rows") or []}) > 1
    for k, r in enumerate(part.get("rows") or []):
        cells = [{"entry": r[n], "name": n, "path": f"splits.test.subgroups.rows[{k}].{n}"} for n in _GROUP_METRICS]
        name = f"{r['group']}, {r['class']}" if many else r["group"]
        group = {"name": name, "n": r["n"], "patients": r["patients"], "cells": cells, "auc": r["auc"]}
        blocks.setdefault(str(r["column"]), []).append(group)
    notes = []
    if part.get("absent"):
        notes.append(
            f"Not given with these images, so nothing can be said by: {', '.join(part['absent'])}. "
            "Silence here is not fairness."
        )
    if not part:
        notes.append("metrics.json holds no subgroups.")
    columns_alone = [
        {"name": " + ".join(r["columns"]), "entry": r["auc"], "path": f"splits.test.covariates_only[{k}].auc"}
        for k, r in enumerate(test.get("covariates_only") or [])
    ]
    return {
        "rows": [{"column": column, "groups": groups} for column, groups in blocks.items()],
        "columns": [METRICS[n] for n in _GROUP_METRICS],
        "caption": "Test; sensitivity and specificity at the frozen threshold",
        "notes": notes,
        "covariates": columns_alone,
    }


def published(found: Recorded) -> dict[str, Any]:
    """Table 2 of the HATR paper, and ours beside it where the task is the same."""
    test, content = split_of(found), found.metrics or {}
    if content.get("task") == "multi_label":
        lead = (
            "No published table that is kept here was measured on these images; medloom compare sets runs side by side."
        )
        return {"rows": [], "lead": lead, "notes": ()}
    classes, n = tuple(content.get("classes") or ()), int(test.get("n") or 0)
    same = bool(classes) and is_the_papers_task(classes, n, int((test.get("counts") or {}).get(classes[-1]) or 0))
    rows: list[dict[str, Any]] = []
    for p in TABLE_2:
        bounds, auc = p.accuracy_interval, p.auc_interval
        entry = {"value": p.auc, "low": auc[0], "high": auc[1], "baseline": None}
        cells = [
            *(number(p.accuracy, "accuracy"), _range(bounds, "accuracy")),
            *(number(p.precision, "precision"), number(p.recall, "recall"), number(p.f1, "f1")),
            *(number(p.auc, "auc"), _range(auc, "auc")),
        ]
        rows.append({"model": f"{p.model}, published", "cells": cells, "auc": entry, "ours": False})
    if same:
        rows += _ours(test, _name(found))
        lead = (
            "One row per published model, and this run on the same 624 images, twice: with the frozen threshold, and "
        )
        lead += "with the most probable class, as a paper that names no threshold will have answered."
    else:
        lead = (
            f"The paper's table 2, for orientation. This run was not scored on its {TEST_IMAGES} test images, so its "
            "own numbers do not belong in the table."
        )
    return {"rows": rows, "lead": lead, "notes": WHAT_IT_MEANS}


def _ours(test: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    whole = test["metrics"]
    rows = []
    point = next((p for p in test.get("operating_points") or [] if p["metrics"]), None)
    if point is not None:
        c, at = point["counts"], point["metrics"]
        f1 = (_f1(c["tp"], c["fp"], c["fn"]) + _f1(c["tn"], c["fn"], c["fp"])) / 2
        shares = (c["tp"] / max(c["tp"] + c["fp"], 1), c["tn"] / max(c["tn"] + c["fn"], 1))
        means = (sum(shares) / 2, at["balanced_accuracy"]["value"], f1)
        rows.append((f"{name}, this run, frozen threshold", at["accuracy"], means))
    means = tuple(whole[k]["value"] for k in ("precision", "recall", "f1"))
    rows.append((f"{name}, this run, most probable class", whole["accuracy"], means))
    return [
        {
            "model": label,
            "cells": [
                *(number(accuracy["value"], "accuracy"), interval(accuracy, "accuracy")),
                *(number(v, k) for k, v in zip(("precision", "recall", "f1"), values)),
                *(number(whole["auc"]["value"], "auc"), interval(whole["auc"], "auc")),
            ],
            "auc": {**whole["auc"], "baseline": None},
            "ours": True,
        }
        for label, accuracy, values in rows
    ]


def pictures(found: Recorded) -> dict[str, Any]:
    """Examples, wrong ones first, each beside itself with its token weights."""
    scales = drawn_scales(found.pictures)
    groups = []
    for correct, title in ((False, "Answered wrong"), (True, "Answered right")):
        shown = [example(p, scales) for p in found.pictures if p.correct is correct]
        if shown:
            groups.append({"title": f"{title} ({len(shown)} shown)", "pictures": shown})
    tested = "test" in ((found.metrics or {}).get("splits") or {})
    lead = f"{'Test' if tested else 'Validation'} images as the model received them."
    if any(p.rebuilt is not None for p in found.pictures):
        lead += (
            " Beside each, what the model rebuilt of it from its tokens: what is lost there, the tokens do not hold in "
            "a form that one linear layer can read. Such a picture says nothing of what the answer rests on."
        )
    bars = colour_bars(found.pictures)
    return {"groups": groups, "bars": bars, "lead": lead + told(found.pictures)}


def example(p: Picture, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """One example as the template takes it."""
    views = [{"image": picture(pixels), "alt": what} for what, pixels in drawn(p, ranges)]
    facts = {"id": p.id, "label": p.label, "predicted": p.predicted, "correct": p.correct, "of": p.of}
    return {**facts, "probability": number(p.probability), "views": views, "notes": _rebuilt(p)}


def _rebuilt(p: Picture) -> list[str]:
    """The error of the rebuilt image, beside what the one even grey that fits it best would have."""
    if p.rebuilt is None or p.rebuilt_error is None:
        return []
    even = float((p.image / 255.0).var(axis=(0, 1)).mean())
    return [f"rebuilt: mean squared error {p.rebuilt_error:.4f}, of one even tone {even:.4f}"]


def recompute(found: Recorded) -> dict[str, Any]:
    """A script that makes the main numbers again, and where the others come from."""
    rows = [
        ("Counts, splits", "records.csv", "one row per image, with split, patient and pixel hash"),
        (
            "Probabilities",
            "predictions_val.csv, predictions_test.csv",
            "softmax (or sigmoid) of logit:* / temperature",
        ),
        ("Temperature", "predictions_val.csv", "divisor that makes the validation labels most likely"),
        ("Threshold", "predictions_val.csv", "rule in operating_point.json; midway between neighbouring scores"),
        (
            "Metrics, confusion, curves",
            "predictions_test.csv",
            "medloom.evaluation.summary.summarise, with its seed",
        ),
        ("Intervals", "predictions_test.csv", _intervals(found.metrics or {})),
        ("Training curves", "log.jsonl", "events called epoch"),
    ]
    task = (found.metrics or {}).get("task", "binary")
    classes = (found.metrics or {}).get("classes") or ["NEGATIVE", "POSITIVE"]
    import yaml

    recipe = yaml.safe_dump(found.recipe, sort_keys=False, allow_unicode=True, width=110) if found.recipe else ""
    return {"rows": rows, "script": _script(task, classes), "recipe": recipe}


def _intervals(content: Mapping[str, Any]) -> str:
    level = per_cent(content.get("confidence", 0.95))
    draws, unit = content.get("resamples", 2000), content.get("unit", "patient")
    return f"{level}, {draws} resamples of {unit}s (BCa, else percentile; score intervals at 0 and 1)"


def _script(task: str, classes: list[str]) -> str:
    head = """\
import csv, json
import numpy as np

rows = list(csv.DictReader(open("predictions_test.csv", encoding="utf-8", errors="surrogateescape", newline="")))

def auc(y, p):
    return np.mean((p[y][:, None] > p[~y]) + 0.5 * (p[y][:, None] == p[~y]))
"""
    if task == "binary":
        return (
            head
            + f"""
positive = {classes[-1]!r}
y = np.array([r["label"] == positive for r in rows])
p = np.array([float(r["probability:" + positive]) for r in rows])
called = p >= json.load(open("operating_point.json"))["points"][0]["threshold"]
print("auc", auc(y, p))
print("accuracy", np.mean(called == y))
print("sensitivity", np.mean(called[y]))
print("specificity", np.mean(~called[~y]))
print("brier", np.mean((p - y) ** 2))
"""
        )
    lines = 'y = np.array([[c in r["label"].split("|") for c in classes] for r in rows])'
    if task == "multi_class":
        lines = 'y = np.array([[c == r["label"] for c in classes] for r in rows])'
        end = 'print("accuracy", np.mean(p.argmax(axis=1) == y.argmax(axis=1)))'
    else:
        end = 'print("accuracy", np.mean((p >= 0.5) == y))'
    return (
        head
        + f"""
classes = {classes!r}
{lines}
p = np.array([[float(r["probability:" + c]) for c in classes] for r in rows])
{end}
for k, c in enumerate(classes):
    if 0 < y[:, k].sum() < len(y):
        print("auc", c, auc(y[:, k], p[:, k]))
"""
    )


def _f1(hit: int, false: int, missed: int) -> float:
    return 2 * hit / max(2 * hit + false + missed, 1)


def _range(bounds: tuple[float, float], name: str) -> str:
    return interval({"low": bounds[0], "high": bounds[1]}, name)


def _name(found: Recorded) -> str:
    return str(((found.recipe or {}).get("model") or {}).get("name") or found.name)
