"""Images with several labels, from npz and tables: label names, wrong label vectors, splits by patient, the audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.audit import audit, gate
from medloom.data.findings import Finding
from medloom.data.medmnist_sets import SETS
from medloom.data.records import Dataset, Record
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.data.splits import make_splits
from medloom.errors import DataError

LABELS = SETS["chestmnist"].labels


def npz(path: Path, labels: Any = None, size: int = 28, n: int = 6, **arrays: Any) -> Path:
    rng = np.random.default_rng(0)
    rows = (rng.random((n, 14)) < 0.3).astype(np.uint8) if labels is None else labels
    rows = np.asarray(rows) if labels is None or not isinstance(labels, np.ndarray) else labels
    full: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        full[f"{split}_images"] = rng.integers(0, 255, (n, size, size), dtype=np.uint8)
        full[f"{split}_labels"] = rows
    full |= arrays
    np.savez(path, **{k: v for k, v in full.items() if v is not None})
    return path


def refused(path: Path, **config: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        open_dataset(path, DataConfig(**config))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("size", [28, 64, 128, 224])
def test_chestmnist_opens_at_every_size_with_its_label_names(tmp_path: Path, size: int) -> None:
    rows = np.zeros((6, 14), dtype=np.uint8)
    rows[0, [0, 12]] = 1
    file = "chestmnist.npz" if size == 28 else f"chestmnist_{size}.npz"
    dataset = open_dataset(npz(tmp_path / file, rows, size), DataConfig())
    assert dataset.classes == LABELS
    assert (LABELS[0], LABELS[7], LABELS[13]) == ("atelectasis", "pneumothorax", "hernia")
    assert dataset.label_names(dataset.records[0]) == "atelectasis|pleural"
    assert dataset.records[1].labels == ()
    assert open_dataset(tmp_path / file, DataConfig(classes=tuple("abcdefghijklmn"))).classes[13] == "n"


def test_names_are_numbers_where_the_file_is_not_the_set_that_its_name_says(tmp_path: Path) -> None:
    assert open_dataset(npz(tmp_path / "mine.npz"), DataConfig()).classes == tuple(map(str, range(14)))
    few = np.zeros((6, 3), np.uint8)
    assert open_dataset(npz(tmp_path / "chestmnist.npz", few), DataConfig()).classes == ("0", "1", "2")
    one = np.array([[0], [1]] * 3, np.uint8)
    assert open_dataset(npz(tmp_path / "pneumoniamnist.npz", one), DataConfig()).classes == ("normal", "pneumonia")


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (np.full((6, 14), 2, np.uint8), "label 2 is outside the classes"),
        (np.full((6, 14), -1, np.int8), "label -1 is outside the classes"),
        (np.zeros((6, 14), np.float32), "labels are float32"),
        (np.zeros((6, 14, 2), np.uint8), "of shape (6, 14, 2)"),
        (np.zeros((6, 0), np.uint8), "of shape (6, 0)"),
        (np.zeros((5, 14), np.uint8), "6 images but 5 labels"),
        (np.array([[0, 1], [1, 0]] * 3, dtype=object), "pickled"),
    ],
)
def test_D116_wrong_label_vectors(tmp_path: Path, labels: np.ndarray, word: str) -> None:
    problem = refused(npz(tmp_path / "x.npz", test_labels=labels, train_labels=labels, val_labels=labels))
    assert problem.code == "D116"
    assert word in str(problem)


def test_D116_label_columns_that_differ_between_splits_or_from_the_classes(tmp_path: Path) -> None:
    wrong = npz(tmp_path / "x.npz", test_labels=np.zeros((6, 13), np.uint8))
    assert "label columns differ" in refused(wrong).problem
    assert refused(npz(tmp_path / "y.npz"), classes=("a", "b")).code == "D116"
    assert refused(npz(tmp_path / "z.npz"), multi_label=False).code == "D116"


def test_D116_a_pickled_array_under_any_name_is_refused_unopened(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "canary",))

    for name in ("notes", "val_images", "test_labels"):
        problem = refused(npz(tmp_path / "x.npz", **{name: np.array([Canary()] * 6, dtype=object)}))
        assert problem.code == "D116"
        assert "pickled" in problem.problem
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("key", ["train_images", "val_labels", "test_images"])
def test_D116_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    assert f"the array {key} is missing" in refused(npz(tmp_path / "x.npz", **{key: None})).problem


def table(root: Path, lines: list[str], split: bool = True) -> Path:
    """A table whose images are all different."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = ["image,finding_labels,patient_id,official_split" if split else "image,finding_labels,patient_id"]
    for k, line in enumerate(lines):
        PillowImage.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(root / f"{k}.png")
        rows.append(f"{k}.png,{line}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def findings(root: Path, code: str, **options: Any) -> list[Finding]:
    config = DataConfig(**options)
    return [f for f in audit(scan(open_dataset(root, config), config), config).findings if f.code == code]


def test_D115_a_label_that_appears_in_test_alone_is_refused(tmp_path: Path) -> None:
    lines = [f"{'Mass' if k % 2 else 'Edema|Mass'},p{k},train_val" for k in range(30)]
    lines += [f"{'Hernia|Mass' if k < 12 else 'Edema'},q{k},test" for k in range(40)]
    root = table(tmp_path / "set", lines)
    found = findings(root, "D115")
    assert any("class Hernia has no image in train, but in test" in f.title for f in found)
    config = DataConfig()
    with pytest.raises(DataError, match="D115"):
        gate(audit(scan(open_dataset(root, config), config), config))


def test_D122_test_images_of_a_handful_of_patients_are_warned_of(tmp_path: Path) -> None:
    lines = [f"{'Mass' if k % 2 else 'Edema'},p{k},train_val" for k in range(40)]
    lines += [f"{'Mass|Edema' if k % 2 else ''},q{k % 3},test" for k in range(60)]
    found = findings(table(tmp_path / "set", lines), "D122")
    assert any("60 test images are of 3 patients" in f.title for f in found)
    assert all(f.severity == "warn" for f in found)
    many = [line.replace(f",q{k % 3},", f",q{k},") for k, line in enumerate(lines[40:])]
    assert not any("patients" in f.title for f in findings(table(tmp_path / "b", lines[:40] + many), "D122"))


def test_D106_the_column_that_says_who_it_is_is_no_shortcut(tmp_path: Path) -> None:
    lines = [f"{'Mass' if k < 40 else 'Edema|Mass'},{k}" for k in range(80)]
    root = table(tmp_path / "set", lines, split=False)
    titles = [f.title for f in findings(root, "D106", patient="column:patient_id")]
    assert not any("patient_id" in title for title in titles)
    assert any("patient_id" in f.title for f in findings(root, "D106", patient="none"))


def test_splits_of_the_source_can_be_left_aside(tmp_path: Path) -> None:
    lines = [f"{'Mass' if k % 2 else 'Edema|Mass'},p{k // 2},{'test' if k < 4 else 'train_val'}" for k in range(80)]
    root = table(tmp_path / "set", lines)
    config = DataConfig(split_column="none", test_fraction=0.3, val_fraction=0.2)
    dataset = open_dataset(root, config)
    assert dataset.splits == ()
    assert not any("official_split" in r.covariates for r in dataset.records)
    assert any("official_split were not used" in n for n in dataset.notices)
    drawn = make_splits(dataset, config, 0).dataset
    assert {s: len(drawn.select(s)) for s in ("train", "val", "test")} == {"train": 44, "val": 12, "test": 24}


def records(split: str, *labels: tuple[int, ...], start: int = 0) -> list[Record]:
    return [Record(f"{split}{i}", f"{split}{i}", labels=k, split=split, patient=f"{split}{start + i}")
            for i, k in enumerate(labels)]  # fmt: skip


def test_D124_one_rare_label_does_not_dissolve_a_validation_part() -> None:
    rows = [*records("train", *[(0,)] * 900, *[(0, 1)] * 100), *records("val", *[(0,)] * 90, *[(0, 1)] * 3)]
    dataset = Dataset("d", Path(), ("common", "rare"), tuple(rows), multi_label=True)
    made = make_splits(dataset, DataConfig(), 0)
    assert made.notices == ()
    assert len(made.dataset.select("val")) == 93
    tiny = [*records("train", *[(0,)] * 900), *records("val", *[(0,)] * 8)]
    again = make_splits(Dataset("d", Path(), ("common",), tuple(tiny), multi_label=True), DataConfig(), 0)
    assert any("merged into the training part" in n for n in again.notices)


def test_every_label_reaches_every_part_and_no_patient_is_torn() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(300):
        for image in range(int(rng.integers(1, 5))):
            labels = tuple(int(k) for k in np.flatnonzero(rng.random(4) < (0.4, 0.2, 0.08, 0.04)))
            rows.append(Record(f"{patient}-{image}", "x", labels=labels, patient=f"p{patient}"))
    dataset = Dataset("d", Path(), tuple("abcd"), tuple(rows), multi_label=True)
    made = make_splits(dataset, DataConfig(test_fraction=0.3, val_fraction=0.2), 0)
    counts = made.as_dict()["classes"]
    for k, name in enumerate("abcd"):
        total = sum(k in r.labels for r in rows)
        assert all(counts[s][name] > 0 for s in counts)
        assert counts["test"][name] == pytest.approx(0.3 * total, rel=0.45)
    owners: dict[str, set[str]] = {}
    for r in made.dataset.records:
        owners.setdefault(str(r.patient), set()).add(str(r.split))
    assert all(len(parts) == 1 for parts in owners.values())


def test_the_real_fourteen_findings(real_data: Path) -> None:
    config = DataConfig(split_column="none", test_fraction=0.3, val_fraction=0.2)
    dataset = open_dataset(real_data / "nih_small", config)
    assert len(dataset.classes) == 14
    assert sum(not r.labels for r in dataset.records) == 479
    assert len({r.patient for r in dataset.records}) == 262
    made = make_splits(dataset, config, 0).as_dict()
    assert made["patients"]["test"] > 60
    assert all(made["classes"]["train"][name] > 0 for name in dataset.classes)
