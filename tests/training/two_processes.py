"""Train and score under torchrun; the main process writes what it got.

torchrun --nproc_per_node 2 two_processes.py DIRECTORY MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import small_runs
import torch
from torch import Tensor

from medloom.data.cache import DevicePixels
from medloom.training import distributed
from medloom.training.predict import predict_logits

WANTED = {"epochs": 3, "batch_size": 7, "learning_rate": 0.003, "ema_decay": 0.5}


class Counting:
    """Pixels that count how often each row was asked for."""

    def __init__(self, pixels: DevicePixels, n: int) -> None:
        self.pixels, self.count = pixels, np.zeros(n, dtype=np.int64)

    def gather(self, indices: np.ndarray) -> Tensor:
        np.add.at(self.count, indices, 1)
        return self.pixels.gather(indices)


def scored(directory: Path, name: str, world: distributed.World) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all images after training, and how often each image was read for them, over all processes."""
    model = small_runs.build(getattr(small_runs, name))
    # 43 training images in steps of 7: sizes differ, shares are uneven.
    data = small_runs.splits(60, train=43)
    wanted = WANTED | ({"freeze_epochs": 1} if name == "Held" else {})
    small_runs.run(directory, small_runs.recipe(**wanted), model=model, data=data, world=world)
    source, _ = small_runs.pixels(61)
    counting = Counting(source, 61)
    logits = predict_logits(model, counting, small_runs.PREPROCESS, np.arange(61), 8, small_runs.CPU, world=world)
    return logits, world.sum(torch.from_numpy(counting.count)).numpy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    with distributed.world(small_runs.CPU) as everyone:
        for kind in sys.argv[2:]:
            logits, count = scored(root / kind, kind, everyone)
            if everyone.is_main:
                np.savez(root / f"{kind}.npz", logits=logits, count=count)
