"""Scans that were never read from disk, and what the audit finds in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import DataConfig
from medloom.data.audit import audit
from medloom.data.findings import Finding
from medloom.data.records import Dataset, Record
from medloom.data.scan import ImageFacts, Scan


def made(
    rows: list[dict[str, Any]], classes: tuple[str, ...] = ("a", "b"), several: bool = False, **extra: Any
) -> Scan:
    """A scan that was never read from disk; a row may set fields of Record and of ImageFacts."""
    rng = np.random.default_rng(0)
    records, images = [], []
    for k, row in enumerate(rows):
        own = {"patient": f"p{k}", "pixel_hash": f"h{k}", **row}
        facts = {name: own.pop(name) for name in list(own) if name in ImageFacts.__slots__}
        record = {"id": f"i{k}.png", "path": f"i{k}.png", **own}
        record["labels"] = tuple(record["labels"])
        records.append(Record(**record))
        base = {"height": 64, "width": 64, "bits": 8, "used_bits": 8, "mode": "L", "file_type": "png"}
        base |= {"size_bytes": int(rng.integers(900, 1100)), "quality": 0, "notes": (), "mean": float(rng.random())}
        base |= {"std": 0.2, "phash": tuple(int(v) for v in rng.integers(0, 2**63, 8))}
        images.append(ImageFacts(**{**base, **facts}))
    excluded = extra.pop("excluded", ())
    dataset = Dataset("set", Path("/nowhere"), classes, tuple(records), several, **extra)
    return Scan(dataset, tuple(images), tuple(excluded))


def balanced(n: int = 60, splits: tuple[str | None, ...] = ("train", "test")) -> list[dict[str, Any]]:
    return [{"labels": (k % 2,), "split": split} for split in splits for k in range(n)]


def found(scanned: Scan, code: str, severity: str | None = None, **config: Any) -> list[Finding]:
    findings = audit(scanned, DataConfig(**config)).findings
    return [f for f in findings if f.code == code and severity in (None, f.severity)]
