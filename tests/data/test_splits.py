"""No patient in two splits, whatever the data look like; the same split on every platform."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from medloom.config import DataConfig
from medloom.data.records import Dataset, Record
from medloom.data.splits import Split, make_splits
from medloom.errors import DataError

CLASSES = ("NORMAL", "PNEUMONIA", "TB")


def dataset(records: list[Record], classes: tuple[str, ...] = CLASSES, multi_label: bool = False) -> Dataset:
    return Dataset("some", Path("some"), classes, tuple(records), multi_label)


def patients(count: int, images: int = 2, split: str | None = "train", first: int = 0, sites: int = 1) -> list[Record]:
    return [
        Record(f"{split}/{p}_{i}", f"{p}_{i}", labels=(p % 2,), split=split, patient=f"p{p}", site=f"s{p % sites}")
        for p in range(first, first + count)
        for i in range(images)
    ]  # fmt: skip


def by_patient(split: Split) -> dict[str | None, set[str | None]]:
    found: dict[str | None, set[str | None]] = defaultdict(set)
    for record in split.dataset.records:
        found[record.patient].add(record.split)
    return found


@st.composite
def any_dataset(draw: st.DrawFn) -> Dataset:
    multi_label = draw(st.booleans())
    count = draw(st.integers(2, 60))
    labels = (
        st.sets(st.integers(0, 2), max_size=3) if multi_label else st.sets(st.integers(0, 2), min_size=1, max_size=1)
    )
    records = [
        Record(
            id=f"{i}.png",
            path=f"{i}.png",
            labels=tuple(sorted(draw(labels))),
            split=draw(st.sampled_from([None, "train"])),
            patient=draw(st.sampled_from([None, *"abcdefghij"])),
            site=draw(st.sampled_from([None, "x", "y"])),
            pixel_hash=draw(st.sampled_from([None, *"0123456789"])),
        )
        for i in range(count)
    ]
    return dataset(records, multi_label=multi_label)


@settings(max_examples=200, deadline=None)
@given(any_dataset(), st.floats(0.05, 0.5), st.floats(0, 0.4), st.floats(0.1, 1), st.integers(0, 3))
def test_D119_D117_no_patient_and_no_pixels_in_two_splits(
    data: Dataset, val: float, test: float, labels: float, seed: int
) -> None:
    config = DataConfig(val_fraction=val, test_fraction=test, label_fraction=labels)
    try:
        split = make_splits(data, config, seed)
    except DataError:  # only where no class has a second patient to spare
        event("too few to carve from")
        return
    for field in ("patient", "pixel_hash"):
        places = defaultdict(set)
        for record in split.dataset.records:
            if getattr(record, field) is not None:
                places[getattr(record, field)].add(record.split)
        assert all(len(found) == 1 for found in places.values())
    assert {r.split for r in split.dataset.records} <= {"train", "val", "test"}
    assert "train" in split.dataset.splits
    assert "val" in split.dataset.splits
    if labels == 1:
        assert [r.id for r in split.dataset.records] == [r.id for r in data.records]


def test_H1_random_label_canary() -> None:
    """Labels drawn per patient carry nothing. A nearest neighbour that knows patients by their look must score chance
    on our test part, and does score well on a part split by image: the trap is real and the splitter avoids it."""
    rng = np.random.default_rng(0)
    records = [
        Record(f"{p}_{i}", f"{p}_{i}", labels=(int(label),), patient=f"p{p}")
        for p, label in enumerate(rng.integers(0, 2, 400))
        for i in range(4)
    ]
    looks = rng.normal(size=(400, 8)).repeat(4, axis=0) + 0.1 * rng.normal(size=(1600, 8))
    labels = np.array([r.labels[0] for r in records])

    def accuracy(test: np.ndarray) -> float:
        distance = ((looks[test][:, None] - looks[~test][None]) ** 2).sum(-1)
        return float((labels[~test][distance.argmin(1)] == labels[test]).mean())

    split = make_splits(dataset(records, ("a", "b")), DataConfig(test_fraction=0.25), 0)
    held_out = np.array([r.split == "test" for r in split.dataset.records])
    assert abs(accuracy(held_out) - 0.5) < 0.12
    assert accuracy(rng.random(1600) < 0.25) > 0.95


@settings(max_examples=50, deadline=None)
@given(any_dataset(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_of_the_records_does_not_matter(data: Dataset, seed: int, shuffler: random.Random) -> None:
    def places(given: Dataset) -> dict[str, str | None] | str:
        try:
            split = make_splits(given, DataConfig(test_fraction=0.2), seed)
        except DataError as problem:
            return problem.code
        return {r.id: r.split for r in split.dataset.records}

    mixed = list(data.records)
    shuffler.shuffle(mixed)
    assert places(data) == places(data.with_records(mixed))


def test_the_split_is_the_same_on_every_platform() -> None:
    split = make_splits(dataset(patients(40), ("a", "b")), DataConfig(test_fraction=0.2, split_seed=7), 7)
    assert split.hash == "0c8c41de4f37e99a89c454e6b438c040b40eeca9bcc1a554e4f5210d4fbe099e"


def test_seed_and_hash() -> None:
    data = dataset(patients(200), ("a", "b"))
    first = make_splits(data, DataConfig(), 0)
    assert make_splits(data, DataConfig(), 0).hash == first.hash
    assert make_splits(data, DataConfig(), 1).hash != first.hash


def test_D133_a_drawn_test_part_is_the_same_for_every_seed_of_training() -> None:
    data = dataset(patients(200), ("a", "b"))

    def ids(part: str, seed: int, split_seed: int = 0) -> set[str]:
        made = make_splits(data, DataConfig(test_fraction=0.2, split_seed=split_seed), seed)
        return {r.id for r in made.dataset.select(part).records}

    assert ids("test", 0) == ids("test", 1) == ids("test", 2) != ids("test", 0, split_seed=1)
    assert ids("val", 0) != ids("val", 1)


def test_a_test_part_of_the_source_leaves_nothing_to_the_seed_of_the_test_part() -> None:
    data = dataset(patients(60) + patients(20, 1, "test", 700), ("a", "b"))
    before, after = (make_splits(data, DataConfig(test_fraction=0.2, split_seed=s), 3) for s in (0, 9))
    assert before == after
    assert before.hash == "3f31fe14713e6de2ae6ba2c4f22c00d64e530308f4c4e5cfd095affe5a5c8206"


def test_a_tenth_of_the_patients_of_every_class_and_site() -> None:
    data = dataset(patients(400, images=3, sites=4), ("a", "b"))
    split = make_splits(data, DataConfig(), 0)
    assert split.as_dict()["patients"] == {"train": 360, "val": 40, "test": 0}
    val = split.dataset.select("val").records
    assert [sum(r.labels == (k,) for r in val) for k in (0, 1)] == [60, 60]
    assert all(sum(r.site == f"s{s}" for r in val) == 30 for s in range(4))
    assert "40 of 400, 120 images" in split.notices[0]


def test_a_new_patient_moves_hardly_anybody() -> None:
    before = make_splits(dataset(patients(300), ("a", "b")), DataConfig(), 0)
    after = make_splits(dataset(patients(301), ("a", "b")), DataConfig(), 0)
    place = {r.id: r.split for r in after.dataset.records}
    assert sum(place[r.id] != r.split for r in before.dataset.records) <= 6


def test_D124_sixteen_official_validation_images_are_merged_and_a_tenth_carved_out() -> None:
    data = dataset(patients(600) + patients(16, 1, "val", 600) + patients(50, 1, "test", 700), ("NORMAL", "PNEUMONIA"))
    split = make_splits(data, DataConfig(), 0)
    merged, carved = split.notices
    assert "holds 16 images, 8 of class NORMAL, fewer than 50" in merged
    assert "merged" in merged
    assert carved.startswith("10 percent of the training patients were set aside for validation: ")
    assert len(split.dataset.select("test")) == 50
    assert all(len(places) == 1 for places in by_patient(split).values())
    assert len(split.dataset.select("train")) + len(split.dataset.select("val")) == 1216
    assert len(split.dataset.select("val")) > 100


def test_a_validation_part_that_is_large_enough_stands() -> None:
    data = dataset(patients(100) + patients(120, 1, "val", 200), ("a", "b"))
    split = make_splits(data, DataConfig(), 0)
    assert split.notices == ()
    assert [r.split for r in split.dataset.records] == [r.split for r in data.records]


def test_a_small_validation_part_is_kept_where_carving_gives_no_more() -> None:
    split = make_splits(dataset(patients(50) + patients(40, 1, "val", 200), ("a", "b")), DataConfig(), 0)
    assert len(split.dataset.select("val")) == 40
    assert "it is kept" in split.notices[0]


def test_patients_of_a_fixed_test_part_are_never_carved_into_validation() -> None:
    shared = [replace(r, id=f"again/{r.id}", split="test") for r in patients(30)]
    split = make_splits(dataset(patients(60) + shared, ("a", "b")), DataConfig(val_fraction=0.5), 0)
    in_test = {r.patient for r in shared}
    assert not any(r.patient in in_test for r in split.dataset.select("val").records)
    assert len(split.dataset.select("test")) == 60


def test_images_without_patients_count_one_by_one_and_the_notice_says_so() -> None:
    records = [Record(f"{i}", f"{i}", labels=(i % 2,)) for i in range(100)]
    split = make_splits(dataset(records, ("a", "b")), DataConfig(), 0)
    assert len(split.dataset.select("val")) == 10
    assert "as no patients are known" in split.notices[0]


def test_label_fraction_takes_patients_whole_and_smaller_shares_are_nested() -> None:
    data = dataset(patients(200, images=3), ("a", "b"))
    kept = {}
    for fraction in (0.05, 0.1, 0.5, 1.0):
        split = make_splits(data, DataConfig(label_fraction=fraction), 0)
        kept[fraction] = {r.id for r in split.dataset.select("train").records}
        count = len({r.patient for r in split.dataset.select("train").records})
        assert count == pytest.approx(180 * fraction, abs=1)
        assert len(kept[fraction]) == 3 * count
        assert len(split.dataset.select("val")) == 60
    assert kept[0.05] < kept[0.1] < kept[0.5] < kept[1.0]


def test_a_rare_label_of_many_reaches_validation() -> None:
    records = [
        Record(f"{i}", f"{i}", labels=(0, 2) if i < 6 else ((0,) if i % 2 else ()), patient=f"p{i}") for i in range(200)
    ]
    split = make_splits(dataset(records, multi_label=True), DataConfig(), 0)
    assert sum(2 in r.labels for r in split.dataset.select("val").records) == 1
    assert split.as_dict()["classes"]["train"]["TB"] == 5


def test_D115_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match=r"D115.*no training images"):
        make_splits(dataset(patients(5, split="test")), DataConfig(), 0)


def test_D115_one_patient_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"D115.*too few"):
        make_splits(dataset(patients(1, 5)), DataConfig(), 0)


def test_no_validation_when_none_is_wanted() -> None:
    split = make_splits(dataset(patients(10)), DataConfig(val_fraction=0), 0)
    assert split.dataset.splits == ("train",)


def test_real_chest_xray_splits_by_patient(real_data: Path) -> None:
    from medloom.data.sources import open_dataset

    config = DataConfig()
    split = make_splits(open_dataset(real_data / "chest_xray", config), config, 0)
    counts = split.as_dict()
    assert counts["images"]["train"] + counts["images"]["val"] == 1341 + 3875
    assert counts["classes"]["test"] == {"NORMAL": 234, "PNEUMONIA": 390}
    assert min(counts["classes"]["val"].values()) >= 100
    assert all(len(places) == 1 for places in by_patient(split).values())
