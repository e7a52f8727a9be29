"""The numbers of a leaderboard: those of the single comparisons, corrected, and honest about seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medloom.errors import DataError
from medloom.evaluation.comparison import holm, seeds_difference
from medloom.evaluation.leaderboard import standings
from medloom.evaluation.predictions import Predictions

Table = Callable[..., Predictions]


def _runs(table: Table, n: int = 200, seeds: int = 2) -> dict[str, dict[int, Predictions]]:
    return {
        name: {s: table(n, separation=gap, model_seed=10 * k + s) for s in range(seeds)}
        for k, (name, gap) in enumerate({"weak": 0.4, "middle": 0.8, "strong": 2.5}.items())
    }


def test_rows_and_differences_are_those_of_the_single_comparison(table: Table) -> None:
    runs = _runs(table)
    found = standings(runs, baseline="weak", resamples=300)
    for metric in ("auc", "accuracy", "f1"):
        one = seeds_difference([(runs["strong"][s], runs["weak"][s]) for s in (0, 1)], metric, resamples=300)
        mine = found["differences"]["strong"][metric]
        assert mine["difference"] == one["difference"]
        assert mine["p"] == one["p"]
        assert found["rows"]["strong"][metric]["values"] == one["a"]["values"]
        assert found["rows"]["weak"][metric]["sd"] == one["b"]["sd"]
        several = [found["differences"][m][metric] for m in ("middle", "strong")]
        assert [d["p_holm"] for d in several] == holm([d["p"] for d in several])
    assert "weak" not in found["differences"]
    assert found["differences"]["strong"]["auc"]["p_holm"] < 0.05


def test_the_order_of_images_in_a_table_does_not_matter(table: Table) -> None:
    runs = _runs(table)
    turned = {name: {s: t.select(np.arange(len(t))[::-1]) for s, t in d.items()} for name, d in runs.items()}
    mixed = {"weak": runs["weak"], "strong": turned["strong"]}
    plain = {"weak": runs["weak"], "strong": runs["strong"]}
    assert standings(mixed, baseline="weak", resamples=50) == standings(plain, baseline="weak", resamples=50)


def test_pairs_are_made_of_the_seeds_that_both_have(table: Table) -> None:
    runs = _runs(table, seeds=3)
    runs["strong"] = {2: runs["strong"][2], 7: table(200, model_seed=99)}
    found = standings(runs, baseline="weak", resamples=50)["differences"]
    assert found["strong"]["auc"]["seeds"] == [2]
    assert "1 seed:" in found["strong"]["auc"]["difference"]["note"]
    runs["strong"] = {7: runs["strong"][7]}
    lone = standings(runs, baseline="weak", resamples=50)["differences"]["strong"]["auc"]
    assert lone["p"] is None
    assert "no seed in common" in lone["difference"]["note"]


def test_D116_other_test_images_are_refused(table: Table) -> None:
    runs = {"a": {0: table(100)}, "b": {0: table(101)}}
    with pytest.raises(DataError) as caught:
        standings(runs, resamples=20)
    assert caught.value.code == "D116"


def test_a_perfect_score_has_an_honest_interval(table: Table) -> None:
    found = standings({"a": {0: table(60, separation=60.0)}}, resamples=50)["rows"]["a"]
    assert found["auc"]["mean"] == 1.0
    assert found["auc"]["entry"]["low"] < 1.0
    assert found["accuracy"]["entry"]["low"] < 1.0


def test_D122_a_label_without_positives_is_named_and_the_rest_goes_on(table: Table) -> None:
    labels = (np.random.default_rng(0).random((120, 3)) < 0.4).astype(int)
    labels[:, 1] = 0
    runs = {
        n: {0: table(120, ("A", "B", "C"), labels=labels, multi_label=True, model_seed=k)} for k, n in enumerate("xy")
    }
    found = standings(runs, baseline="x", resamples=50)
    assert found["left_out"] == ["B"]
    assert found["rows"]["y"]["auc"]["mean"] is not None
    assert found["trivial"]["accuracy"] == pytest.approx(1 - labels.mean())
