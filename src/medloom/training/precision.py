"""Device, number format and determinism of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import nn

from medloom.errors import UsageError
from medloom.machine import has_bfloat16

MEMORY_FORMAT = torch.channels_last
"""bf16 convolutions want it: 8 (ResNet-18) to 48 percent (Conv2D) less CPU time a step at 96 pixels on a 2-core AVX-512
machine, DenseNet, ConvNeXt and HATR 24 to 32; a ViT does not mind."""


def memory_format(model: nn.Module) -> torch.memory_format:
    """The order of a network's weights: channels last; of volumes as they come, where it gains nothing (3 percent)."""
    volumes = any(parameter.ndim == 5 for parameter in model.parameters())
    return torch.contiguous_format if volumes else MEMORY_FORMAT


def choose_device(name: str = "auto") -> torch.device:
    """The device that a recipe means: ``auto`` takes the GPU where there is one; under torchrun each process its own.

    Raises:
        UsageError: U310, cuda was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("U310", "train.device", "no CUDA device is usable here", "Set train.device=auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def number_format(device: torch.device, amp: str) -> Literal["bf16", "off"]:
    """What ``auto`` means on a device: ``bf16`` where its processor computes in it, else ``off``.

    A CPU without such instructions emulates them: a training step then takes 12 (ViT) to several hundred (ResNet-18)
    times as long as in float32 (seen with torch 2.13 on an AVX2 machine).
    """
    if amp in ("bf16", "off"):
        return cast(Literal["bf16", "off"], amp)
    able = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else has_bfloat16()
    return "bf16" if able else "off"


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast on CPU and GPU alike (bf16 has the range of fp32, so there is no loss scaling), or nothing."""
    if number_format(device, amp) == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def settings(device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Process-wide torch settings of a run, put back afterwards.

    On CPU every operator is the deterministic one, because a resumed run owes the bytes of an uninterrupted one.
    On CUDA the fastest convolution is searched for, and equality holds up to rounding only.

    Args:
        device: where the run computes.
        threads: compute threads of torch; None leaves what the environment says.
    """
    threads_before, cudnn = torch.get_num_threads(), torch.backends.cudnn.benchmark
    # The debug mode is the same switch as use_deterministic_algorithms, which would import the compiler for seconds.
    strict = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        if device.type == "cpu":
            torch.set_deterministic_debug_mode("error")
            # Filling fresh memory with NaN finds bugs in kernels; it costs time and changes no result of ours.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        else:
            torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.backends.cudnn.benchmark = cudnn
        torch.set_deterministic_debug_mode(strict)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
