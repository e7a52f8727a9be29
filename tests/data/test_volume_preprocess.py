"""Volumes to model input and masks back: what the rules do to values, and that no voxel moves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom

from medloom.config import VolumeConfig
from medloom.data import resample as resampling
from medloom.data.geometry import Orientation, stored_affine
from medloom.data.resample import resample, resample_argmax
from medloom.data.volume_preprocess import VolumePreprocess, pixel_statistics
from medloom.data.volumes import Volume, canonical
from medloom.errors import DataError, UsageError

SHAPES = st.tuples(*[st.integers(2, 9)] * 3)


def ball(shape: tuple[int, int, int] = (30, 24, 20), spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> Volume:
    """A volume of 0, 1 (a ball) and 2 (a smaller one in it)."""
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing)], indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    return Volume((radius < 11).astype(np.uint8) + (radius < 6), np.diag([*spacing, 1.0]))


def test_percentiles_of_the_case_become_black_and_white() -> None:
    values = np.random.default_rng(0).normal(300, 80, (12, 11, 10)).astype(np.float32)
    grid = VolumePreprocess(percentiles=(5, 95))
    out = grid.to_uint16(Volume(values, np.eye(4)))
    assert out.shape == (1, 12, 11, 10)
    low, high = np.percentile(values, (5, 95))
    expected = np.clip((values - low) / (high - low), 0, 1) * 65535
    assert np.abs(out[0] - expected).max() <= 1
    # A scanner's own gain and offset do not matter.
    assert np.abs(grid.to_uint16(Volume(values * 7 - 900, np.eye(4))).astype(int) - out).max() <= 4


def test_a_window_is_the_same_for_all_cases() -> None:
    grid = VolumePreprocess(intensity="window", window=(-100.0, 300.0))
    values = np.array([-1000, -100, 100, 300, 2000], dtype=np.int16).reshape(5, 1, 1)
    out = grid.to_uint16(Volume(values, np.eye(4)))[0, :, 0, 0]
    np.testing.assert_allclose(out, [0, 0, 65535 / 2, 65535, 65535], atol=1)


def test_zscore_comes_back_as_deviations_within_5() -> None:
    values = np.random.default_rng(0).normal(50, 4, (20, 20, 20)).astype(np.float32)
    values[0, 0, 0] = 900
    grid = VolumePreprocess.from_config(VolumeConfig(intensity="zscore"))
    z = (values - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
    np.testing.assert_allclose(grid(Volume(values, np.eye(4)))[0], np.clip(z, -5, 5), atol=2e-4)


def test_statistics_are_those_of_the_values() -> None:
    rng = np.random.default_rng(1)
    cases = [rng.integers(0, 65536, (1, 4, n, 3)).astype(np.uint16) for n in (3, 5)]
    together = np.concatenate([c.reshape(-1) for c in cases]) / 65535
    mean, std = pixel_statistics(cases)
    assert mean == pytest.approx((together.mean(),))
    assert std == pytest.approx((together.std(),))
    grid = VolumePreprocess.from_config(VolumeConfig(), (mean, std))
    np.testing.assert_allclose(grid.normalise(cases[0]), (cases[0] / 65535 - mean[0]) / std[0], atol=1e-5)
    with pytest.raises(DataError, match="D111"):
        pixel_statistics([np.zeros((1, 2, 2, 2), dtype=np.uint16)])


def test_D111_a_constant_volume() -> None:
    with pytest.raises(DataError, match="D111"):
        VolumePreprocess().to_uint16(Volume(np.full((3, 3, 3), 7.0), np.eye(4)))


def test_nearly_constant_volumes_stretch_their_own_extremes() -> None:
    values = np.zeros((10, 10, 10), dtype=np.int16)
    values[5, 5, 5] = 3
    out = VolumePreprocess(percentiles=(1, 99)).to_uint16(Volume(values, np.eye(4)))
    assert out.max() == 65535
    assert out.min() == 0


@settings(max_examples=60, deadline=None)
@given(SHAPES, SHAPES, st.integers(0, 99))
def test_resampling_equals_scipy_where_nothing_is_smoothed(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    ours = resample(values, new, smooth=False)
    for axis in range(3):  # scipy rounds the size that its factor gives: one axis at a time, and only where it fits
        factor = [1.0, 1.0, 1.0]
        factor[axis] = new[axis] / old[axis]
        if round(old[axis] * factor[axis]) != new[axis]:
            return
        values = zoom(values, factor, order=1, mode="nearest", grid_mode=True, prefilter=False)
    np.testing.assert_allclose(ours, values, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(SHAPES, SHAPES, st.integers(0, 99), st.booleans())
def test_resampling_never_leaves_the_range(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int, smooth: bool
) -> None:
    values = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    out = resample(values, new, smooth=smooth)
    assert out.shape == new
    assert out.min() >= values.min() - 1e-5
    assert out.max() <= values.max() + 1e-5


def test_coarsening_averages_instead_of_picking() -> None:
    stripes = np.zeros((64, 4, 4), dtype=np.float32)
    stripes[::2] = 1
    out = resample(stripes, (13, 4, 4))
    assert np.abs(out[2:-2] - 0.5).max() < 0.1
    assert np.abs(resample(stripes, (13, 4, 4), smooth=False) - 0.5).max() > 0.3


def test_slabs_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 9, 8, 7)).astype(np.float16)
    whole = resample_argmax(logits, (17, 12, 5), smooth=False)
    monkeypatch.setattr(resampling, "SLAB_VOXELS", 70)
    np.testing.assert_array_equal(resample_argmax(logits, (17, 12, 5), smooth=False), whole)
    sized = [resample(plane, (17, 12, 5), smooth=False) for plane in logits]
    np.testing.assert_array_equal(whole, np.argmax(sized, axis=0))


def test_restoring_keeps_memory_below_a_few_volumes() -> None:
    import tracemalloc

    logits = np.zeros((8, 48, 48, 48), dtype=np.float16)
    volume = Volume(np.zeros((144, 144, 96), dtype=np.int16), np.diag([1.0, 1.0, 1.5, 1.0]))
    grid = VolumePreprocess(spacing=(3.0, 3.0, 3.0))
    tracemalloc.start()
    grid.restore(logits, volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One class of float32 on the file's grid is 8 MB; all eight at once would be 64.
    assert peak < 6 * 144 * 144 * 96 * 4


@pytest.mark.parametrize("orientation", [Orientation(), Orientation((2, 0, 1), (True, False, True))])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.5, 2.0), (0.8, 1.1, 1.3), (1.7, 1.7, 3.1)])
def test_masks_go_to_the_models_grid_and_back(orientation: Orientation, spacing: Any) -> None:
    body = ball()
    stored = orientation.to_stored(body.array)
    mask = Volume(stored, stored_affine(body.affine, stored.shape, orientation))
    grid = VolumePreprocess(spacing=spacing)
    on_grid = grid.labels(mask, (0, 1, 2))
    assert on_grid.shape == grid.grid(mask)[0]
    answer = grid.restore(np.stack([on_grid == k for k in range(3)]).astype(np.float32), mask)
    assert answer.shape == stored.shape
    assert answer.dtype == np.uint8
    if spacing in (None, (1.0, 1.5, 2.0)):
        np.testing.assert_array_equal(answer, stored)
    for k in (1, 2):
        overlap = 2 * ((answer == k) & (stored == k)).sum() / ((answer == k).sum() + (stored == k).sum())
        assert overlap > (0.85 if spacing == (1.7, 1.7, 3.1) else 0.95), (k, overlap)


def test_stored_values_become_positions() -> None:
    mask = Volume(np.array([0, 255, 7, 255], dtype=np.int16).reshape(4, 1, 1), np.eye(4))
    np.testing.assert_array_equal(VolumePreprocess().labels(mask, (0, 7, 255))[:, 0, 0], [0, 2, 1, 2])


def test_the_grid_covers_the_field_of_view() -> None:
    volume = ball()
    shape, affine = VolumePreprocess(spacing=(2.0, 2.0, 3.0)).grid(volume)
    assert shape == (15, 18, 13)
    for index, other in (((-0.5, -0.5, -0.5), (-0.5, -0.5, -0.5)), ((29.5, 23.5, 19.5), (14.5, 17.5, 12.5))):
        np.testing.assert_allclose(affine @ [*other, 1], volume.affine @ [*index, 1], atol=1e-9)


def test_N307_a_grid_that_would_not_fit_is_refused_before_it_is_made() -> None:
    """The header of a usual series that says 10 mm: 5120 x 5120 x 3000 voxels of 1 mm."""
    values = np.broadcast_to(np.int16(1), (512, 512, 300))
    grid = VolumePreprocess(spacing=(1.0, 1.0, 1.0), intensity="window", window=(0.0, 1.0))
    for asked in (grid.grid, grid.to_uint16, lambda volume: grid.labels(volume, (0, 1))):
        with pytest.raises(DataError, match="N307") as refused:
            asked(Volume(values, np.diag([10.0, 10.0, 10.0, 1.0])))
        assert "5120 x 5120 x 3000 voxels when 10 x 10 x 10 mm become 1 x 1 x 1 mm" in refused.value.problem
    assert grid.grid(Volume(values, np.diag([0.98, 0.98, 1.0, 1.0])))[0] == (502, 502, 300)


def test_one_voxel_stays_at_its_place_under_resampling() -> None:
    volume = ball()
    values = np.zeros(volume.shape, dtype=np.float32)
    values[20, 5, 12] = 1
    grid = VolumePreprocess(spacing=(0.5, 0.5, 0.5), intensity="window", window=(0.0, 1.0))
    out = grid.to_uint16(Volume(values, volume.affine))[0].astype(np.float64)
    centre = np.array([(np.indices(out.shape)[a] * out).sum() / out.sum() for a in range(3)])
    at = grid.grid(volume)[1] @ [*centre, 1]
    np.testing.assert_allclose(at[:3], (volume.affine @ [20, 5, 12, 1])[:3], atol=0.02)


def test_the_value_survives_json_and_its_geometric_part_knows_no_statistics() -> None:
    grid = VolumePreprocess((0.7, 0.7, 1.25), "window", (0.5, 99.5), (-57.0, 164.5), "sform", (0.1 + 0.2,), (1 / 3,))
    assert VolumePreprocess.from_dict(json.loads(json.dumps(grid.as_dict()))) == grid
    assert grid.geometric_part() == grid.with_statistics(0.5, 0.2).geometric_part()
    assert grid.geometric_part() != VolumePreprocess((0.7, 0.7, 1.3), "window", window=(-57.0, 164.5)).geometric_part()
    for wrong in ({**grid.as_dict(), "format": 2}, {**grid.as_dict(), "more": 1}, {"format": 1}):
        with pytest.raises(ValueError):
            VolumePreprocess.from_dict(wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"spacing": (1.0, 0.0, 1.0)}, {"intensity": "percent"}, {"percentiles": (99.0, 1.0)}, {"prefer": "both"},
        {"window": (1.0, 2.0)}, {"intensity": "window"}, {"intensity": "window", "window": (2.0, 1.0)},
        {"mean": (0.5,)}, {"mean": (0.5,), "std": (0.0,)},
    ],
)  # fmt: skip
def test_values_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        VolumePreprocess(**fields)


def test_U226_a_window_without_its_values() -> None:
    with pytest.raises(UsageError, match="U226"):
        VolumePreprocess.from_config(VolumeConfig(intensity="window"))


def test_answers_of_another_grid_are_no_answers() -> None:
    with pytest.raises(ValueError, match="expected"):
        VolumePreprocess().restore(np.zeros((2, 3, 3, 3)), canonical(ball()))
    with pytest.raises(ValueError, match="statistics"):
        VolumePreprocess().normalise(np.zeros(3, dtype=np.uint16))
