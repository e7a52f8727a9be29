"""The audit and its gate: exclusions, leaks, labels; on made folders and on the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scans import balanced, found, made
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.audit import Audit, audit, gate
from medloom.data.scan import Exclusion, scan
from medloom.data.sources import open_dataset
from medloom.errors import DataError


def test_a_clean_data_set_passes() -> None:
    result = audit(made(balanced(splits=("train", "val", "test"), n=120)), DataConfig())
    assert result.findings == ()
    assert result.counts == {s: {"a": 60, "b": 60} for s in ("train", "val", "test")}
    gate(result)


def test_D101_D103_few_exclusions_warn_and_many_refuse() -> None:
    excluded = (Exclusion("x.jpg", "D103", "truncated"), Exclusion("y.jpg", "D101", "zero bytes"))
    scanned = made(balanced(n=200), excluded=excluded)
    assert [f.severity for f in found(scanned, "D103")] == ["warn"]
    result = audit(scanned, DataConfig(exclude_limit=0.001))
    assert {f.code for f in result.refusals()} == {"D101", "D103"}
    with pytest.raises(DataError, match=r"limit is 0\.1") as caught:
        gate(result)
    assert caught.value.exit_code == 3
    gate(result, accept=("D101", "D103"))
    assert len(result.as_dict()["excluded"]) == 2


def test_D114_an_unreadable_file_refuses_under_the_limit() -> None:
    scanned = made(balanced(n=200), excluded=(Exclusion("x.jpg", "D114", "cannot be read"),))
    assert found(scanned, "D114")[0].severity == "refuse"


def test_D105_deep_files_that_use_few_bits() -> None:
    rows = [{**row, "bits": 16, "used_bits": 12} for row in balanced()]
    assert "lower 12" in found(made(rows), "D105", "warn")[0].title


def test_D107_conversions_are_counted() -> None:
    rows = balanced()
    rows[0]["notes"] = rows[1]["notes"] = ("alpha laid on black",)
    rows[2]["notes"] = ("CMYK converted to RGB",)
    findings = found(made(rows), "D107")
    assert {(f.severity, f.count) for f in findings} == {("note", 2), ("warn", 1)}


def test_D113_notices_of_the_source_are_warnings() -> None:
    scanned = made(balanced(), notices=("[D113] 3 symbolic links were not followed: x", "columns read as ..."))
    assert found(scanned, "D113")[0].severity == "warn"
    assert found(scanned, "D100")[0].severity == "note"


def test_D115_a_class_that_only_the_test_split_has() -> None:
    rows = balanced() + [{"labels": (2,), "split": "test"}] * 1
    finding = found(made(rows, ("a", "b", "c")), "D115", "refuse")[0]
    assert "class c has no image in train, but in test" in finding.title


def test_D117_exact_copies_across_splits_refuse_and_within_one_inform() -> None:
    rows = balanced()
    rows[0]["pixel_hash"] = rows[60]["pixel_hash"] = "same"
    rows[2]["pixel_hash"] = rows[4]["pixel_hash"] = rows[6]["pixel_hash"] = "twin"
    scanned = made(rows)
    across, within = found(scanned, "D117")
    assert (across.severity, across.count, across.examples) == ("refuse", 1, ("i0.png = i60.png",))
    assert (within.severity, within.count) == ("note", 2)
    with pytest.raises(DataError) as caught:
        gate(audit(scanned, DataConfig()))
    assert caught.value.code == "D117"
    assert "--accept D117" in str(caught.value)
    gate(audit(scanned, DataConfig()), accept=["D117"])


def test_D117_D119_a_validation_part_that_will_be_merged_leaks_nothing() -> None:
    rows = balanced(n=800, splits=("train",)) + balanced(n=16, splits=("val",)) + balanced(n=60, splits=("test",))
    rows[0]["pixel_hash"] = rows[800]["pixel_hash"] = "same"
    rows[2]["patient"] = rows[802]["patient"] = "one"
    scanned = made(rows)
    assert not audit(scanned, DataConfig()).refusals()
    assert "merged into train" in found(scanned, "D124", "note")[0].title
    kept = audit(scanned, DataConfig(min_val_per_class=5)).refusals()
    assert {f.code for f in kept} == {"D117", "D119"}


def test_D118_near_copies_across_splits_warn() -> None:
    rows = balanced()
    rows[0]["phash"] = (1, 2, 3, 4, 5, 6, 7, 8)
    rows[61]["phash"] = (1, 2, 3, 7, 5, 6, 7, 8)
    finding = found(made(rows), "D118", "warn")[0]
    assert (finding.count, finding.examples) == (1, ("i0.png ~ i61.png",))
    rows[0]["pixel_hash"] = rows[61]["pixel_hash"] = "same"
    assert found(made(rows), "D118") == []


def test_D118_a_reencoded_copy_is_found_and_a_look_alike_is_looked_at(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(4, 4)) * 60 + 128

    def picture() -> PillowImage.Image:
        fine = np.kron(coarse, np.ones((24, 24))) + np.kron(rng.normal(size=(32, 32)) * 25, np.ones((3, 3)))
        return PillowImage.fromarray(fine.clip(0, 255).astype(np.uint8))

    for k in range(12):
        path = tmp_path / ("train", "test")[k % 2] / ("a", "b")[k // 2 % 2] / f"p{k}_1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    with PillowImage.open(tmp_path / "train/a/p0_1.png") as original:
        original.save(tmp_path / "test/a/p0x_1.jpg", quality=40)
    config = DataConfig(patient="pattern:(p[0-9x]+)_")
    finding = found(scan(open_dataset(tmp_path, config), config), "D118", "warn")[0]
    assert finding.examples == ("train/a/p0_1.png ~ test/a/p0x_1.jpg",)


def test_D119_patients_across_splits() -> None:
    rows = balanced()
    for k in (0, 5, 60, 70):
        rows[k]["patient"] = f"p{k % 2}"
    rows[5]["patient"] = "p0"
    finding = found(made(rows), "D119", "refuse")[0]
    assert (finding.count, finding.examples) == (1, ("p0 (train, test)",))


def test_D119_the_stricter_kermany_number_is_a_warning() -> None:
    rows = balanced(n=60)
    for k, row in enumerate(rows):
        kind = "bacteria" if row["split"] == "train" else "virus"
        row |= {"path": f"person{k % 60}_{kind}_{k}.jpeg", "patient": f"person{k % 60}_{kind}"}
    findings = found(made(rows), "D119")
    assert [(f.severity, f.count) for f in findings] == [("warn", 60)]


def test_D120_no_patient_ids() -> None:
    rows = [{**row, "patient": None} for row in balanced()]
    result = audit(made(rows), DataConfig())
    assert [f.code for f in result.refusals()] == ["D120"]
    gate(result, accept=("D120",))
    rows[0]["patient"] = "one"
    assert [(f.severity, f.count) for f in found(made(rows), "D120")] == [("warn", 119)]


def test_D121_one_image_with_two_labels() -> None:
    rows = balanced()
    rows[0]["pixel_hash"] = rows[1]["pixel_hash"] = "same"
    finding = found(made(rows), "D121", "refuse")[0]
    assert finding.examples == ("i0.png (a) = i1.png (b)",)


def test_D122_a_class_that_a_split_cannot_judge() -> None:
    rows = balanced() + [{"labels": (2,), "split": "train"}] * 1
    finding = found(made(rows, ("a", "b", "c")), "D122", "warn")[0]
    assert "in test to judge: 0 of c" in finding.title


def test_D124_no_validation_and_no_test_split() -> None:
    assert "no validation split" in found(made(balanced(splits=(None,))), "D124", "note")[0].title
    assert "no test split" in found(made(balanced(splits=("train",))), "D115", "warn")[0].title
    assert found(made(balanced(splits=("test",))), "D124") == []


def test_several_labels_are_audited_per_label() -> None:
    rows = [{"labels": labels, "split": s} for s in ("train", "test") for labels in [(0,), (0, 1), (), (1,)] * 15]
    result = audit(made(rows, several=True), DataConfig())
    assert result.counts["train"] == {"a": 30, "b": 30}
    assert result.summary["unlabelled"] == 30
    assert not result.refusals()


def test_the_audit_is_json_without_nan() -> None:
    rows = balanced() + [{"labels": (0,), "split": "train", "bits": 0, "site": "north"}]
    values = audit(made(rows), DataConfig()).as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_from_files_to_the_gate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(40):
        for name in ("a", "b"):
            path = tmp_path / ("train", "test")[k % 2] / name / f"p{k}-{name}_1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
    (tmp_path / "test/a/p2-a_9.png").write_bytes((tmp_path / "train/a/p2-a_1.png").read_bytes())
    config = DataConfig(patient=r"pattern:(p\d+-[ab])_")
    result = audit(scan(open_dataset(tmp_path, config), config), config)
    assert {f.code for f in result.refusals()} == {"D117", "D119"}
    assert result.summary["file_types"] == {"png": 81}


def _real(path: Path, **config: Any) -> Audit:
    setting = DataConfig(**config)
    return audit(scan(open_dataset(path, setting), setting), setting)


def test_D117_D119_D124_on_the_real_chest_xrays(real_data: Path) -> None:
    result = _real(real_data / "chest_xray")
    assert result.counts == {"train": {"NORMAL": 1341, "PNEUMONIA": 3875}, "test": {"NORMAL": 234, "PNEUMONIA": 390}}
    assert result.refusals() == ()
    assert [(f.severity, f.count, f.title.rsplit(" ", 1)[1]) for f in result.findings if f.code == "D117"] == [
        ("note", 26, "train"),
        ("note", 6, "test"),
    ]
    assert [(f.severity, f.count) for f in result.findings if f.code == "D119"] == [("warn", 170)]
    assert any(f.code == "D124" and "no validation split" in f.title for f in result.findings)
    assert not [f for f in result.findings if f.code in {"D118", "D120", "D121"}]


def test_D117_D120_on_the_real_pneumoniamnist(real_data: Path) -> None:
    result = _real(real_data / "pneumoniamnist")
    assert {f.code: f.count for f in result.refusals()} == {"D117": 8, "D120": 5856}
    gate(result, accept=("D117", "D120"))


def test_D106_the_view_of_the_second_site(real_data: Path) -> None:
    result = _real(real_data / "nih_site", rename={"No Finding": "NORMAL", "Pneumonia": "PNEUMONIA", "*": ""})
    assert any("column view alone predicts" in f.title for f in result.findings)
