"""Point metrics: agreement with scikit-learn, exact ties, known values, and no answer where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.evaluation import metrics as m


def _binary(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    y = g.random(n) < 0.4
    return y, np.round(g.normal(size=n) + y, 1), g.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_ranked_metrics_agree_with_scikit_learn_weights_and_ties_included(seed: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    y, s, w = _binary(seed)
    ranking = m.rank(y, s)
    assert m.auc(ranking) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert m.auc(ranking, w) == pytest.approx(roc_auc_score(y, s, sample_weight=w), abs=1e-12)
    assert m.average_precision(ranking, w) == pytest.approx(average_precision_score(y, s, sample_weight=w), abs=1e-12)


def test_many_weightings_at_once_give_what_each_gives_alone() -> None:
    y, s, _ = _binary(1)
    w = np.random.default_rng(2).integers(0, 3, (7, len(y))).astype(float)
    ranking, grid = m.rank(y, s), np.linspace(0, 1, 11)
    for function in (
        lambda x: m.auc(ranking, x),
        lambda x: m.average_precision(ranking, x),
        lambda x: m.roc_curve(ranking, grid, x),
        lambda x: m.precision_recall_curve(ranking, grid, x),
        lambda x: m.confusion(y.astype(int), (s > 0).astype(int), 2, x),
        lambda x: m.brier_skill(y[:, None], (s > 0)[:, None].astype(float), x),
    ):
        assert np.array_equal(function(w), np.stack([function(row) for row in w]), equal_nan=True)


def test_a_weight_of_two_is_the_image_twice() -> None:
    y, s, w = _binary(3)
    times = np.repeat(np.arange(len(y)), w.astype(int))
    assert m.auc(m.rank(y, s), w) == m.auc(m.rank(y[times], s[times]))
    assert m.average_precision(m.rank(y, s), w) == pytest.approx(
        float(m.average_precision(m.rank(y[times], s[times]))), abs=1e-12
    )
    bins = m.equal_mass_bins(s, 5)
    p = 1 / (1 + np.exp(-s))
    assert m.calibration_error(y, p, bins, w) == pytest.approx(
        float(m.calibration_error(y[times], p[times], bins[times])), abs=1e-12
    )


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=40).filter(
        lambda rows: 0 < sum(y for y, _ in rows) < len(rows)
    )
)
@settings(max_examples=100, deadline=None)
def test_auc_counts_pairs_exactly_however_many_scores_tie(rows: list[tuple[bool, int]]) -> None:
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]) / 7
    wins = sum((a > b) + 0.5 * (a == b) for a in s[y] for b in s[~y])
    assert float(m.auc(m.rank(y, s))) == wins / (y.sum() * (~y).sum())
    assert float(m.auc(m.rank(y, -s))) == pytest.approx(1 - wins / (y.sum() * (~y).sum()), abs=1e-15)


def test_auc_of_equal_scores_is_one_half_and_of_perfect_ones_one() -> None:
    y = np.array([0, 1, 1, 0], dtype=bool)
    assert m.auc(m.rank(y, np.ones(4))) == 0.5
    assert m.auc(m.rank(y, y.astype(float))) == 1.0


def test_decisions_agree_with_scikit_learn() -> None:
    from sklearn import metrics as sk

    g = np.random.default_rng(0)
    y, a, w = g.integers(0, 4, 300), g.integers(0, 4, 300), g.random(300)
    ours = m.decisions(m.confusion(y, a, 4, w))
    theirs = sk.precision_recall_fscore_support(y, a, sample_weight=w)
    for name, values in zip(("precision", "recall", "f1"), theirs):
        assert ours[name] == pytest.approx(values, abs=1e-12)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(y, a, sample_weight=w))
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, a, sample_weight=w))
    assert ours["specificity"] == pytest.approx(
        [sk.recall_score(y != k, a != k, sample_weight=w) for k in range(4)], abs=1e-12
    )
    assert np.array_equal(m.confusion(y, a, 4), sk.confusion_matrix(y, a))


def test_brier_and_log_loss_agree_with_scikit_learn() -> None:
    from sklearn import metrics as sk

    g = np.random.default_rng(0)
    y, z = g.integers(0, 3, 200), g.normal(size=(200, 3))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    one_hot = y[:, None] == np.arange(3)
    assert m.mean_over_images(m.log_loss(one_hot, p)) == pytest.approx(sk.log_loss(y, p))
    two = m.mean_over_images(m.squared_error(one_hot[:, :1], p[:, :1]))
    assert two == pytest.approx(sk.brier_score_loss(y == 0, p[:, 0]))
    assert m.mean_over_images(m.squared_error(one_hot, p)) == pytest.approx(((p - one_hot) ** 2).sum(1).mean())


def test_brier_skill_of_the_prevalence_is_nothing() -> None:
    y = np.arange(10)[:, None] < 3
    assert m.brier_skill(y, np.full((10, 1), 0.3)) == pytest.approx(0.0, abs=1e-12)
    assert m.brier_skill(y, y.astype(float)) == 1.0


def test_calibration_error_of_a_known_case() -> None:
    p = np.repeat([0.2, 0.8], 10)
    y = np.concatenate([np.arange(10) < 4, np.arange(10) < 8])
    bins = m.equal_mass_bins(p, 2)
    assert bins.tolist() == [0] * 10 + [1] * 10
    assert m.calibration_error(y, p, bins) == pytest.approx(0.1)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(1, 15))
def test_bins_never_part_equal_scores(scores: list[int], bins: int) -> None:
    s = np.array(scores) / 20
    b = m.equal_mass_bins(s, bins)
    assert b.max() < bins
    assert set(b) == set(range(b.max() + 1))
    assert all(len(set(b[s == v])) == 1 for v in s)
    assert (np.diff(b[np.argsort(s, kind="stable")]) >= 0).all()


def test_equal_mass_bins_hold_equally_many_where_scores_differ() -> None:
    assert np.bincount(m.equal_mass_bins(np.random.default_rng(0).random(300), 15)).tolist() == [20] * 15


def test_curves_pass_through_the_operating_points_of_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    y, s, _ = _binary(4)
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    for x in np.unique(fpr):
        assert m.roc_curve(m.rank(y, s), np.array([x]))[0] == pytest.approx(tpr[fpr == x].max())
    precision, recall, _ = precision_recall_curve(y, s)
    for r in np.unique(recall[recall > 0]):
        # The strictest threshold that reaches a recall is the one with the best precision there.
        assert m.precision_recall_curve(m.rank(y, s), np.array([r]))[0] == pytest.approx(precision[recall == r].max())


def test_roc_curve_encloses_the_auc() -> None:
    y, s, w = _binary(5)
    grid = np.linspace(0, 1, 20001)
    curve = m.roc_curve(m.rank(y, s), grid, w)
    assert np.trapezoid(curve, grid) == pytest.approx(float(m.auc(m.rank(y, s), w)), abs=1e-3)


@pytest.mark.parametrize("truth", [np.zeros(5, dtype=bool), np.ones(5, dtype=bool)])
def test_D123_one_class_has_no_auc_and_raises_no_warning(truth: np.ndarray) -> None:
    assert math.isnan(float(m.auc(m.rank(truth, np.arange(5.0)))))
    mixed = m.rank(np.array([True, False, False]), np.arange(3.0))
    assert np.isnan(m.auc(mixed, np.array([[0.0, 1, 1], [1, 0, 0]]))).all()
    assert np.isnan(m.average_precision(mixed, np.array([0.0, 1, 1])))


def test_precision_of_a_class_that_nobody_was_given_is_undefined_not_zero() -> None:
    d = m.decisions(m.confusion(np.array([0, 1, 1]), np.array([0, 0, 0]), 2))
    assert np.isnan(d["precision"][1])
    assert d["recall"].tolist() == [1.0, 0.0]
    assert d["f1"][1] == 0.0
