"""TransUNet's published measure: its rules for empty masks beside ours, and medpy's distance by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medloom.evaluation.segmentation import score_case
from medloom.evaluation.transunet_metric import transunet_dice_hd95

SHAPE = (30, 40)
MASKS = hnp.arrays(np.uint8, st.tuples(*[st.integers(2, 7)] * 3), elements=st.integers(0, 2))


def box(*bounds: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[tuple(slice(*b) for b in bounds)] = 1
    return mask


def ours(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    values = score_case(truth, prediction, 1, None)
    return float(values["dice"][0]), float(values["hd95"][0])


def medpy_hd95(prediction: np.ndarray, truth: np.ndarray) -> float:
    """As medpy makes it: borders by erosion over faces, distances by a transform, both sets pooled."""
    cross = ndimage.generate_binary_structure(truth.ndim, 1)
    borders = [m ^ ndimage.binary_erosion(m, cross) for m in (prediction > 0, truth > 0)]
    sets = [ndimage.distance_transform_edt(~b)[a] for a, b in (borders, borders[::-1])]
    return float(np.percentile(np.hstack(sets), 95))


def test_something_invented_is_perfect_there_and_the_worst_here() -> None:
    nothing, mask = np.zeros(SHAPE, dtype=np.uint8), box((0, 2), (0, 2))
    assert transunet_dice_hd95(mask, nothing) == (1.0, 0.0)
    assert ours(mask, nothing) == (0.0, math.hypot(*SHAPE))


def test_something_missed_has_distance_0_there_and_the_diagonal_here() -> None:
    nothing, mask = np.zeros(SHAPE, dtype=np.uint8), box((0, 2), (0, 2))
    assert transunet_dice_hd95(nothing, mask) == (0.0, 0.0)
    assert ours(nothing, mask) == (0.0, math.hypot(*SHAPE))


def test_a_rightly_empty_answer_is_0_there_and_not_estimable_here() -> None:
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    assert transunet_dice_hd95(nothing, nothing) == (0.0, 0.0)
    assert all(math.isnan(value) for value in ours(nothing, nothing))


def test_both_sets_are_pooled_there_and_the_worse_one_counts_here() -> None:
    # 1 x 20 against 1 x 22: of 42 distances all are 0 but 1 and 2, at places 40 and 41 of 0 to 41. The percentile is
    # at 0.95 * 41 = 38.95, still 0; of our 22 it is at 19.95, between 0 and 1.
    truth, prediction = box((5, 6), (5, 25)), box((5, 6), (5, 27))
    assert transunet_dice_hd95(prediction, truth) == (pytest.approx(40 / 42), 0.0)
    assert ours(prediction, truth) == (pytest.approx(40 / 42), pytest.approx(0.95))


def test_distances_are_in_voxels_and_every_value_above_0_is_the_structure() -> None:
    truth, prediction = 7 * box((4, 5), (4, 5)), 3 * box((4, 5), (16, 17))
    assert transunet_dice_hd95(prediction, truth) == (0.0, 12.0)
    assert (truth.max(), prediction.max()) == (7, 3)  # the published code changes its arguments, this one does not


@settings(max_examples=40, deadline=None)
@given(truth=MASKS, seed=st.integers(0, 99))
def test_the_distance_is_medpys(truth: np.ndarray, seed: int) -> None:
    prediction = np.random.default_rng(seed).permutation(truth.ravel()).reshape(truth.shape)
    if truth.any():
        assert transunet_dice_hd95(prediction, truth)[1] == pytest.approx(medpy_hd95(prediction, truth))


def test_masks_of_unequal_shape_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="masks of"):
        transunet_dice_hd95(np.zeros((4, 4)), np.zeros((4, 5)))
