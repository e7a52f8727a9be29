"""Sliding windows: equal to the reference, bounded in memory, and nothing lost at seams and edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.data.sliding import (
    count_windows,
    mirrored,
    slab_axis,
    slide,
    slide_labels,
    slide_slabs,
    window_weights,
)

GENERATOR = np.random.default_rng(0)


def tells_its_place(x_BCP: np.ndarray) -> np.ndarray:
    """Logits that differ with the place in the window, so that weights and positions matter."""
    ramp = np.linspace(-1, 1, x_BCP[0, 0].size, dtype=np.float32).reshape(x_BCP.shape[2:])
    first = x_BCP.sum(axis=1) + ramp
    return np.stack([first, 0.5 * x_BCP[:, 0] - ramp**2, np.tanh(first)], axis=1)


SIZES = [
    ((40, 33), (16, 16)),
    ((16, 16), (16, 16)),
    ((9, 50), (16, 12)),
    ((5, 7), (16, 16)),
    ((31, 17), (8, 11)),
    ((24, 18, 20), (12, 12, 12)),
    ((13, 30, 9), (8, 16, 16)),
    ((6, 5, 4), (8, 8, 8)),
    ((8, 9, 33), (8, 8, 8)),
]


@pytest.mark.parametrize(("shape", "patch"), SIZES)
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.0])
def test_equal_to_monais_inferer(shape: tuple[int, ...], patch: tuple[int, ...], overlap: float) -> None:
    inferers = pytest.importorskip("monai.inferers")
    torch = pytest.importorskip("torch")
    x = GENERATOR.normal(size=(2, *shape)).astype(np.float32)
    theirs = inferers.sliding_window_inference(
        torch.from_numpy(x[None]),
        patch,
        4,
        lambda w: torch.from_numpy(tells_its_place(w.numpy())),
        overlap=overlap,
        mode="gaussian",
        sigma_scale=0.125,
    )
    ours = slide(x, tells_its_place, patch=patch, classes=3, overlap=overlap, batch=4)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 24), min_size=2, max_size=3),
    window=st.integers(1, 10),
    overlap=st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    batch=st.integers(1, 5),
)
def test_a_network_that_looks_at_single_places_is_given_back(
    shape: list[int], window: int, overlap: float, batch: int
) -> None:
    """Weights sum to one everywhere, no place is left out, batches may end where they will."""
    x = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    patch = (window,) * len(shape)
    ours = slide(x, lambda w: np.concatenate([w, -w], axis=1), patch=patch, classes=2, overlap=overlap, batch=batch)
    np.testing.assert_allclose(ours, np.concatenate([x, -x]), rtol=1e-5, atol=1e-6)


def test_slabs_come_in_order_without_gaps_and_are_the_callers() -> None:
    x = GENERATOR.normal(size=(1, 10, 47, 12)).astype(np.float32)
    options = {"patch": (8, 8, 8), "classes": 3}
    slabs = list(slide_slabs(x, tells_its_place, **options))
    assert slab_axis(x.shape[1:]) == 1
    assert len(slabs) > 5
    assert [start for start, _ in slabs] == [0, *itertools.accumulate(s.shape[2] for _, s in slabs)][:-1]
    np.testing.assert_array_equal(np.concatenate([s for _, s in slabs], axis=2), slide(x, tells_its_place, **options))


def test_no_more_than_a_window_and_a_slab_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    import medloom.data.sliding as module

    made = []
    monkeypatch.setattr(module.np, "zeros", lambda shape, dtype: made.append(shape) or np.full(shape, 0, dtype))
    x = np.ones((1, 200, 9, 9), dtype=np.float32)
    assert sum(s.shape[1] for _, s in slide_slabs(x, tells_its_place, patch=(8, 8, 8), classes=3)) == 200
    assert max(int(np.prod(shape)) for shape in made) == 3 * 8 * 9 * 9


def test_labels_are_the_largest_logits() -> None:
    x = GENERATOR.normal(size=(2, 20, 31)).astype(np.float32)
    options = {"patch": (16, 16), "classes": 3}
    labels = slide_labels(x, tells_its_place, **options)
    np.testing.assert_array_equal(labels, slide(x, tells_its_place, **options).argmax(axis=0))
    assert labels.dtype == np.uint8


def test_half_precision_holds_the_result_and_not_the_sums() -> None:
    x = GENERATOR.normal(size=(1, 30, 30)).astype(np.float32)
    options = {"patch": (8, 8), "classes": 3, "overlap": 0.75}
    small = slide(x, tells_its_place, dtype=np.float16, **options)
    np.testing.assert_allclose(small, slide(x, tells_its_place, **options), atol=2e-3)
    assert small.dtype == np.float16


def test_mirroring_averages_over_all_flips() -> None:
    x = GENERATOR.normal(size=(1, 1, 4, 6, 5)).astype(np.float32)
    by_hand = [
        np.flip(tells_its_place(np.flip(x, axes)), axes)
        for n in range(4)
        for axes in itertools.combinations((2, 3, 4), n)
    ]
    assert len(by_hand) == 8
    np.testing.assert_allclose(mirrored(tells_its_place)(x), np.mean(by_hand, axis=0), atol=1e-6)
    calls = []
    slide(x[0], lambda w: calls.append(1) or tells_its_place(w), patch=(4, 6, 5), classes=3, mirror=True)
    assert len(calls) == 8


def test_progress_counts_every_window() -> None:
    seen: list[tuple[int, int]] = []
    x = np.zeros((1, 30, 20), dtype=np.float32)
    slide(x, tells_its_place, patch=(8, 8), classes=3, batch=3, progress=lambda done, total: seen.append((done, total)))
    total = count_windows((30, 20), (8, 8))
    assert seen[-1] == (total, total)
    assert total == 7 * 4


def test_a_corner_that_one_window_saw_keeps_its_answer() -> None:
    weight = window_weights((96, 96, 96))
    assert weight.min() == pytest.approx(1e-3)
    assert weight.max() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("fault", ["axes", "overlap", "batch", "answer"])
def test_what_does_not_fit_is_a_fault_of_the_caller(fault: str) -> None:
    x = np.zeros((1, 9, 9), dtype=np.float32)
    options = {"patch": (4, 4), "classes": 3} | {
        "axes": {"patch": (4, 4, 4)}, "overlap": {"overlap": 1.0}, "batch": {"batch": 0}, "answer": {"classes": 2}
    }[fault]  # fmt: skip
    with pytest.raises(ValueError, match=r"window|overlap|answered"):
        slide(x, tells_its_place, **options)
