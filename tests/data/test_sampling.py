"""Which images an epoch shows, and the weights of the classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloom.config import ImbalanceConfig
from medloom.data.sampling import class_weights, epoch_order, repeat_factors
from medloom.errors import UsageError

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=80).map(np.array)


@given(LABELS, st.sampled_from(["none", "class_weights", "focal"]), st.integers(0, 5))
def test_every_image_once(labels: np.ndarray, method: str, epoch: int) -> None:
    assert sorted(epoch_order(labels, method, 0, epoch)) == list(range(len(labels)))


@given(LABELS, st.integers(0, 5))
def test_oversampling_levels_the_classes_and_leaves_no_image_out(labels: np.ndarray, epoch: int) -> None:
    order = epoch_order(labels, "oversample", 1, epoch)
    classes, counts = np.unique(labels[order], return_counts=True)
    assert (counts == np.bincount(labels).max()).all()
    assert set(order) == set(range(len(labels)))
    for k in classes:  # as even as it can be: repetitions of one class differ by at most one
        repeats = np.bincount(order, minlength=len(labels))[labels == k]
        assert repeats.max() - repeats.min() <= 1


@given(LABELS, st.integers(0, 5))
def test_undersampling_levels_the_classes_without_repetition(labels: np.ndarray, epoch: int) -> None:
    order = epoch_order(labels, "undersample", 1, epoch)
    counts = np.unique(labels[order], return_counts=True)[1]
    assert (counts == np.unique(labels, return_counts=True)[1].min()).all()
    assert len(set(order)) == len(order)


def test_undersampling_shows_other_images_each_epoch() -> None:
    labels = np.array([0] * 50 + [1] * 5)
    seen = {int(i) for epoch in range(60) for i in epoch_order(labels, "undersample", 0, epoch)}
    assert seen == set(range(55))


@pytest.mark.parametrize("method", ["none", "oversample", "undersample"])
def test_order_is_a_function_of_seed_and_epoch(method: str) -> None:
    labels = np.array([0] * 30 + [1] * 10)
    first = epoch_order(labels, method, 3, 4)
    assert np.array_equal(first, epoch_order(labels, method, 3, 4))
    assert not np.array_equal(first, epoch_order(labels, method, 3, 5))
    assert not np.array_equal(first, epoch_order(labels, method, 4, 4))


def test_order_is_the_same_on_every_platform() -> None:
    assert epoch_order(np.zeros(10, int), "none", 0, 0).tolist() == [2, 3, 1, 4, 7, 0, 6, 5, 8, 9]


def test_U221_undersampling_needs_one_label() -> None:
    with pytest.raises(UsageError, match="U221"):
        epoch_order(np.eye(3), "undersample", 0, 1)


def test_repeat_factors_are_the_root_of_how_much_rarer_the_rarest_label_is() -> None:
    labels = np.array([[1, 0]] * 9 + [[1, 1]] + [[0, 0]] * 5)  # ten of the first, one of the second
    factors = repeat_factors(labels)
    np.testing.assert_allclose(factors[:9], 1.0)
    assert factors[9] == pytest.approx(np.sqrt(10))
    np.testing.assert_allclose(factors[10:], 1.0)
    assert repeat_factors(np.zeros((4, 3))).tolist() == [1.0] * 4


def test_oversampling_of_many_labels_shows_rare_ones_more_and_is_as_long_every_epoch() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 3)) < (0.4, 0.05, 0.01)).astype(np.float32)
    epochs = [epoch_order(labels, "oversample", 7, e) for e in range(1, 5)]
    assert {len(order) for order in epochs} == {len(epochs[0])}
    assert set(epochs[0].tolist()) == set(range(400))  # nobody is left out
    before, after = labels.mean(axis=0), labels[epochs[0]].mean(axis=0)
    assert after[2] > 3 * before[2]
    assert after[1] > 1.5 * before[1]
    np.testing.assert_array_equal(epochs[1], epoch_order(labels, "oversample", 7, 2))
    assert not np.array_equal(epochs[0], epochs[1])


@given(LABELS)
def test_computed_weights_average_to_one_over_the_images(labels: np.ndarray) -> None:
    weights = class_weights(labels, 4, ImbalanceConfig(), "abcd")
    assert weights.dtype == np.float32
    assert weights[labels].mean() == pytest.approx(1, abs=1e-5)
    totals = [weights[k] * (labels == k).sum() for k in np.unique(labels)]
    assert max(totals) == pytest.approx(min(totals), rel=1e-5)


def test_weights_by_name_as_in_the_paper() -> None:
    config = ImbalanceConfig(weights={"NORMAL": 3.0, "PNEUMONIA": 1.0})
    assert class_weights(np.array([0, 1, 1]), 2, config, ("NORMAL", "PNEUMONIA")).tolist() == [3, 1]


def test_other_methods_weigh_nothing() -> None:
    assert class_weights(np.array([0, 1, 1]), 2, ImbalanceConfig(method="focal"), "ab").tolist() == [1, 1]


def test_weights_of_several_labels_are_negatives_over_positives() -> None:
    y = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=np.float32)
    assert class_weights(y, 3, ImbalanceConfig(), "abc") == pytest.approx([3, 1, 1 / 3])


@pytest.mark.parametrize("weights", [{"NORMAL": 3.0, "FLU": 1.0}, {"NORMAL": 0.0}])
def test_senseless_weights_are_named(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"U222.*imbalance\.weights\."):
        class_weights(np.array([0, 1]), 2, ImbalanceConfig(weights=weights), ("NORMAL", "PNEUMONIA"))
