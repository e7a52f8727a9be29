"""Whole blocks that a network can do without: found, tried out, dropped.

Shapes: B images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medloom.blocks.transformer import AttentionBlock, Block
from medloom.models.narrowed import drop_block


@dataclass(frozen=True)
class Original:
    """Widths before the first step, by which shares are counted.

    Attributes:
        widths: channels or units by the name of the layer that makes them.
        heads: by the name of the attention.
        depths: blocks by the name of their list.
    """

    widths: dict[str, int]
    heads: dict[str, int]
    depths: dict[str, int]


def block_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential, list[int]]]:
    """Lists of blocks with the positions of those that can go: in and out are of one shape, joined by a sum."""
    for name, holder in model.named_modules():
        if isinstance(holder, nn.ModuleList | nn.Sequential) and len(holder) > 1:
            removable = [k for k, block in enumerate(holder) if _is_residual(block)]
            if removable:
                yield name, holder, removable


def _is_residual(block: nn.Module) -> bool:
    if isinstance(block, Block | AttentionBlock):
        return True
    kind = type(block).__name__
    if kind in ("BasicBlock", "Bottleneck"):  # timm's ResNet: the first of a stage changes size or width
        return getattr(block, "downsample", 0) is None
    if kind == "ConvNeXtBlock":
        shortcut = getattr(block, "shortcut", None)
        return shortcut is None or isinstance(shortcut, nn.Identity)
    return False


def drop_blocks(model: nn.Module, original: Original, share: float, x_BCHW: Tensor) -> tuple[str, ...]:
    """From each list the blocks without which the answers change least, one after another."""
    dropped: list[str] = []
    for name, depth in original.depths.items():
        while True:
            holder: Any = model.get_submodule(name)
            removable = next((places for n, _, places in block_lists(model) if n == name), [])
            if len(holder) <= kept(depth, share) or not removable:
                break
            expected_BK = _logits(model, x_BCHW)
            changes = []
            for k in removable:
                block = holder[k]
                holder[k] = _Skip()
                changes.append(float((_logits(model, x_BCHW) - expected_BK).square().mean()))
                holder[k] = block
            place = f"{name}.{removable[changes.index(min(changes))]}"
            drop_block(model, place)
            dropped.append(place)
    return tuple(dropped)


class _Skip(Block):
    """Does nothing, in the place of a block that is tried to do without; a ``Block`` for ``run_blocks``."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


def kept(count: int, share: float) -> int:
    """How many of ``count`` stay when ``share`` of them is to go: rounded up, never none."""
    return max(1, math.ceil(count * (1 - share) - 1e-9))


@torch.no_grad()
def _logits(model: nn.Module, x_BCHW: Tensor) -> Tensor:
    logits_BK: Tensor = model(x_BCHW)
    return logits_BK
