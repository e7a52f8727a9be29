"""Patches of volumes: where they lie, how they are moved, and that image and mask move as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.config import AugmentConfig
from medloom.data.augment_volumes import LEVELS, read_patch
from medloom.data.largest_piece import keep_largest
from medloom.data.patch_draws import PatchDraws, draw_patches

STILL = AugmentConfig(flip=0, rotate=0, brightness=0)
SHAPE = (20, 24, 18)


def volume() -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
    """A ball in one corner and a bar; the image is bright exactly where a structure is."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[(x - 6) ** 2 + (y - 7) ** 2 + (z - 8) ** 2 < 16] = 1
    labels[14:17, 4:20, 9:12] = 2
    pixels = np.array([0, 30000, 60000], dtype=np.uint16)[labels][None]
    places = {k: np.argwhere(labels == k).astype(np.int32) for k in (1, 2)}
    return pixels, labels, places


def patches(
    config: AugmentConfig, n: int, patch: tuple[int, int, int], foreground: float = 0.0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pixels, labels, places = volume()
    draws = draw_patches(config, foreground, n, (0, 1, 2))
    return [read_patch(pixels, labels, places, draws, i, patch) for i in range(n)]


def test_an_unmoved_patch_is_a_cut_of_the_case() -> None:
    pixels, labels, places = volume()
    draws = draw_patches(STILL, 0.0, 1, (3,))
    centred = replace(draws, centre=np.array([[9.5, 11.5, 8.5]]) / (np.array(SHAPE) - 1))
    x_CP, y_P = read_patch(pixels, labels, places, centred, 0, (8, 10, 6))
    np.testing.assert_array_equal(y_P.numpy(), labels[6:14, 7:17, 6:12])
    np.testing.assert_allclose(x_CP.numpy(), pixels[:, 6:14, 7:17, 6:12] / LEVELS, atol=1e-6)


def test_a_flip_is_exact_and_of_the_first_axis() -> None:
    pixels, labels, places = volume()
    plain = draw_patches(STILL, 0.0, 1, (3,))
    middle = replace(plain, centre=np.full((1, 3), 0.5))
    flipped = replace(middle, flip=np.array([[True, False, False]]))
    one = read_patch(pixels, labels, places, middle, 0, SHAPE)
    other = read_patch(pixels, labels, places, flipped, 0, SHAPE)
    np.testing.assert_array_equal(other[1].numpy(), one[1].flip(0).numpy())
    np.testing.assert_allclose(other[0].numpy(), one[0].flip(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_about_an_axis_turns_the_other_two(axis: int) -> None:
    pixels, labels, places = volume()
    side = 16
    still = replace(draw_patches(STILL, 0.0, 1, (3,)), centre=np.full((1, 3), 0.5))
    angle = np.zeros((1, 3))
    angle[0, axis] = np.pi / 2
    one = read_patch(pixels, labels, places, still, 0, (side,) * 3)[1].numpy()
    turned = read_patch(pixels, labels, places, replace(still, angle=angle), 0, (side,) * 3)[1].numpy()
    planes = tuple(i for i in range(3) if i != axis)
    assert (turned == np.rot90(one, 1, planes)).mean() > 0.99 or (turned == np.rot90(one, -1, planes)).mean() > 0.99
    assert (turned != one).any()


def test_a_rotation_turns_the_patient_and_not_the_voxels() -> None:
    """A ball of 12 mm in slices 4 mm thick stays a ball, whichever way it is turned."""
    spacing, size = np.array([1.0, 1.0, 4.0]), (32, 32, 8)
    centre = (np.array(size) - 1) / 2
    at = (np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) - centre) * spacing
    labels = ((at**2).sum(axis=-1) < 12**2).astype(np.uint8)
    pixels = (labels * np.uint16(60000))[None]
    still = replace(draw_patches(STILL, 0.0, 1, (3,)), centre=np.full((1, 3), 0.5))
    turned = replace(still, angle=np.array([[0.6, -0.4, 0.5]]))
    found = read_patch(pixels, labels, {}, turned, 0, size, spacing=tuple(spacing))[1].numpy()
    dice = 2 * (found * labels).sum() / (found.sum() + labels.sum())
    assert dice > 0.9  # slices are coarse
    bent = read_patch(pixels, labels, {}, turned, 0, size)[1].numpy()
    assert 2 * (bent * labels).sum() / (bent.sum() + labels.sum()) < 0.85


@settings(deadline=None, max_examples=25)
@given(
    rotate=st.floats(0, 30), low=st.floats(0.7, 1), high=st.floats(1, 1.4), elastic=st.floats(0, 2), seed=st.integers(0)
)
def test_image_and_mask_move_as_one(rotate: float, low: float, high: float, elastic: float, seed: int) -> None:
    config = replace_config(rotate=rotate, zoom=(low, high), elastic=elastic, flip=0.5, vertical_flip=0.5)
    pixels, labels, places = volume()
    draws = draw_patches(config, 0.7, 1, (seed % 2**32,))
    x_CP, y_P = read_patch(pixels, labels, places, draws, 0, (12, 12, 12))
    nearest = (x_CP[0] * LEVELS / 30000).round().long()
    # They differ at borders only, where the image is a mixture and the mask is the nearer voxel.
    inner = (
        torch.nn.functional.max_pool3d(y_P[None, None].float(), 3, 1, 1)[0, 0]
        == -torch.nn.functional.max_pool3d(-y_P[None, None].float(), 3, 1, 1)[0, 0]
    )
    assert x_CP.shape == (1, 12, 12, 12)
    assert (nearest == y_P)[inner].float().mean() > 0.9
    assert ((x_CP >= 0) & (x_CP <= 1)).all()


def replace_config(**values: object) -> AugmentConfig:
    return AugmentConfig(**{"flip": 0.0, "rotate": 0.0, "brightness": 0.0, **values})  # type: ignore[arg-type]


def test_foreground_patches_hold_a_structure_in_their_middle() -> None:
    for _, y_P in patches(STILL, 40, (5, 5, 5), foreground=1.0):
        assert y_P.any()
    held = [bool(y_P.any()) for _, y_P in patches(STILL, 40, (5, 5, 5), foreground=0.0)]
    assert not all(held)


def test_a_patch_larger_than_the_case_is_padded_on_all_sides() -> None:
    (x_CP, y_P), *_ = patches(STILL, 1, (30, 30, 30))
    inside = y_P.nonzero()
    assert (inside.amin(0) > 2).all()
    assert int((y_P > 0).sum()) == int((volume()[1] > 0).sum())
    assert float(x_CP[:, 0].max()) == 0.0


def test_patches_do_not_reach_out_of_a_larger_case() -> None:
    pixels, labels, places = volume()
    bright = np.full_like(pixels, 50000)
    draws = draw_patches(STILL, 0.0, 30, (5,))
    for i in range(30):
        assert float(read_patch(bright, labels, places, draws, i, (10, 10, 10))[0].min()) > 0.7


def test_draws_depend_on_their_seed_alone_and_not_on_what_is_switched_on() -> None:
    one = draw_patches(STILL, 0.5, 6, (1, 2))
    other = draw_patches(replace_config(rotate=20.0, elastic=1.0, noise=0.1), 0.5, 6, (1, 2))
    for name in ("foreground", "structure", "place", "centre", "noise_seed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(one.centre, draw_patches(STILL, 0.5, 6, (1, 3)).centre)
    part: PatchDraws = other[np.array([4, 1])]
    np.testing.assert_array_equal(part.elastic, other.elastic[[4, 1]])


def test_noise_gamma_and_contrast_change_the_image_and_not_the_mask() -> None:
    loud = replace_config(noise=0.2, gamma=(0.5, 2.0), contrast=0.5)
    for (x_CP, y_P), (z_CP, w_P) in zip(patches(STILL, 4, (9, 9, 9)), patches(loud, 4, (9, 9, 9))):
        assert torch.equal(y_P, w_P)
        assert not torch.allclose(x_CP, z_CP)


def test_only_the_largest_piece_of_each_structure_stays() -> None:
    mask = np.zeros((12, 12), dtype=np.uint8)
    mask[1:5, 1:5] = 1
    mask[5, 5] = 1  # touches by a corner: the same piece
    mask[8:10, 8:10] = 1
    mask[0, 8:12] = 2
    mask[11, 0] = 2
    kept = keep_largest(mask)
    assert int((kept == 1).sum()) == 17
    assert int((kept == 2).sum()) == 4
    assert mask[11, 0] == 2
    assert not keep_largest(np.zeros((3, 3, 3), dtype=np.uint8)).any()
