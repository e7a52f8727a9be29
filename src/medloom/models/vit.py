"""Vision transformers, ViT and DeiT: patches, CLS, pre-norm blocks, with timm's parameter names.

Shapes: B batch, C channels, H and W image size, D token width, N all tokens (prefix included), K classes.

Reference: Dosovitskiy et al., An image is worth 16x16 words, arXiv 2010.11929; Touvron et al., DeiT, arXiv 2012.12877;
register tokens: Darcet et al., arXiv 2309.16588.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn

from medloom.blocks.heads import AttentionPool
from medloom.blocks.taps import Taps, token_tap
from medloom.blocks.tokens import PatchEmbedding, resize_position_table, sincos_positions, to_tokens
from medloom.blocks.transformer import Runner, init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError
from medloom.models.sizes import pair, size_error
from medloom.models.timm_networks import create_network


class VisionTransformer(nn.Module):
    """A plain vision transformer.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels, a multiple of ``patch_size``; other multiples work too, with interpolated positions.
        patch_size: pixels per side of a patch; 8 suits small images.
        embed_dim: D.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        pool: what is classified: ``cls``, the ``avg`` of the patch tokens, or ``map`` (one learned query attends).
        positions: ``learned``, or fixed ``sincos`` (no parameters), or ``none``.
        registers: extra tokens that belong to no patch.
        distilled: DeiT's second token and second head; the answer is the mean of both heads.
        dropout: on the tokens and in the blocks.
        drop_path: stochastic depth of the last block.

    Raises:
        UsageError: U208 options that cannot be together.
        ModelError: C511 image size that is no multiple of the patch size, C513 weights not to be had.
    """

    fixed_positions: Tensor | None
    runner: Runner

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        pool: Literal["cls", "avg", "map"] = "cls",
        positions: Literal["learned", "sincos", "none"] = "learned",
        registers: int = 0,
        distilled: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check(pool, positions, distilled, embed_dim, num_heads)
        self.patch_size = patch_size
        self.grid = self._grid(pair(image_size))
        self.pool = pool
        self.prefix = 1 + int(distilled) + registers
        self.patch_embed = PatchEmbedding(in_chans, embed_dim, patch_size=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if distilled else None
        self.reg_token = nn.Parameter(torch.empty(1, registers, embed_dim)) if registers else None
        rows = self.prefix + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, rows, embed_dim)) if positions == "learned" else None
        # Beside the weights, not among them: whoever loads a model can compute them.
        fixed = sincos_positions(embed_dim, self.grid) if positions == "sincos" else None
        self.register_buffer("fixed_positions", fixed, persistent=False)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = transformer_blocks(
            embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=drop_path
        )
        self.runner = run_blocks
        # timm puts the last norm behind average pooling under another name; so do we, for its weights.
        self.norm = nn.Identity() if pool == "avg" else nn.LayerNorm(embed_dim, eps=1e-6)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if pool == "avg" else nn.Identity()
        self.attn_pool = AttentionPool(embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio) if pool == "map" else None
        self.head = nn.Linear(embed_dim, num_classes)
        self.head_dist = nn.Linear(embed_dim, num_classes) if distilled else None
        self._init()

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``; taps ``attention.i``, and ``tokens`` behind the last norm.

        Raises:
            ModelError: C511, a size that is no multiple of the patch size.
        """
        heads = self._heads(x_BCHW, taps)
        return heads[0] if len(heads) == 1 else (heads[0] + heads[1]) / 2

    def train_outputs(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """``logits``, and for a distilled model ``distillation``: the head that learns from a teacher, each (B, K)."""
        return dict(zip(("logits", "distillation"), self._heads(x_BCHW, None)))

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        heads = ("head",) if self.head_dist is None else ("head", "head_dist")
        return tuple(f"{head}.{kind}" for head in heads for kind in ("weight", "bias"))

    def position_tables(self) -> dict[str, tuple[int, tuple[int, int]]]:
        """Flat position tables by parameter name: rows before the grid, and the grid."""
        return {} if self.pos_embed is None else {"pos_embed": (self.prefix, self.grid)}

    def _heads(self, x_BCHW: Tensor, taps: Taps | None) -> list[Tensor]:
        grid = self._grid(tuple(x_BCHW.shape[-2:]))
        x_BND = self.pos_drop(self._embed(x_BCHW, grid))
        x_BND = self.norm(self.runner(self.blocks, x_BND, taps, grid=grid, prefix=self.prefix))
        if taps is not None:
            taps["tokens"] = token_tap(x_BND, grid=grid, prefix=self.prefix)
        if self.attn_pool is not None:
            pooled_BD = self.attn_pool(x_BND[:, self.prefix :])
        elif self.pool == "avg":
            pooled_BD = self.fc_norm(x_BND[:, self.prefix :].mean(dim=1))
        else:
            pooled_BD = x_BND[:, 0]
        logits = [self.head(pooled_BD)]
        return logits if self.head_dist is None else [*logits, self.head_dist(x_BND[:, 1])]

    def _embed(self, x_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        x_BND = to_tokens(self.patch_embed(x_BCHW))
        if self.fixed_positions is not None:
            fixed_1ND = self.fixed_positions if grid == self.grid else sincos_positions(x_BND.shape[-1], grid)
            x_BND = x_BND + fixed_1ND.to(x_BND)
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        first = [token.expand(x_BND.shape[0], -1, -1) for token in tokens if token is not None]
        x_BND = torch.cat([*first, x_BND], dim=1)
        if self.pos_embed is None:
            return x_BND
        return x_BND + resize_position_table(self.pos_embed, grid, old_grid=self.grid, prefix=self.prefix)

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        if any(extent % self.patch_size or extent < self.patch_size for extent in size):
            raise size_error("vit", size, "does not divide into patches", f"Use a multiple of {self.patch_size}")
        return size[0] // self.patch_size, size[1] // self.patch_size

    def _init(self) -> None:
        init_transformer(self)
        # Lecun's rule for the patches, as a linear layer would have it.
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=fan_in**-0.5)
        assert self.patch_embed.proj.bias is not None
        nn.init.zeros_(self.patch_embed.proj.bias)
        for token in (self.cls_token, self.dist_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)


def sized_vit(
    *,
    embed_dim: int,
    num_heads: int,
    timm_name: str,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    pool: Literal["cls", "avg", "map"] = "cls",
    positions: Literal["learned", "sincos", "none"] = "learned",
    registers: int = 0,
    distilled: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> VisionTransformer:
    """One of the published sizes, twelve blocks deep; options as of :class:`VisionTransformer`.

    Args:
        pretrained: fetch timm's ImageNet weights; needs patches of 16, learned positions, ``cls`` and no registers.
    """
    model = VisionTransformer(
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        num_heads=num_heads,
        pool=pool,
        positions=positions,
        registers=registers,
        distilled=distilled,
        dropout=dropout,
        drop_path=drop_path,
    )
    if pretrained:
        if (patch_size, pool, positions, registers, distilled) != (16, "cls", "learned", 0, False):
            raise UsageError(
                "U208",
                "option pretrained",
                "the published weights have patches of 16, pool cls, learned positions, no registers, one head",
                "Leave those options at their defaults",
            )
        _load_published(model, timm_name, in_chans)
    return model


vit = VisionTransformer
vit_tiny = functools.partial(sized_vit, embed_dim=192, num_heads=3, timm_name="vit_tiny_patch16_224")
vit_small = functools.partial(sized_vit, embed_dim=384, num_heads=6, timm_name="vit_small_patch16_224")
deit_small = functools.partial(sized_vit, embed_dim=384, num_heads=6, timm_name="deit_small_patch16_224")
vit_base = functools.partial(sized_vit, embed_dim=768, num_heads=12, timm_name="vit_base_patch16_224")


def _load_published(model: VisionTransformer, timm_name: str, in_chans: int) -> None:
    """timm's network gives all but the head, whose classes are ours."""
    size = (model.grid[0] * model.patch_size, model.grid[1] * model.patch_size)
    published = create_network(timm_name, in_chans=in_chans, image_size=size, pretrained=True, num_classes=0)
    state = published.state_dict() | {name: model.state_dict()[name] for name in model.head_parameters()}
    model.load_state_dict(state, strict=True)


def _check(pool: str, positions: str, distilled: bool, embed_dim: int, num_heads: int) -> None:
    if pool not in ("cls", "avg", "map"):
        raise UsageError("U208", "option pool", f"{pool!r} is not known", "Choose cls, avg or map")
    if positions not in ("learned", "sincos", "none"):
        raise UsageError("U208", "option positions", f"{positions!r} is not known", "Choose learned, sincos or none")
    if distilled and pool != "cls":
        raise UsageError(
            "U208", "option distilled", "it classifies two tokens and needs pool cls", "Drop one of the two"
        )
    if num_heads < 1 or embed_dim % num_heads:
        raise UsageError("U208", "option num_heads", f"{embed_dim} channels do not divide by {num_heads}", "Change one")
