"""Scores of a model over a split: each image exactly once, on however many processes.

Shape suffixes: N images of the split, B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from medloom.data.cache import finish
from medloom.data.preprocess import Preprocess
from medloom.training.batches import Pixels
from medloom.training.distributed import World
from medloom.training.precision import MEMORY_FORMAT, autocast

_ALONE = World()


class Interrupted(Exception):
    """Scoring was given up because the run was asked to stop."""


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    pixels: Pixels,
    preprocess: Preprocess,
    indices: np.ndarray,
    batch_size: int,
    device: torch.device,
    amp: str = "off",
    *,
    world: World = _ALONE,
    flip_average: bool = False,
    stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """``(N, K)`` float32 logits of the rows ``indices``, in their order, in every process.

    Args:
        model: left in the mode (train or eval) in which it came.
        pixels: source of uint8 ``(B, C, H, W)``.
        preprocess: its last half is applied here.
        batch_size: over all processes.
        amp: ``off`` (fp32, the rule for evaluation) or ``bf16``.
        flip_average: mean of the logits of an image and its mirror.
        stop: asked between batches; only where this is the one process.

    Raises:
        Interrupted: ``stop`` said so.
    """
    mine = world.share(len(indices))
    training = model.training
    model.eval()
    parts = []
    try:
        for start in range(mine.start, mine.stop, max(1, batch_size // world.size)):
            if stop is not None and world.size == 1 and stop():
                raise Interrupted
            rows = indices[start : min(start + max(1, batch_size // world.size), mine.stop)]
            x_BCHW = finish(pixels.gather(rows).to(device).float() / 255.0, preprocess)
            x_BCHW = x_BCHW.contiguous(memory_format=MEMORY_FORMAT)
            with autocast(device, amp):
                logits_BK = model(x_BCHW).float()
                if flip_average:
                    logits_BK = 0.5 * (logits_BK + model(x_BCHW.flip(-1)).float())
            parts.append((start, logits_BK))
    finally:
        model.train(training)
    width = torch.tensor([float(parts[0][1].shape[1]) if parts else 0.0], device=device)
    if world.size > 1:
        torch.distributed.all_reduce(width, op=torch.distributed.ReduceOp.MAX)
    # Each process fills its rows and the sum joins them: zeros plus a number is that number, exactly.
    logits_NK = torch.zeros(len(indices), int(width), device=device)
    for start, logits_BK in parts:
        logits_NK[start : start + len(logits_BK)] = logits_BK
    return np.asarray(world.sum(logits_NK).cpu().numpy(), dtype=np.float32)
