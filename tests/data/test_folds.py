"""Folds and sites: patients stay whole, every image is tested once, and what cannot be is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.config import DataConfig
from medloom.data.records import Dataset, Record
from medloom.data.splits import make_splits
from medloom.errors import UsageError


def dataset(patients: int, per_patient: int = 2, sites: int = 2) -> Dataset:
    records = tuple(
        Record(f"p{p}_{k}", f"p{p}_{k}.png", labels=(p % 2,), patient=f"p{p}", site=f"s{p % sites}")
        for p in range(patients)
        for k in range(per_patient)
    )
    return Dataset("d", Path("d"), ("a", "b"), records)


def split(data: Dataset, **config: object) -> dict[str, str]:
    found = make_splits(data, DataConfig(val_fraction=0.2, **config), seed=0)  # type: ignore[arg-type]
    return {r.id: str(r.split) for r in found.dataset.records}


@settings(deadline=None, max_examples=25)
@given(patients=st.integers(10, 40), folds=st.integers(2, 6), per_patient=st.integers(1, 3))
def test_every_image_is_tested_once_and_patients_stay_whole(patients: int, folds: int, per_patient: int) -> None:
    data = dataset(patients, per_patient)
    tested: Counter[str] = Counter()
    sizes = []
    for fold in range(folds):
        placed = split(data, folds=folds, fold=fold)
        assert set(placed) == {r.id for r in data.records}
        owners = {part: {i.split("_")[0] for i, p in placed.items() if p == part} for part in ("train", "val", "test")}
        assert not owners["test"] & (owners["train"] | owners["val"])
        tested.update(i for i, p in placed.items() if p == "test")
        sizes.append(len(owners["test"]))
    assert set(tested.values()) == {1}
    assert sum(sizes) == patients
    assert max(sizes) - min(sizes) <= 1


def test_folds_hold_both_classes_and_both_sites() -> None:
    data = dataset(40, 1)
    by_id = {r.id: r for r in data.records}
    for fold in range(5):
        tested = [by_id[i] for i, p in split(data, folds=5, fold=fold).items() if p == "test"]
        assert {r.labels for r in tested} == {(0,), (1,)}
        assert {r.site for r in tested} == {"s0", "s1"}


def test_the_test_part_of_the_source_stays_out_of_cross_validation() -> None:
    data = dataset(20)
    fixed = data.with_records(
        Record(
            r.id, r.path, labels=r.labels, patient=r.patient, site=r.site, split="test" if r.patient == "p3" else None
        )
        for r in data.records
    )
    found = make_splits(fixed, DataConfig(folds=4, val_fraction=0.2), seed=0)
    assert "p3" not in {r.patient for r in found.dataset.records}
    assert any("2 test images of the source" in notice for notice in found.notices)


def test_one_site_trains_and_the_other_tests() -> None:
    placed = split(dataset(30), test_sites=("s1",))
    assert {int(i[1:].split("_")[0]) % 2 for i, p in placed.items() if p == "test"} == {1}
    assert {int(i[1:].split("_")[0]) % 2 for i, p in placed.items() if p != "test"} == {0}
    assert split(dataset(30), train_sites=("s0",)) == placed


def test_a_patient_of_both_sites_is_left_out() -> None:
    data = dataset(30)
    moved = data.with_records(
        Record(r.id, r.path, labels=r.labels, patient="p0" if r.patient == "p1" else r.patient, site=r.site)
        for r in data.records
    )
    assert "p0_0" not in split(moved, test_sites=("s1",))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"folds": 5, "fold": 5}, "no fold 5 of 5"),
        ({"folds": 40}, "do not make 40 folds"),
        ({"folds": 3, "test_sites": ("s1",)}, "both say"),
        ({"test_sites": ("nowhere",)}, "no image is of site"),
        ({"test_sites": ("s0", "s1")}, "one site at least"),
    ],
)
def test_U235_what_cannot_be_divided_so(config: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match="U235") as refused:
        split(dataset(20), **config)
    assert words in str(refused.value)
