"""From a stored case to its answer and back to its file: in pieces or as a whole, the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.data.case_answer import Windows, answer_case, answer_slabs
from medloom.data.case_restore import lead_at, planes, restore_case, restore_slabs, to_pixels
from medloom.data.images import Image
from medloom.data.preprocess import Preprocess
from medloom.data.resample import resample_argmax, resample_slabs
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume

DEEP = VolumePreprocess(spacing=(2.0, 1.5, 3.0), mean=(0.3,), std=(0.25,))


def network(x_BCP: np.ndarray) -> np.ndarray:
    """Three classes that depend on the value and on the place in the window."""
    ramp = np.linspace(-1, 1, x_BCP[0, 0].size, dtype=np.float32).reshape(x_BCP.shape[2:])
    x = x_BCP[:, 0]
    return np.stack([x + ramp, np.roll(x, 1, axis=-1) - ramp, 0.5 - x], axis=1)


def volume(shape: tuple[int, ...], seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).integers(-500, 900, size=shape).astype(np.int16)
    affine = np.array([[0.0, -1.1, 0.1, 5], [0.2, 0.1, 2.3, -7], [-1.7, 0, 0.1, 3], [0, 0, 0, 1]])
    return Volume(array, affine)


@settings(max_examples=60, deadline=None)
@given(
    old=st.lists(st.integers(1, 14), min_size=3, max_size=3),
    new=st.lists(st.integers(1, 14), min_size=3, max_size=3),
    axis=st.integers(0, 2),
    cuts=st.sets(st.integers(1, 13)),
    seed=st.integers(0, 9),
)
def test_pieces_resample_to_the_same_voxels_as_the_whole(
    old: list[int], new: list[int], axis: int, cuts: set[int], seed: int
) -> None:
    logits_KS = np.random.default_rng(seed).normal(size=(3, *old)).astype(np.float32)
    edges = [0, *sorted(c for c in cuts if c < old[axis]), old[axis]]
    slabs = ((a, np.take(logits_KS, range(a, b), axis=axis + 1)) for a, b in itertools.pairwise(edges))
    found = resample_slabs(slabs, axis, tuple(old), tuple(new))
    np.testing.assert_array_equal(found, resample_argmax(logits_KS, tuple(new), smooth=False))


@pytest.mark.parametrize("shape", [(21, 17, 30), (40, 9, 12), (5, 6, 4)])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_volume_answered_in_slabs_is_the_volume_answered_at_once(shape: tuple[int, ...], mirror: bool) -> None:
    case = volume(shape)
    pixels = to_pixels(case, DEEP)
    windows = Windows((8, 12, 10), 0.5, mirror)
    whole = answer_case(pixels, DEEP, windows, 3, network)
    axis, slabs = answer_slabs(pixels, DEEP, windows, 3, network)
    expected = restore_case(whole, DEEP, case)
    assert expected.shape == shape
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(restore_slabs(axis, slabs, DEEP, case), expected)


def test_a_case_smaller_than_a_window_lies_in_its_lowest_value() -> None:
    seen: list[np.ndarray] = []

    def watched(x_BCP: np.ndarray) -> np.ndarray:
        seen.append(x_BCP.copy())
        return network(x_BCP)

    case = volume((4, 3, 5))
    logits = answer_case(to_pixels(case, DEEP), DEEP, Windows((16, 16, 16)), 3, watched)
    lowest = DEEP.normalise(np.zeros(1, dtype=np.uint16))[0]
    assert logits.shape[1:] == DEEP.grid(case)[0]
    assert (seen[0][..., 0] == lowest).all()
    assert (seen[0] != lowest).any()


def test_a_volume_needs_a_window() -> None:
    with pytest.raises(ValueError, match="patch"):
        answer_case(to_pixels(volume((4, 5, 6)), DEEP), DEEP, Windows(), 3, network)


def test_planes_and_lead_are_those_of_the_mask() -> None:
    flat = Preprocess(size=(24, 20), resize="pad", channels="grey", mean=(0.5,), std=(0.25,))
    image = Image(np.random.default_rng(1).integers(0, 255, size=(41, 33)).astype(np.uint8), 8, "L", "array", 0)
    deep = volume((9, 8, 7))
    for grid, case in ((flat, image), (DEEP, deep)):
        windows = Windows(None if case is image else (8, 8, 8))
        logits = answer_case(to_pixels(case, grid), grid, windows, 3, network)
        mask = restore_case(logits, grid, case)
        stacked = np.stack(list(planes(logits, grid, case)))
        assert (stacked.argmax(axis=0) != mask).mean() < 0.01  # resampled axis by axis in another order: ties
        lead = lead_at(logits, grid, case, np.ones(mask.shape, dtype=bool)).reshape(mask.shape)
        assert ((stacked.argmax(axis=0) == mask) | (lead < 1e-5)).all()
        assert lead.min() >= 0
        assert 0.01 < lead.max() <= 1


def test_mirroring_an_image_swaps_left_and_right_only() -> None:
    flat = Preprocess(size=(8, 6), channels="grey", mean=(0.5,), std=(0.25,))
    pixels = np.random.default_rng(2).integers(0, 255, size=(1, 8, 6)).astype(np.uint8)
    x = flat.normalise(np.moveaxis(pixels, 0, -1)[None])
    by_hand = (network(x)[0] + network(np.ascontiguousarray(x[..., ::-1]))[0][..., ::-1]) / 2
    found = answer_case(pixels, flat, Windows(mirror=True), 3, network)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    assert np.abs(found - answer_case(pixels, flat, Windows(), 3, network)).max() > 0.1
