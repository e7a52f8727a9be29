"""TransUNet for volumes, in its encoder form: a U-Net whose coarsest cells pass through a ViT.

Shapes: B batch, C channels, X Y Z volume size, D token width, N tokens, K classes.

Reference: Chen et al., 3D TransUNet, arXiv 2310.07781, and Medical Image Analysis 2024, 103280; the form called encoder
only there, which was its best for several organs. Its decoder of mask queries is not built.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medloom.blocks.convolution import convolution
from medloom.blocks.decoders import PlainUp, deep_heads, deep_logits, extent_at, plain_unit
from medloom.blocks.taps import Taps, token_tap
from medloom.blocks.tokens import resize_positions, to_tokens
from medloom.blocks.transformer import init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError
from medloom.models.sizes import spatial_size
from medloom.models.unet import (
    check_coarsest,
    climb,
    level_strides,
    pass_levels,
    plain_levels,
    supervised_strides,
    tap_maps,
)


class TransUNet3D(nn.Module):
    """nnU-Net's plain encoder, a transformer on its coarsest map, nnU-Net's decoder.

    Args:
        num_classes: K, the background included.
        in_chans: C.
        image_size: sets the grid of the learned positions; others are interpolated.
        dims: channels of the levels, from fine to coarse.
        strides: one list of one stride per axis for every level but the first; None halves every axis every time.
        embed_dim: D.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the blocks' MLP over D.
        dropout: on the tokens and in the blocks.
        drop_path: stochastic depth of the last block.
        deep_supervision: the decoder's maps behind the finest, the coarsest left out, learn too (``train_outputs``).

    Raises:
        UsageError: U208 an impossible option.
        ModelError: C511 a size that leaves one cell at the coarsest level.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 1,
        image_size: int | Sequence[int] = 96,
        dims: Sequence[int] = (32, 64, 128, 256, 320),
        strides: Sequence[Sequence[int]] | None = None,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise UsageError(
                "U208", "option num_heads", f"{embed_dim} channels do not divide by {num_heads}", "Change one"
            )
        size, steps = spatial_size(image_size, 3), level_strides(strides, dims, 3)
        check_coarsest("transunet_3d", size, steps)
        self.trunk = plain_levels(in_chans, dims, ((1, 1, 1), *steps), bias=True)
        self.embed = convolution(3, dims[-1], embed_dim, 1)
        grid = extent_at(size, steps)
        self.position_1Dxyz = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, embed_dim, *grid), std=0.02))
        self.token_drop = nn.Dropout(dropout)
        self.blocks = transformer_blocks(
            embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=drop_path
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.bridge = plain_unit(embed_dim, dims[-1], stride=(1, 1, 1), bias=True)
        self.decoder = nn.ModuleList(
            PlainUp(dims[i + 1], dims[i], stride=steps[i], bias=True) for i in reversed(range(len(steps)))
        )
        self.deep_strides = supervised_strides(steps) if deep_supervision else {}
        channels = {stride: dims[level] for stride, level in self.deep_strides.items()}
        self.deep_heads = deep_heads(channels, num_classes, dims=3)
        self.head = convolution(3, dims[0], num_classes, 1)
        init_transformer(self)

    def forward(self, x_BCXYZ: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, X, Y, Z) -> (B, K, X, Y, Z)``.

        Taps: ``features.0`` ... of the way down, ``decoded.0`` ... of the way up, ``attention.i``, ``tokens`` behind
        the last norm.
        """
        maps = pass_levels(self.trunk, x_BCXYZ)
        decoded = climb(self.decoder, [*maps[:-1], self._transform(maps[-1], taps)])
        if taps is not None:
            tap_maps(taps, maps, decoded)
        return self.head(decoded[-1])

    def train_outputs(self, x_BCXYZ: Tensor) -> dict[str, Tensor]:
        """``logits``, and with deep supervision ``deep.2``, ``deep.4`` ..., each ``(B, K, *size / stride)``."""
        maps = pass_levels(self.trunk, x_BCXYZ)
        decoded = climb(self.decoder, [*maps[:-1], self._transform(maps[-1], None)])
        deep = {stride: decoded[-1 - level] for stride, level in self.deep_strides.items()}
        return {"logits": self.head(decoded[-1]), **deep_logits(self.deep_heads, deep)}

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return tuple(name for name, _ in self.named_parameters() if name.startswith(("head.", "deep_heads.")))

    def _transform(self, x_BCXYZ: Tensor, taps: Taps | None) -> Tensor:
        grid = tuple(x_BCXYZ.shape[2:])
        x_BDXYZ = self.embed(x_BCXYZ) + resize_positions(self.position_1Dxyz, grid)
        x_BND = self.token_drop(to_tokens(x_BDXYZ))
        x_BND = self.norm(run_blocks(self.blocks, x_BND, taps, grid=grid, prefix=0))
        if taps is not None:
            taps["tokens"] = token_tap(x_BND, grid=grid, prefix=0)
        return self.bridge(x_BND.transpose(1, 2).unflatten(2, grid))


_SMALL: dict[str, Any] = {"embed_dim": 384, "depth": 6, "num_heads": 6}
_TINY: dict[str, Any] = {"dims": (16, 32, 64, 128, 160), "embed_dim": 192, "depth": 4, "num_heads": 3}

transunet_3d = TransUNet3D
transunet_3d_small = functools.partial(TransUNet3D, **_SMALL)
transunet_3d_tiny = functools.partial(TransUNet3D, **_TINY)
