"""Whose image: Kermany's names, columns, patterns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloom.data.patients import assign_patients, assign_sites, kermany, kermany_number
from medloom.data.records import Record
from medloom.errors import DataError, UsageError


def records(*paths: str, **covariates: str) -> tuple[Record, ...]:
    return tuple(Record(path, path, covariates=dict(covariates)) for path in paths)


def patients(*paths: str, rule: str = "auto", **covariates: str) -> list[str | None]:
    return [r.patient for r in assign_patients(records(*paths, **covariates), rule)]


@pytest.mark.parametrize(
    ("name", "with_kind", "number"),
    [
        ("train/PNEUMONIA/person12_bacteria_34.jpeg", "person12_bacteria", "person12"),
        ("person1_virus_6.jpeg", "person1_virus", "person1"),
        ("person447_virus_921_1.jpeg", "person447_virus", "person447"),
        ("NORMAL2-IM-0123-0001.jpeg", "NORMAL2-IM-0123", "NORMAL2-IM-0123"),
        ("NORMAL2-IM-1094-0001-0002.jpeg", "NORMAL2-IM-1094", "NORMAL2-IM-1094"),
        ("IM-0115-0001.jpeg", "IM-0115", "IM-0115"),
        ("BACTERIA-1008087-0001.jpeg", "BACTERIA-1008087", "BACTERIA-1008087"),
        ("person12.jpeg", None, None),
        ("00001299_000.png", None, None),
    ],
)
def test_kermany_names(name: str, with_kind: str | None, number: str | None) -> None:
    assert kermany(name) == with_kind
    assert kermany_number(name) == number


@given(st.integers(0, 10**7), st.sampled_from(["bacteria", "virus"]), st.integers(0, 10**5))
def test_kermany_round_trip(person: int, kind: str, image: int) -> None:
    name = f"a/b/person{person}_{kind}_{image}.jpeg"
    assert kermany(name) == f"person{person}_{kind}"
    assert kermany_number(name) == f"person{person}"


def test_auto_takes_kermany_only_when_most_names_have_the_form() -> None:
    assert patients("person1_virus_1.jpeg", "IM-0001-0001.jpeg", "odd.jpeg") == ["person1_virus", "IM-0001", None]
    assert patients("person1_virus_1.jpeg", "b.jpeg", "odd.jpeg") == [None, None, None]


@pytest.mark.parametrize("column", ["patient", "patient_id", "Patient ID", "subject_id"])
def test_auto_takes_a_patient_column_before_names(column: str) -> None:
    found = assign_patients(records("person1_virus_1.jpeg", **{column: "p7", "age": "3"}), "auto")
    assert found[0].patient == "p7"
    assert found[0].covariates == {"age": "3"}


def test_written_rules() -> None:
    assert patients("x/p12_3.png", rule=r"pattern:(p\d+)_") == ["p12"]
    assert patients("x/p12_3.png", "odd.png", rule=r"pattern:p\d+") == ["p12", None]
    assert patients("a.png", rule="column:MRN", mrn="77") == ["77"]
    assert patients("person1_virus_1.jpeg", rule="none", patient_id="7") == [None]
    assert patients("person1_virus_1.jpeg", rule="kermany-number") == ["person1"]


@pytest.mark.parametrize("rule", ["whatever", "column:", "pattern:", "pattern:(", "kermany2"])
def test_bad_rules_are_usage_errors(rule: str) -> None:
    with pytest.raises(UsageError) as caught:
        patients("a.png", rule=rule)
    assert caught.value.code == "U204"


def test_D116_a_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match=re.escape("age")) as caught:
        patients("a.png", rule="column:patient", age="3")
    assert caught.value.code == "D116"


def test_sites() -> None:
    assert assign_sites(records("a.png", site="north"), None)[0].site == "north"
    assert assign_sites(records("a.png", age="3"), None)[0].site is None
    assert assign_sites(records("CHNCXR_0230_0.jpg"), "pattern:^([A-Z]+)_")[0].site == "CHNCXR"
