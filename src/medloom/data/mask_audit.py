"""What an audit says of masks: structures that are missing or rare, empty masks, grids that differ between cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medloom.data.findings import MOST_EXAMPLES, Finding
from medloom.data.pixel_spacing import spacing_findings
from medloom.data.records import SPLITS, Dataset
from medloom.data.scan import Scan

MIN_TEST_CASES = 10
RARE_SHARE = 0.001
SPACING_VARIES = 1.1
"""Ratio of the largest to the smallest spacing from which one filter sees structures of different size."""


def mask_findings(scan: Scan) -> list[Finding]:
    """N312 a structure that training would never see (refuse), D122 one that a split cannot judge, N307 spacings that
    differ or are known of some pictures alone (warn); D100 empty masks, tiny structures, orientations that differ,
    where the size of pixels is from (note)."""
    return [*_missing(scan.dataset), *_empty(scan.dataset), *_rare(scan), *_grids(scan), *spacing_findings(scan)]


def mask_summary(scan: Scan) -> dict[str, Any]:
    """Structures, grids and values inside the structures, as plain values for ``audit.json``."""
    dataset, cases = scan.dataset, scan.cases
    counts_NK = np.array([case.counts for case in cases], dtype=np.int64)
    volume = cases[0].spacing is not None
    unit = np.array([np.prod(case.spacing) / 1000 if case.spacing else 1.0 for case in cases])
    structures = []
    for k, (name, value) in enumerate(zip(dataset.classes, dataset.label_values)):
        present = counts_NK[:, k] > 0
        sizes = (counts_NK[:, k] * unit)[present]
        structures.append(
            {
                "name": name,
                "value": value,
                "cases": int(present.sum()),
                "share": float(counts_NK[:, k].sum() / counts_NK.sum()),
                "size": _range(sizes) if len(sizes) else None,
            }
        )
    values: dict[str, Any] = {
        "structures": structures,
        "size_unit": "ml" if volume else "pixels",
        "empty_masks": sum(not r.labels for r in dataset.records),
        "voxels": [_range([case.shape[a] for case in cases]) for a in range(len(cases[0].shape))],
        "values_inside": _spread([case.inside for case in cases if case.inside]),
        "values_whole": _spread([case.whole for case in cases]),
    }
    if volume:
        values["spacing"] = [_range([case.spacing[a] for case in cases if case.spacing]) for a in range(3)]
        values["orientations"] = dict(Counter(case.codes for case in cases).most_common())
        values["stored"] = dict(Counter(image.mode for image in scan.images).most_common())
        # What the scan looked at of a volume was an 8-bit slice: these would tell of that.
        values |= {"bits": {}, "modes": {}, "sizes": [], "distinct_sizes": 0, "height": None, "width": None}
    return values


def _missing(dataset: Dataset) -> list[Finding]:
    parts = {split: [r for r in dataset.records if r.split == split] for split in SPLITS}
    learnt = [r for r in dataset.records if r.split not in ("val", "test")]
    findings = []
    for k, name in enumerate(dataset.classes[1:], start=1):
        if learnt and not any(k in r.labels for r in learnt):
            title = f"no mask to train on holds {name}"
            remedy = "Bring such cases, or name only the structures that there are in data.classes"
            findings.append(Finding("N312", "refuse", title, len(learnt), (), remedy))
        for split, least in (("val", 1), ("test", MIN_TEST_CASES)):
            count = sum(k in r.labels for r in parts[split])
            if parts[split] and count < least:
                title = f"too few masks in {split} hold {name} to judge it: {count}"
                remedy = "Its metrics will be loose, or not estimable where there is none; add cases"
                findings.append(Finding("D122", "warn", title, count, (), remedy))
    return findings


def _empty(dataset: Dataset) -> list[Finding]:
    empty = [r.id for r in dataset.records if not r.labels]
    if not empty:
        return []
    title = f"{len(empty)} of {len(dataset)} masks are empty: nothing is to be found there"
    return [Finding("D100", "note", title, len(empty), tuple(empty[:MOST_EXAMPLES]), "Nothing, if that is right")]


def _rare(scan: Scan) -> list[Finding]:
    total = sum(sum(case.counts) for case in scan.cases)
    findings = []
    for k, name in enumerate(scan.dataset.classes[1:], start=1):
        share = sum(case.counts[k] for case in scan.cases) / total
        if 0 < share < RARE_SHARE:
            title = f"{name} takes {100 * share:.2g} percent of all that masks cover"
            remedy = "Patches that are centred in structures (segmentation.foreground) let a model meet it"
            findings.append(Finding("D100", "note", title, 0, (), remedy))
    return findings


def _grids(scan: Scan) -> list[Finding]:
    findings = []
    orientations = Counter(case.codes for case in scan.cases if case.codes)
    if len(orientations) > 1:
        shown = ", ".join(f"{codes} ({n})" for codes, n in orientations.most_common())
        title = f"the files are stored in {len(orientations)} orientations: {shown}"
        findings.append(Finding("D100", "note", title, len(orientations), (), "All are turned to one"))
    spacings_NA = np.array([case.spacing for case in scan.cases if case.spacing])
    if len(spacings_NA):
        low, high = spacings_NA.min(axis=0), spacings_NA.max(axis=0)
        if (high > SPACING_VARIES * low).any():
            shown = " x ".join(f"{a:.3g} to {b:.3g}" if b > a else f"{a:.3g}" for a, b in zip(low, high))
            title = f"the spacing differs between cases: {shown} mm"
            remedy = "Set volume.spacing; medloom data plan proposes one"
            findings.append(Finding("N307", "warn", title, len(spacings_NA), (), remedy))
    return findings


def _range(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {"min": float(min(values)), "median": float(np.median(values)), "max": float(max(values))}


def _spread(rows: Sequence[tuple[float, ...]]) -> dict[str, float] | None:
    """Over the cases: the lowest low and the highest high quantile, and medians of median, mean and deviation."""
    if not rows:
        return None
    values_N5 = np.array(rows)
    low, _, high, _, _ = values_N5.T
    middle = np.median(values_N5, axis=0)
    return {
        "p0.5": float(low.min()),
        "median": float(middle[1]),
        "p99.5": float(high.max()),
        "mean": float(middle[3]),
        "std": float(middle[4]),
    }
