"""Losses agree with torch's own, and their pieces sum to the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.training.losses import make_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 3, generator=GENERATOR)
LABELS = np.array([0, 1, 2, 0, 0, 1, 2, 2, 0, 1, 0, 0])
MANY = (torch.rand(12, 3, generator=GENERATOR) > 0.6).float().numpy()
WEIGHTS = np.array([1.0, 3.0, 0.5], dtype=np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs_weighted_mean(smoothing: float, weights: np.ndarray | None) -> None:
    loss = make_loss(multi_label=False, class_weights=weights, label_smoothing=smoothing)
    ours = loss.total(LOGITS, torch.from_numpy(LABELS)) / loss.weight(LABELS)
    w = None if weights is None else torch.from_numpy(weights)
    theirs = F.cross_entropy(LOGITS, torch.from_numpy(LABELS), weight=w, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_binary_cross_entropy_is_torchs_mean_with_positive_weights() -> None:
    loss = make_loss(multi_label=True, class_weights=WEIGHTS)
    ours = loss.total(LOGITS, torch.from_numpy(MANY)) / loss.weight(MANY)
    theirs = F.binary_cross_entropy_with_logits(LOGITS, torch.from_numpy(MANY), pos_weight=torch.from_numpy(WEIGHTS))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("many", [False, True])
def test_focal_with_gamma_zero_is_the_plain_loss(many: bool) -> None:
    target = torch.from_numpy(MANY if many else LABELS)
    focal, plain = (make_loss(multi_label=many, focal_gamma=gamma) for gamma in (0.0, None))
    torch.testing.assert_close(focal.total(LOGITS, target), plain.total(LOGITS, target))


def test_focal_is_its_formula() -> None:
    logits, target = torch.tensor([[0.0, 2.0]]), torch.tensor([1])
    p = torch.sigmoid(torch.tensor(2.0))
    ours = make_loss(multi_label=False, focal_gamma=2.0).total(logits, target)
    torch.testing.assert_close(ours, -((1 - p) ** 2) * p.log())


def test_focal_gradient_is_finite_where_the_answer_is_certain() -> None:
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    make_loss(multi_label=False, focal_gamma=0.5).total(logits, torch.tensor([1, 1])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 11), many=st.booleans(), gamma=st.sampled_from([None, 2.0]))
def test_pieces_sum_to_the_whole(cut: int, many: bool, gamma: float | None) -> None:
    labels = MANY if many else LABELS
    target = torch.from_numpy(labels)
    loss = make_loss(multi_label=many, class_weights=WEIGHTS, focal_gamma=gamma)
    pieces = loss.total(LOGITS[:cut], target[:cut]) + loss.total(LOGITS[cut:], target[cut:])
    torch.testing.assert_close(pieces, loss.total(LOGITS, target))
    assert loss.weight(labels[:cut]) + loss.weight(labels[cut:]) == pytest.approx(loss.weight(labels))


@pytest.mark.parametrize("many", [False, True])
def test_smoothing_lifts_the_loss_of_a_sure_answer(many: bool) -> None:
    logits = torch.tensor([[-9.0, 9.0]])
    target = torch.tensor([[0.0, 1.0]]) if many else torch.tensor([1])
    sharp, smooth = (make_loss(multi_label=many, label_smoothing=s).total(logits, target) for s in (0.0, 0.1))
    assert smooth > sharp + 0.5
