"""The table of predictions: exact there and back, refused by name when it is not such a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medloom.errors import DataError, ModelError
from medloom.evaluation.predictions import Predictions, from_logits, probabilities, read_csv

Table = Callable[..., Predictions]
HOSTILE = [
    "a b.png",
    "хворий/знімок №1.png",
    "e\u0301.png",
    "line\nbreak.png",
    "-rf",
    '"quoted",x',
    "=1+1",
    "x\r",
    "\udcff",
]


def _same(a: Predictions, b: Predictions) -> None:
    assert (a.ids, a.patients, a.sites, a.classes) == (b.ids, b.patients, b.sites, b.classes)
    assert (a.split, a.multi_label, a.covariates) == (b.split, b.multi_label, b.covariates)
    for name in ("labels", "logits", "probabilities"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert a.hash == b.hash


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_table_comes_back_bit_for_bit(table: Table, tmp_path: Path, multi_label: bool) -> None:
    made = table(40, ("a", "b", "c d"), multi_label=multi_label, covariates={"sex": ["F", ""] * 20}).calibrated(1.37)
    made.write_csv(tmp_path / "p.csv")
    _same(made, read_csv(tmp_path / "p.csv"))
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert header.startswith("id,patient,site,split,label,logit:a,logit:b,logit:c d,probability:a")


def test_D126_ids_of_any_spelling_survive(tmp_path: Path) -> None:
    n = len(HOSTILE)
    made = from_logits(HOSTILE, [None, *HOSTILE[1:]], [None] * n, np.arange(n) % 2, np.ones((n, 2)), ("x|y", 'q"'))
    made.write_csv(tmp_path / "p.csv")
    _same(made, read_csv(tmp_path / "p.csv"))


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            st.floats(allow_nan=False, allow_infinity=False, width=32),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[0],
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_text_and_any_float_survive(tmp_path: Path, rows: list[tuple[str, float]]) -> None:
    logits = np.array([[v, -v] for _, v in rows])
    ids = [name for name, _ in rows]
    made = from_logits(ids, ids, [None] * len(ids), np.zeros(len(ids)), logits, ("no", "yes"))
    made.write_csv(tmp_path / "p.csv")
    _same(made, read_csv(tmp_path / "p.csv"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("logit:NORMAL", "score:NORMAL", 1), "wrong columns"),
        (lambda t: t.replace("patient,", "", 1), "wrong columns"),
        (lambda t: "", "not a table"),
        (lambda t: t + "x,y\n", "2 cells"),
        (lambda t: t.replace(",test,NORMAL,", ",test,NORMAL,oops", 1), "not a number"),
        (lambda t: t.replace(",test,NORMAL,", ",test,HAND,", 1), "unknown label 'HAND'"),
        (lambda t: t.replace(",test,", ",val,", 1), "several splits"),
        (lambda t: t.replace("image1.png", "image0.png", 1), "two rows have this id"),
    ],
)
def test_D116_a_table_that_is_not_one_is_refused(
    table: Table, tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    path = tmp_path / "p.csv"
    table(20).write_csv(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=r"error\[D116\]") as caught:
        read_csv(path, multi_label=False)
    assert words in str(caught.value)


def test_D114_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"error\[D114\].*none\.csv"):
        read_csv(tmp_path / "none.csv")


def test_C508_answers_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"error\[C508\] b: .* 1 of 2"):
        from_logits(["a", "b"], [None] * 2, [None] * 2, np.zeros(2), np.array([[0.0, 1], [np.nan, 0]]), ("x", "y"))


def test_probabilities_are_stable_at_any_size() -> None:
    z = np.array([[1000.0, -1000.0], [-1e5, 1e5], [3.0, 3.0]])
    assert probabilities(z, False).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert probabilities(z, True).tolist() == [[1.0, 0.0], [0.0, 1.0], [1 / (1 + np.exp(-3.0))] * 2]


def test_an_image_without_patient_is_a_patient_of_its_own() -> None:
    made = from_logits(["a", "b", "c"], ["p", None, "p"], [None] * 3, np.zeros(3), np.zeros((3, 2)), ("x", "y"))
    assert len(set(made.groups)) == 2
    assert not made.patients_known


def test_selected_rows_keep_their_values(table: Table) -> None:
    made = table(20, covariates={"sex": ["F", "M"] * 10})
    part = made.select(np.arange(20) % 2 == 0)
    assert part.ids == made.ids[::2]
    assert set(part.covariates["sex"]) == {"F"}
    assert np.array_equal(part.logits, made.logits[::2])
