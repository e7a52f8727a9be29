"""Trees of images and masks, and the data set or the refusal that they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nifti_files import save, volume_of
from PIL import Image

from medloom.config import DataConfig
from medloom.data.records import Dataset
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.errors import DataError


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 250, size).astype(np.uint8)).save(path)
    return path


def mask(path: Path, values: Sequence[int] = (0, 255), size: tuple[int, int] = (24, 32), mode: str = "L") -> Path:
    """Stripes of the given values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.repeat(np.array(values), -(-size[0] // len(values)))[: size[0], None] * np.ones(
        (1, size[1]), dtype=int
    )
    picture = Image.fromarray(stripes.astype(np.uint8))
    if mode == "P":
        picture = Image.fromarray(stripes.astype(np.uint8), "L").convert("P")
        picture.putdata(stripes.reshape(-1).tolist())
        picture.putpalette([250, 10, 10, 10, 250, 10, 10, 10, 250])
    picture.save(path)
    return path


def pairs(root: Path, n: int = 4, image: str = "images/{}.png", drawn: str = "masks/{}.png", **options: Any) -> Path:
    for k in range(n):
        picture(root / image.format(k), k)
        mask(root / drawn.format(k), **options)
    return root


def volumes(root: Path, n: int = 3, image: str = "imagesTr/c{}.nii.gz", label: str = "labelsTr/c{}.nii.gz") -> Path:
    for k in range(n):
        for name, array in ((image, volume_of(seed=k)), (label, volume_of(seed=k) // 70)):
            path = root / name.format(k)
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, array.astype(np.int16))
    return root


def opened(root: Path, **config: Any) -> Dataset:
    return open_dataset(root, DataConfig(**config))


def refused(root: Path, **config: Any) -> DataError:
    """The error of opening, or of the first case that a scan sets aside."""

    def read() -> None:
        excluded = scan(opened(root, **config), DataConfig(**config), workers=1).excluded
        if excluded:
            raise DataError(excluded[0].code, excluded[0].id, excluded[0].problem, "")

    with pytest.raises(DataError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return caught.value
