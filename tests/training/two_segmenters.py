"""Train segmenters under torchrun; the main process writes the log.

torchrun --nproc_per_node 2 two_segmenters.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import small_cases
import torch

from medloom.training import distributed

if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.world(small_cases.CPU) as everyone:
        for dims in (2, 3):
            wanted = small_cases.recipe(dims)
            small_cases.run(Path(sys.argv[1]) / f"two{dims}", wanted, dims, world=everyone)
