"""Sections of the report about masks: all from metrics.json, the tables of cases and the stored pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medloom.reporting import plots_masks
from medloom.reporting.overlays import ANSWER, BOTH, GROUPS, TRUTH, CasePicture, drawn_case
from medloom.reporting.page import number, picture
from medloom.reporting.recorded import Recorded
from medloom.reporting.sections_elsewhere import remark
from medloom.reporting.sections_run import best_epoch, course, epochs_of, fluctuation
from medloom.reporting.wording import SPLITS, per_cent, plural

MEANS = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95", "assd": "ASSD", "size_error_relative": "Size error",
         "size_bias": "Size bias", "lesion_f1": "Lesion F1"}  # fmt: skip
_TITLES = {"worst": "Worst by Dice", "median": "In the middle", "best": "Best"}
_SITE_COLUMNS = ("dice", "hd95", "nsd", "assd")


def applies(found: Recorded) -> bool:
    """Whether the run answers with masks."""
    return (found.metrics or {}).get("task") == "segmentation" or bool(found.case_tables)


def split_shown(found: Recorded) -> tuple[str, dict[str, Any]]:
    """``test``, or ``val`` where the data have no test split; and its content, empty where nothing is recorded."""
    splits = (found.metrics or {}).get("splits") or {}
    name = "test" if "test" in splits or "val" not in splits else "val"
    return name, splits.get(name) or {}


def within(facts: Mapping[str, Any]) -> str:
    """The tolerance of surfaces in words: ``2 mm``, ``1 pixel``."""
    unit, value = str(facts["distance_unit"]), facts["tolerance"]
    return f"{value:g} {unit.removesuffix('s') if value == 1 else unit}"


def masks(found: Recorded) -> dict[str, Any]:
    """Every structure and the mean over them: overlap, distances, sizes, pieces, and what was missed or invented."""
    name, part = split_shown(found)
    if not part:
        return {"overlap": [], "distances": [], "notes": []}
    facts = found.metrics["segmentation"] if found.metrics else {}
    content = found.metrics or {}
    lines = [(s, part["structures"][s], f"splits.{name}.structures.{s}") for s in part["structures"]]
    if len(lines) > 1:
        lines.append(("all structures", part, f"splits.{name}"))
    overlap, distances = [], []
    for label, values, path in lines:
        mean = {m: _cell(values["metrics"][m], m, f"{path}.metrics.{m}") for m in MEANS}
        median = {m: _cell(values["medians"][m], m, f"{path}.medians.{m}") for m in ("dice", "hd95")}
        head = {"name": label, "n": values["metrics"]["dice"]["n"], "outcomes": values["outcomes"]}
        overlap.append(head | {"dice": mean["dice"], "median": median["dice"], "nsd": mean["nsd"]})
        cells = [mean["hd95"], median["hd95"], mean["assd"], mean["size_error_relative"], mean["lesion_f1"]]
        distances.append(head | {"cells": cells, "lesions": values.get("lesions")})
    unit, tolerance = facts["distance_unit"], within(facts)
    return {
        "overlap": overlap,
        "distances": distances,
        "unit": unit,
        "tolerance": tolerance,
        "level": per_cent(content["confidence"]),
        "caption": f"{SPLITS.get(name, name).capitalize()}, {plural(part['n'], 'case')} of "
        f"{plural(part['patients'], content['unit'])}",
        "notes": _notes(content, facts),
    }


def _notes(content: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    points = "voxels" if facts["size_unit"] in ("ml", "voxels") else "pixels"
    notes = [
        f"Intervals of means: {content['resamples']} resamples of {content['unit']}s; of medians: order statistics. "
        + (
            f"Orange diamond: the {facts['trivial']}, an answer without a look at the image."
            if facts["trivial"]
            else ""
        ),
        f"Distances run between the outermost {points} of both masks. HD95: the "
        f"larger of the two directed 95th percentiles. ASSD: the mean over both surfaces. NSD: the share of both "
        f"within {within(facts)} of the other. Size error: answer against truth, as a share of the truth, "
        "without its sign. Lesions: pieces of a mask, matched one to one where they share a tenth of their union.",
        "Where one of both masks is empty, Dice and NSD are 0 and the distances the diagonal of the image, so finding "
        "less never looks better; where both are, the case enters no mean and is counted as absent.",
    ]
    chosen = facts.get("postprocessing") or {}
    if chosen.get("chosen_on") == "validation":
        notes.append(
            f"Only the largest piece of each structure: {'kept' if chosen['keep_largest'] else 'not kept'}, as "
            f"validation had it (Dice {chosen['dice_with']:.4f} with, {chosen['dice_without']:.4f} without)."
        )
    elif chosen.get("keep_largest"):
        notes.append("Only the largest piece of each structure was kept, as the recipe says.")
    return notes


def spread(found: Recorded) -> dict[str, Any]:
    """Dice and distance of every case, and sizes beside true sizes."""
    name, part = split_shown(found)
    table = found.case_tables.get(name)
    if table is None or not len(table):
        return {"plots": []}
    trivial = {s: v["metrics"]["dice"].get("baseline") for s, v in (part.get("structures") or {}).items()}
    told = f"One point per {SPLITS.get(name, name)} case"
    sites = len({s for s in table.sites if s is not None})
    told += ", coloured by site" if 1 < sites <= 8 else ""
    first = f"{told}; box: quartiles and median, whiskers: to the last case within one and a half boxes."
    if any(v is not None for v in trivial.values()):
        first += " Diamond: mean of the trivial answer."
    second = f"Size of each structure, {table.size_unit}; on the dotted line answer and truth agree."
    return {
        "plots": [
            {"svg": plots_masks.distribution(table, trivial), "note": first},
            {"svg": plots_masks.sizes(table), "note": second},
        ]
    }


def outlines(found: Recorded) -> dict[str, Any]:
    """Worst, middle and best cases with both outlines."""
    groups = []
    unit = ((found.metrics or {}).get("segmentation") or {}).get("distance_unit", "")
    for group in GROUPS:
        shown = [_outlined(c, unit) for c in found.case_pictures if c.group == group]
        if shown:
            groups.append({"title": _TITLES[group], "pictures": shown})
    legend = [
        {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in (("reference", TRUTH), ("answer", ANSWER), ("both", BOTH))
    ]
    deep = any(len(c.views) > 1 for c in found.case_pictures)
    lead = ""
    if deep:
        lead = (
            "Each volume through the slices where the reference has its largest area; the patient's right is on the "
            "left, as on a light box."
        )
    return {"groups": groups, "legend": legend, "lead": lead}


def _outlined(case: CasePicture, unit: str) -> dict[str, Any]:
    drawn = drawn_case(case)
    views = [
        {"image": picture(pixels), "alt": f"{v.plane} {v.at}: reference and answer outlined"}
        for v, pixels in zip(case.views, drawn)
    ]
    notes = [
        f"{name}: "
        + {"missed": "missed", "invented": "invented, the reference has none", "empty": "absent, rightly"}.get(
            values["outcome"], f"Dice {number(values['dice'])}, HD95 {_far(values['hd95'], unit)}"
        )
        for name, values in case.structures.items()
    ]
    told = ", ".join(f"{v.plane} {v.at}" for v in case.views if v.at)
    return {
        "id": case.id + (f" ({case.site})" if case.site else ""),
        "dice": number(case.dice),
        "hd95": _far(case.hd95, unit),
        "notes": (notes if len(case.structures) > 1 or "missed" in str(notes) else []) + ([told] if told else []),
        "views": views,
        "columns": " ".join(f"{pixels.shape[1]}fr" for pixels in drawn),
    }


def sites(found: Recorded) -> dict[str, Any]:
    """The same numbers for each site."""
    name, part = split_shown(found)
    unit = ((found.metrics or {}).get("segmentation") or {}).get("distance_unit", "")
    return site_table(part, str(unit), f"splits.{name}")


def site_table(part: Mapping[str, Any], unit: str, path: str) -> dict[str, Any]:
    """Rows by site of one split's numbers; no blocks where no site is known.

    Args:
        part: a split of the metrics of masks.
        unit: of distances.
        path: where the split stands in its file.
    """
    blocks: dict[str, list[dict[str, Any]]] = {}
    for k, row in enumerate(part.get("sites") or []):
        cells = [_cell(row[m], m, f"{path}.sites[{k}].{m}") for m in _SITE_COLUMNS]
        label = "all structures" if row["structure"] == "all" else row["structure"]
        line = {"name": label, "n": row["n"], "patients": row["patients"], "cells": cells, "outcomes": row["outcomes"]}
        blocks.setdefault(str(row["site"]), []).append(line)
    for site, lines in blocks.items():
        # With one structure the mean over structures is that one.
        blocks[site] = lines if len(lines) > 2 else lines[1:]
    heads = ["Dice", f"HD95, {unit}", "NSD", f"ASSD, {unit}"]
    return {"blocks": [{"site": s, "rows": rows} for s, rows in blocks.items()], "columns": heads}


def elsewhere(found: Recorded) -> list[dict[str, Any]]:
    """One line for each later evaluation."""
    rows = []
    for name, content in found.evaluations.items():
        part = (content.get("splits") or {}).get("test") or {}
        whole = part.get("metrics") or {}
        path = f"evaluations/{name}: splits.test.metrics"
        cells = [{"entry": whole.get(m), "name": m, "path": f"{path}.{m}"} for m in _SITE_COLUMNS]
        head = {"name": name, "remark": remark(content), "n": part.get("n"), "patients": part.get("patients")}
        rows.append(head | {"cells": cells, "outcomes": part.get("outcomes") or {}})
    return rows


def training(found: Recorded) -> dict[str, Any]:
    """Curves, their fluctuation, and how the run went."""
    epochs = epochs_of(found.log)
    if not epochs:
        return {"plot": "", "fluctuation": [], "facts": [], "resolution": ""}
    best = best_epoch(found)
    n = ((found.split or {}).get("images") or {}).get("val")
    half = epochs[len(epochs) // 2 :]
    return {
        "plot": plots_masks.training(epochs, best),
        "fluctuation": [
            {"label": label, "all": fluctuation(epochs, key), "half": fluctuation(half, key)}
            for key, label in (("val_loss", "validation loss"), ("val_dice", "validation Dice"))
        ],
        "resolution": f"Validation has {plural(n, 'case')}." if n else "",
        "facts": course(found, epochs, best),
    }


def _cell(entry: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    return {"entry": entry, "name": name, "path": path}


def _far(value: float | None, unit: str) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.1f} {unit}"
