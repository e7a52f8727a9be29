"""Surface distances and pieces: by hand, by brute force, and beside MONAI where it is right."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medloom.evaluation.segmentation import MEASURES, compare_masks, score_case, units
from medloom.evaluation.surfaces import boundary, hausdorff, match_lesions, surface_distances

SPACINGS = st.lists(st.floats(0.3, 5), min_size=3, max_size=3)
LABELS = hnp.arrays(np.uint8, st.tuples(*[st.integers(3, 8)] * 3), elements=st.integers(0, 2))


def box(shape: tuple[int, ...], *bounds: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*b) for b in bounds)] = 1
    return mask


def ball(side: int, radius: float, centre: tuple[float, ...]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(side)] * len(centre), indexing="ij"), axis=-1)
    return (((grid - np.array(centre)) ** 2).sum(axis=-1) <= radius**2).astype(np.uint8)


def one(truth: np.ndarray, answer: np.ndarray, spacing: tuple[float, ...] | None, tolerance: float = 2.0) -> dict:
    scores = score_case(truth, answer, 1, spacing, tolerance=tolerance)
    return {name: float(v[0]) for name, v in scores.items()}


def test_two_cubes_one_behind_the_other_are_as_far_apart_as_the_ruler_says() -> None:
    truth, answer = box((20, 10, 10), (2, 6), (2, 8), (2, 8)), box((20, 10, 10), (12, 16), (2, 8), (2, 8))
    got = one(truth, answer, (2.0, 1.0, 1.0))
    assert got["hd95"] == pytest.approx(20.0)  # the far face of either is ten voxels of 2 mm from the other's
    assert got["dice"] == got["nsd"] == got["lesion_f1"] == 0.0
    assert (got["lesions_found"], got["lesions_missed"], got["lesions_invented"]) == (0, 1, 1)
    assert got["size_truth"] == pytest.approx(4 * 6 * 6 * 2 / 1000)
    assert got["size_error"] == 0


def test_a_shift_by_one_voxel_is_one_voxel_of_that_axis() -> None:
    truth, answer = box((30, 30), (8, 20), (8, 20)), box((30, 30), (8, 20), (9, 21))
    got = one(truth, answer, (3.0, 0.7))
    assert got["hd95"] == pytest.approx(0.7)
    assert got["dice"] == pytest.approx(11 / 12)
    assert one(truth, answer, (3.0, 0.7), tolerance=0.7)["nsd"] == 1.0
    assert one(truth, answer, (3.0, 0.7), tolerance=0.69)["nsd"] < 0.7
    assert got["size_truth"] == pytest.approx(144 * 2.1 / 100)  # cm2


def test_a_perfect_answer_is_perfect() -> None:
    truth = ball(24, 7, (12, 12, 12))
    got = one(truth, truth, (1.0, 1.0, 2.0))
    assert (got["dice"], got["nsd"], got["lesion_f1"]) == (1, 1, 1)
    assert got["hd95"] == got["assd"] == got["size_error"] == got["size_error_relative"] == 0


def test_the_worse_side_decides_and_is_not_hidden_by_the_longer_one() -> None:
    """A long structure found wholly, and something invented far off: pooled percentiles halve what is seen of it."""
    truth = box((200, 60), (2, 198), (2, 6))
    answer = truth | box((200, 60), (98, 104), (50, 56))
    distances = surface_distances(truth > 0, answer > 0, (1.0, 1.0))
    pooled, ours = np.percentile(np.concatenate(distances), 97), hausdorff(distances, 97)
    assert (pooled, ours) == (0, pytest.approx(np.percentile(distances[1], 97)))
    assert ours > 40
    assert one(truth, answer, None)["hd95"] == hausdorff(distances)


def test_D122_both_empty_is_not_estimable_and_neither_0_nor_1() -> None:
    nothing = np.zeros((6, 7), dtype=np.uint8)
    got = one(nothing, nothing, (1.0, 1.0))
    assert all(math.isnan(got[name]) for name in ("dice", "hd95", "nsd", "assd", "lesion_f1", "size_error_relative"))
    assert got["size_truth"] == got["size_answer"] == got["lesions_missed"] == 0


@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_is_the_worst_that_can_be(missed: bool) -> None:
    """Finding nothing must not look better than finding it wrong."""
    nothing, mask = np.zeros((30, 40), dtype=np.uint8), box((30, 40), (0, 2), (0, 2))
    pair = (mask, nothing) if missed else (nothing, mask)
    got = one(*pair, (2.0, 0.5))
    assert got["dice"] == got["nsd"] == got["lesion_f1"] == 0
    assert got["hd95"] == got["assd"] == pytest.approx(math.hypot(60, 20))
    assert (got["lesions_missed"], got["lesions_invented"]) == ((1, 0) if missed else (0, 1))
    wrong = one(mask, box((30, 40), (28, 30), (38, 40)), (2.0, 0.5))
    assert wrong["hd95"] < got["hd95"]


def test_units_are_named_and_pixels_say_so() -> None:
    assert units(3, (1.0, 1.0, 1.0)) == ("mm", "ml")
    assert units(2, (0.2, 0.2)) == ("mm", "cm²")
    assert units(2, None) == ("pixels", "pixels")
    assert one(box((9, 9), (2, 4), (2, 4)), box((9, 9), (2, 4), (2, 4)), None)["size_truth"] == 4


def test_masks_of_unequal_shape_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="masks of"):
        score_case(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), 1, None)
    with pytest.raises(ValueError, match="axes"):
        score_case(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), 1, (1.0, 1.0, 1.0))


def test_lesions_pair_off_one_to_one() -> None:
    truth = box((20, 30), (2, 6), (2, 6)) | box((20, 30), (2, 6), (20, 24)) | box((20, 30), (14, 18), (2, 6))
    blob = np.ones((20, 30), dtype=bool)
    assert match_lesions(truth > 0, blob) == (0, 3, 1)  # one blob over all finds none: a tenth of the union is asked
    crumbs = box((20, 30), (2, 3), (2, 3)) | box((20, 30), (2, 3), (20, 21))
    assert match_lesions(truth > 0, crumbs > 0) == (0, 3, 2)
    halves = box((20, 30), (2, 6), (2, 4)) | box((20, 30), (2, 6), (5, 6))  # two pieces in the first lesion
    assert match_lesions(truth > 0, halves > 0) == (1, 2, 1)
    assert match_lesions(truth > 0, truth > 0) == (3, 0, 0)


def test_as_many_pairs_as_can_be_are_made() -> None:
    """The first piece overlaps both lesions; if it took the one that the second needs, one would be lost."""
    truth = box((4, 40), (0, 4), (0, 10)) | box((4, 40), (0, 4), (11, 21))
    answer = box((4, 40), (0, 4), (5, 17))
    answer[:, 0:4] = 1
    assert match_lesions(truth > 0, answer > 0) == (2, 0, 0)


@settings(max_examples=40, deadline=None)
@given(truth=LABELS, seed=st.integers(0, 99), spacing=SPACINGS)
def test_distances_are_those_of_brute_force(truth: np.ndarray, seed: int, spacing: list[float]) -> None:
    answer = np.random.default_rng(seed).permutation(truth.ravel()).reshape(truth.shape)
    a, b = truth == 1, answer == 1
    if not a.any() or not b.any():
        return
    p, q = (np.argwhere(boundary(m)) * np.array(spacing) for m in (a, b))
    every = np.sqrt(((p[:, None] - q[None]) ** 2).sum(axis=-1))
    ours = surface_distances(a, b, spacing)
    np.testing.assert_allclose(ours[0], every.min(axis=1))
    np.testing.assert_allclose(ours[1], every.min(axis=0))


@settings(max_examples=40, deadline=None)
@given(truth=LABELS, seed=st.integers(0, 99), spacing=SPACINGS, axis=st.integers(0, 2), data=st.data())
def test_nothing_depends_on_how_the_image_lies(
    truth: np.ndarray, seed: int, spacing: list[float], axis: int, data: st.DataObject
) -> None:
    """Mirrored, turned, or moved inside a larger frame: the same numbers (distances of empty masks apart)."""
    answer = np.random.default_rng(seed).permutation(truth.ravel()).reshape(truth.shape)
    plain = score_case(truth, answer, 2, spacing)
    flipped = score_case(np.flip(truth, axis), np.flip(answer, axis), 2, spacing)
    order = data.draw(st.permutations(range(3)))
    turned = score_case(truth.transpose(order), answer.transpose(order), 2, [spacing[i] for i in order])
    room = data.draw(st.lists(st.integers(0, 4), min_size=6, max_size=6))
    around = [(room[2 * i], room[2 * i + 1]) for i in range(3)]
    framed = score_case(np.pad(truth, around), np.pad(answer, around), 2, spacing)
    scaled = score_case(truth, answer, 2, [2 * s for s in spacing], tolerance=4.0)
    some = [k for k in range(2) if (truth == k + 1).any() == (answer == k + 1).any()]
    for name in MEASURES:
        np.testing.assert_allclose(flipped[name], plain[name], err_msg=name)
        np.testing.assert_allclose(turned[name], plain[name], err_msg=name)
        np.testing.assert_allclose(framed[name][some], plain[name][some], err_msg=name)
        factor = 2 if name in ("hd95", "assd") else 8 if name in ("size_truth", "size_answer", "size_error") else 1
        np.testing.assert_allclose(scaled[name], factor * plain[name], rtol=1e-6, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(truth=LABELS, seed=st.integers(0, 99), spacing=SPACINGS)
def test_truth_and_answer_may_change_places(truth: np.ndarray, seed: int, spacing: list[float]) -> None:
    answer = np.random.default_rng(seed).permutation(truth.ravel()).reshape(truth.shape)
    there, back = (score_case(*pair, 2, spacing) for pair in ((truth, answer), (answer, truth)))
    for name in ("dice", "hd95", "nsd", "assd", "lesion_f1", "lesions_found"):
        np.testing.assert_allclose(there[name], back[name], err_msg=name)
    np.testing.assert_allclose(there["size_error"], -back["size_error"])


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.5, 3.0)])
def test_the_same_as_monai_where_both_masks_hold_something(spacing: tuple[float, float, float]) -> None:
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    truth = ball(28, 8, (13, 14, 12))
    answer = ball(28, 7, (14.5, 13, 13)) | ball(28, 2, (4, 4, 4))
    pair = [torch.from_numpy(np.stack([m == 0, m == 1])[None].astype(np.float32)) for m in (answer, truth)]
    ours = one(truth, answer, spacing, tolerance=1.0)
    options = {"include_background": False, "spacing": spacing}
    assert ours["hd95"] == pytest.approx(
        float(metrics.compute_hausdorff_distance(*pair, percentile=95, **options)), abs=1e-4
    )
    theirs = metrics.compute_average_surface_distance(*pair, symmetric=True, **options)
    assert ours["assd"] == pytest.approx(float(theirs), abs=1e-4)
    theirs = metrics.compute_surface_dice(*pair, class_thresholds=[1.0], **options)
    assert ours["nsd"] == pytest.approx(float(theirs), abs=1e-4)
    assert ours["dice"] == pytest.approx(float(metrics.compute_dice(*pair, include_background=False)), abs=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_where_monai_drops_a_missed_structure_we_count_it() -> None:
    """A model that finds nothing has no distance there, so a mean over cases improves; here it has the diagonal."""
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    truth, answer = ball(16, 4, (8, 8, 8)), np.zeros((16, 16, 16), dtype=np.uint8)
    pair = [torch.from_numpy(np.stack([m == 0, m == 1])[None].astype(np.float32)) for m in (answer, truth)]
    theirs = float(metrics.compute_hausdorff_distance(*pair, include_background=False, percentile=95))
    assert not math.isfinite(theirs)
    assert one(truth, answer, (1.0, 1.0, 1.0))["hd95"] == pytest.approx(16 * math.sqrt(3))


def test_cropping_changes_nothing() -> None:
    truth, answer = ball(30, 6, (9, 15, 20)), ball(30, 6, (11, 15, 19))
    whole = compare_masks(truth > 0, answer > 0, (1.0, 2.0, 0.5), tolerance=1.0, far=99.0)
    ours = one(truth, answer, (1.0, 2.0, 0.5), tolerance=1.0)
    assert all(whole[name] == pytest.approx(ours[name]) for name in ("dice", "hd95", "nsd", "assd", "lesion_f1"))


@pytest.mark.long
def test_the_hippocampus_set_takes_less_than_twenty_seconds() -> None:
    """260 cases of 36 x 50 x 35 with two structures each, one thread."""
    truth = np.zeros((36, 50, 36), dtype=np.uint8)
    truth[6:30, 5:25, 8:26], truth[8:30, 25:46, 8:26] = 1, 2
    answer = np.roll(truth, 1, axis=1)
    started = time.process_time()
    for _ in range(260):
        score_case(truth, answer, 2, (1.0, 1.0, 1.0))
    assert time.process_time() - started < 20
