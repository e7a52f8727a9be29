"""The losses of many labels against hand-computed values, and recipes that contradict themselves or the labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.config import Recipe, load_recipe
from medloom.errors import UsageError
from medloom.training.losses import asymmetric_loss, make_loss
from medloom.training.objective import check_objective, objective

LOGITS = torch.randn(9, 4, generator=torch.Generator().manual_seed(3))
TARGET = (torch.rand(9, 4, generator=torch.Generator().manual_seed(4)) > 0.7).float()


def recipe(**parts: Any) -> Recipe:
    return load_recipe({"imbalance": {"method": "none"}, **parts})


def test_focal_with_alpha_is_its_formula_by_hand() -> None:
    # p = 0.8 and 0.3: 0.25 * 0.2^2 * -ln 0.8 for the positive, 0.75 * 0.3^2 * -ln 0.7 for the negative.
    logits = torch.tensor([[math.log(0.8 / 0.2), math.log(0.3 / 0.7)]])
    loss = objective(recipe(loss={"name": "focal"}), multi_label=True)
    total = float(loss.total(logits, torch.tensor([[1.0, 0.0]])))
    assert total == pytest.approx(0.25 * 0.04 * 0.22314355 + 0.75 * 0.09 * 0.35667494, rel=1e-5)
    assert loss.weight(np.array([[1, 0]])) == 2


def test_focal_of_two_exclusive_classes_takes_alpha_as_the_weight_of_the_positive_one() -> None:
    loss = objective(recipe(loss={"name": "focal", "alpha": 0.75, "gamma": 1.0}), multi_label=False)
    logits = torch.tensor([[0.0, math.log(4.0)], [0.0, math.log(4.0)]])  # p of class 1 is 0.8
    expected = 0.75 * 0.2 * -math.log(0.8) + 0.25 * 0.8 * -math.log(0.2)
    assert float(loss.total(logits, torch.tensor([1, 0]))) == pytest.approx(expected, rel=1e-5)


def test_focal_without_alpha_leaves_exclusive_classes_alike() -> None:
    ours = objective(recipe(loss={"name": "focal", "gamma": 0.0}), multi_label=False)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    torch.testing.assert_close(ours.total(LOGITS, labels), make_loss(multi_label=False).total(LOGITS, labels))


def test_asymmetric_is_its_formula_by_hand() -> None:
    # Positive p = 0.8: (0.2)^1 * -ln 0.8. Negative p = 0.3, margin 0.05: q = 0.25, 0.25^4 * -ln 0.75.
    # A negative below the margin, p = 0.04, costs nothing.
    logits = torch.tensor([[math.log(0.8 / 0.2), math.log(0.3 / 0.7), math.log(0.04 / 0.96)]])
    loss = asymmetric_loss(gamma_positive=1.0, gamma_negative=4.0, margin=0.05)
    total = float(loss.total(logits, torch.tensor([[1.0, 0.0, 0.0]])))
    assert total == pytest.approx(0.2 * 0.22314355 + 0.25**4 * 0.28768207, rel=1e-5)


def test_asymmetric_with_equal_exponents_and_no_margin_is_focal() -> None:
    ours = asymmetric_loss(gamma_positive=2.0, gamma_negative=2.0, margin=0.0)
    focal = make_loss(multi_label=True, focal_gamma=2.0)
    torch.testing.assert_close(ours.total(LOGITS, TARGET), focal.total(LOGITS, TARGET))
    plain = asymmetric_loss(gamma_positive=0.0, gamma_negative=0.0, margin=0.0)
    torch.testing.assert_close(plain.total(LOGITS, TARGET), make_loss(multi_label=True).total(LOGITS, TARGET))


@pytest.mark.parametrize("options", [{}, {"gamma_positive": 0.5, "gamma_negative": 0.5, "margin": 0.0}])
def test_asymmetric_gradient_is_right_and_finite_at_the_ends(options: dict[str, float]) -> None:
    loss = asymmetric_loss(**options)
    x = LOGITS[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss.total(z, TARGET[:2].double()), (x,))
    far = torch.tensor([[-80.0, 80.0, -80.0, 80.0]], requires_grad=True)
    loss.total(far, torch.tensor([[1.0, 1.0, 0.0, 0.0]])).backward()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 8), name=st.sampled_from(["bce", "focal", "asymmetric"]))
def test_pieces_of_every_loss_sum_to_the_whole(cut: int, name: str) -> None:
    loss = objective(recipe(loss={"name": name}), multi_label=True)
    pieces = loss.total(LOGITS[:cut], TARGET[:cut]) + loss.total(LOGITS[cut:], TARGET[cut:])
    torch.testing.assert_close(pieces, loss.total(LOGITS, TARGET))
    rows = TARGET.numpy()
    assert loss.weight(rows[:cut]) + loss.weight(rows[cut:]) == loss.weight(rows) == rows.size


def test_auto_is_as_before() -> None:
    weights = np.array([1.0, 3.0, 0.5, 2.0], dtype=np.float32)
    for method, gamma in (("none", None), ("class_weights", None), ("focal", 2.0)):
        w = weights if method == "class_weights" else None
        ours = objective(load_recipe({"imbalance": {"method": method}}), multi_label=True, class_weights=w)
        theirs = make_loss(multi_label=True, class_weights=w, focal_gamma=gamma)
        torch.testing.assert_close(ours.total(LOGITS, TARGET), theirs.total(LOGITS, TARGET))


def test_weighted_bce_weighs_the_positives() -> None:
    asked = load_recipe({"loss": {"name": "weighted_bce"}, "imbalance": {"method": "class_weights"}})
    check_objective(asked, multi_label=True, n_classes=2)
    loss = objective(asked, multi_label=True, class_weights=np.array([3.0, 1.0]))
    assert float(loss.total(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))) == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize(
    ("parts", "multi_label", "classes", "word"),
    [
        ({"loss": {"name": "bce"}}, False, 2, "one each"),
        ({"loss": {"name": "asymmetric"}}, False, 3, "one each"),
        ({"loss": {"name": "cross_entropy"}}, True, 14, "cross_entropy wants one label"),
        ({"loss": {"name": "weighted_bce"}}, True, 14, "no weights"),
        ({"loss": {"name": "weighted_bce"}, "imbalance": {"method": "oversample"}}, True, 14, "no weights"),
        ({"loss": {"name": "bce"}, "imbalance": {"method": "class_weights"}}, True, 14, "contradicts loss.name=bce"),
        ({"loss": {"name": "focal"}, "imbalance": {"method": "class_weights"}}, True, 14, "contradicts"),
        ({"loss": {"name": "bce"}, "imbalance": {"method": "focal"}}, True, 14, "focal contradicts"),
        ({"loss": {"name": "asymmetric"}, "train": {"label_smoothing": 0.1}}, True, 14, "has none"),
        ({"loss": {"name": "focal", "alpha": 0.3}}, False, 3, "3 exclusive classes"),
    ],
)
def test_U223_contradictions_are_refused(parts: Any, multi_label: bool, classes: int, word: str) -> None:
    with pytest.raises(UsageError, match="U223") as caught:
        check_objective(recipe(**parts), multi_label=multi_label, n_classes=classes)
    assert word in caught.value.problem


@pytest.mark.parametrize("name", ["auto", "focal", "bce", "asymmetric"])
@pytest.mark.parametrize("method", ["none", "oversample"])
def test_what_goes_together_passes(name: str, method: str) -> None:
    check_objective(recipe(loss={"name": name}, imbalance={"method": method}), multi_label=True, n_classes=14)


def test_U221_undersampling_of_many_labels_is_refused_before_training() -> None:
    with pytest.raises(UsageError, match="U221"):
        check_objective(recipe(imbalance={"method": "undersample"}), multi_label=True, n_classes=14)
    check_objective(recipe(imbalance={"method": "undersample"}), multi_label=False, n_classes=2)
