"""DBCT: a light CNN branch and a transformer branch, joined by one cross-attention.

The slides give the outline; two sets of numbers reproduce their three parameter counts: ``dbct`` and ``dbct_keras``.

Shapes: B batch, C channels, H and W image size, D token width, h and w map or grid, N transformer tokens, M CNN tokens,
K classes.

Reference: Pham and Hoang, Cross-attention and reconstruction-regularized transformers for multi-label chest X-ray
classification, University of Padova, 2025/26 (slides; no paper or code).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medloom.blocks.fusion import CrossAttention
from medloom.blocks.taps import Tap, Taps
from medloom.blocks.tokens import PatchEmbedding, resize_position_table, sincos_positions, to_tokens
from medloom.blocks.transformer import init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError
from medloom.models.backbones import TimmTrunk
from medloom.models.sizes import check_cells, pair, size_error

Positions = Literal["sincos", "learned"]
Query = Literal["transformer", "cnn"]


class LightTrunk(nn.Module):
    """Two convolutions of stride 2 with ReLU. Raises ModelError C511 for an image smaller than one cell."""

    channels = 32
    stride = 4

    def __init__(self, *, in_chans: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        check_cells("dbct", image_size, self.stride)
        self.conv1 = nn.Conv2d(in_chans, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, self.channels, 3, stride=2, padding=1)
        for layer in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, 32, H / 4, W / 4)``, rounded up; taps ``features.0``, ``features.1`` hold both maps."""
        for i, layer in enumerate((self.conv1, self.conv2)):
            x_BCHW = layer(x_BCHW).relu()
            if taps is not None:
                taps[f"features.{i}"] = Tap(x_BCHW, grid=tuple(x_BCHW.shape[-2:]))
        return x_BCHW


class DBCT(nn.Module):
    """Patch tokens through a transformer, map cells of a trunk as CNN tokens, one attends to the other.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels, a multiple of ``patch_size``; other multiples work too where the trunk takes them.
        patch_size: pixels per side of a patch of the transformer branch.
        trunk: ``light`` (the two convolutions of the slides), or any timm name, networks of maps and of tokens alike.
        trunk_stride: which map of a timm trunk; None takes the deepest.
        pos: positions of the transformer branch: fixed ``sincos`` (no parameters) or ``learned``.
        query: who asks: the tokens of the ``transformer``, or those of the ``cnn``.
        embed_dim: D.
        depth: transformer blocks.
        num_heads: heads of the blocks and of the cross-attention.
        head_dim: width of a head; None shares D among them.
        mlp_ratio: hidden width of the blocks' MLP over D.
        head_widths: hidden layers of the classifier.
        dropout: in the blocks and behind the hidden layers of the classifier.
        drop_path: stochastic depth of the last block.
        pretrained: fetch timm's weights for the trunk.

    Raises:
        UsageError: U206 unknown trunk, U208 impossible option value.
        ModelError: C511 image size that does not fit patches or trunk.
    """

    fixed_positions: Tensor | None

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int,
        image_size: int | tuple[int, int],
        patch_size: int,
        trunk: str,
        trunk_stride: int | None,
        pos: Positions,
        query: Query,
        embed_dim: int,
        depth: int,
        num_heads: int,
        head_dim: int | None,
        mlp_ratio: float,
        head_widths: Sequence[int],
        dropout: float,
        drop_path: float,
        pretrained: bool,
    ) -> None:
        super().__init__()
        _check(pos, query, patch_size)
        size = pair(image_size)
        self.patch_size = patch_size
        self.grid = self._grid(size)
        self.query = query
        self.trunk = _trunk(trunk, trunk_stride, in_chans, size, pretrained)
        self.reduce = nn.Conv2d(self.trunk.channels, embed_dim, 1)
        self.patch_embed = PatchEmbedding(in_chans, embed_dim, patch_size=patch_size)
        rows = self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, rows, embed_dim)) if pos == "learned" else None
        # Beside the weights, not among them: whoever loads a model can compute them.
        fixed = sincos_positions(embed_dim, self.grid) if pos == "sincos" else None
        self.register_buffer("fixed_positions", fixed, persistent=False)
        self.blocks = transformer_blocks(
            embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            drop_path=drop_path,
            head_dim=head_dim,
        )
        self.cross = CrossAttention(embed_dim, num_heads=num_heads, head_dim=head_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        widths = (embed_dim, *head_widths)
        hidden = [(nn.Linear(a, b), nn.GELU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(widths)]
        self.pre_head = nn.Sequential(*itertools.chain(*hidden))
        self.head = nn.Linear(widths[-1], num_classes)
        self._init()

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``.

        Taps: ``features.i`` maps of the trunk; ``attention.i`` of the blocks; ``cross_attention`` ``(B, heads, asking
        tokens, tokens asked)`` with the grid of the tokens asked; ``tokens`` behind the fusion, with the grid of those
        that asked.

        Raises:
            ModelError: C511, a size that is no multiple of the patch size, or that the trunk does not take.
        """
        grid = self._grid(tuple(x_BCHW.shape[-2:]))
        x_BDhw = self.reduce(self.trunk(x_BCHW, taps))
        cnn_BMD, cnn_grid = to_tokens(x_BDhw), tuple(x_BDhw.shape[-2:])
        x_BND = to_tokens(self.patch_embed(x_BCHW)) + self._positions(grid, x_BDhw)
        x_BND = run_blocks(self.blocks, x_BND, taps, grid=grid, prefix=0)
        asking, asked = (x_BND, cnn_BMD) if self.query == "transformer" else (cnn_BMD, x_BND)
        if taps is None:
            fused_BND = self.norm(asking + self.cross(asking, asked))
        else:
            update_BND, attention_BHNM = self.cross.forward_with_weights(asking, asked)
            fused_BND = self.norm(asking + update_BND)
            first = self.query == "transformer"
            taps["cross_attention"] = Tap(attention_BHNM, grid=cnn_grid if first else grid)
            taps["tokens"] = Tap(fused_BND, grid=grid if first else cnn_grid)
        return self.head(self.pre_head(fused_BND.mean(dim=1)))

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("head.weight", "head.bias")

    def position_tables(self) -> dict[str, tuple[int, tuple[int, int]]]:
        """Flat position tables by parameter name: rows before the grid, and the grid."""
        return {} if self.pos_embed is None else {"pos_embed": (0, self.grid)}

    def _positions(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        if self.pos_embed is not None:
            return resize_position_table(self.pos_embed, grid, old_grid=self.grid, prefix=0)
        fixed_1ND = self.fixed_positions if grid == self.grid else sincos_positions(like.shape[1], grid)
        assert fixed_1ND is not None
        return fixed_1ND.to(like)

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        P = self.patch_size
        if any(extent % P or extent < P for extent in size):
            raise size_error("dbct", size, f"does not divide into patches of {P} pixels", f"Use a multiple of {P}")
        return size[0] // P, size[1] // P

    def _init(self) -> None:
        for module in (self.blocks, self.cross, self.pre_head, self.head):
            init_transformer(module)
        for layer in (self.reduce, self.patch_embed.proj):
            # Lecun's rule for both projections, as a linear layer would have it.
            nn.init.trunc_normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)


def dbct(
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    trunk: str = "light",
    trunk_stride: int | None = None,
    pos: Positions = "sincos",
    query: Query = "transformer",
    embed_dim: int = 256,
    depth: int = 4,
    num_heads: int = 8,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> DBCT:
    """Preset A: four blocks 256 wide, fixed positions, one linear layer behind the fusion; see :class:`DBCT`.

    Args:
        patch_size: None takes 8 for images up to 128 pixels, and 16 for larger ones.
    """
    return DBCT(
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        patch_size=(8 if max(pair(image_size)) <= 128 else 16) if patch_size is None else patch_size,
        trunk=trunk,
        trunk_stride=trunk_stride,
        pos=pos,
        query=query,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        head_dim=None,
        mlp_ratio=mlp_ratio,
        head_widths=(),
        dropout=dropout,
        drop_path=drop_path,
        pretrained=pretrained,
    )


def dbct_keras(
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    trunk: str = "light",
    trunk_stride: int | None = None,
    pos: Positions = "learned",
    query: Query = "transformer",
    dropout: float = 0.1,
    pretrained: bool = False,
) -> DBCT:
    """Preset B: the defaults of Keras' ViT tutorial, one block 64 wide with four heads of 64; see :class:`DBCT`.

    Args:
        patch_size: None takes 4 for images up to 64 pixels, and 8 for larger ones.
    """
    return DBCT(
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        patch_size=(4 if max(pair(image_size)) <= 64 else 8) if patch_size is None else patch_size,
        trunk=trunk,
        trunk_stride=trunk_stride,
        pos=pos,
        query=query,
        embed_dim=64,
        depth=1,
        num_heads=4,
        head_dim=64,
        mlp_ratio=1.0,
        head_widths=(2048, 1024),
        dropout=dropout,
        drop_path=0.0,
        pretrained=pretrained,
    )


def _trunk(
    name: str, stride: int | None, in_chans: int, size: tuple[int, int], pretrained: bool
) -> LightTrunk | TimmTrunk:
    if name != "light":
        timm_name = name.removeprefix("timm/")
        return TimmTrunk(timm_name, in_chans=in_chans, image_size=size, stride=stride, pretrained=pretrained)
    if stride not in (None, LightTrunk.stride):
        raise UsageError("U208", "option trunk_stride", f"light has no map of stride {stride}", "Leave it out")
    if pretrained:
        raise UsageError("U208", "option pretrained", "light has no published weights", "Leave it out")
    return LightTrunk(in_chans=in_chans, image_size=size)


def _check(pos: str, query: str, patch_size: object) -> None:
    if pos not in ("sincos", "learned"):
        raise UsageError("U208", "option pos", f"{pos!r} is not known", "Choose sincos or learned")
    if query not in ("transformer", "cnn"):
        raise UsageError("U208", "option query", f"{query!r} is not known", "Choose transformer or cnn")
    if not isinstance(patch_size, int) or patch_size < 1:
        raise UsageError("U208", "option patch_size", f"it is {patch_size!r}", "Give a whole number from 1 on")
