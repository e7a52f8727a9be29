"""What the files of a data set are, in words: from the summary of audit.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.reporting.contours import COLOURS
from medloom.reporting.wording import SPLITS, grouped

_MOST = 5


def file_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Terms and texts; a key that is absent gives no row."""
    rows: list[tuple[str, str]] = []
    patients = summary.get("patients")
    if patients:
        parts = ", ".join(
            f"{SPLITS.get(s, s)} {grouped(n)}" for s, n in (summary.get("patients_per_split") or {}).items()
        )
        rows.append(("Patients", f"{grouped(patients)}{f' ({parts})' if parts else ''}"))
    elif patients == 0:
        rows.append(("Patients", "unknown: nobody says which images are of one person"))
    if patients and summary.get("without_patient"):
        rows.append(("Without patient", grouped(summary["without_patient"])))
    if summary.get("sites"):
        rows.append(("Sites", _counted(summary["sites"])))
    if summary.get("unlabelled"):
        rows.append(("Without label", grouped(summary["unlabelled"])))
    rows += _pixels(summary)
    rows += _grid(summary)
    size = summary.get("size_bytes")
    if size:
        low, middle, high = (f"{size[k] / 1000:,.1f}".replace(",", "\u202f") for k in ("min", "median", "max"))
        rows.append(("File size", f"{low} to {high} kB, median {middle} kB"))
    for key, term in (
        ("bits", "Bits per pixel"),
        ("file_types", "File types"),
        ("modes", "Colour modes"),
        ("stored", "Voxels stored as"),
        ("orientations", "Orientations of the files"),
    ):
        if summary.get(key):
            rows.append((term, _counted(summary[key])))
    if summary.get("conversions"):
        rows.append(("Converted", _counted(summary["conversions"])))
    return rows


def brightness(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Mean brightness and contrast per class, 0 to 1."""
    return [
        {"name": str(name), "mean": f"{values['mean']:.3f}", "std": f"{values['std']:.3f}"}
        for name, values in (summary.get("brightness") or {}).items()
    ]


def _pixels(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    sizes, distinct = summary.get("sizes") or [], summary.get("distinct_sizes") or 0
    if not sizes:
        return []
    shown = ", ".join(f"{w} × {h} ({grouped(n)})" for h, w, n in sizes[:_MOST])
    rows = [("Pixels, width × height", shown + (f" and {grouped(distinct - _MOST)} more" if distinct > _MOST else ""))]
    if distinct > 1:
        for key in ("width", "height"):
            values = summary.get(key) or {}
            if values:
                rows.append((key.capitalize(), f"{values['min']:g} to {values['max']:g}, median {values['median']:g}"))
    return rows


def structures(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of data with masks: every structure, in how many masks it is, and how large."""
    unit = summary.get("size_unit") or "pixels"
    rows = []
    for position, each in enumerate(summary.get("structures") or []):
        size = each["size"]
        shown = "none" if size is None else f"{_length(size['min'])} to {_length(size['max'])} {unit}"
        rows.append(
            {
                "name": str(each["name"]),
                "value": str(each["value"]),
                "cases": grouped(each["cases"]),
                "share": f"{100 * each['share']:.3g} %",
                "median": "" if size is None else f"{_length(size['median'])} {unit}",
                "range": shown,
                "colour": "#{:02x}{:02x}{:02x}".format(*COLOURS[(position - 1) % len(COLOURS)]) if position else "",
            }
        )
    return rows


def _grid(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Voxels and spacing of volumes, per axis."""
    if not summary.get("spacing"):
        return []
    rows = []
    for key, term, unit in (("voxels", "Voxels", ""), ("spacing", "Spacing", " mm")):
        shown = " × ".join(
            f"{_length(r['min'])} to {_length(r['max'])}" if r["max"] > r["min"] else _length(r["min"])
            for r in summary[key]
        )
        median = " × ".join(_length(r["median"]) for r in summary[key])
        rows.append((f"{term}, right × anterior × superior", f"{shown}{unit}, median {median}{unit}"))
    return rows


def _length(value: float) -> str:
    return grouped(round(value)) if value >= 1000 else f"{value:.4g}"


def _counted(values: Mapping[str, int]) -> str:
    listed = sorted(values.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} ({grouped(n)})" for name, n in listed[:12])
    return shown + (f" and {grouped(len(listed) - 12)} more" if len(listed) > 12 else "")
