"""Colour changes for tissue: stains that separate, grey that stays grey, nothing that changes what was drawn before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from medloom.config import AugmentConfig, load_recipe
from medloom.data.augment import augment_opencv, augment_torch, draw, recolour
from medloom.data.draws import Draws
from medloom.data.stain import (
    EOSIN,
    HAEMATOXYLIN,
    amounts,
    chroma_matrices,
    densities,
    stain_maps,
    stain_vectors,
)
from medloom.errors import UsageError

OFF = AugmentConfig(flip=0.0, rotate=0.0, brightness=0.0)
TISSUE = OFF.model_copy(update={"hue": 0.04, "saturation": 0.3, "stain": 0.2})


def two_stains(h: np.ndarray, e: np.ndarray) -> np.ndarray:
    """uint8 RGB of so much haematoxylin and eosin per pixel, by Beer and Lambert."""
    density = h[..., None] * np.array(HAEMATOXYLIN) + e[..., None] * np.array(EOSIN)
    return np.rint(256 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)


def tissue(n: int = 6, height: int = 32, width: int = 28, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    h, e = rng.random((2, n, height, width))
    return torch.from_numpy(two_stains(h, e)).permute(0, 3, 1, 2)


def fixed(draws: Draws, **values: Any) -> Draws:
    fields = {name: getattr(draws, name) for name in draws.__dataclass_fields__}
    return Draws(**fields | {k: np.broadcast_to(v, np.shape(getattr(draws, k))).copy() for k, v in values.items()})


def neutral(n: int) -> Draws:
    return draw(OFF, n, (0,))


def test_haematoxylin_and_eosin_separate_on_a_picture_of_both() -> None:
    h, e = np.meshgrid(np.linspace(0, 1.5, 20), np.linspace(0, 1.5, 20))
    found = amounts(densities()[two_stains(h, e)].reshape(-1, 3)).reshape(20, 20, 3)
    assert np.abs(found[..., 0] - h).max() < 0.04  # 8 bits
    assert np.abs(found[..., 1] - e).max() < 0.04
    assert np.abs(found[..., 2]).max() < 0.04


def test_stain_vectors_are_of_unit_length_and_the_rest_is_square_to_both() -> None:
    vectors = stain_vectors()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(vectors[2] @ vectors[:2].T, 0, atol=1e-12)


@pytest.mark.parametrize(("stain", "other"), [(0, 1), (1, 0)])
def test_one_stain_changes_and_the_other_stays(stain: int, other: int) -> None:
    x = tissue()
    before = amounts(densities()[x.permute(0, 2, 3, 1).numpy()].reshape(-1, 3))
    scale = np.ones(2)
    scale[stain] = 0.6
    draws = fixed(neutral(6), stain_scale=scale)
    config = OFF.model_copy(update={"stain": 0.5})
    after = amounts(densities()[recolour(x, draws, config).permute(0, 2, 3, 1).numpy()].reshape(-1, 3))
    assert np.abs(after[:, stain] - 0.6 * before[:, stain]).max() < 0.05
    assert np.abs(after[:, other] - before[:, other]).max() < 0.05


def test_off_is_the_very_same_batch_and_neutral_draws_are_the_identity() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert recolour(x, neutral(1), OFF) is x
    assert torch.equal(recolour(x, neutral(1), TISSUE), x)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40), dtype=np.uint8))
    assert torch.equal(recolour(noise, neutral(2), TISSUE), noise)
    matrix, shift = stain_maps(neutral(2))
    assert np.allclose(matrix, np.eye(3), atol=1e-6)
    assert np.abs(shift).max() == 0
    assert np.allclose(chroma_matrices(neutral(2)), np.eye(3), atol=1e-6)


def test_white_background_stays_whitish_and_black_border_black() -> None:
    config = OFF.model_copy(update={"stain": 0.05, "hue": 0.04, "saturation": 0.3})
    x = torch.full((200, 3, 2, 2), 255, dtype=torch.uint8)
    y = recolour(x, draw(config, 200, (1,)), config)
    assert y.min() >= 230
    x[:] = 0
    assert recolour(x, draw(TISSUE, 200, (1,)), TISSUE).max() <= 8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 255), st.floats(-3.1, 3.1), st.floats(0.0, 1.9))
def test_hue_and_saturation_leave_grey_alone(value: int, hue: float, saturation: float) -> None:
    config = OFF.model_copy(update={"hue": 0.5, "saturation": 0.9})
    x = torch.full((1, 3, 2, 2), value, dtype=torch.uint8)
    assert torch.equal(recolour(x, fixed(neutral(1), hue=hue, saturation=saturation), config), x)


def test_hue_turns_red_to_green_to_blue_and_no_saturation_is_grey() -> None:
    third = fixed(neutral(1), hue=2 * np.pi / 3)
    assert np.allclose(chroma_matrices(third)[0] @ [1, 0, 0], [0, 1, 0], atol=1e-6)
    assert np.allclose(chroma_matrices(third)[0] @ [0, 1, 0], [0, 0, 1], atol=1e-6)
    assert np.allclose(chroma_matrices(fixed(neutral(1), saturation=0.0)), 1 / 3, atol=1e-6)


@pytest.mark.parametrize("path", [augment_torch, augment_opencv])
def test_slices_threads_and_both_paths_give_the_same_picture(path: Any) -> None:
    config = TISSUE.model_copy(update={"flip": 0.5, "rotate": 20.0, "quarter_turns": True, "brightness": 0.1})
    x = tissue(8, 32, 32).contiguous(memory_format=torch.channels_last)
    draws = draw(config, 8, (3,))
    whole = path(x, draws, config)
    halves = torch.cat([path(x[rows], draws[rows], config) for rows in (slice(0, 3), slice(3, 8))])
    assert torch.equal(whole, halves)
    assert (whole - augment_torch(x, draws, config)).abs().max() < 1e-3
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_what_was_drawn_before_stays_as_it_was() -> None:
    everything = {"hue": 0.1, "saturation": 0.2, "stain": 0.2}
    plain, coloured = draw(AugmentConfig(), 32, (0, 1)), draw(AugmentConfig(**everything), 32, (0, 1))
    new = {"hue", "saturation", "stain_scale", "stain_shift"}
    for name in set(plain.__dataclass_fields__) - new:
        assert np.array_equal(getattr(plain, name), getattr(coloured, name)), name
    assert plain.flip[:6].tolist() == [False, False, True, False, False, False]
    assert np.round(plain.brightness[:3], 12).tolist() == [0.900810314738, 0.975106023644, 0.980760688101]


def test_laws_of_the_colour_draws() -> None:
    n, config = 20_000, OFF.model_copy(update={"hue": 0.1, "saturation": 0.3, "stain": 0.2, "quarter_turns": True})
    draws = draw(config, n, (5,))
    assert np.abs(draws.hue).max() <= 0.2 * np.pi
    assert abs(draws.hue.std() - 0.2 * np.pi / np.sqrt(3)) < 0.01
    assert 0.7 <= draws.saturation.min() <= draws.saturation.max() <= 1.3
    assert draws.stain_scale.shape == draws.stain_shift.shape == (n, 2)
    assert 0.8 <= draws.stain_scale.min() <= draws.stain_scale.max() <= 1.2
    assert np.abs(draws.stain_shift).max() <= 0.2
    columns = np.concatenate([draws.stain_scale, draws.stain_shift], axis=1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(4)).max() < 0.03
    assert np.array_equal(np.unique(draws.angle), np.arange(4) * np.pi / 2)
    assert np.abs(np.bincount((draws.angle / (np.pi / 2)).astype(int)) / n - 0.25).max() < 0.02


@pytest.mark.parametrize("path", [augment_torch, augment_opencv])
def test_quarter_turns_are_exact(path: Any) -> None:
    config = OFF.model_copy(update={"quarter_turns": True})
    x = tissue(40, 32, 32)
    draws = draw(config, 40, (2,))
    turned = path(x, draws, config)
    for i in range(40):
        k = round(float(draws.angle[i]) / (np.pi / 2))
        assert (turned[i] - torch.rot90(x[i], -k, (-2, -1)).float() / 255).abs().max() < 1e-4


@pytest.mark.parametrize("key", ["hue", "saturation", "stain"])
def test_U226_colours_of_grey_images(key: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe({"augment": {key: 0.1}})
    assert caught.value.code == "U226"
    assert key in caught.value.place
    assert load_recipe({"augment": {key: 0.1}, "preprocess": {"channels": "rgb"}})
    config = OFF.model_copy(update={key: 0.1})
    with pytest.raises(UsageError) as caught:
        augment_torch(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), draw(config, 2, (0,)), config)
    assert caught.value.code == "U226"


def test_U226_quarter_turns_of_oblong_images() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe({"augment": {"quarter_turns": True}, "preprocess": {"size": [64, 96]}})
    assert caught.value.code == "U226"
    assert load_recipe({"augment": {"quarter_turns": True}, "preprocess": {"size": [64, 64]}})


def test_real_tissue_keeps_its_structure(real_data: Path) -> None:
    files = sorted((real_data / "camelyon16_patches" / "tumor").glob("*.png"))[:4]
    x = torch.from_numpy(np.stack([np.asarray(PillowImage.open(f).convert("RGB")) for f in files])).permute(0, 3, 1, 2)
    config = OFF.model_copy(update={"stain": 0.2})
    y = recolour(x, draw(config, 4, (0,)), config)
    assert not torch.equal(x, y)
    for a, b in zip(x.float().mean(1), y.float().mean(1)):
        assert np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1] > 0.95
