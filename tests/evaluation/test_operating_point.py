"""Thresholds: chosen on validation by rule, refused with a reason, frozen by a hash."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.config import EvaluationConfig
from medloom.errors import GateError, ModelError
from medloom.evaluation.operating_point import check_hash, choose_operating_points, choose_threshold, gate, thresholds
from medloom.evaluation.operating_results import operating_results
from medloom.evaluation.predictions import Predictions

Table = Callable[..., Predictions]
QUICK = EvaluationConfig(resamples=200)
CASES = st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(y for y, _ in rows) < len(rows) and len({s for _, s in rows}) > 1
)


@given(CASES, st.sampled_from(["youden", "balanced_accuracy", "accuracy"]))
@settings(max_examples=150, deadline=None)
def test_no_other_cut_serves_the_rule_better_and_it_lies_midway(rows: list[tuple[bool, int]], rule: str) -> None:
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]) / 12
    cut = choose_threshold(y, s, rule)
    assert cut is not None

    def merit(t: float) -> float:
        called = s >= t
        if rule == "accuracy":
            return float((called == y).mean())
        return float(called[y].mean() + (~called[~y]).mean())

    values = np.unique(s)
    assert merit(cut) >= max(merit(t) for t in values[1:]) - 1e-12
    above, below = values[values >= cut].min(), values[values < cut].max()
    assert cut == pytest.approx((above + below) / 2)


@given(CASES, st.floats(0.05, 1.0))
@settings(max_examples=150, deadline=None)
def test_sensitivity_rule_reaches_its_target_with_the_highest_cut(rows: list[tuple[bool, int]], target: float) -> None:
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]) / 12
    cut = choose_threshold(y, s, "sensitivity", target)
    assert cut is not None
    assert (s[y] >= cut).mean() >= target - 1e-9
    higher = s[s >= cut].min()
    assert (s[y] > higher).mean() < target or higher == s.max()


def test_known_cut_and_the_widest_gap_among_equals() -> None:
    y = np.array([0, 0, 0, 1, 1, 1], dtype=bool)
    assert choose_threshold(y, np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), "accuracy") == pytest.approx(0.5)
    # One positive below all: cutting at 0.15 or at 0.65 is right five times of six; the wider gap is the second.
    y = np.array([1, 0, 1], dtype=bool)
    assert choose_threshold(y, np.array([0.1, 0.2, 0.9]), "accuracy") == pytest.approx(0.55)


def test_nineteen_of_twenty_is_ninety_five_percent() -> None:
    y, s = np.ones(40, dtype=bool), np.linspace(0.01, 0.99, 40)
    y[20:] = False
    assert (s[y] >= choose_threshold(y, s, "sensitivity", 0.95)).sum() == 19


def test_neighbouring_floats_are_still_told_apart() -> None:
    a = 0.5
    b = float(np.nextafter(a, 1))
    cut = choose_threshold(np.array([False, True]), np.array([a, b]), "accuracy")
    assert cut is not None
    assert a < cut <= b


@pytest.mark.parametrize(("y", "s"), [([1, 1, 1], [0.1, 0.2, 0.3]), ([0, 0], [0.1, 0.2]), ([0, 1, 1], [0.4, 0.4, 0.4])])
def test_nothing_to_choose_gives_none(y: list[int], s: list[float]) -> None:
    assert choose_threshold(np.array(y, dtype=bool), np.array(s), "youden") is None


def _labels(positives: int, negatives: int) -> np.ndarray:
    return np.array([1] * positives + [0] * negatives)


def test_D124_sixteen_validation_images_choose_no_threshold(table: Table) -> None:
    small = table(16, labels=_labels(8, 8), per_patient=1, split="val")
    with pytest.raises(GateError, match=r"error\[D124\] split val: 8 positives and 8 negatives") as caught:
        choose_operating_points(small, QUICK, timestamp="t")
    assert caught.value.exit_code == 6
    assert "--accept D124" in str(caught.value)


@pytest.mark.parametrize(("positives", "passes"), [(50, True), (49, False)])
def test_D124_the_line_is_at_fifty(table: Table, positives: int, passes: bool) -> None:
    made = table(positives + 60, labels=_labels(positives, 60), per_patient=1)
    if passes:
        assert gate(made) == {}
    else:
        with pytest.raises(GateError):
            gate(made)


def test_D124_accepted_it_goes_on_and_the_acceptance_stands_in_the_file(table: Table) -> None:
    small = table(40, labels=_labels(20, 20), per_patient=1, split="val")
    found = choose_operating_points(small, QUICK, timestamp="t", accept=("D119", "D124"))
    assert found["accepted"] == ["D124"]
    assert 0 < found["points"][0]["threshold"] < 1


def test_D122_below_the_least_number_of_positives_there_is_a_reason_and_no_threshold(table: Table) -> None:
    small = table(100, labels=_labels(9, 91), per_patient=1, split="val")
    point = choose_operating_points(small, QUICK, timestamp="t", accept=("D124",))["points"][0]
    assert point["threshold"] is None
    assert point["reason"] == "no operating point: 9 positives, 10 needed"


def test_D124_a_rare_label_is_refused_alone(table: Table) -> None:
    made = table(300, ("common", "rare"), multi_label=True, per_patient=1)
    labels = made.labels.copy()
    labels[:, 1] = np.arange(300) < 20
    made = table(300, ("common", "rare"), multi_label=True, per_patient=1, labels=labels, split="val")
    found = choose_operating_points(made, QUICK, timestamp="t")
    common, rare = found["points"]
    assert common["threshold"] is not None
    assert rare["threshold"] is None
    assert "20 positives" in rare["reason"]
    assert set(thresholds(found)) == {"common"}
    row = operating_results(made, found, QUICK)[1]
    assert row["metrics"] is None
    assert "D124" in row["reason"]


def test_equal_scores_choose_nothing_and_say_so(table: Table) -> None:
    made = table(200, labels=_labels(100, 100), per_patient=1, separation=0.0)
    flat = Predictions(
        made.ids, made.patients, made.sites, made.labels, made.logits * 0, made.probabilities * 0 + 0.5, made.classes
    )
    assert "all scores are equal" in choose_operating_points(flat, QUICK, timestamp="t")["points"][0]["reason"]


def test_the_file_is_plain_repeatable_and_its_edit_is_noticed(table: Table) -> None:
    made = table(300, split="val")
    first = choose_operating_points(made, QUICK, timestamp="2026-01-01T00:00:00Z", temperature=1.3)
    again = choose_operating_points(made, QUICK, timestamp="2026-01-01T00:00:00Z", temperature=1.3)
    assert first == again
    back = json.loads(json.dumps(first, allow_nan=False))
    check_hash(back)
    back["points"][0]["threshold"] += 0.01
    with pytest.raises(ModelError, match=r"error\[C510\]"):
        check_hash(back)
    point = first["points"][0]
    c = point["counts"]
    assert point["sensitivity"]["value"] == pytest.approx(c["tp"] / (c["tp"] + c["fn"]))
    assert point["sensitivity"]["low"] < point["sensitivity"]["value"] < point["sensitivity"]["high"]


def test_results_on_another_split_use_the_frozen_threshold_and_their_counts_add_up(table: Table) -> None:
    found = choose_operating_points(table(300, split="val"), QUICK, timestamp="t")
    test = table(240, seed=9)
    row = operating_results(test, found, QUICK)[0]
    assert row["threshold"] == found["points"][0]["threshold"]
    c, rates = row["counts"], row["metrics"]
    assert sum(c.values()) == 240
    assert c["tp"] == int(((test.probabilities[:, 1] >= row["threshold"]) & (test.labels == 1)).sum())
    assert rates["sensitivity"]["value"] == pytest.approx(c["tp"] / (c["tp"] + c["fn"]))
    assert rates["specificity"]["value"] == pytest.approx(c["tn"] / (c["tn"] + c["fp"]))
    assert rates["precision"]["value"] == pytest.approx(c["tp"] / (c["tp"] + c["fp"]))
    assert rates["accuracy"]["wilson"][0] < rates["accuracy"]["value"] < rates["accuracy"]["wilson"][1]
    assert row["confusion"] == [[c["tn"], c["fp"]], [c["fn"], c["tp"]]]


def test_predictive_values_follow_bayes(table: Table) -> None:
    found = choose_operating_points(table(300, split="val"), QUICK, timestamp="t")
    row = operating_results(table(240, seed=9), found, QUICK)[0]
    sens, spec = (row["metrics"][n]["value"] for n in ("sensitivity", "specificity"))
    assert [v["prevalence"] for v in row["predictive_values"]] == [0.01, 0.05, 0.20, 0.50]
    for v in row["predictive_values"]:
        p = v["prevalence"]
        assert v["ppv"]["value"] == pytest.approx(sens * p / (sens * p + (1 - spec) * (1 - p)))
        assert v["npv"]["value"] == pytest.approx(spec * (1 - p) / (spec * (1 - p) + (1 - sens) * p))
        assert v["ppv"]["low"] < v["ppv"]["value"] < v["ppv"]["high"]


def test_perfect_rates_keep_bounds_that_a_small_sample_deserves(table: Table) -> None:
    found = choose_operating_points(table(300, split="val"), QUICK, timestamp="t")
    perfect = table(40, separation=60.0, seed=3)
    row = operating_results(perfect, found, QUICK)[0]
    assert row["metrics"]["sensitivity"]["value"] == 1.0
    assert row["metrics"]["sensitivity"]["low"] < 0.9
    assert row["predictive_values"][0]["ppv"]["low"] < 0.2


def test_tuning_on_the_test_images_flatters_and_a_frozen_threshold_does_not(table: Table) -> None:
    """H5: why there is no search in ``operating_results``."""
    tuned, frozen = [], []
    for seed in range(40):
        small = table(120, per_patient=1, separation=0.8, seed=seed)
        fresh = table(2000, per_patient=1, separation=0.8, seed=1000 + seed)
        y, s = small.positives[:, 1], small.probabilities[:, 1]
        cut = choose_threshold(y, s, "youden")
        assert cut is not None
        for kept, p in ((tuned, small), (frozen, fresh)):
            called, truth = p.probabilities[:, 1] >= cut, p.positives[:, 1]
            kept.append(called[truth].mean() - called[~truth].mean())
    assert np.mean(tuned) > np.mean(frozen) + 0.03
