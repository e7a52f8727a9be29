"""Cases on disk: made once, found again, never stale, and whole or absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medloom.data.case_cache import PLACES, Case, Cases, build_cases
from medloom.data.records import Dataset, Record
from medloom.errors import DataError

SHAPES = {"a": (5, 6, 7), "b": (4, 4, 4), "c": (3, 9, 2)}


def dataset() -> Dataset:
    records = tuple(
        Record(name, f"{name}.nii", mask=f"{name}_mask.nii", pixel_hash=f"h{name}", mask_hash=f"m{name}")
        for name in SHAPES
    )
    return Dataset("d", Path("d"), ("background", "one", "two"), records, True, (), (0, 1, 2))


def case(record: Record) -> Case:
    rng = np.random.default_rng(len(record.id) + ord(record.id))
    shape = SHAPES[record.id]
    labels = rng.integers(0, 2 if record.id == "b" else 3, shape).astype(np.uint8)
    return rng.integers(0, 65536, (1, *shape)).astype(np.uint16), labels


def build(at: Path, data: Dataset | None = None, spacing: float = 1.0) -> Cases:
    return build_cases(dataset() if data is None else data, case, {"spacing": spacing}, at)


def test_what_is_read_is_what_was_made(tmp_path: Path) -> None:
    found = build(tmp_path)
    for position, record in enumerate(dataset().records):
        pixels, labels = case(record)
        np.testing.assert_array_equal(found.pixels[position], pixels)
        np.testing.assert_array_equal(found.labels[position], labels)


def test_places_lie_in_their_structure(tmp_path: Path) -> None:
    found = build(tmp_path)
    assert set(found.places[0]) == {1, 2}
    assert set(found.places[1]) == {1}
    for labels, places in zip(found.labels, found.places):
        for structure, voxels in places.items():
            assert len(voxels) == min(PLACES, int((labels == structure).sum()))
            assert (labels[tuple(voxels.T)] == structure).all()


def test_the_second_time_nothing_is_made(tmp_path: Path) -> None:
    build(tmp_path)

    def never(record: Record) -> Case:
        raise AssertionError(record.id)

    again = build_cases(dataset(), never, {"spacing": 1.0}, tmp_path)
    np.testing.assert_array_equal(again.pixels[2], case(dataset().records[2])[0])


def test_another_mask_image_order_or_setting_is_another_folder(tmp_path: Path) -> None:
    data = dataset()
    first, *rest = data.records
    others = [
        data.with_records([replace(first, mask_hash="changed"), *rest]),
        data.with_records([replace(first, pixel_hash="changed"), *rest]),
        data.with_records([*rest, first]),
        replace(data, label_values=(0, 2, 1)),
    ]
    keys = {build(tmp_path).key, build(tmp_path, spacing=2.0).key, *(build(tmp_path, other).key for other in others)}
    assert len(keys) == 6


def test_the_spacing_decides_of_volumes_and_only_measures_pictures(tmp_path: Path) -> None:
    for suffix, folders in ((".nii", 2), (".png", 1)):
        plain = [replace(r, mask=f"{r.id}{suffix}") for r in dataset().records]
        spaced = [replace(r, spacing=(0.5, 0.25, 1.0)[: 3 if folders == 2 else 2]) for r in plain]
        keys = {build(tmp_path, dataset().with_records(records)).key for records in (plain, spaced)}
        assert len(keys) == folders


def test_a_folder_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    build(tmp_path)
    (folder,) = tmp_path.glob("cases-*")
    whole = (folder / "pixels").read_bytes()
    (folder / "pixels").write_bytes(whole[:-10])
    build(tmp_path)
    assert (folder / "pixels").read_bytes() == whole


def test_a_case_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    def broken(record: Record) -> Case:
        if record.id == "c":
            raise DataError("N304", record.id, "it ends early", "Copy it again")
        return case(record)

    with pytest.raises(DataError, match="N304"):
        build_cases(dataset(), broken, {}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_D115_no_cases(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="D115"):
        build(tmp_path, dataset().with_records(()))
