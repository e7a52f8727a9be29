"""Losses of masks: their formulas, MONAI's where it means the same, and pieces that sum to the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medloom.config_segmentation import SegmentationConfig
from medloom.training.mask_losses import _dilated, _eroded, signed_distances, soft_skeleton
from medloom.training.segmentation_losses import (
    coarser,
    deep_supervision,
    deep_total,
    deep_weights,
    segmentation_loss,
)

NAMES = get_args(SegmentationConfig.model_fields["loss"].annotation)
SHAPES = [(4, 3, 12, 10), (2, 3, 8, 6, 10)]


def batch(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, and a target with a block of every class in every image."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    target[:, 1:4, 1:4], target[:, 5:7, 2:6] = 1, 2
    return 2 * torch.randn(shape, generator=generator), target


def sure(target: torch.Tensor, classes: int, by: float = 30.0) -> torch.Tensor:
    return by * nn.functional.one_hot(target, classes).movedim(-1, 1).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_dice_and_cross_entropy_are_monais(
    shape: tuple[int, ...], squared: bool, background: bool, together: bool
) -> None:
    losses = pytest.importorskip("monai.losses")
    logits, target = batch(shape)
    config = SegmentationConfig(squared=squared, include_background=background, batch_dice=together, other_weight=0.7)
    ours = segmentation_loss(config, 3)
    theirs = losses.DiceCELoss(
        include_background=background, to_onehot_y=True, softmax=True, squared_pred=squared, batch=together,
        smooth_nr=1e-5, smooth_dr=1e-5, lambda_ce=0.7,
    )  # fmt: skip
    torch.testing.assert_close(
        ours.total(logits, target) / ours.weight(target.numpy()), theirs(logits, target[:, None]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_tversky_and_generalised_dice_are_monais(shape: tuple[int, ...]) -> None:
    losses = pytest.importorskip("monai.losses")
    logits, target = batch(shape)
    options = {"include_background": False, "to_onehot_y": True, "softmax": True}
    tversky = segmentation_loss(SegmentationConfig(loss="tversky", tversky=(0.2, 0.8)), 3)
    theirs = losses.TverskyLoss(alpha=0.2, beta=0.8, smooth_nr=1e-5, smooth_dr=1e-5, **options)
    torch.testing.assert_close(tversky.total(logits, target) / shape[0], theirs(logits, target[:, None]))
    general = segmentation_loss(SegmentationConfig(loss="generalized_dice"), 3)
    theirs = losses.GeneralizedDiceLoss(smooth_nr=1e-9, smooth_dr=1e-9, **options)
    torch.testing.assert_close(
        general.total(logits, target) / shape[0], theirs(logits, target[:, None]), rtol=1e-4, atol=1e-5
    )


def test_cross_entropy_is_torchs_mean() -> None:
    logits, target = batch(SHAPES[0])
    loss = segmentation_loss(SegmentationConfig(loss="cross_entropy"), 3)
    torch.testing.assert_close(loss.total(logits, target) / 4, nn.functional.cross_entropy(logits, target))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_answer_costs_nothing_and_a_wrong_one_something(name: str, shape: tuple[int, ...]) -> None:
    _, target = batch(shape)
    loss = segmentation_loss(SegmentationConfig(loss=name), 3)
    perfect, wrong = (loss.total(sure(t, 3), target) / shape[0] for t in (target, target.roll(2, dims=1)))
    assert abs(float(perfect)) < 2e-4
    assert wrong > 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("empty", ["one structure", "all", "answer certain"])
def test_gradients_are_finite_where_structures_are_missing(name: str, shape: tuple[int, ...], empty: str) -> None:
    logits, target = batch(shape)
    if empty == "one structure":
        target[0][target[0] == 2] = 0
    elif empty == "all":
        target[:] = 0
    else:
        logits = sure(target.roll(1, dims=1), 3, by=200.0)
    logits.requires_grad_()
    segmentation_loss(SegmentationConfig(loss=name), 3).total(logits, target).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_steps_downhill_arrive(name: str) -> None:
    """The gradient points where it should: plain descent on the logits reaches the target."""
    _, target = batch((1, 3, 12, 10))
    logits = (0.1 * torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))).requires_grad_()
    loss = segmentation_loss(SegmentationConfig(loss=name), 3)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss.total(logits, target).backward()
        optimizer.step()
    for k in (1, 2):
        answer = logits.argmax(1) == k
        assert 2 * (answer & (target == k)).sum() / (answer.sum() + (target == k).sum()) > 0.85, k


def test_an_invented_structure_costs_a_whole_dice() -> None:
    target = torch.zeros(1, 10, 10, dtype=torch.long)
    invented = target.clone()
    invented[:, 2:5, 2:5] = 1
    loss = segmentation_loss(SegmentationConfig(loss="dice"), 2)
    assert loss.total(sure(invented, 2), target) == pytest.approx(1.0, abs=1e-4)
    assert loss.total(sure(target, 2), target) == pytest.approx(0.0, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 3), name=st.sampled_from(NAMES))
def test_pieces_sum_to_the_whole(cut: int, name: str) -> None:
    logits, target = batch((4, 3, 12, 10))
    loss = segmentation_loss(SegmentationConfig(loss=name), 3)
    pieces = loss.total(logits[:cut], target[:cut]) + loss.total(logits[cut:], target[cut:])
    torch.testing.assert_close(pieces, loss.total(logits, target))
    assert loss.weight(target[:cut].numpy()) + loss.weight(target[cut:].numpy()) == 4


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_summed_in_full(name: str) -> None:
    logits, target = batch((2, 3, 40, 40))
    loss, halved = segmentation_loss(SegmentationConfig(loss=name), 3), logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = loss.total(halved, target)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, loss.total(halved.float(), target))


@pytest.mark.parametrize("name", NAMES)
def test_places_that_do_not_count_do_not(name: str) -> None:
    """Whatever is answered there."""
    logits, target = batch((2, 3, 12, 10))
    target[:, 8:] = 255
    other = logits.clone()
    other[:, :, 8:] += 3 * torch.randn(2, 3, 4, 10, generator=torch.Generator().manual_seed(2))
    loss = segmentation_loss(SegmentationConfig(loss=name), 3, ignore=255)
    torch.testing.assert_close(loss.total(logits, target), loss.total(other, target))


def test_the_worst_tenth_is_the_worst_tenth() -> None:
    logits, target = batch((2, 3, 10, 10))
    config = SegmentationConfig(loss="dice_topk", dice_weight=0.0, top=0.1)
    every = nn.functional.cross_entropy(logits, target, reduction="none").flatten(1)
    by_hand = every.sort(dim=1, descending=True).values[:, :10].mean(1).sum()
    torch.testing.assert_close(segmentation_loss(config, 3).total(logits, target), by_hand)


def test_focal_tversky_is_its_formula() -> None:
    logits, target = batch((1, 2, 12, 10))
    target = target.clamp(max=1)
    plain, focal = (
        segmentation_loss(SegmentationConfig(loss=name, focus=0.5), 2).total(logits, target)
        for name in ("tversky", "focal_tversky")
    )
    torch.testing.assert_close(focal, plain**0.5)


def test_signed_distances_are_negative_inside_and_measured_in_diagonals() -> None:
    target = np.zeros((1, 9, 12), dtype=np.int64)
    target[0, 2:7, 3:8] = 1
    distance = signed_distances(target, 3)[0]
    assert (distance[1][target[0] == 1] < 0).all()
    assert (distance[1][target[0] == 0] > 0).all()
    assert distance[1, 4, 11] == pytest.approx(3.5 / 15)
    assert distance[1, 4, 5] == pytest.approx(-2.5 / 15)
    assert not distance[2].any()


def test_a_false_spot_far_away_costs_more_than_one_near_by() -> None:
    target = torch.zeros(1, 32, 32, dtype=torch.long)
    target[:, 4:10, 4:10] = 1
    costs = []
    for at in (11, 28):
        answer = target.clone()
        answer[:, at : at + 2, at : at + 2] = 1
        config = SegmentationConfig(loss="dice_boundary", dice_weight=0.0)
        costs.append(float(segmentation_loss(config, 2).total(sure(answer, 2), target)))
    assert 0 < 3 * costs[0] < costs[1]


def test_a_skeleton_is_thin_and_lies_inside() -> None:
    bar = torch.zeros(1, 1, 15, 30)
    bar[..., 5:10, 3:27] = 1
    line = soft_skeleton(bar)
    assert (line <= bar).all()
    assert line[0, 0, 7, 8:22].min() == 1
    assert line[0, 0, :, 15].sum() == 1


def test_a_broken_vessel_costs_the_centreline_more_than_the_dice() -> None:
    target = torch.zeros(1, 16, 64, dtype=torch.long)
    target[:, 6:9] = 1
    broken = target.clone()
    broken[:, :, 20:40] = 0
    dice, line = (
        segmentation_loss(SegmentationConfig(loss=name, dice_weight=weight), 2).total(sure(broken, 2), target)
        for name, weight in (("dice", 1.0), ("dice_cldice", 0.0))
    )
    assert 0.15 < float(dice) <= float(line) + 1e-3


class Deep(nn.Module):
    """A model as far as deep supervision looks at it."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.deep_heads = nn.ModuleDict({str(s): nn.Identity() for s in strides})


def test_shares_halve_with_every_stride_and_sum_to_one() -> None:
    shares = deep_weights(Deep(16, 4, 8))
    assert list(shares) == ["deep.4", "deep.8", "deep.16"]
    whole = 1 - sum(shares.values())
    assert [whole / s for s in shares.values()] == pytest.approx([2, 4, 8])
    assert deep_weights(nn.Identity()) == deep_weights(Deep()) == {}


@pytest.mark.parametrize("shape", [(2, 3, 32, 16), (1, 3, 16, 32, 16)])
def test_deep_supervision_is_the_weighted_sum_of_its_parts(shape: tuple[int, ...]) -> None:
    logits, target = batch(shape)
    outputs = {"logits": logits}
    for stride in (4, 8):
        outputs[f"deep.{stride}"] = torch.randn(*shape[:2], *(s // stride for s in shape[2:]))
    loss = segmentation_loss(SegmentationConfig(), 3)
    shares = deep_weights(Deep(4, 8))
    by_hand = sum(
        share * loss.total(outputs[name], coarser(target, tuple(outputs[name].shape[2:])))
        for name, share in {"logits": 1 - sum(shares.values()), **shares}.items()
    )
    torch.testing.assert_close(deep_total(loss, outputs, target), by_hand)
    added = deep_supervision(loss, shares)(outputs, SimpleNamespace(target=target))
    torch.testing.assert_close(added + (1 - sum(shares.values())) * loss.total(logits, target), by_hand)
    assert deep_total(loss, {"logits": logits}, target) == pytest.approx(float(loss.total(logits, target)))


def test_coarser_targets_keep_the_share_of_every_structure() -> None:
    generator = np.random.default_rng(0)
    target = torch.from_numpy(np.kron(generator.integers(0, 3, (2, 8, 8)), np.ones((8, 8), dtype=np.int64)))
    small = coarser(target, (16, 16))
    assert small.shape == (2, 16, 16)
    for k in range(3):
        assert (small == k).float().mean() == pytest.approx(float((target == k).float().mean()))
    assert coarser(target, (63, 61)).shape == (2, 63, 61)
    torch.testing.assert_close(coarser(target, (64, 64)), target)


def test_what_does_not_fit_is_a_fault_of_the_caller() -> None:
    logits, target = batch((2, 3, 12, 10))
    with pytest.raises(ValueError, match="4 classes"):
        segmentation_loss(SegmentationConfig(), 4).total(logits, target)
    with pytest.raises(ValueError, match="target"):
        segmentation_loss(SegmentationConfig(), 3).total(logits, target[:, :9])


@pytest.mark.parametrize("shape", [(2, 2, 9, 7), (1, 2, 6, 5, 7), (1, 1, 1, 2), (1, 1, 2, 1, 3)])
def test_thinning_is_pooling(shape: tuple[int, ...]) -> None:
    """The least across faces and the largest of all neighbours, edges included."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    axes = len(shape) - 2
    pool = nn.functional.max_pool2d if axes == 2 else nn.functional.max_pool3d
    faces = [[3 if i == axis else 1 for i in range(axes)] for axis in range(axes)]
    least = torch.stack([-pool(-x, k, stride=1, padding=[n // 2 for n in k]) for k in faces]).amin(0)
    torch.testing.assert_close(_eroded(x), least)
    torch.testing.assert_close(_dilated(x), pool(x, 3, stride=1, padding=1))
