"""The MaxViT block in two and three dimensions: convolution, attention among neighbours, attention across the map.

Parameter names are timm's, so that its weights load. Shapes: B batch, C channels, S all spatial axes, D channels last.

Reference: Tu et al., MaxViT, arXiv 2204.01697, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medloom.blocks.convolution import NormKind
from medloom.blocks.mbconv import MBConv
from medloom.blocks.windows import BLOCK, GRID, PartitionAttention, Positions, RelativePositions

HEAD_DIM = 32


class MaxViTBlock(nn.Module):
    """MBConv, block attention, grid attention.

    Args:
        in_chans: C.
        out_chans: D, a multiple of 32.
        stride: of the convolution, one per spatial axis.
        window: cells per axis of a block and of a grid.
        norm: kind of the convolution's norms.
        dropout: in the attentions' projections.
        drop_path: stochastic depth of each branch.
        positions: what makes the attentions' relative positions.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        stride: tuple[int, ...],
        window: tuple[int, ...],
        norm: NormKind,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        positions: Positions = RelativePositions,
    ) -> None:
        super().__init__()
        self.conv = MBConv(in_chans, out_chans, dims=len(stride), stride=stride, norm=norm, drop_path=drop_path)
        self.attn_block, self.attn_grid = (
            PartitionAttention(
                out_chans,
                partition=kind,
                window=window,
                head_dim=HEAD_DIM,
                dropout=dropout,
                drop_path=drop_path,
                positions=positions,
            )
            for kind in (BLOCK, GRID)
        )

    def forward(self, x_BCS: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, D, *ceil(S / stride))``."""
        x_BSD = self.conv(x_BCS).movedim(1, -1)
        return self.attn_grid(self.attn_block(x_BSD)).movedim(-1, 1)


def maxvit_blocks(
    in_chans: int,
    out_chans: int,
    *,
    stride: tuple[int, ...],
    window: tuple[int, ...],
    norm: NormKind,
    dropout: float,
    drop_paths: Sequence[float],
    positions: Positions = RelativePositions,
) -> nn.ModuleList:
    """One block per rate of stochastic depth; the first changes the width and the grid."""
    still = (1,) * len(stride)
    return nn.ModuleList(
        MaxViTBlock(
            out_chans if i else in_chans,
            out_chans,
            stride=still if i else stride,
            window=window,
            norm=norm,
            dropout=dropout,
            drop_path=rate,
            positions=positions,
        )
        for i, rate in enumerate(drop_paths)
    )


def pass_blocks(blocks: Iterable[nn.Module], x_BCS: Tensor, *, checkpointing: bool) -> Tensor:
    """One block after the other; with checkpointing, training keeps their inputs alone and computes the rest again."""
    for block in blocks:
        if checkpointing and block.training and torch.is_grad_enabled():
            x_BCS = checkpoint(block, x_BCS, use_reentrant=False)
        else:
            x_BCS = block(x_BCS)
    return x_BCS


def init_maxvit(module: nn.Module) -> None:
    """Truncated normal 0.02 for linear weights, He's rule (fan out) for convolutions, zero for their biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            # Each output channel of a depthwise convolution is fed to by one input channel, whatever PyTorch counts.
            fan_out = layer.weight[0, 0].numel() * layer.out_channels / layer.groups
            nn.init.trunc_normal_(layer.weight, std=(2.0 / fan_out) ** 0.5)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
