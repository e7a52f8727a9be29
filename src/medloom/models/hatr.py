"""HATR: a CNN trunk joined to a shallow ViT by multi-scale overlapping embedding and adaptive token weighting.

The paper leaves much open; docs and the model card say which reading is taken. In short: windows of several kernel
sizes with stride smaller than the kernel (where the kernel is larger than one) cut the trunk's map into overlapping
patches; each scale's grid passes a channel gate and a spatial gate (CBAM order), which gives one weight per patch
token; the tokens of all scales and a CLS token pass four pre-norm blocks, and CLS is classified.

Shapes: B batch, C channels, H and W image size, D token width, h and w grid of one scale, N tokens of all scales, K
classes.

Reference: Zhang, HATR, EMITI 2025, DOI 10.5220/0014361900004718; Woo et al., CBAM, arXiv 1807.06521.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medloom.blocks.convolution import conv_bn_relu
from medloom.blocks.refinement import TokenWeighting
from medloom.blocks.taps import Tap, Taps, token_tap
from medloom.blocks.tokens import resize_positions, to_tokens, window_grid
from medloom.blocks.transformer import Runner, init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError
from medloom.models.backbones import TimmTrunk
from medloom.models.conv2d import Conv2DTrunk
from medloom.models.sizes import pair, size_error


class ScaleEmbedding(nn.Module):
    """One scale: windows of one kernel size and stride over the trunk's map, weighted, with positions.

    Args:
        in_chans: channels of the map.
        embed_dim: D.
        kernel_size: of the window, in cells of the map.
        stride: of the window; smaller than the kernel where patches overlap.
        grid: ``(h, w)`` that positions are learned for; another grid gets them interpolated.
        weighting: whether the two gates are there.
        reduction: of the channel gate.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        *,
        kernel_size: int,
        stride: int,
        grid: tuple[int, int],
        weighting: bool,
        reduction: int,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size, stride=stride)
        self.weighting = TokenWeighting(embed_dim, reduction=reduction) if weighting else None
        self.position_1Dhw = nn.Parameter(torch.empty(1, embed_dim, *grid))
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)
        nn.init.trunc_normal_(self.position_1Dhw, std=0.02)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(B, C, H, W) -> (B, D, h, w)``, and the token weights ``(B, 1, h, w)`` or None."""
        x_BDhw = self.proj(x_BCHW)
        weight_B1hw = None
        if self.weighting is not None:
            x_BDhw, weight_B1hw = self.weighting(x_BDhw)
        h, w = x_BDhw.shape[-2:]
        return x_BDhw + resize_positions(self.position_1Dhw, (h, w)), weight_B1hw


class HATR(nn.Module):
    """CNN trunk, token refinement, shallow ViT.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels; other sizes work too where the trunk takes them, with interpolated positions.
        trunk: ``conv2d`` or any timm name; a timm trunk's map is first reduced to D by a 1x1 convolution.
        trunk_stride: which map of a timm trunk (8, 16, 32); None takes the deepest. 16 suits small images: 96 px
            leave 3x3 cells at stride 32.
        scales: ``(kernel, stride)`` per scale; ``((2, 1),)`` is the paper's one example.
        overlap: False makes every stride equal to its kernel (non-overlapping patches).
        weighting: False leaves the gates out. One scale, no overlap and no weighting together are the "direct
            connection" that the paper compares with.
        embed_dim: D.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the blocks' MLP over D.
        dropout: on the tokens and in the blocks.
        drop_path: stochastic depth of the last block.
        trunk_drop_path: stochastic depth of a timm trunk's last block; 0 leaves it out.
        reduction: of the channel gate.
        pretrained: fetch timm's weights for the trunk.

    Raises:
        UsageError: U206 unknown trunk, U208 impossible option value.
        ModelError: C511 image too small for the trunk or for a scale.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        trunk: str = "resnet18",
        trunk_stride: int | None = None,
        scales: Sequence[Sequence[int]] = ((2, 1), (3, 2)),
        overlap: bool = True,
        weighting: bool = True,
        embed_dim: int = 512,
        depth: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        trunk_drop_path: float = 0.0,
        reduction: int = 16,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        size = pair(image_size)
        windows = _windows(scales, overlap)
        if num_heads < 1 or embed_dim % num_heads:
            raise UsageError(
                "U208",
                "option num_heads",
                f"{embed_dim} channels do not divide by {num_heads}",
                "Change one of the two",
            )
        self.trunk, self.reduce, channels = _trunk(
            trunk, trunk_stride, in_chans, size, embed_dim, trunk_drop_path, pretrained
        )
        self.scales = nn.ModuleList()
        for kernel_size, stride in windows:
            grid = window_grid(self.trunk.grid, kernel_size, stride)
            if 0 in grid:
                cells = "x".join(map(str, self.trunk.grid))
                raise size_error(
                    f"hatr on {trunk}",
                    size,
                    f"leaves a map of {cells} cells, too small for a window of {kernel_size}",
                    "Use a larger image, a smaller trunk_stride, or smaller scales",
                )
            self.scales.append(
                ScaleEmbedding(
                    channels,
                    embed_dim,
                    kernel_size=kernel_size,
                    stride=stride,
                    grid=grid,
                    weighting=weighting,
                    reduction=reduction,
                )
            )
        # A single scale needs no name: its embedding would only repeat the bias of the convolution.
        self.scale_embed = nn.Parameter(torch.empty(len(windows), embed_dim)) if len(windows) > 1 else None
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.cls_position = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.token_drop = nn.Dropout(dropout)
        self.blocks = transformer_blocks(
            embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=drop_path
        )
        self.runner: Runner = run_blocks
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        for parameter in (self.scale_embed, self.cls_token, self.cls_position):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        init_transformer(self.blocks)
        init_transformer(self.head)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``.

        Taps: ``features.i`` trunk maps; ``embedding.k`` map ``(B, D, h, w)`` of scale k; ``token_weight.k``
        ``(B, h * w)`` in (0, 1), 0.5 neutral, with its grid; ``attention.i`` and ``tokens`` over CLS and the tokens of
        all scales in order, with a grid only where there is one scale.
        """
        x_BChw = self.reduce(self.trunk(x_BCHW, taps))
        sequences, grids = [], []
        for k, scale in enumerate(self.scales):
            x_BDhw, weight_B1hw = scale(x_BChw)
            grid = tuple(x_BDhw.shape[-2:])
            if taps is not None:
                taps[f"embedding.{k}"] = Tap(x_BDhw, grid=grid)
                if weight_B1hw is not None:
                    taps[f"token_weight.{k}"] = Tap(weight_B1hw.flatten(1), grid=grid)
            tokens_BND = to_tokens(x_BDhw)
            sequences.append(tokens_BND if self.scale_embed is None else tokens_BND + self.scale_embed[k])
            grids.append(grid)
        cls_B1D = (self.cls_token + self.cls_position).expand(x_BCHW.shape[0], -1, -1)
        x_BND = self.token_drop(torch.cat([cls_B1D, *sequences], dim=1))
        grid = grids[0] if len(grids) == 1 else ()
        x_BND = self.norm(self.runner(self.blocks, x_BND, taps, grid=grid, prefix=1))
        if taps is not None:
            taps["tokens"] = token_tap(x_BND, grid=grid, prefix=1)
        return self.head(x_BND[:, 0])

    def translate(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """Weights of a timm network of the trunk's kind as those of the trunk, told in words; None for others."""
        return self.trunk.translate(state, prefix="trunk.") if isinstance(self.trunk, TimmTrunk) else None

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("head.weight", "head.bias")


hatr = HATR
hatr_conv2d = functools.partial(HATR, trunk="conv2d", trunk_stride=None)
hatr_resnet50 = functools.partial(HATR, trunk="resnet50")


def _trunk(
    name: str,
    stride: int | None,
    in_chans: int,
    size: tuple[int, int],
    embed_dim: int,
    drop_path: float,
    pretrained: bool,
) -> tuple[Conv2DTrunk | TimmTrunk, nn.Module, int]:
    """The trunk, its 1x1 reduction (the paper reduces ResNet's 2048 channels, not Conv2D's 256), channels behind it."""
    if name == "conv2d":
        if stride not in (None, Conv2DTrunk.stride):
            raise UsageError("U208", "option trunk_stride", f"conv2d has no map of stride {stride}", "Leave it out")
        if pretrained:
            raise UsageError("U208", "option pretrained", "conv2d has no published weights", "Leave it out")
        if drop_path:
            raise UsageError("U208", "option trunk_drop_path", "conv2d has no stochastic depth", "Leave it out")
        return Conv2DTrunk(in_chans=in_chans, image_size=size), nn.Identity(), Conv2DTrunk.channels
    trunk = TimmTrunk(
        name.removeprefix("timm/"),
        in_chans=in_chans,
        image_size=size,
        stride=stride,
        drop_path=drop_path,
        pretrained=pretrained,
    )
    return trunk, conv_bn_relu(trunk.channels, embed_dim, 1), embed_dim


def _windows(scales: Sequence[Sequence[int]], overlap: bool) -> list[tuple[int, int]]:
    windows = []
    for scale in scales:
        if not isinstance(scale, Sequence) or len(scale) != 2 or any(not isinstance(n, int) or n < 1 for n in scale):
            raise UsageError("U208", "option scales", f"{scale!r} is not (kernel, stride)", "Write [[2, 1], [3, 2]]")
        kernel_size, stride = scale
        windows.append((kernel_size, stride if overlap else kernel_size))
    if not windows:
        raise UsageError("U208", "option scales", "there is none", "Write [[2, 1], [3, 2]]")
    return windows
