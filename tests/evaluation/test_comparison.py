"""Paired differences: the same patients, DeLong as a check, many seeds, refusal of unlike tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medloom.errors import DataError
from medloom.evaluation.comparison import METRICS, bootstrap_p, delong, holm, paired_difference, seeds_difference
from medloom.evaluation.predictions import Predictions

Table = Callable[..., Predictions]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["binary", "classes", "labels"])
def test_a_model_does_not_differ_from_itself_and_the_sign_is_a_minus_b(table: Table, metric: str, kind: str) -> None:
    names = ("a", "b") if kind == "binary" else ("a", "b", "c")
    multi = kind == "labels"
    good = table(240, names, multi_label=multi, separation=2.5)
    poor = table(240, names, multi_label=multi, separation=0.4, model_seed=1)
    same = paired_difference(good, good, metric, resamples=200)
    assert (same["difference"]["value"], same["difference"]["low"], same["difference"]["high"]) == (0.0, 0.0, 0.0)
    assert same["p"] == 1.0
    found = paired_difference(good, poor, metric, resamples=200)
    sign = -1 if metric in ("brier", "log_loss") else 1
    assert sign * found["difference"]["value"] > 0
    assert found["difference"]["value"] == pytest.approx(found["a"] - found["b"])
    assert found["p"] == pytest.approx(2 / 201)
    assert paired_difference(poor, good, metric, resamples=200)["difference"]["value"] == pytest.approx(
        -found["difference"]["value"]
    )


def test_rows_are_matched_by_id(table: Table) -> None:
    a, b = table(200), table(200, model_seed=1)
    shuffled = b.select(np.random.default_rng(0).permutation(200))
    assert paired_difference(a, shuffled, resamples=100) == paired_difference(a, b, resamples=100)


def test_pairing_is_sharper_than_two_separate_intervals(table: Table) -> None:
    a, b = table(400), table(400, model_seed=1)
    d = paired_difference(a, b, resamples=500)["difference"]
    from medloom.evaluation import metrics as m
    from medloom.evaluation.intervals import bootstrap

    widths = []
    for p in (a, b):
        ranking = m.rank(p.positives[:, 1], p.probabilities[:, 1])
        i = bootstrap(lambda w, r=ranking: {"auc": m.auc(r, w)}, p.groups, resamples=500).interval("auc")
        assert i.low is not None
        assert i.high is not None
        widths.append(i.high - i.low)
    assert d["high"] - d["low"] < 0.9 * float(np.hypot(*widths))


def test_D116_unlike_tables_are_refused(table: Table) -> None:
    a = table(60)
    with pytest.raises(DataError, match=r"D116.*different images \(60 and 50, 10 not shared\)"):
        paired_difference(a, table(50))
    with pytest.raises(DataError, match="different classes"):
        paired_difference(a, table(60, ("x", "y")))
    with pytest.raises(DataError, match="different labels"):
        paired_difference(a, table(60, labels=1 - a.labels))


def test_delong_agrees_with_the_bootstrap_when_every_patient_has_one_image(table: Table) -> None:
    a = table(500, per_patient=1, separation=1.6)
    b = table(500, per_patient=1, separation=1.2, model_seed=1)
    found = paired_difference(a, b, resamples=2000)
    check = found["delong"]
    assert check["difference"] == pytest.approx(found["difference"]["value"])
    assert check["low"] == pytest.approx(found["difference"]["low"], abs=0.006)
    assert check["high"] == pytest.approx(found["difference"]["high"], abs=0.006)
    assert check["p"] == pytest.approx(found["p"], abs=0.03)
    assert paired_difference(table(200), table(200, model_seed=1), resamples=50)["delong"] is None


def test_delong_variance_is_that_of_the_definition() -> None:
    g = np.random.default_rng(0)
    y = np.arange(30) < 12
    a, b = np.round(g.normal(size=30) + y, 1), np.round(g.normal(size=30) + y, 1)

    def kernel(s: np.ndarray) -> np.ndarray:
        x, z = s[y][:, None], s[~y][None, :]
        return (x > z) + 0.5 * (x == z)

    gap = kernel(a) - kernel(b)
    error = np.sqrt(gap.mean(1).var(ddof=1) / 12 + gap.mean(0).var(ddof=1) / 18)
    found = delong(y, a, b)
    assert found["difference"] == pytest.approx(gap.mean())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.959964 * error)


def test_p_values_of_equal_models_are_spread_evenly(table: Table) -> None:
    """Two models of equal skill are called different about once in twenty times."""
    p = []
    for seed in range(150):
        a = table(120, separation=1.2, seed=seed)
        b = table(120, separation=1.2, seed=seed, model_seed=1)
        p.append(paired_difference(a, b, "accuracy", resamples=200)["p"])
    assert np.mean(np.array(p) < 0.05) < 0.12
    assert 0.3 < np.mean(p) < 0.75


def test_bootstrap_p_never_claims_more_than_its_resamples() -> None:
    assert bootstrap_p(np.ones(99)) == pytest.approx(0.02)
    assert bootstrap_p(np.concatenate([np.ones(50), -np.ones(50)])) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_seeds_widen_the_interval_by_their_spread(table: Table) -> None:
    def pairs(spread: float) -> list[tuple[Predictions, Predictions]]:
        return [
            (table(300, separation=2.0 + spread * (s - 1), model_seed=s), table(300, separation=1.2, model_seed=10 + s))
            for s in range(3)
        ]

    calm, wild = (seeds_difference(pairs(x), resamples=500) for x in (0.0, 0.7))
    for found in (calm, wild):
        d, only = found["difference"], found["patients_only"]
        assert d["value"] == pytest.approx(np.mean(found["differences"]))
        assert d["high"] - d["low"] >= 0.95 * (only["high"] - only["low"])
        assert "3 seeds" in d["note"]
        assert found["a"]["sd"] == pytest.approx(np.std(found["a"]["values"], ddof=1))

    def width(e: dict[str, float]) -> float:
        return e["high"] - e["low"]

    assert width(wild["difference"]) / width(wild["patients_only"]) > width(calm["difference"]) / width(
        calm["patients_only"]
    )


def test_one_seed_gives_the_paired_difference_without_a_spread(table: Table) -> None:
    a, b = table(300), table(300, model_seed=1)
    one = seeds_difference([(a, b)], resamples=300)
    assert one["a"]["sd"] is None
    assert one["difference"]["value"] == paired_difference(a, b, resamples=300)["difference"]["value"]
    assert "1 seed:" in one["difference"]["note"]


def test_D122_a_split_without_positives_has_no_difference(table: Table) -> None:
    a = table(40, labels=np.zeros(40, dtype=int))
    found = paired_difference(a, a, resamples=50)
    assert found["difference"]["value"] is None
    assert "0 positives" in found["difference"]["note"]


def test_thresholds_of_validation_decide_the_answers(table: Table) -> None:
    a = table(200)
    always = paired_difference(a, a, "accuracy", thresholds=({"PNEUMONIA": 0.0}, None), resamples=100)
    assert always["a"] == pytest.approx((a.labels == 1).mean())
