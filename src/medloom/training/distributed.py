"""torchrun: who am I, what is my share, and sums over all processes.

One process is the case ``World()``: every function below then returns its argument and nothing is started.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Place of this process among all that train together."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """The process that writes files and speaks to people."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's part of ``n`` items; parts differ by at most one, the first process has the largest."""
        base, extra = divmod(n, self.size)
        start = self.rank * base + min(self.rank, extra)
        return slice(start, start + base + (self.rank < extra))

    def sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def barrier(self) -> None:
        """Wait for the others, e.g. until the main process has written the pixel cache."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, a world of one.

    Args:
        device: of this process; NCCL carries CUDA tensors, gloo the rest.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
        # Nobody leaves while another still needs the store that the first process keeps.
        dist.barrier()
    finally:
        # The wrapped module holds on to the group's threads; it must be gone before the group is.
        gc.collect()
        dist.destroy_process_group()


def replicate(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """The module whose backward pass averages gradients over all processes."""
    if world.size == 1:
        return model
    # Channels-last gradients of 1x1 kernels have other strides than their bucket: equal numbers, a warning per step.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def accumulating(net: nn.Module, more_to_come: bool) -> contextlib.AbstractContextManager[object]:
    """Hold gradients back from the other processes until the last micro-batch of a step."""
    if more_to_come and isinstance(net, DistributedDataParallel):
        return net.no_sync()
    return contextlib.nullcontext()


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process the main one's running statistics, so that all score with the same model."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
