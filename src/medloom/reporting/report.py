"""``report.html``: what one run showed, on one page that needs nothing else.

``write_report`` reads only what lies in the run directory: recipe.yaml, environment.json, records.csv, split.json,
audit.json, log.jsonl, sessions.jsonl, ledger.jsonl (events ``test scored``, ``accepted``), operating_point.json,
metrics.json (``evaluation.summary``), predictions_val.csv, predictions_test.csv, pictures.npz and pictures.json
(``pictures``), bundle/model.json, and evaluations/NAME/metrics.json of other data. What is absent or damaged is named.
Equal files give equal bytes: the page holds no date of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medloom.files import RunDirectory, write_text
from medloom.reporting import (
    sections_context,
    sections_elsewhere,
    sections_evidence,
    sections_labels,
    sections_run,
    sections_segmentation,
    verdict_masks,
)
from medloom.reporting.asked_masks import asked_of_masks
from medloom.reporting.compression import compression_lines
from medloom.reporting.page import interval, number, render
from medloom.reporting.recorded import Recorded, read_run
from medloom.reporting.sections_evidence import split_of
from medloom.reporting.wording import LABEL_METRICS, METRICS, NOT_A_DEVICE, NOT_EXTERNAL, per_cent, plural

SECTIONS = {
    "asked": "What was asked",
    "data": "Data and audit",
    "training": "Training",
    "discrimination": "Discrimination on test",
    "decisions": "Decisions at the threshold",
    "elsewhere": "Other data sets, same threshold",
    "calibration": "Calibration",
    "subgroups": "Subgroups",
    "pictures": "Examples, wrong and right",
    "published": "Published results beside ours",
    "machine": "Machine and ledger",
    "recompute": "Recomputing the numbers",
}

MASK_SECTIONS = {
    "asked": "What was asked",
    "data": "Data and audit",
    "training": "Training",
    "masks": "Masks against the reference",
    "spread": "Every case",
    "outlines": "Worst, median and best cases",
    "sites": "Sites",
    "elsewhere_masks": "Other data sets",
    "machine": "Machine and ledger",
    "recompute": "Recomputing the numbers",
}
"""Of a run whose answers are masks."""


def write_report(run: RunDirectory) -> Path:
    """Write ``report.html`` from the recorded files, atomically; returns its path.

    Raises:
        ResourceError: T404, T405 when it cannot be written. Missing or damaged inputs raise nothing.
    """
    write_text(run.report, report_html(read_run(run)))
    return run.report


def report_html(found: Recorded) -> str:
    """The page of what was read."""
    absent = {m.file: f"{m.part[:1].upper()}{m.part[1:]}: {m.file} is {m.why}." for m in found.missing}
    if sections_segmentation.applies(found):
        return _report_of_masks(found, absent)
    labels = _of_labels(found)
    return render(
        "report.html",
        **_head(found),
        verdict=verdict(found),
        contents=list(SECTIONS.values()),
        keys=[f"{key}_labels" if key in labels else key for key in SECTIONS],
        labels=labels,
        absent=_Absent(absent),
        asked=sections_run.asked(found),
        data=sections_run.data(found),
        training=sections_run.training(found),
        curves=sections_evidence.curves(found) if not labels else {},
        metrics=sections_evidence.metrics(found),
        decisions=sections_evidence.decisions(found),
        elsewhere=sections_elsewhere.elsewhere(found),
        calibration=sections_evidence.calibration(found) if not labels else {},
        subgroups=sections_context.subgroups(found) | ({"rows": []} if labels else {}),
        pictures=sections_context.pictures(found),
        published=sections_context.published(found),
        machine=sections_run.machine(found),
        recompute=sections_context.recompute(found),
    )


def _report_of_masks(found: Recorded, absent: dict[str, str]) -> str:
    asked = sections_run.asked(found)
    if found.recipe:
        asked["facts"] = [*asked_of_masks(found.recipe), *sections_run.changed(found)]
    return render(
        "report.html",
        **_head(found),
        verdict=verdict_masks.verdict(found),
        contents=list(MASK_SECTIONS.values()),
        keys=list(MASK_SECTIONS),
        absent=_Absent(absent),
        asked=asked,
        data=sections_run.data(found),
        training=sections_segmentation.training(found),
        masks=sections_segmentation.masks(found),
        spread=sections_segmentation.spread(found),
        outlines=sections_segmentation.outlines(found),
        sites=sections_segmentation.sites(found),
        elsewhere=sections_segmentation.elsewhere(found),
        machine=sections_run.machine(found),
        recompute=verdict_masks.recompute(found),
    )


def _head(found: Recorded) -> dict[str, Any]:
    recipe, environment = found.recipe or {}, found.environment or {}
    return {
        "title": f"{recipe.get('name', found.name)}: MedLoom report",
        "made_by": f"MedLoom {environment.get('medloom') or ''}".strip(),
        "head": {
            "name": str(recipe.get("name", found.name)),
            "notes": str(recipe.get("notes") or ""),
            "model": str((recipe.get("model") or {}).get("name") or ""),
        },
        "flags": flags(found),
    }


def _of_labels(found: Recorded) -> dict[str, Any]:
    """The sections that are another thing where labels are many; empty where classes exclude each other."""
    if not sections_labels.applies(found) or not split_of(found):
        return {}
    return {
        "discrimination": sections_labels.discrimination(found),
        "decisions": sections_labels.decisions(found),
        "calibration": sections_labels.calibration(found),
        "subgroups": sections_labels.subgroups(found),
    }


def flags(found: Recorded) -> list[dict[str, str]]:
    """What a reader must know before any number: red for what was overridden or not shown, amber for limits."""
    out = [{"text": NOT_A_DEVICE, "tone": ""}]
    for code in sections_run.accepted(found):
        findings = (found.audit or {}).get("findings") or []
        titles = [f["title"] for f in findings if f.get("code") == code and f.get("severity") == "refuse"]
        out.append({"text": f"Gate {code} passed by hand{': ' + titles[0] if titles else ''}", "tone": "red"})
    out += [{"text": text, "tone": "red"} for text in sections_run.overridden(found)]
    out += [{"text": text, "tone": ""} for text in compression_lines(found.compression)]
    if _beaten(found) is False:
        out.append({"text": "Not shown to be better than the trivial answer", "tone": "red"})
    outside = sections_run.external(found)
    if outside:
        out.append(
            {"text": f"Evaluated on {plural(len(outside), 'external data set')}: " + ", ".join(outside), "tone": ""}
        )
    else:
        out.append({"text": NOT_EXTERNAL, "tone": "amber"})
    times = sections_run.scorings(found)
    if times is None:
        out.append({"text": "How often the test images were scored is not recorded", "tone": "amber"})
    else:
        out.append({"text": f"Test set scored {plural(times, 'time')}", "tone": "" if times == 1 else "amber"})
    if (found.metrics or {}).get("unit") == "image":
        out.append({"text": "Patients unknown: intervals take every image for a patient", "tone": "amber"})
    if _uncalibrated(found):
        out.append({"text": "Probabilities are not calibrated: the loss was weighted", "tone": "amber"})
    if found.missing:
        out.append({"text": f"{plural(len(found.missing), 'part')} missing: " + _names(found), "tone": "amber"})
    return out


def verdict(found: Recorded) -> dict[str, Any]:
    """The sentence on top, and its numbers."""
    test, content = split_of(found), found.metrics or {}
    if not test:
        return {"sentence": "This run has no recorded test result.", "tiles": [], "how": ""}
    whole, level = test["metrics"], per_cent(content["confidence"])
    point = next((k for k, p in enumerate(test["operating_points"]) if p["metrics"]), None)
    unit = f" of {plural(test['patients'], 'patient')}" if content["unit"] == "patient" else ""
    many = content["task"] != "binary"
    if content["task"] == "multi_label":
        return _verdict_of_labels(found, unit, level)
    sentence = f"On {plural(test['n'], 'test image')}{unit}, "
    sentence += f"{'mean AUC over the classes' if many else 'AUC'} is {_told(whole['auc'], 'auc', level)}"
    tiles = [_tile(whole["auc"], "auc", "splits.test.metrics.auc", "no skill: 0.500")]
    if many or point is None:
        shown = ("accuracy", "balanced_accuracy", "f1")
        tiles += [_tile(whole[n], n, f"splits.test.metrics.{n}", _trivial(whole[n], n, "trivial")) for n in shown]
        accuracy, where = whole["accuracy"], f"with the {test['decision']}"
    else:
        at = test["operating_points"][point]["metrics"]
        path = f"splits.test.operating_points[{point}].metrics"
        commonest = max(test["counts"], key=lambda c: test["counts"][c])
        tiles.append(
            _tile(
                at["accuracy"],
                "accuracy",
                f"{path}.accuracy",
                _trivial(at["accuracy"], "accuracy", f"always {commonest}"),
            )
        )
        for n in ("sensitivity", "specificity"):
            tiles.append(_tile(at[n], n, f"{path}.{n}", _trivial(at[n], n, "same answers, shuffled")))
        accuracy, where = at["accuracy"], "at the threshold fixed on validation"
    sentence += f"; {where}, accuracy is {_told(accuracy, 'accuracy', level)}"
    if accuracy.get("baseline") is not None:
        sentence += f", where always giving the commonest answer reaches {number(accuracy['baseline'], 'accuracy')}"
        sentence += _beside(accuracy)
    return {"sentence": sentence + ".", "tiles": tiles, "how": _bars(content)}


def _verdict_of_labels(found: Recorded, unit: str, level: str) -> dict[str, Any]:
    whole = split_of(found)["metrics"]
    words = {"auc": "no skill", "average_precision": "share of positives"}
    tiles = [
        {
            **_tile(whole[n], n, f"splits.test.metrics.{n}", _trivial(whole[n], n, words.get(n, "calling nothing"))),
            "label": LABEL_METRICS.get(n, METRICS[n]),
        }
        for n in ("auc", "average_precision", "accuracy", "exact_match")
    ]
    sentence = sections_labels.verdict(found, unit, level) + "."
    return {"sentence": sentence, "tiles": tiles, "how": _bars(found.metrics or {})}


def _bars(content: dict[str, Any]) -> str:
    level, unit = per_cent(content["confidence"]), content["unit"]
    return f"Bars: {level} intervals over resampled {unit}s, from 0 to 1. Orange diamond: the trivial answer."


def _tile(entry: dict[str, Any], name: str, path: str, baseline: str) -> dict[str, Any]:
    return {"label": METRICS[name], "entry": entry, "name": name, "path": path, "baseline": baseline}


def _trivial(entry: dict[str, Any], name: str, words: str) -> str:
    return "" if entry.get("baseline") is None else f"{words}: {number(entry['baseline'], name)}"


def _told(entry: dict[str, Any], name: str, level: str) -> str:
    if entry.get("value") is None:
        return str(entry.get("note") or "not estimable")
    bounds = interval(entry, name)
    return number(entry["value"], name) + (f" ({level} interval {bounds})" if bounds else "")


def _beside(entry: dict[str, Any]) -> str:
    """Where the trivial answer lies outside of what the interval allows, or within it."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    if entry["high"] < entry["baseline"]:
        return ", and is worse than that"
    return ", which the interval does not exclude" if entry["low"] <= entry["baseline"] else ""


def _beaten(found: Recorded) -> bool | None:
    """Whether the whole interval lies above the trivial answer; None where there is none to judge."""
    if sections_segmentation.applies(found):
        dice = (sections_segmentation.split_shown(found)[1].get("metrics") or {}).get("dice") or {}
        known = dice.get("low") is not None and dice.get("baseline") is not None
        return bool(dice["low"] > dice["baseline"]) if known else None
    entry = (split_of(found).get("metrics") or {}).get("auc") or {}
    return None if entry.get("low") is None else bool(entry["low"] > 0.5)


def _uncalibrated(found: Recorded) -> bool:
    if sections_segmentation.applies(found):
        return False
    recipe = found.recipe or {}
    weighted = (recipe.get("imbalance") or {}).get("method") in ("class_weights", "focal", "oversample", "undersample")
    weighted |= (recipe.get("loss") or {}).get("name") in ("weighted_bce", "focal", "asymmetric")
    return weighted and (recipe.get("evaluation") or {}).get("calibration") == "none"


def _names(found: Recorded) -> str:
    return ", ".join(m.file for m in found.missing)


class _Absent(dict[str, str]):
    """Why a part is not there; a part whose file was read but holds nothing says that."""

    def __missing__(self, name: str) -> str:
        return f"{name} holds nothing to show here."
