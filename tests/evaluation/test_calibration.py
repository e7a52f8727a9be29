"""Temperature, reliability, slope and intercept on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from medloom.config import EvaluationConfig
from medloom.evaluation.calibration import (
    default_bins,
    errors_if_calibrated,
    fit_temperature,
    reliability,
    slope_and_intercept,
)
from medloom.evaluation.predictions import from_logits, probabilities
from medloom.evaluation.probability_scores import probability_scores


def _draw(n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are exactly calibrated for the labels drawn from them."""
    g = np.random.default_rng(seed)
    z = 2 * g.normal(size=(n, k))
    return z, (g.random((n, 1)) > np.cumsum(probabilities(z, False), axis=1)).sum(axis=1).clip(max=k - 1)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("k", [2, 5])
def test_temperature_is_found_again_for_classes(true: float, k: int) -> None:
    z, y = _draw(6000, k, 0)
    assert fit_temperature(z * true, y) == pytest.approx(true, rel=0.08)


def test_temperature_is_found_again_for_labels() -> None:
    g = np.random.default_rng(0)
    z = 2 * g.normal(size=(4000, 3))
    y = g.random(z.shape) < expit(z)
    assert fit_temperature(z * 2.5, y, multi_label=True) == pytest.approx(2.5, rel=0.08)


@pytest.mark.parametrize("multi_label", [False, True])
def test_validation_without_an_error_does_not_make_the_model_surer(multi_label: bool) -> None:
    y = np.arange(16) % 2
    labels = np.stack([1 - y, y], axis=1)
    logits = 3.0 * labels - 1.5
    assert fit_temperature(logits, labels if multi_label else y, multi_label) == 1.0


def test_temperature_stays_in_its_range_and_empty_validation_changes_nothing() -> None:
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0)) == 1.0
    assert fit_temperature(np.random.default_rng(0).normal(size=(50, 2)) * 500, np.arange(50) % 2) <= 20.0


def test_slope_of_an_overconfident_model_is_below_one_and_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    g = np.random.default_rng(0)
    z = g.normal(size=3000) * 1.5
    y = g.random(3000) < expit(z)
    found = slope_and_intercept(y, expit(2 * z), np.arange(3000))
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit((2 * z)[:, None], y).coef_[0, 0]
    assert found["slope"]["value"] == pytest.approx(theirs, abs=1e-4)
    assert found["slope"]["low"] < 0.5 < found["slope"]["high"] < 1
    right = slope_and_intercept(y, expit(z), np.arange(3000))
    assert right["slope"]["low"] < 1 < right["slope"]["high"]
    assert right["intercept"]["low"] < 0 < right["intercept"]["high"]


def test_intercept_measures_a_shift_of_log_odds() -> None:
    g = np.random.default_rng(1)
    z = g.normal(size=5000)
    found = slope_and_intercept(g.random(5000) < expit(z), expit(z - 0.8), np.arange(5000))
    assert found["intercept"]["low"] < 0.8 < found["intercept"]["high"]


def test_images_of_one_patient_widen_the_interval_of_the_slope() -> None:
    g = np.random.default_rng(2)
    z = g.normal(size=200)
    y = g.random(200) < expit(z)
    alone = slope_and_intercept(y, expit(z), np.arange(200))["slope"]
    fourfold = slope_and_intercept(np.repeat(y, 4), expit(np.repeat(z, 4)), np.repeat(np.arange(200), 4))["slope"]
    assert fourfold["value"] == pytest.approx(alone["value"])
    assert (fourfold["low"], fourfold["high"]) == (pytest.approx(alone["low"]), pytest.approx(alone["high"]))


@pytest.mark.parametrize(
    ("y", "p", "words"),
    [
        (np.arange(40) < 5, np.linspace(0.1, 0.9, 40), "5 images of the rarer side, 10 needed"),
        (np.arange(40) < 20, np.full(40, 0.5), "all scores are equal"),
        (np.arange(40) < 20, np.where(np.arange(40) < 20, 0.9, 0.1) + np.linspace(0, 0.05, 40), "separate"),
    ],
)
def test_slope_that_cannot_be_estimated_says_why(y: np.ndarray, p: np.ndarray, words: str) -> None:
    found = slope_and_intercept(y, p, np.arange(40))["slope"]
    assert found["value"] is None
    assert words in found["note"]


def test_reliability_counts_every_image_once_and_patients_as_trials() -> None:
    g = np.random.default_rng(0)
    p = g.random(400)
    y = g.random(400) < p
    rows = reliability(y, p, np.arange(400))
    assert len(rows) == default_bins(400) == 15
    assert sum(r["n"] for r in rows) == 400
    assert sum(r["n"] * r["observed"] for r in rows) == pytest.approx(y.sum())
    assert sum(r["low"] <= r["mean_probability"] <= r["high"] for r in rows) >= 12
    clustered = reliability(y, p, np.arange(400) // 4)
    assert all(a["high"] - a["low"] >= b["high"] - b["low"] for a, b in zip(clustered, rows))


@pytest.mark.parametrize(("factor", "truly_wrong"), [(1.0, False), (3.0, True)])
def test_calibration_error_is_told_from_the_noise_of_the_measure(factor: float, truly_wrong: bool) -> None:
    z, y = _draw(1500, 2, 3)
    n = len(y)
    made = from_logits([str(i) for i in range(n)], [None] * n, [None] * n, y, z * factor, ("a", "b"))
    ece = probability_scores(made, EvaluationConfig(resamples=300))["ece"]
    assert (ece["low"] > 0) is truly_wrong
    assert ece["low"] <= ece["value"] <= ece["high"]
    assert 0 < ece["baseline"] < 0.05
    assert "15 bins of equal mass" in ece["note"]


def test_errors_if_calibrated_shrink_with_the_sample() -> None:
    small, large = (errors_if_calibrated(np.random.default_rng(0).random(n), draws=50).mean() for n in (300, 30_000))
    assert small > 5 * large > 0


def test_scores_that_hardly_vary_have_a_steep_slope_and_not_no_slope() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=300)
    positive = rng.random(300) < 1 / (1 + np.exp(-odds))
    groups = np.array([str(k) for k in range(300)])
    plain, flat = (
        slope_and_intercept(positive, 1 / (1 + np.exp(-odds * scale)), groups)["slope"] for scale in (1.0, 0.002)
    )
    assert flat["value"] == pytest.approx(plain["value"] / 0.002, rel=1e-6)
    assert flat["low"] == pytest.approx(plain["low"] / 0.002, rel=1e-6)
