"""Masks: found beside the images, moved as they are, refused where they cannot be laid over them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medloom.config import AugmentConfig, DataConfig
from medloom.data.augment import augment, draw, warp
from medloom.data.masks import load_masks
from medloom.data.phantom import phantom_images, write_phantom
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset
from medloom.data.sources import open_dataset
from medloom.errors import DataError

PREPROCESS = Preprocess(size=(32, 32), channels="grey", mean=(0.5,), std=(0.5,))


def table(folder: Path, masks: dict[str, np.ndarray | None], size: int = 64) -> Path:
    """Three training images, and a mask for those that are given one."""
    rng = np.random.default_rng(0)
    rows = ["path,label,patient,split,mask"]
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(folder / f"{name}.png")
        mask = masks.get(name)
        if mask is not None:
            Image.fromarray(mask).save(folder / f"{name}_mask.png")
        label = "ill" if name in masks else "well"
        rows.append(f"{name}.png,{label},{name},train,{'' if mask is None else f'{name}_mask.png'}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def opened(folder: Path, masks: dict[str, np.ndarray | None]) -> Dataset:
    return open_dataset(table(folder, masks), DataConfig())


def square(value: int | bool, dtype: type = np.uint8) -> np.ndarray:
    mask = np.zeros((64, 64), dtype=dtype)
    mask[16:32, 32:48] = value
    return mask


@pytest.mark.parametrize("mask", [square(255), square(1), square(True, bool)])
def test_anything_but_zero_is_inside(tmp_path: Path, mask: np.ndarray) -> None:
    masks = load_masks(opened(tmp_path, {"b": mask}), PREPROCESS)
    assert masks is not None
    assert masks.row_of.tolist() == [-1, 0, -1]
    assert (masks.pixels[0, 9:15, 17:23] == 255).all()
    assert masks.pixels[0, :7].max() == 0
    shares, known = masks.shares(np.array([0, 1]))
    assert known.tolist() == [False, True]
    assert shares[0].max() == 0
    assert shares[1].mean() == pytest.approx(1 / 16, rel=0.05)


def test_an_empty_mask_says_that_nothing_is_there(tmp_path: Path) -> None:
    masks = load_masks(opened(tmp_path, {"b": square(0), "c": square(255)}), PREPROCESS)
    assert masks is not None
    assert masks.row_of.tolist() == [-1, 0, 1]
    assert masks.pixels[0].max() == 0


def test_masks_are_no_covariate(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"b": square(255)})
    assert [record.mask for record in dataset.records] == [None, "b_mask.png", None]
    assert all("mask" not in record.covariates for record in dataset.records)


def test_without_masks_there_is_nothing(tmp_path: Path) -> None:
    assert load_masks(opened(tmp_path, {"b": None}), PREPROCESS) is None


def test_D134_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"b": square(255)[:, :60]})
    with pytest.raises(DataError, match=r"D134.*64x60 and 64x64"):
        load_masks(dataset, PREPROCESS)


def test_D116_a_mask_that_is_not_there_is_refused_with_its_line(tmp_path: Path) -> None:
    path = table(tmp_path, {"b": square(255)})
    (tmp_path / "b_mask.png").unlink()
    with pytest.raises(DataError, match=r"D116.*table.csv:3.*no mask b_mask.png"):
        open_dataset(path, DataConfig(mask_column="mask"))
    dataset = open_dataset(path, DataConfig())  # nobody asked for masks
    assert [record.mask for record in dataset.records] == [None, None, None]
    assert "1 masks that stand in column mask are not there, and were passed over" in dataset.notices
    ignored = open_dataset(path, DataConfig(mask_column="none"))
    assert not any("mask" in notice for notice in ignored.notices)
    assert all("mask" not in record.covariates for record in ignored.records)


def test_D116_a_mask_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    path = table(tmp_path / "set", {"b": square(255)})
    (tmp_path / "set" / "b_mask.png").rename(tmp_path / "b_mask.png")
    path.write_text(path.read_text().replace("b_mask.png", "../b_mask.png"))
    with pytest.raises(DataError, match=r"D11[36]"):
        open_dataset(path, DataConfig(mask_column="mask"))


def test_a_mask_moves_as_its_image() -> None:
    """A white square as image and as mask: after any draw both are white at the same places."""
    config = AugmentConfig(
        flip=0.5, rotate=30, translate=0.2, zoom=(0.7, 1.4), crop=(0.6, 1.0), brightness=0, quarter_turns=True
    )
    draws = draw(config, 12, (1, 2, 3))
    image = np.repeat(square(255)[None, None], 12, axis=0)
    moved = augment(torch.from_numpy(image), draws, config)
    mask = warp(torch.from_numpy((image[:, 0] / 255).astype(np.float32)), draws)
    assert (moved[:, 0] - mask).abs().max() < 2e-3
    assert mask.amax(dim=(1, 2)).min() > 0.5


def test_phantoms_bring_theirs(tmp_path: Path) -> None:
    dataset = open_dataset(write_phantom(tmp_path / "p", n_patients=8, size=64, seed=0), DataConfig())
    masks = load_masks(dataset, replace(PREPROCESS, size=(64, 64)))
    phantom = phantom_images(8, size=64, seed=0)
    assert masks is not None
    for k, row in enumerate(masks.row_of):
        if row >= 0:
            assert ((masks.pixels[row] > 127) == phantom.masks[k]).all()
    assert (masks.row_of >= 0).sum() == ((phantom.labels == 1) & (phantom.splits == "train")).sum()
