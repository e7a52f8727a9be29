"""A data set and models so small that a whole run takes a fraction of a second."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medloom.config import Recipe, load_recipe
from medloom.data.cache import DevicePixels
from medloom.data.preprocess import Preprocess
from medloom.files import RunDirectory
from medloom.models.registry import create_model
from medloom.training.batches import Examples
from medloom.training.classification import classifying
from medloom.training.distributed import World
from medloom.training.fingerprint import fingerprint
from medloom.training.loop import FitResult, fit

CPU = torch.device("cpu")
SIZE = 12
PREPROCESS = Preprocess(size=(SIZE, SIZE), channels="grey", mean=(0.5,), std=(0.25,))


def deliver(number: signal.Signals) -> None:
    """Let the handler that is in place hear a signal.

    Under load a real one has twice ended a worker of many tests, why is not known: real ones go to processes of
    their own.
    """
    handler = signal.getsignal(number)
    assert callable(handler), f"nobody listens to {number.name}"
    handler(number, None)


def send_real(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


class Plain(nn.Module):
    """No batch statistics, no dropout."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(x)


class Noisy(nn.Module):
    """Batch statistics and dropout: everything that remembers or draws."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().amax((2, 3))
        return self.head(self.drop(x))


class Held(nn.Module):
    """A trunk that can be frozen; no batch statistics, no dropout."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).relu().mean((2, 3)))


def rebuilding(classes: int = 2, dropout: float = 0.0) -> nn.Module:
    """A model that rebuilds its input: RR-ViT at its smallest."""
    sizes = {"image_size": SIZE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return create_model("rr_vit", num_classes=classes, in_chans=1, dropout=dropout, **sizes)


def choosing(classes: int = 2, keep_rate: float = 0.5, dropout: float = 0.0) -> nn.Module:
    """A model that chooses its tokens, at its smallest: nine of 4 pixels a side, of which it keeps eight."""
    sizes = {"image_size": SIZE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return create_model("token_pruned", num_classes=classes, in_chans=1, keep_rate=keep_rate, dropout=dropout, **sizes)


def predicting(classes: int = 2, keep_rate: float = 0.5, dropout: float = 0.0) -> nn.Module:
    """A DynamicViT at its smallest: 36 tokens of 2 pixels a side, of which it keeps 16, 8 and 8."""
    sizes = {"image_size": SIZE, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
    return create_model("dynamic_vit", num_classes=classes, in_chans=1, keep_rate=keep_rate, dropout=dropout, **sizes)


def pixels(n: int, seed: int = 0) -> tuple[DevicePixels, np.ndarray]:
    """Images whose class is the brightness of a spot, with labels; not quite separable."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = (0, 1)
    images = rng.integers(40, 160, (n, SIZE, SIZE, 1))
    images[:, 4:8, 4:8] += (labels * 45)[:, None, None, None]
    return DevicePixels(images.astype(np.uint8), CPU, None), labels.astype(np.int64)


def splits(n: int = 60, *, train: int | None = None, seed: int = 0) -> tuple[Examples, Examples]:
    """Training and validation examples of one source."""
    source, labels = pixels(n, seed)
    cut = train if train is not None else 2 * n // 3
    ids = tuple(f"image{i:03d}.png" for i in range(n))

    def part(rows: np.ndarray) -> Examples:
        return Examples(source, rows, labels[rows], tuple(ids[r] for r in rows))

    return part(np.arange(cut)), part(np.arange(cut, n))


@dataclass(frozen=True)
class Troubled(DevicePixels):
    """Has signals come, or fails, when the n-th batch is read."""

    at: int = 0
    signals: tuple[signal.Signals, ...] = ()
    error: Exception | None = None
    count: list[int] = None  # type: ignore[assignment]
    send: Callable[[signal.Signals], None] = deliver

    def gather(self, indices: np.ndarray | Tensor) -> Tensor:
        self.count[0] += 1
        if self.count[0] == self.at:
            for number in self.signals:
                self.send(number)
            if self.error is not None:
                raise self.error
        return super().gather(indices)


def troubled(
    at: int,
    *signals: signal.Signals,
    error: Exception | None = None,
    send: Callable[[signal.Signals], None] = deliver,
) -> tuple[Examples, Examples]:
    train, val = splits()
    source = train.pixels
    assert isinstance(source, DevicePixels)
    bad = Troubled(source.pixels, source.device, source.resident, at, signals, error, [0], send)
    return replace(train, pixels=bad), replace(val, pixels=bad)


def recipe(**train: Any) -> Recipe:
    """A short run; ``train`` overrides its keys, ``augment``, ``loss`` and the like whole sections."""
    sections = {key: train.pop(key) for key in ("augment", "imbalance", "loss", "tokens", "distill") if key in train}
    base = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "optimizer": "adamw", "amp": "off", "threads": 1}
    return load_recipe({"train": base | train, **sections})


def run(
    directory: Path,
    wanted: Recipe,
    *,
    model: nn.Module | None = None,
    data: tuple[Examples, Examples] | None = None,
    world: World = World(),  # noqa: B008
    **options: Any,
) -> FitResult:
    """``fit`` with everything that it takes."""
    if model is None:
        model = build(Noisy)
    train, val = splits() if data is None else data
    work = classifying(
        model,
        train=train,
        val=val,
        recipe=wanted,
        preprocess=PREPROCESS,
        device=CPU,
        world=world,
        **{key: options.pop(key) for key in ("class_weights", "teacher") if key in options},
    )
    return fit(
        model,
        work=work,
        recipe=wanted,
        run=RunDirectory(directory),
        fingerprint=fingerprint(wanted, {"hash": "d"}, device=CPU, processes=world.size),
        device=CPU,
        world=world,
        **options,
    )


def build(kind: Callable[..., nn.Module], seed: int = 0, **options: Any) -> nn.Module:
    """A model from a seed."""
    torch.manual_seed(seed)
    return kind(**options)
