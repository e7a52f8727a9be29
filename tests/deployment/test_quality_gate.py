"""The gate that a smaller model must pass: X604."""

from __future__ import annotations

import numpy as np
import pytest

from medloom.deployment.quality_gate import Limits, quality_gate, require
from medloom.errors import DataError, GateError
from medloom.evaluation.predictions import Predictions, from_logits


def _table(seed: int = 0, noise: float = 0.0, n: int = 600, many: bool = False) -> Predictions:
    truth = np.random.default_rng(1).integers(0, 2, (n, 3) if many else n)
    signal = np.random.default_rng(2).normal(size=truth.shape) + 3.0 * truth
    signal = signal + noise * np.random.default_rng(seed + 10).normal(size=truth.shape)
    logits = signal - 1.5 if many else np.stack([np.zeros(n), signal - 1.5], axis=1)
    ids = [f"i{k}" for k in range(n)]
    classes = ("a", "b", "c") if many else ("no", "yes")
    return from_logits(
        ids, [None] * n, [None] * n, truth, logits, classes, multi_label=many, temperature=1.0, split="val"
    )


def test_a_model_passes_against_itself_in_another_order() -> None:
    table = _table()
    report = quality_gate(table, table.select(np.arange(len(table))[::-1]), thresholds={"yes": 0.4}, resamples=50)
    assert report["passed"]
    assert report["reasons"] == []
    assert (report["auc"]["loss"], report["shift"]["mean"], report["flips"]["count"]) == (0.0, 0.0, 0)
    require(report, "bundle", "Nothing")


@pytest.mark.parametrize("many", [False, True])
def test_X604_lost_auc_moved_probabilities_and_flips_are_refused_and_listed(many: bool) -> None:
    before, after = _table(many=many), _table(many=many, noise=2.0)
    report = quality_gate(before, after, resamples=50)
    assert not report["passed"]
    assert len(report["reasons"]) == 3
    assert report["auc"]["loss"] > 0.005
    assert report["auc"]["difference"]["high"] < 0
    listed = report["flips"]["listed"]
    assert len(listed) == report["flips"]["count"] == round(report["flips"]["share"] * report["flips"]["decisions"])
    assert all(flip["before"] != flip["after"] and flip["id"] in before.ids for flip in listed)
    with pytest.raises(GateError, match="X604") as refusal:
        require(report, "bundle", "Prune less")
    assert refusal.value.exit_code == 6


def test_X604_flips_are_those_at_the_frozen_threshold() -> None:
    before = _table()
    near = np.sort(before.probabilities[:, 1])[300]
    after = _table()
    after.probabilities[:, 1] += 1e-6
    after.probabilities[:, 0] -= 1e-6
    report = quality_gate(before, after, thresholds={"yes": float(near) + 5e-7}, resamples=50)
    assert report["flips"]["count"] == 1
    assert report["flips"]["listed"][0]["before"] == "no"
    assert not report["flips"]["share"] > report["limits"]["flips"]
    assert quality_gate(before, after, thresholds={"yes": 0.999999}, resamples=50)["flips"]["count"] == 0


def test_what_cannot_be_judged_does_not_pass() -> None:
    few = _table().select(np.arange(8))
    report = quality_gate(few, few, resamples=50)
    assert not report["passed"]
    assert "not estimable" in report["reasons"][0]


def test_a_limit_is_reached_but_not_passed() -> None:
    before, after = _table(), _table(noise=0.05)
    report = quality_gate(before, after, resamples=50)
    at = Limits(auc_loss=1.0, mean_shift=report["shift"]["mean"], flips=report["flips"]["share"])
    assert quality_gate(before, after, limits=at, resamples=50)["passed"]


def test_D116_other_images() -> None:
    with pytest.raises(DataError, match="D116"):
        quality_gate(_table(), _table(n=599), resamples=50)
