"""The page of ``medloom data audit``: counts, findings, and a sheet of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medloom.files import write_text
from medloom.reporting import plots
from medloom.reporting.file_facts import brightness, file_facts, structures
from medloom.reporting.page import picture, render
from medloom.reporting.sections_run import exclusions, findings
from medloom.reporting.wording import NOT_A_DEVICE, SPLITS, grouped, plural

MOST_ACROSS = 8  # classes that fit side by side in a table


def write_audit_page(audit: Mapping[str, Any], samples: Sequence[tuple[str, np.ndarray]], path: str | Path) -> Path:
    """Write one self-contained HTML page, atomically; returns its path.

    Args:
        audit: content of audit.json (``Audit.as_dict()``).
        samples: caption and uint8 image ``(H, W)`` or ``(H, W, 3)``; captions ``CLASS: id`` are grouped by class.

    Raises:
        ResourceError: T404, T405 when it cannot be written.
    """
    path = Path(path)
    write_text(path, audit_html(audit, samples))
    return path


def audit_html(audit: Mapping[str, Any], samples: Sequence[tuple[str, np.ndarray]]) -> str:
    """The page as text."""
    summary = dict(audit.get("summary") or {})
    counts = {
        SPLITS.get(s, s or "no split"): dict(c) for s, c in (audit.get("counts") or {}).items() if sum(c.values())
    }
    classes = list(dict.fromkeys(c for values in counts.values() for c in values))
    splits = {SPLITS.get(s, s): n for s, n in (summary.get("splits") or {}).items()}
    rows = findings(audit)
    refused = [r for r in rows if r["severity"] == "refuse"]
    warned = [r for r in rows if r["severity"] == "warn"]
    name = str(summary.get("name") or audit.get("name") or "data set")
    flags = [{"text": f"{r['code']}: {r['title']}", "tone": "red"} for r in refused]
    flags += [{"text": plural(len(warned), "warning"), "tone": "amber"}] if warned else []
    images = summary.get("images")
    total = images if isinstance(images, int) else sum(sum(c.values()) for c in counts.values())
    what = f"{plural(total, 'image')} of {plural(len(classes), 'class', 'classes')}. "
    if summary.get("multi_label"):
        none = summary.get("unlabelled") or 0
        what = f"{plural(total, 'image')}, {plural(len(classes), 'label')}; {grouped(none)} images have none of them. "
    if masks := structures(summary):
        kinds, empty = plural(len(masks) - 1, "structure"), summary.get("empty_masks") or 0
        what = f"{plural(total, 'image')} with masks of {kinds}; {grouped(empty) if empty else 'none'} of them empty. "
    if refused:
        what += f"Training would refuse these data for {plural(len(refused), 'reason')}: "
        what += ", ".join(dict.fromkeys(r["code"] for r in refused)) + "."
    else:
        what += "Nothing that would make training refuse them."
    return render(
        "audit.html",
        title=f"{name}: MedLoom data audit",
        made_by="MedLoom data audit",
        name=name,
        flags=[*flags, {"text": NOT_A_DEVICE, "tone": ""}],
        sentence=what,
        plot=plots.counts(counts, classes, splits) if classes else "",
        classes=classes,
        counts=[
            {"split": s, "cells": [c.get(k, 0) for k in classes], "total": splits.get(s, sum(c.values()))}
            for s, c in counts.items()
        ],
        upright=len(classes) > MOST_ACROSS,
        counts_note="An image with several labels is counted under each." if summary.get("multi_label") else "",
        structures=masks,
        rows=rows,
        exclusions=exclusions(audit),
        files=file_facts(summary),
        brightness=brightness(summary),
        samples=_groups(samples),
    )


def _groups(samples: Sequence[tuple[str, np.ndarray]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for caption, pixels in samples:
        title, colon, rest = caption.partition(": ")
        shown = {"caption": rest if colon else caption, "image": picture(pixels)}
        groups.setdefault(title if colon else "", []).append(shown)
    return [{"title": title, "pictures": pictures} for title, pictures in groups.items()]
