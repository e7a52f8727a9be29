"""Counts and ranges of a scanned data set, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medloom.data.mask_audit import mask_summary
from medloom.data.records import Dataset
from medloom.data.scan import ImageFacts, Scan

NO_SPLIT = "no split"


def counts_of(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Images per split and class; of several labels, positives per class; of masks, those that hold the structure
    (the background is in all). Splits in the usual order."""
    counts: dict[str, dict[str, int]] = {}
    for split in (*dataset.splits, None):
        records = [r for r in dataset.records if r.split == split]
        if records:
            found = Counter(k for r in records for k in r.labels)
            counts[split or NO_SPLIT] = {
                name: found[k] for k, name in enumerate(dataset.classes) if k or not dataset.label_values
            }
    return counts


def summary_of(scan: Scan) -> dict[str, Any]:
    """Everything countable: images, patients, sites, sizes, depths, types, conversions, brightness per class."""
    dataset, images = scan.dataset, scan.images
    records = dataset.records
    sizes = Counter((image.height, image.width) for image in images)
    own = {split or NO_SPLIT: [r for r in records if r.split == split] for split in (*dataset.splits, None)}
    return {
        "images": len(records),
        "excluded": dict(sorted(Counter(e.code for e in scan.excluded).items())),
        "classes": list(dataset.classes),
        "multi_label": dataset.multi_label,
        "unlabelled": sum(not r.labels for r in records),
        "splits": {split: len(rs) for split, rs in own.items() if rs},
        "patients": len({r.patient for r in records if r.patient is not None}),
        "patients_per_split": {
            split: len({r.patient for r in rs if r.patient is not None}) for split, rs in own.items() if rs
        },
        "without_patient": sum(r.patient is None for r in records),
        "sites": dict(Counter(r.site for r in records if r.site is not None)),
        "height": _range([image.height for image in images]),
        "width": _range([image.width for image in images]),
        "size_bytes": _range([image.size_bytes for image in images]),
        "sizes": [[height, width, count] for (height, width), count in sizes.most_common(10)],
        "distinct_sizes": len(sizes),
        "bits": {str(bits): n for bits, n in sorted(Counter(image.bits for image in images).items())},
        "file_types": dict(Counter(image.file_type for image in images)),
        "modes": dict(Counter(image.mode for image in images)),
        "conversions": dict(Counter(note for image in images for note in image.notes)),
        **({"brightness": _brightness(dataset, images)} if not scan.cases else mask_summary(scan)),
    }


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _brightness(dataset: Dataset, images: Sequence[ImageFacts]) -> dict[str, dict[str, float]]:
    """Mean brightness and mean contrast (standard deviation) per class, on the scale 0..1."""
    values = {}
    for position, name in enumerate(dataset.classes):
        own = [image for r, image in zip(dataset.records, images) if position in r.labels]
        if own:
            values[name] = {
                "mean": round(float(np.mean([image.mean for image in own])), 4),
                "std": round(float(np.mean([image.std for image in own])), 4),
            }
    return values
