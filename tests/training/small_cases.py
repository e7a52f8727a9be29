"""Cases with masks, and segmenters so small that a whole run takes a fraction of a second, in two and three axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medloom.config import Recipe, load_recipe
from medloom.data.case_cache import Cases
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.files import RunDirectory
from medloom.training.distributed import World
from medloom.training.fingerprint import fingerprint
from medloom.training.loop import FitResult, fit
from medloom.training.segmentation import CaseExamples, segmenting

CPU = torch.device("cpu")
CLASSES = 3
SHAPE = {2: (16, 16), 3: (14, 12, 13)}
GRID: dict[int, Preprocess | VolumePreprocess] = {
    2: Preprocess(size=(16, 16), channels="grey", mean=(0.5,), std=(0.25,)),
    3: VolumePreprocess(mean=(0.5,), std=(0.25,)),
}


class Tiny(nn.Module):
    """Two convolutions, and with ``deep`` a coarser answer in training."""

    def __init__(self, dims: int, deep: bool = False) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.first = convolution(1, 8, 3, padding=1)
        self.head = convolution(8, CLASSES, 3, padding=1)
        self.pool: Any = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](2)
        self.deep_heads = nn.ModuleDict({"2": convolution(8, CLASSES, 1)} if deep else {})

    def forward(self, x_BCS: Tensor) -> Tensor:
        return self.head(self.first(x_BCS).relu())

    def train_outputs(self, x_BCS: Tensor) -> dict[str, Tensor]:
        features_BCS = self.first(x_BCS).relu()
        outputs = {"logits": self.head(features_BCS)}
        for stride, head in self.deep_heads.items():
            outputs[f"deep.{stride}"] = head(self.pool(features_BCS))
        return outputs


def cases(n: int = 14, dims: int = 2, seed: int = 0) -> Cases:
    """Noise with a bright box of structure 1 and a brighter one of structure 2, not in every case."""
    rng = np.random.default_rng(seed)
    top, kind = (255, np.uint8) if dims == 2 else (65535, np.uint16)
    pixels, labels, places = [], [], []
    for i in range(n):
        mask = np.zeros(SHAPE[dims], dtype=np.uint8)
        corner = rng.integers(1, 4, dims)
        mask[tuple(slice(c, c + 5) for c in corner)] = 1
        if i % 3:
            mask[tuple(slice(c + 6, c + 9) for c in corner)] = 2
        grey = 0.25 + 0.2 * (mask == 1) + 0.45 * (mask == 2) + rng.normal(0, 0.05, mask.shape)
        pixels.append((np.clip(grey, 0, 1) * top).astype(kind)[None])
        labels.append(mask)
        places.append({k: np.argwhere(mask == k).astype(np.int32) for k in (1, 2) if (mask == k).any()})
    return Cases(tuple(pixels), tuple(labels), tuple(places), f"{n}-{dims}-{seed}")


def split(dims: int, n: int = 14, train: int = 10) -> tuple[CaseExamples, CaseExamples]:
    """Training and validation cases of one source."""
    source = cases(n, dims)
    ids = [f"case{i:02d}" for i in range(n)]
    first, second = np.arange(train), np.arange(train, n)
    return tuple(CaseExamples(source, rows, tuple(ids[r] for r in rows), CLASSES) for rows in (first, second))  # type: ignore[return-value]


def recipe(dims: int, **sections: dict[str, Any]) -> Recipe:
    """A short run."""
    train = {"epochs": 3, "batch_size": 4, "learning_rate": 0.02, "optimizer": "adamw", "amp": "off", "threads": 1}
    segmentation: dict[str, Any] = {} if dims == 2 else {"patch": [8, 8, 8], "patches_per_case": 2}
    values = {
        "train": train | sections.pop("train", {}),
        "segmentation": segmentation | sections.pop("segmentation", {}),
        "augment": {"flip": 0.5, "rotate": 10, **sections.pop("augment", {})},
    }
    return load_recipe(values | sections)


def run(
    directory: Path,
    wanted: Recipe,
    dims: int,
    *,
    deep: bool = False,
    world: World = World(),  # noqa: B008
    **options: Any,
) -> FitResult:
    """``fit`` a ``Tiny`` from its seed."""
    torch.manual_seed(0)
    model = Tiny(dims, deep)
    train, val = split(dims)
    work = segmenting(model, train=train, val=val, recipe=wanted, preprocess=GRID[dims], device=CPU, world=world)
    marks = fingerprint(wanted, {"hash": "d"}, device=CPU, processes=world.size)
    return fit(
        model, work=work, recipe=wanted, run=RunDirectory(directory), fingerprint=marks, device=CPU, world=world,
        **options,
    )  # fmt: skip
