"""What the files of a data set are, in words: from the summary of audit.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    size = summary.get("size_bytes")
    if size:
        low, middle, high = (f"{size[k] / 1000:,.1f}".replace(",", "\u202f") for k in ("min", "median", "max"))
        rows.append(("File size", f"{low} to {high} kB, median {middle} kB"))
    for key, term in (("bits", "Bits per pixel"), ("file_types", "File types"), ("modes", "Colour modes")):
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


def _counted(values: Mapping[str, int]) -> str:
    listed = sorted(values.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} ({grouped(n)})" for name, n in listed[:12])
    return shown + (f" and {grouped(len(listed) - 12)} more" if len(listed) > 12 else "")
