"""Multiply-adds that one image costs, counted while a forward pass runs rather than taken from a formula.

Counted are convolutions, linear layers and matrix products, both products of attention among them; normalisation,
activations, pooling and sums are not, as in the counts that papers print as GMACs (or, by another custom, as FLOPs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medloom.models.registry import create_model, input_of
from medloom.models.sizes import spatial_size


@torch.no_grad()
def count_macs(model: nn.Module, in_chans: int, image_size: int | Sequence[int]) -> int:
    """Multiply-adds of one forward pass of one image in evaluation mode.

    Args:
        model: any network that takes ``(1, in_chans, *size)``; one on the ``meta`` device is counted without computing.
            It is left in the mode that it was in.
        in_chans: channels of the image.
        image_size: pixels; a number stands for a square image, volumes are given as three.

    Raises:
        UsageError: U208, ``image_size`` is no size. What the model raises on an image of that size.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    size = spatial_size(image_size, 2 if isinstance(image_size, int) else len(image_size))
    x_1CS = torch.zeros(1, in_chans, *size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    try:
        # Some fused attention kernels are not known to the counter; the plain form does the same products.
        with _no_fused_encoder(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(x_1CS)
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2


def macs_of(
    name: str,
    *,
    num_classes: int = 2,
    in_chans: int | None = None,
    image_size: int | Sequence[int] | None = None,
    **options: Any,
) -> int:
    """The same of a registered model (or ``timm/NAME``), without making its weights; raises what ``create_model``
    raises."""
    shape = input_of(name)
    size = spatial_size(shape["image_size"] if image_size is None else image_size, shape["spatial_dims"])
    in_chans = shape["in_chans"] if in_chans is None else in_chans
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes, in_chans=in_chans, image_size=size, **options)
    return count_macs(model, in_chans, size)


@contextmanager
def _no_fused_encoder() -> Iterator[None]:
    """``nn.MultiheadAttention`` has a fused path of its own, which the counter cannot see into either."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
