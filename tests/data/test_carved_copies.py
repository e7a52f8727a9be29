"""Near duplicates between the parts that are made here and not by the source, which the first audit cannot know."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scans import balanced, made
from nifti_files import save
from PIL import Image

from medloom.config import DataConfig
from medloom.data.audit import Audit, after_split, audit, gate
from medloom.data.findings import Finding
from medloom.data.phantom_masks import write_phantom_masks
from medloom.data.phantom_volumes import write_phantom_volumes
from medloom.data.records import Dataset
from medloom.data.scan import Scan, scan
from medloom.data.sources import open_dataset
from medloom.data.splits import make_splits
from medloom.data.volumes import read_nifti


def near(found: Audit) -> list[Finding]:
    return [f for f in found.findings if f.code == "D118"]


def judged(scanned: Scan, config: DataConfig) -> tuple[Audit, Audit, Dataset]:
    """The audit before and after splitting, and the split."""
    before = audit(scanned, config)
    split = make_splits(scanned.dataset, config, seed=0).dataset
    return before, after_split(before, scanned, split, config), split


def across(split: Dataset, pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the pairs that stand in two parts."""
    part = {r.id: r.split for r in split.records}
    return {pair for pair in pairs if part[pair[0]] != part[pair[1]]}


def twins(n: int = 40) -> tuple[Scan, list[tuple[str, str]]]:
    """Images without a split, of which each other one is nearly the one before, of another patient."""
    rows: list[dict[str, Any]] = balanced(n, splits=(None,))
    for k in range(0, n, 2):
        rows[k]["phash"] = tuple(int(v) for v in np.random.default_rng(k).integers(0, 2**63, 8))
        rows[k + 1]["phash"] = (rows[k]["phash"][0] ^ 7, *rows[k]["phash"][1:])
    return made(rows), [(f"i{k}.png", f"i{k + 1}.png") for k in range(0, n, 2)]


def changed(path: Path, quality: int = 60) -> None:
    """A copy of a picture beside it: darker, by JPEG."""
    with Image.open(path) as picture:
        dark = Image.fromarray((np.asarray(picture) * 0.9).astype(np.uint8))
        dark.save(path.with_name(f"{path.stem}-copy.jpg"), quality=quality)


def doubled(table: Path, copies: dict[str, str]) -> Path:
    """The table with a row for each copy, of a patient of its own, and without splits."""
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["image", "mask", "patient"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        if row["image"] in copies:
            writer.writerow(row | {"image": copies[row["image"]], "patient": f"{row['patient']}-again"})
    found = table.with_name("doubled.csv")
    found.write_text(out.getvalue())
    return found


def test_D118_near_copies_between_carved_parts_warn() -> None:
    scanned, pairs = twins()
    before, after, split = judged(scanned, DataConfig(val_fraction=0.3, test_fraction=0.2))
    assert not near(before)
    apart = across(split, pairs)
    assert 0 < len(apart) < len(pairs)
    (finding,) = near(after)
    assert (finding.severity, finding.count) == ("warn", len(apart))
    assert finding.title == f"{len(apart)} pairs of images in different splits look alike"
    assert {tuple(sorted(e.split(" ~ "))) for e in finding.examples} <= {tuple(sorted(pair)) for pair in apart}
    severities = [f.severity for f in after.findings]
    assert severities == sorted(severities, key=["refuse", "warn", "note"].index)
    gate(after)
    assert [f for f in after.findings if f.code != "D118"] == list(before.findings)


def test_D118_the_parts_of_the_source_are_not_looked_at_twice() -> None:
    rows = balanced(splits=("train", "val", "test"))
    rows[0]["phash"], rows[150]["phash"] = (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 7, 5, 6, 7, 8)
    before, after, _ = judged(made(rows), DataConfig(min_val_per_class=5))
    assert after is before
    assert near(after)


def test_D118_folds_count_and_not_the_parts_of_the_source() -> None:
    scanned, pairs = twins()
    records = [
        replace(r, split=("train", "val")[k % 2], labels=(k // 2 % 2,)) for k, r in enumerate(scanned.dataset.records)
    ]
    scanned = replace(scanned, dataset=scanned.dataset.with_records(records))
    before, after, split = judged(scanned, DataConfig(folds=4, fold=1, val_fraction=0.2, min_val_per_class=5))
    assert near(before)[0].count == len(pairs)
    assert near(after)[0].count == len(across(split, pairs)) < len(pairs)


def test_D118_images_that_are_left_out_of_training_are_no_leak() -> None:
    scanned, pairs = twins()
    _, whole, _ = judged(scanned, DataConfig(val_fraction=0.3))
    config = DataConfig(val_fraction=0.3, label_fraction=0.1)
    _, few, split = judged(scanned, config)
    kept = {r.id for r in split.records}
    assert near(whole)[0].count > len(across(split, [pair for pair in pairs if set(pair) <= kept]))
    assert sum(f.count for f in near(few)) == len(across(split, [pair for pair in pairs if set(pair) <= kept]))


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_D118_copies_among_cases_with_masks(kind: str, tmp_path: Path) -> None:
    """Copies are found as they are read, and phantoms of different patients are no copies of one another."""
    copies: dict[str, str] = {}
    if kind == "pictures":
        table = write_phantom_masks(tmp_path / "p", n_patients=16, size=64, seed=3)
        for path in sorted((table.parent / "images").glob("*_1.png")):
            changed(path)
            copies[f"images/{path.name}"] = f"images/{path.stem}-copy.jpg"
    else:
        table = write_phantom_volumes(tmp_path / "p", n_patients=12, size=24, seed=3)
        for path in sorted((table.parent / "imagesTr").glob("*.nii.gz")):
            volume = read_nifti(path)
            darker = (volume.array * 0.8 + 20).astype(np.float32)
            save(path.with_name(path.name.replace("_0000", "-copy_0000")), darker, volume.affine)
            copies[f"imagesTr/{path.name}"] = f"imagesTr/{path.name.replace('_0000', '-copy_0000')}"
    config = DataConfig(val_fraction=0.4, patient="column:patient")
    scanned = scan(open_dataset(doubled(table, copies), config), config, workers=1)
    assert not scanned.excluded
    before, after, split = judged(scanned, config)
    assert not near(before)
    apart = across(split, list(copies.items()))
    assert apart
    (finding,) = near(after)
    assert (finding.severity, finding.count) == ("warn", len(apart))
