"""The table of cases: written and read without losing a bit, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks_fixture import table

from medloom.errors import DataError
from medloom.evaluation.case_table import OUTCOMES, Case, CaseTable, case_table, join_tables, read_cases
from medloom.evaluation.segmentation import MEASURES

NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=8)


def test_a_table_comes_back_bit_by_bit(tmp_path: Path) -> None:
    whole = table()
    whole.write_csv(tmp_path / "cases_test.csv")
    back = read_cases(tmp_path / "cases_test.csv")
    assert (back.ids, back.patients, back.sites) == (whole.ids, whole.patients, whole.sites)
    assert (back.structures, back.split, back.tolerance) == (whole.structures, "test", 1.0)
    assert (back.distance_unit, back.size_unit, back.hash) == ("mm", "ml", whole.hash)
    for name in MEASURES:
        np.testing.assert_array_equal(back.values[name], whole.values[name])
    assert len((tmp_path / "cases_test.csv").read_text().splitlines()) == 1 + 2 * len(whole)


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(NAMES, min_size=1, max_size=4, unique=True), structure=NAMES)
def test_D126_names_of_any_spelling_come_back(
    ids: list[str], structure: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("t") / "cases_val.csv"
    values = {m: np.full((len(ids), 1), 0.1 + 0.2) for m in MEASURES}
    nobody: tuple[None, ...] = (None,) * len(ids)
    CaseTable(tuple(ids), nobody, nobody, (structure,), values, "val").write_csv(path)
    back = read_cases(path)
    assert (back.ids, back.structures, back.split) == (tuple(ids), (structure,), "val")
    assert back.values["dice"][0, 0] == 0.1 + 0.2


def test_outcomes_say_what_was_missed_and_what_invented() -> None:
    whole = table(n=60, missing=0.4)
    assert set(whole.outcomes.ravel()) <= set(OUTCOMES)
    missed = whole.outcomes == "missed"
    assert missed.any()
    assert (whole.values["dice"][missed] == 0).all()
    assert np.isnan(whole.values["dice"][whole.outcomes == "empty"]).all()


def test_a_case_is_the_mean_of_the_structures_that_it_has() -> None:
    whole = table(n=60, missing=0.4)
    dice = whole.values["dice"]
    np.testing.assert_allclose(whole.per_case("dice"), [np.nanmean(row) for row in dice])


@pytest.mark.parametrize("fault", ["columns", "number", "cells", "half a case", "splits", "twice", "nothing", "quotes"])
def test_D116_a_table_that_does_not_fit_is_refused(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "cases_test.csv"
    table(n=4).write_csv(path)
    lines = path.read_text().splitlines()
    changed = {
        "columns": [lines[0].replace("hd95", "hd99"), *lines[1:]],
        "number": [lines[0], lines[1].replace(",mm,ml", "x,mm,ml"), *lines[2:]],
        "cells": [lines[0], lines[1] + ",7", *lines[2:]],
        "half a case": lines[:-1],
        "splits": [*lines[:-2], *(line.replace(",test,", ",val,") for line in lines[-2:])],
        "twice": [*lines, *lines[1:3]],
        "nothing": lines[:1],
        "quotes": [lines[0], '"' + lines[1]],
    }[fault]
    path.write_text("\n".join(changed) + "\n")
    with pytest.raises(DataError, match="D116") as caught:
        read_cases(path)
    assert "\n" not in str(caught.value)


def test_D114_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="D114"):
        read_cases(tmp_path / "cases_test.csv")


def test_D116_millimetres_and_pixels_are_not_averaged() -> None:
    values = {m: np.zeros(1) for m in MEASURES}
    cases = [Case("a", None, None, values), Case("b", None, None, values, "pixels", "pixels")]
    with pytest.raises(DataError, match=r"D116.*mm and some in pixels"):
        case_table(cases, ("lung",))


def test_wrong_shapes_are_a_fault_of_the_caller() -> None:
    whole = table(n=3)
    with pytest.raises(ValueError, match="dice"):
        replace(whole, values={**whole.values, "dice": np.zeros((3, 5))})


def test_folds_join_to_one_table_in_which_every_case_is_tested_once() -> None:
    whole = table(n=10)
    parts = [whole.select(np.arange(10) % 3 == fold) for fold in range(3)]
    joined = join_tables(parts)
    assert sorted(joined.ids) == sorted(whole.ids)
    row = joined.ids.index("case 7")
    np.testing.assert_array_equal(joined.values["dice"][row], whole.values["dice"][7])
    assert joined.patients[row] == "p7"
    with pytest.raises(DataError, match="D116"):
        join_tables([*parts, parts[0]])
    with pytest.raises(DataError, match="D116"):
        join_tables([parts[0], replace(parts[1], tolerance=3.0)])
    with pytest.raises(ValueError, match="no tables"):
        join_tables([])
