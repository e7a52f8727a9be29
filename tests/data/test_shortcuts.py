"""Shortcuts: attributes that tell the label, and those that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scans import balanced, found, made

from medloom.data.shortcuts import auc, cramers_v


def test_D106_mixed_bit_depth_refuses() -> None:
    rows = [{**row, "bits": 16 if row["labels"] == (1,) else 8, "used_bits": 16} for row in balanced()]
    finding = found(made(rows), "D106", "refuse")[0]
    assert "V 1.00" in finding.title


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (lambda y: {"size_bytes": 1000 + 500 * y}, "file size alone predicts a with AUC 1.00"),
        (lambda y: {"width": 64 + y}, "image width"),
        (lambda y: {"file_type": ("png", "jpeg")[y]}, "file type alone predicts a with Cramer's V 1.00"),
        (lambda y: {"quality": 1000 * y}, "JPEG quality"),
        (lambda y: {"site": ("north", "south")[y]}, "site"),
        (lambda y: {"covariates": {"view": ("PA", "AP")[y]}}, "column view"),
        (lambda y: {"mean": 0.2 + 0.1 * y}, "mean brightness"),
    ],
)
def test_D106_attributes_that_tell_the_label_warn(facts: Any, word: str) -> None:
    rows = [{**row, **facts(row["labels"][0])} for row in balanced()]
    assert any(word in f.title for f in found(made(rows), "D106", "warn"))


@pytest.mark.parametrize("seed", range(5))
def test_D106_attributes_without_a_relation_are_silent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {
            **row,
            "width": int(rng.integers(60, 70)),
            "site": f"s{rng.integers(3)}",
            "covariates": {"age": str(rng.integers(90))},
        }
        for row in balanced(n=50)
    ]
    assert found(made(rows), "D106") == []


def test_D106_the_test_split_is_not_looked_at() -> None:
    rows = [
        {**row, "site": ("north", "south")[row["labels"][0]] if row["split"] == "test" else "x"} for row in balanced()
    ]
    assert found(made(rows), "D106") == []


def test_D106_age_is_judged_as_a_number_with_gaps() -> None:
    rows = [
        {**row, "covariates": {"age": str(50 + 10 * row["labels"][0] + k % 9)} if k % 5 else {}}
        for k, row in enumerate(balanced())
    ]
    assert "column age" in found(made(rows), "D106")[0].title


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
@settings(deadline=None)
def test_D106_auc_is_the_share_of_ordered_pairs(pairs: list[tuple[int, bool]]) -> None:
    values, positive = np.array([v for v, _ in pairs], float), np.array([p for _, p in pairs])
    if positive.all() or not positive.any():
        assert np.isnan(auc(values, positive))
        return
    difference = values[positive][:, None] - values[~positive][None]
    assert auc(values, positive) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_D106_cramers_v_by_hand() -> None:
    words, positive = ["x"] * 30 + ["y"] * 70, np.array([True] * 20 + [False] * 10 + [True] * 20 + [False] * 50)
    v, _ = cramers_v(words, positive)
    assert v == pytest.approx((20 * 50 - 10 * 20) / np.sqrt(30 * 70 * 40 * 60))
    assert cramers_v(["x"] * 4, np.array([True, False, True, False])) == (0.0, 0.0)
