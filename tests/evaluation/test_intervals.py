"""Intervals: patients as units, coverage, bounds, determinism, speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.special import expit

from medloom.evaluation import metrics as m
from medloom.evaluation.intervals import (
    bootstrap,
    bootstrap_interval,
    entry,
    newcombe_auc,
    not_estimable,
    patient_codes,
    resample_weights,
    wilson,
)


def test_weights_draw_whole_patients_and_as_many_as_there_are() -> None:
    groups = np.array(["a", "b", "b", "c", "c", "c"], dtype=object)
    codes, patients = patient_codes(groups)
    w = np.concatenate(list(resample_weights(codes, patients, 500, 0)))
    assert w.shape == (500, 6)
    assert (w[:, 1] == w[:, 2]).all()
    assert (w[:, 3] == w[:, 5]).all()
    assert (w[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert w.mean() == pytest.approx(1.0, abs=0.05)


def test_the_seed_alone_decides_the_resamples() -> None:
    groups = np.arange(50)
    values = np.random.default_rng(0).random(50)

    def run(seed: int) -> np.ndarray:
        found = bootstrap(lambda w: {"mean": m.mean_over_images(values, w)}, groups, resamples=100, seed=seed)
        return np.asarray(found.samples["mean"])

    assert np.array_equal(run(3), run(3))
    assert not np.array_equal(run(3), run(4))


def test_wilson_of_sixteen_right_of_sixteen_proves_only_eight_in_ten() -> None:
    bounds = wilson(16, 16)
    assert bounds.low == pytest.approx(0.806, abs=5e-4)
    assert bounds.high == 1.0
    low = wilson(0.914 * 624, 624)
    assert (low.low, low.high) == (pytest.approx(0.889, abs=1e-3), pytest.approx(0.934, abs=1e-3))
    assert wilson(0, 0).low is None


def test_newcombe_interval_holds_at_the_bounds() -> None:
    perfect = newcombe_auc(1.0, 20, 20)
    assert perfect.high == 1.0
    assert 0.8 < perfect.low < 0.95
    middle = newcombe_auc(0.8, 50, 50)
    assert 0.69 < middle.low < 0.74
    assert 0.86 < middle.high < 0.89
    worst = newcombe_auc(0.0, 20, 20)
    assert worst.low == 0.0
    assert 0.05 < worst.high < 0.2


def _coverage(images: int, patients: int, runs: int, by_patient: bool) -> float:
    """Share of intervals that hold the AUC of the population, for patients with correlated images."""
    population = np.random.default_rng(99)
    shared = np.sqrt(0.8)

    def draw(g: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y = np.repeat(g.random(count) < 0.4, images)
        s = y * 1.0 + np.repeat(g.normal(size=count), images) * shared
        return y, s + g.normal(size=len(y)) * np.sqrt(1 - shared**2), np.repeat(np.arange(count), images)

    y, s, _ = draw(population, 60_000)
    truth, hits = float(m.auc(m.rank(y, s))), 0
    for run in range(runs):
        y, s, groups = draw(np.random.default_rng((1, run)), patients)
        ranking = m.rank(y, s)
        units = groups if by_patient else np.arange(len(y))
        found = bootstrap(lambda w, r=ranking: {"auc": m.auc(r, w)}, units, resamples=400, seed=run)
        bounds = found.interval("auc")
        assert bounds.low is not None
        assert bounds.high is not None
        hits += bounds.low <= truth <= bounds.high
    return hits / runs


def test_a_95_percent_interval_covers_the_truth_when_patients_are_resampled() -> None:
    assert 0.92 <= _coverage(images=3, patients=100, runs=400, by_patient=True) <= 0.98


def test_resampling_images_instead_would_cover_far_too_rarely() -> None:
    assert _coverage(images=4, patients=80, runs=150, by_patient=False) < 0.85


@pytest.mark.long
def test_coverage_with_more_runs() -> None:
    assert 0.93 <= _coverage(images=3, patients=120, runs=3000, by_patient=True) <= 0.97


def test_bca_and_percentile_agree_on_a_symmetric_statistic_and_bca_shifts_a_skewed_one() -> None:
    g = np.random.default_rng(0)
    samples = g.normal(size=4000)
    even = bootstrap_interval(0.0, samples, g.normal(size=200))
    assert even.method == "bca"
    assert even.low == pytest.approx(-1.96, abs=0.15)
    skewed = bootstrap_interval(0.3, samples, g.normal(size=200))
    assert skewed.low is not None
    assert skewed.low > -1.6


def test_bca_gives_way_to_percentile_where_it_is_not_stable() -> None:
    g = np.random.default_rng(0)
    samples = g.normal(size=4000)
    assert bootstrap_interval(2.0, samples, g.normal(size=200)).method == "percentile"  # far out of centre
    assert bootstrap_interval(0.0, samples, np.zeros(200)).method == "percentile"  # nothing to accelerate by
    assert bootstrap_interval(0.0, samples, np.array([1.0, 2.0])).method == "percentile"  # too few patients


def test_D122_resamples_without_a_class_give_a_reason_instead_of_bounds() -> None:
    y = np.arange(40) < 20
    groups = np.where(y, "one", np.arange(40).astype(str))  # all positives are one patient
    ranking = m.rank(y, np.random.default_rng(0).normal(size=40))
    bounds = bootstrap(lambda w: {"auc": m.auc(ranking, w)}, groups, resamples=200).interval("auc")
    assert bounds.low is None
    assert bounds.note is not None
    assert "too few patients" in bounds.note


def test_entries_never_hold_nan() -> None:
    made = entry(float("nan"), n=5, patients=4, baseline=float("nan"))
    assert made["value"] is None
    assert made["baseline"] is None
    assert made["note"] == "not estimable"
    assert not_estimable("0 positives", n=5, patients=5)["note"] == "not estimable (0 positives)"


def test_two_thousand_resamples_of_the_test_split_take_less_than_a_second() -> None:
    g = np.random.default_rng(0)
    y = g.random(624) < 0.6
    ranking = m.rank(y, g.normal(size=624) + y)
    start = time.process_time()
    bootstrap(lambda w: {"auc": m.auc(ranking, w)}, np.arange(624) // 2, resamples=2000)
    assert time.process_time() - start < 1.0


def test_random_labels_give_an_auc_whose_interval_holds_one_half() -> None:
    """The canary: patients leaking between fit and test would show here as an AUC above one half."""
    hits = 0
    for seed in range(60):
        g = np.random.default_rng(seed)
        label = np.repeat(g.random(120) < 0.5, 3)
        logit = np.repeat(g.normal(size=120), 3) + 0.3 * g.normal(size=360)
        ranking = m.rank(label, expit(logit))
        bounds = bootstrap(
            lambda w, r=ranking: {"auc": m.auc(r, w)}, np.repeat(np.arange(120), 3), resamples=300, seed=seed
        ).interval("auc")
        assert bounds.low is not None
        assert bounds.high is not None
        hits += bounds.low <= 0.5 <= bounds.high
    assert hits >= 53
