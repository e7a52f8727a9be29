"""The record table: what is written is what is read, whatever the names hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.data.records import Dataset, Record, read_csv
from medloom.errors import DataError

NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=12)


@given(ids=st.lists(NAMES, min_size=1, max_size=6, unique=True), value=NAMES, patient=st.none() | NAMES)
@settings(deadline=None)
def test_D126_records_of_any_name_survive_the_table(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], value: str, patient: str | None
) -> None:
    path = tmp_path_factory.mktemp("t") / "records.csv"
    records = tuple(
        Record(
            i, i, index=k, labels=(k % 2,), split="train", patient=patient, spacing=(0.1, 2.0), covariates={"a": value}
        )
        for k, i in enumerate(ids)
    )
    dataset = Dataset("d", Path("x"), ("no", "yes"), records)
    dataset.write_csv(path)
    assert read_csv(path, "x").records == records
    assert read_csv(path, "x").hash() == dataset.hash()


def test_D116_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,label\n1,a\n")
    with pytest.raises(DataError, match="D116"):
        read_csv(path, tmp_path)


def test_the_hash_sees_labels_splits_patients_and_pixels_but_not_order() -> None:
    one = Record("1", "1.png", labels=(0,), split="train", patient="a", pixel_hash="x")
    two = Record("2", "2.png", labels=(1,), split="test", patient="b", pixel_hash="y")
    dataset = Dataset("d", Path(), ("no", "yes"), (one, two))
    assert dataset.with_records((two, one)).hash() == dataset.hash()
    for key, value in (("labels", (1,)), ("split", "val"), ("patient", "b"), ("pixel_hash", "z")):
        changed = Record(**{**{f: getattr(one, f) for f in one.__slots__}, key: value})
        assert dataset.with_records((changed, two)).hash() != dataset.hash()
