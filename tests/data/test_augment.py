"""Augmentation: drawn by seed alone, geometry where it should be, both paths alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.config import AugmentConfig
from medloom.data.augment import augment, augment_opencv, augment_torch, backend, draw
from medloom.data.draws import ERASE_AREA, Draws, inverse_affine, tone_curves

OFF = AugmentConfig(flip=0.0, rotate=0.0, brightness=0.0)
ALL = AugmentConfig(
    vertical_flip=0.3, rotate=25.0, translate=0.15, zoom=(0.7, 1.4), crop=(0.5, 1.0), brightness=0.2, contrast=0.3,
    gamma=(0.6, 1.6), noise=0.05, blur=1.5, erase=0.5,
)  # fmt: skip
Path = Callable[[torch.Tensor, Draws, AugmentConfig], torch.Tensor]
PATHS = [augment_torch, augment_opencv]


def batch(n: int = 16, channels: int = 1, height: int = 48, width: int = 40, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with edges, stored as the cache stores them: channels last in memory."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((n, channels, 6, 5), dtype=np.float32))
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    x[:, :, height // 3 : height // 2, width // 4 : width // 2] = 1
    return (x * 255).byte().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def fixed(draws: Draws, **values: object) -> Draws:
    fields = {name: getattr(draws, name) for name in draws.__dataclass_fields__}
    return Draws(**fields | {k: np.full(len(draws), v) for k, v in values.items()})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [AugmentConfig(), ALL, OFF], ids=["paper", "all", "off"])
def test_both_paths_agree(config: AugmentConfig, channels: int) -> None:
    cv2 = pytest.importorskip("cv2")
    bound = 1e-3 if int(cv2.__version__.split(".")[0]) >= 5 else 0.04
    x = batch(24, channels, 64, 56)
    draws = draw(config, 24, (1, 2, 3))
    a, b = augment_torch(x, draws, config), augment_opencv(x, draws, config)
    assert a.shape == b.shape == x.shape
    assert a.dtype == b.dtype == torch.float32
    assert (a - b).abs().max() <= bound
    assert (a - b).abs().mean() <= bound / 10


@pytest.mark.parametrize("path", PATHS)
def test_everything_off_only_scales(path: Path) -> None:
    x = batch()
    assert (path(x, draw(OFF, 16, (0,)), OFF) - x.float() / 255).abs().max() <= 1e-6


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 40), st.integers(2, 40), st.sampled_from([1, 3]),
    st.sampled_from(PATHS),
)  # fmt: skip
def test_result_stays_in_range_at_any_size(
    seed: int, n: int, height: int, width: int, channels: int, path: Path
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8))
    y = path(x, draw(ALL, n, (seed,)), ALL)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert y.min() >= 0
    assert y.max() <= 1


def test_draws_are_a_function_of_the_seed_tuple_alone() -> None:
    a, b = draw(ALL, 8, (5, 1, 2)), draw(ALL, 8, (5, 1, 2))
    assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    assert not np.array_equal(a.angle, draw(ALL, 8, (5, 1, 3)).angle)


def test_a_slice_of_the_batch_equals_the_batch_of_the_slice() -> None:
    """Two processes that each take half of a batch give what one process gives."""
    x = batch()
    draws = draw(ALL, 16, (0, 1))
    whole = augment(x, draws, ALL)
    halves = torch.cat([augment(x[rows], draws[rows], ALL) for rows in (slice(0, 8), slice(8, 16))])
    assert torch.equal(whole, halves)


def test_number_of_threads_changes_nothing() -> None:
    x = batch()
    draws = draw(ALL, 16, (4,))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = augment(x, draws, ALL)
        torch.set_num_threads(3)
        assert torch.equal(one, augment(x, draws, ALL))
    finally:
        torch.set_num_threads(before)


def test_switching_one_change_on_leaves_the_others() -> None:
    plain, noisy = draw(AugmentConfig(), 32, (0,)), draw(AugmentConfig(noise=0.1, erase=1.0, crop=(0.5, 1.0)), 32, (0,))
    for field in ("flip", "angle", "brightness"):
        assert np.array_equal(getattr(plain, field), getattr(noisy, field))


def test_every_image_has_its_own_draw() -> None:
    draws = draw(ALL, 64, (0,))
    for field in ("angle", "shift_x", "zoom", "crop_left", "brightness", "contrast", "gamma", "noise", "blur"):
        assert len(np.unique(getattr(draws, field))) == 64


def test_laws_of_the_draws() -> None:
    n = 20_000
    draws = draw(ALL, n, (9,))
    assert abs(draws.flip.mean() - 0.5) < 0.02
    assert abs(draws.vertical_flip.mean() - 0.3) < 0.02
    assert np.abs(np.rad2deg(draws.angle)).max() <= 25
    assert abs(np.rad2deg(draws.angle).std() - 25 / np.sqrt(3)) < 0.3
    area = draws.crop_width * draws.crop_height
    assert 0.5 <= area.min() <= area.max() <= 1
    assert abs(area.mean() - 0.75) < 0.01
    aspect = draws.crop_width / draws.crop_height
    assert 3 / 4 - 1e-9 <= aspect.min() <= aspect.max() <= 4 / 3 + 1e-9
    for start, length in ((draws.crop_left, draws.crop_width), (draws.crop_top, draws.crop_height)):
        assert start.min() >= 0
        assert (start + length).max() <= 1 + 1e-12
    assert 0.7 <= draws.zoom.min() <= draws.zoom.max() <= 1.4
    assert abs(np.log(draws.gamma).mean() - np.log(0.6 * 1.6) / 2) < 0.01
    erased = draws.erase_width > 0
    assert abs(erased.mean() - 0.5) < 0.02
    size = (draws.erase_width * draws.erase_height)[erased]
    assert ERASE_AREA[0] - 1e-9 <= size.min() <= size.max() <= ERASE_AREA[1] + 1e-9


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"flip": True}, lambda x: x.flip(-1)),
        ({"vertical_flip": True}, lambda x: x.flip(-2)),
        ({"angle": np.pi}, lambda x: x.flip(-1).flip(-2)),
        ({"angle": np.pi / 2}, lambda x: torch.rot90(x, -1, (-2, -1))),
        ({"shift_x": 0.25}, lambda x: torch.cat([torch.zeros_like(x[..., :10]), x[..., :-10]], -1)),
        ({"shift_y": -0.5}, lambda x: torch.cat([x[..., 20:, :], torch.zeros_like(x[..., :20, :])], -2)),
    ],
    ids=["flip", "vertical", "half turn", "quarter turn, clockwise", "right by 10", "up by 20"],
)
def test_geometry_is_exact_where_no_interpolation_is_needed(
    path: Path, values: dict[str, object], expected: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = batch(height=40, width=40)
    y = path(x, fixed(draw(OFF, 16, (0,)), **values), OFF)
    assert (y - expected(x.float() / 255)).abs().max() < 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_zoom_and_crop_magnify_the_right_place(path: Path) -> None:
    x = torch.zeros(2, 1, 80, 80, dtype=torch.uint8)
    x[:, :, 20:40, 40:60] = 255  # the quarter right of the middle, above it
    zoomed = path(x, fixed(draw(OFF, 2, (0,)), zoom=2.0), OFF)
    assert torch.equal(zoomed[0, 0].round().nonzero().min(0).values, torch.tensor([0, 40]))
    crop = {"crop_left": 0.5, "crop_top": 0.25, "crop_width": 0.25, "crop_height": 0.25}
    assert path(x, fixed(draw(OFF, 2, (0,)), **crop), OFF)[:, :, 2:-2, 2:-2].min() > 0.999


def test_rotation_is_about_the_centre_and_in_pixels_on_oblong_images() -> None:
    draws = fixed(draw(OFF, 1, (0,)), angle=0.3)
    matrix = inverse_affine(draws, 30, 90)[0]
    assert np.allclose(matrix @ [44.5, 14.5, 1], [44.5, 14.5])
    assert np.allclose(matrix[:, :2] @ matrix[:, :2].T, np.eye(2))


@pytest.mark.parametrize("path", PATHS)
def test_outside_is_black_also_under_a_tone_curve(path: Path) -> None:
    x = torch.full((1, 1, 32, 32), 200, dtype=torch.uint8)
    draws = fixed(draw(OFF, 1, (0,)), zoom=0.5, contrast=0.8, brightness=1.1)
    y = path(x, draws, OFF)
    black = tone_curves(draws)[0, 0]
    assert black > 0
    assert torch.allclose(y[0, 0, :4], torch.tensor(float(black)))


def test_tone_is_gamma_then_contrast_then_brightness() -> None:
    draws = fixed(draw(OFF, 1, (0,)), gamma=2.0, contrast=0.5, brightness=1.2)
    grey = np.linspace(0, 1, 256)
    assert np.allclose(tone_curves(draws)[0], np.clip(((grey**2 - 0.5) * 0.5 + 0.5) * 1.2, 0, 1), atol=1e-6)


@given(st.floats(0.3, 3), st.floats(0.1, 2), st.floats(0.1, 2))
def test_tone_curves_never_fall(gamma: float, contrast: float, brightness: float) -> None:
    curve = tone_curves(fixed(draw(OFF, 1, (0,)), gamma=gamma, contrast=contrast, brightness=brightness))
    assert (np.diff(curve) >= 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_noise_has_the_drawn_deviation_and_differs_between_images(path: Path) -> None:
    config = AugmentConfig(flip=0, rotate=0, brightness=0, noise=0.1)
    x = torch.full((6, 1, 100, 100), 128, dtype=torch.uint8)
    draws = draw(config, 6, (3,))
    noise = path(x, draws, config) - 128 / 255
    for i in range(6):
        assert noise[i].std() == pytest.approx(draws.noise[i], rel=0.05)
    unit = noise.flatten(1) / noise.flatten(1).std(1, keepdim=True)
    assert (unit @ unit.T / unit.shape[1] - torch.eye(6)).abs().max() < 0.05


@pytest.mark.parametrize("path", PATHS)
def test_blur_spreads_a_point_as_a_gaussian_and_keeps_its_sum(path: Path) -> None:
    config = AugmentConfig(flip=0, rotate=0, brightness=0, blur=2.0)
    x = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    x[0, 0, 20, 20] = 255
    y = path(x, fixed(draw(config, 1, (0,)), blur=1.5), config)[0, 0]
    assert float(y.sum()) == pytest.approx(1, abs=1e-3)
    reach = torch.arange(41.0) - 20
    assert float((y.sum(0) * reach**2).sum().sqrt()) == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize("path", PATHS)
def test_erasing_fills_one_rectangle_of_the_drawn_size(path: Path) -> None:
    config = AugmentConfig(flip=0, rotate=0, brightness=0, erase=1.0)
    x = torch.zeros(30, 1, 100, 100, dtype=torch.uint8)
    draws = draw(config, 30, (8,))
    y = path(x, draws, config)
    for i in range(30):
        area = (y[i, 0] == float(np.float32(draws.erase_value[i]))).float().mean()
        assert float(area) == pytest.approx(draws.erase_width[i] * draws.erase_height[i], abs=0.012)


def test_the_batch_must_fit_the_draws() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        augment(batch(4), draw(OFF, 5, (0,)), OFF)
    with pytest.raises(ValueError, match="expected uint8"):
        augment(batch(4).float(), draw(OFF, 4, (0,)), OFF)


def test_without_opencv_the_torch_path_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medloom.data.augment._opencv", lambda: None)
    assert backend("cpu") == "torch"
    x = batch(4)
    draws = draw(ALL, 4, (0,))
    assert torch.equal(augment(x, draws, ALL), augment_torch(x, draws, ALL))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_picture() -> None:
    x = batch(8, 3)
    draws = draw(ALL, 8, (0,))
    on_gpu = augment(x.cuda(), draws, ALL).cpu()
    assert (on_gpu - augment_torch(x, draws, ALL)).abs().max() < 1e-3
