"""Masks of pictures under the geometry of their images, and answers back on the pixels of the file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.data.images import Image
from medloom.data.mask_geometry import mask_to_model, require_restorable, restore_mask
from medloom.data.preprocess import Preprocess
from medloom.errors import DataError, UsageError


def disc(height: int, width: int) -> np.ndarray:
    """0, 1 (an ellipse over the middle) and 2 (a smaller one, towards a corner)."""
    y, x = np.mgrid[:height, :width]
    v, u = (y + 0.5) / height, (x + 0.5) / width
    mask = (((v - 0.5) / 0.4) ** 2 + ((u - 0.5) / 0.4) ** 2 < 1).astype(np.uint8)
    mask[((v - 0.35) / 0.15) ** 2 + ((u - 0.6) / 0.15) ** 2 < 1] = 2
    return mask


def flat(size: tuple[int, int], resize: str) -> Preprocess:
    return Preprocess(size=size, resize=resize, channels="grey", mean=(0.5,), std=(0.5,))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["squash", "pad"]), st.integers(40, 200), st.integers(40, 200), st.sampled_from([96, 128]))
def test_to_the_model_and_back(resize: str, height: int, width: int, size: int) -> None:
    mask, grid = disc(height, width), flat((size, size + 32), resize)
    on_model = mask_to_model(mask, grid)
    assert on_model.shape == (size, size + 32)
    logits = np.stack([on_model == k for k in range(3)]).astype(np.float32) * 8 - 4
    back = restore_mask(logits, grid, (height, width))
    assert back.shape == (height, width)
    for k in (1, 2):
        overlap = 2 * ((back == k) & (mask == k)).sum() / ((back == k).sum() + (mask == k).sum())
        assert overlap > (0.95 if k == 1 else 0.85), (k, overlap)


def test_without_a_change_of_size_nothing_changes() -> None:
    mask = disc(64, 48)
    for resize in ("none", "squash", "pad"):
        grid = flat((64, 48), resize)
        np.testing.assert_array_equal(mask_to_model(mask, grid), mask)
        logits = np.stack([mask == k for k in range(3)]).astype(np.float16)
        np.testing.assert_array_equal(restore_mask(logits, grid, (64, 48)), mask)


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_the_mask_goes_where_its_image_goes(resize: str) -> None:
    mask = disc(150, 90) > 0
    grid = flat((64, 64), resize)
    seen = grid.to_uint8(Image((mask * 255).astype(np.uint8), 8, "L", "png", 0))[..., 0]
    np.testing.assert_array_equal(mask_to_model(mask.astype(np.uint8), grid) == 1, seen > 127)


def test_what_padding_adds_is_background() -> None:
    grid = flat((64, 64), "pad")
    full = mask_to_model(np.full((100, 50), 2, dtype=np.uint8), grid)
    assert (full[:, 16:48] == 2).all()
    assert (full[:, :16] == 0).all()
    # And an answer there is no part of the file.
    logits = np.zeros((2, 64, 64), dtype=np.float32)
    logits[1, :, :16] = 9
    logits[0, :, 16:48] = 1
    assert (restore_mask(logits, grid, (100, 50)) == 0).all()


def test_U226_what_a_crop_cut_off_cannot_be_restored() -> None:
    for call in (lambda: restore_mask(np.zeros((2, 64, 64)), flat((64, 64), "crop"), (80, 64)),
                 lambda: require_restorable(flat((64, 64), "crop"))):  # fmt: skip
        with pytest.raises(UsageError, match="U226") as caught:
            call()
        assert caught.value.exit_code == 2
    require_restorable(flat((64, 64), "pad"))


def test_D128_another_size_where_none_is_made_to_fit() -> None:
    with pytest.raises(DataError, match="D128"):
        mask_to_model(disc(60, 60), flat((64, 64), "none"))
    with pytest.raises(ValueError):
        restore_mask(np.zeros((2, 64, 64)), flat((64, 64), "none"), (60, 60))
    with pytest.raises(ValueError, match="expected"):
        restore_mask(np.zeros((2, 32, 64)), flat((64, 64), "pad"), (60, 60))
