"""Which cases each step shows and how they become tensors with masks: a function of (seed, epoch, step).

An epoch shows every case ``patches_per_case`` times. Images are shown whole, on the grid of ``Preprocess``; of volumes
a patch is cut where the draw says.

Shape suffixes: B items of a micro-batch, C channels, K classes, S the spatial axes of the input: (H, W) or (X, Y, Z).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medloom.data.augment import augment, warp
from medloom.data.augment_volumes import read_patch
from medloom.data.cache import finish
from medloom.data.case_cache import Cases
from medloom.data.draws import Draws, draw
from medloom.data.patch_draws import draw_patches
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.training.batches import Batch, Part, share_of
from medloom.training.distributed import World

if TYPE_CHECKING:
    from medloom.config import AugmentConfig


@dataclass(frozen=True)
class ImageReader:
    """Whole images with their masks, moved by the same draw.

    Attributes:
        rows: case of each training item.
        classes: K, with the background.
    """

    cases: Cases
    rows: np.ndarray
    classes: int
    preprocess: Preprocess
    config: AugmentConfig
    seed: int
    world: World
    device: torch.device

    def read(self, part: Part) -> Batch:
        """This process's share of a micro-batch; every process draws for the whole step, and takes its rows."""
        draws = draw(self.config, len(part.rows), (self.seed, part.epoch, part.step))
        mine, counts = share_of(part, self.world)
        chosen, drawn = self.rows[part.rows[mine]], draws[mine]
        x_BCHW = torch.from_numpy(np.stack([self.cases.pixels[i] for i in chosen]))
        x_BCHW = finish(augment(x_BCHW, drawn, self.config), self.preprocess)
        target_BHW = self._masks(np.stack([self.cases.labels[i] for i in chosen]), drawn)
        x_BCHW = x_BCHW.to(self.device).contiguous(memory_format=torch.channels_last)
        return Batch(x_BCHW, target_BHW.to(self.device), counts, part.last)

    def _masks(self, labels_BHW: np.ndarray, draws: Draws) -> Tensor:
        """Each structure moves as a share, and the largest share wins; what comes in from outside is background."""
        shares = [warp(torch.from_numpy((labels_BHW == k).astype(np.float32)), draws) for k in range(1, self.classes)]
        shares_BKHW = torch.stack(shares, dim=1)
        background_B1HW = 1.0 - shares_BKHW.sum(dim=1, keepdim=True)
        return torch.cat([background_B1HW, shares_BKHW], dim=1).argmax(dim=1)


@dataclass(frozen=True)
class PatchReader:
    """Patches of volumes.

    Attributes:
        rows: case of each training item.
        patch: voxels per axis.
        foreground: share of the patches that are centred in a structure.
    """

    cases: Cases
    rows: np.ndarray
    patch: tuple[int, int, int]
    foreground: float
    preprocess: VolumePreprocess
    config: AugmentConfig
    seed: int
    world: World
    device: torch.device

    def read(self, part: Part) -> Batch:
        """This process's share of a micro-batch; every process draws for the whole step, and takes its rows."""
        draws = draw_patches(self.config, self.foreground, len(part.rows), (self.seed, part.epoch, part.step))
        mine, counts = share_of(part, self.world)
        chosen, drawn = self.rows[part.rows[mine]], draws[mine]
        cases = self.cases
        # Where each case keeps its own spacing, voxels are taken for cubes.
        spacing = self.preprocess.spacing or (1.0, 1.0, 1.0)
        read = [
            read_patch(
                cases.pixels[case], cases.labels[case], cases.places[case], drawn, i, self.patch, spacing=spacing
            )
            for i, case in enumerate(chosen)
        ]
        x_BCXYZ = (torch.stack([x for x, _ in read]) - self.preprocess.mean[0]) / self.preprocess.std[0]
        return Batch(x_BCXYZ.to(self.device), torch.stack([y for _, y in read]).to(self.device), counts, part.last)
