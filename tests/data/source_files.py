"""Trees of small images, tables of their labels, and the data set or the refusal that they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.records import Dataset
from medloom.data.sources import open_dataset
from medloom.errors import DataError

PIXELS = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(PIXELS).save(path, "PNG")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        put(root / name)
    return root


def table(root: Path, text: str | bytes, *names: str, name: str = "labels.csv") -> Path:
    tree(root, *names)
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root / name


def opened(path: Path, **config: Any) -> Dataset:
    return open_dataset(path, DataConfig(**config))


def refused(path: Path, **config: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(path, **config)
    assert "\n" not in str(caught.value)
    return caught.value


def rows(dataset: Dataset) -> list[tuple[str, str, str | None]]:
    return [(r.id, dataset.label_names(r), r.split) for r in dataset.records]
