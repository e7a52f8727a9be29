"""Which images each step shows, to which process, and how they become tensors: a function of (seed, epoch, step).

An epoch's images are dealt into ``ceil(n / batch)`` steps whose sizes differ by at most one. So there is no small last
batch: one of a single image, on which batch normalisation fails, occurs only where the batch size or the whole data
set is one. A batch larger than the data set is the data set.

Shape suffixes: B images of a micro-batch, C channels, H height, W width, K classes, N images of the split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from medloom.data.augment import augment, draw, warp
from medloom.data.cache import finish
from medloom.data.masks import Masks
from medloom.data.preprocess import Preprocess
from medloom.errors import ResourceError
from medloom.training.distributed import World
from medloom.training.precision import MEMORY_FORMAT

if TYPE_CHECKING:
    from medloom.config import AugmentConfig


class Pixels(Protocol):
    """All images of the data set on the device of the run (``data.cache.DevicePixels``)."""

    def gather(self, indices: np.ndarray) -> Tensor:
        """uint8 ``(B, C, H, W)`` of the given rows."""
        ...


@dataclass(frozen=True)
class Examples:
    """The images of one split.

    Attributes:
        pixels: of the whole data set.
        rows: ``(N,)`` which of them belong to the split.
        labels: ``(N,)`` int64 class positions, or ``(N, K)`` float32 zeros and ones.
        ids: ``(N,)`` record ids, for messages.
        masks: of the whole data set, for a model that learns from them; None otherwise.
    """

    pixels: Pixels
    rows: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    masks: Masks | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def multi_label(self) -> bool:
        """Whether an image may bear several labels."""
        return self.labels.ndim == 2


def deal(n: int, size: int) -> list[slice]:
    """Cut ``n`` items into ``ceil(n / size)`` runs whose lengths differ by at most one."""
    parts = max(1, -(-n // size))
    edges = [n * k // parts for k in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Part:
    """A micro-batch before it is read: the images of its step, over all processes, and its place among them."""

    epoch: int
    step: int
    rows: np.ndarray
    place: slice
    last: bool


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process.

    Attributes:
        x_BCHW: model input.
        target: ``(B,)`` int64 or ``(B, K)`` float32; of masks ``(B, *S)`` int64 positions.
        counts: False for an image that is only there so that all processes go through the same motions, where a
            micro-batch has fewer images than there are processes; its loss must be multiplied by zero.
        last: whether the optimiser steps after it.
        mask_BHW: share of the finding in each pixel, and ``masked_B`` which images have a mask; None without masks.
    """

    x_BCHW: Tensor
    target: Tensor
    counts: bool
    last: bool
    mask_BHW: Tensor | None = None
    masked_B: Tensor | None = None


def parts(steps: list[np.ndarray], batch_size: int, epoch: int, first_step: int) -> Iterator[Part]:
    """The micro-batches of an epoch from ``first_step`` on.

    Args:
        steps: rows of each optimiser step.
        batch_size: images of a micro-batch over all processes.
    """
    for step in range(first_step, len(steps)):
        places = deal(len(steps[step]), batch_size)
        for k, place in enumerate(places):
            yield Part(epoch, step, steps[step], place, last=k == len(places) - 1)


def share_of(part: Part, world: World) -> tuple[slice, bool]:
    """Places in the step of this process's share of a micro-batch, and whether it counts.

    Where a micro-batch has fewer items than there are processes, the rest go through the same motions with the first
    item, which counts nothing.
    """
    share = world.share(part.place.stop - part.place.start)
    counts = share.stop > share.start
    share = share if counts else slice(0, 1)
    return slice(part.place.start + share.start, part.place.start + share.stop), counts


@dataclass(frozen=True)
class Reader:
    """Makes micro-batches; holds what stays the same through a run."""

    examples: Examples
    preprocess: Preprocess
    config: AugmentConfig
    seed: int
    world: World
    device: torch.device

    def read(self, part: Part) -> Batch:
        """This process's share of a micro-batch, augmented and normalised.

        Every process draws for the whole step and takes its rows, so that the pictures do not depend on how many
        processes there are.

        Raises:
            ResourceError: T408, the images cannot be read any more.
        """
        draws = draw(self.config, len(part.rows), (self.seed, part.epoch, part.step))
        mine, counts = share_of(part, self.world)
        rows = part.rows[mine]
        try:
            x_u8_BCHW = self.examples.pixels.gather(self.examples.rows[rows])
        except OSError as problem:
            raise ResourceError(
                "T408",
                f"epoch {part.epoch} step {part.step + 1}",
                f"images not readable: {problem.strerror or problem}",
                "See that the disk of the pixel cache is there, then --resume",
            ) from None
        x_BCHW = augment(x_u8_BCHW, draws[mine], self.config)
        x_BCHW = finish(x_BCHW, self.preprocess).to(self.device).contiguous(memory_format=MEMORY_FORMAT)
        target = torch.from_numpy(self.examples.labels[rows]).to(self.device, non_blocking=True)
        if self.examples.masks is None:
            return Batch(x_BCHW, target, counts, part.last)
        shares_BHW, known_B = self.examples.masks.shares(self.examples.rows[rows])
        mask_BHW = warp(torch.from_numpy(shares_BHW), draws[mine]).to(self.device)
        return Batch(x_BCHW, target, counts, part.last, mask_BHW, torch.from_numpy(known_B).to(self.device))
