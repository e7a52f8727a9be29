"""RR-ViT and Hybrid RR-ViT: small vision transformers that rebuild their input while they learn to classify it.

The CLS token is classified; the patch tokens pass one linear layer that gives back the pixels. The error of that
picture is a second loss, which keeps what the image holds in the tokens. Both share one encoder; the first cuts the
image into patches of 8 and has blocks of attention alone, the second takes its tokens from three convolutions, one for
4 x 4 pixels, and has blocks with a feed-forward part.

Shapes: B batch, C channels, H and W image size, D token width, h and w token grid, N tokens of the grid, P pixels per
side of a token, K classes.

Reference: Pham and Hoang, Cross-attention and reconstruction-regularized transformers for multi-label chest X-ray
classification, University of Padova, 2025/26 (slides; no paper or code).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from medloom.blocks.taps import Taps, token_tap
from medloom.blocks.tokens import PatchEmbedding, resize_position_table, to_tokens
from medloom.blocks.transformer import (
    AttentionBlock,
    Runner,
    drop_path_rates,
    init_transformer,
    run_blocks,
    transformer_blocks,
)
from medloom.models.sizes import pair, size_error


class RRViT(nn.Module):
    """Tokens, CLS, learned positions, blocks; a classifier on CLS and a decoder on the others.

    Args:
        embedding: ``(B, C, H, W) -> (B, D, H / P, W / P)``.
        blocks: of ``blocks.transformer``.
        num_classes: K.
        in_chans: C.
        image_size: in pixels, a multiple of ``patch_size``; other multiples work too, with interpolated positions.
        patch_size: P.
        embed_dim: D.
        dropout: before the classifier.
        checkpoint_blocks: in training compute the blocks again on the way back instead of keeping them.

    Raises:
        ModelError: C511 image size that is no multiple of P.
    """

    reconstructs = True
    """Training asks for ``train_outputs``, and adds the error of the picture to the loss."""

    def __init__(
        self,
        embedding: nn.Module,
        blocks: nn.ModuleList,
        *,
        num_classes: int,
        in_chans: int,
        image_size: int | tuple[int, int],
        patch_size: int,
        embed_dim: int,
        dropout: float,
        checkpoint_blocks: bool,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.checkpoint_blocks = checkpoint_blocks
        self.grid = self._grid(pair(image_size))
        self.embedding = embedding
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        self.blocks = blocks
        self.runner: Runner = functools.partial(run_blocks, checkpoint_blocks=checkpoint_blocks)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(dropout)
        self.head = nn.Linear(embed_dim, num_classes)
        self.decoder = nn.Linear(embed_dim, in_chans * patch_size**2)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in (self.blocks, self.head, self.decoder):
            init_transformer(module)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``; taps ``attention.i``, and ``tokens`` behind the last norm. Nothing is rebuilt.

        Raises:
            ModelError: C511, a size that is no multiple of the patch size.
        """
        return self._classify(self._encode(x_BCHW, taps, self.runner))

    def train_outputs(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """``logits`` ``(B, K)``, and ``reconstruction`` ``(B, C, H, W)``: the input before standardising, in [0, 1]."""
        # What is rebuilt needs every token, whatever runner answers.
        every = functools.partial(run_blocks, checkpoint_blocks=self.checkpoint_blocks)
        x_BND = self._encode(x_BCHW, None, every)
        return {"logits": self._classify(x_BND), "reconstruction": self._rebuild(x_BND, tuple(x_BCHW.shape[-2:]))}

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("head.weight", "head.bias")

    def position_tables(self) -> dict[str, tuple[int, tuple[int, int]]]:
        """Flat position tables by parameter name: rows before the grid, and the grid."""
        return {"pos_embed": (1, self.grid)}

    def _encode(self, x_BCHW: Tensor, taps: Taps | None, run: Runner) -> Tensor:
        grid = self._grid(tuple(x_BCHW.shape[-2:]))
        x_BND = to_tokens(self.embedding(x_BCHW))
        x_BND = torch.cat([self.cls_token.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        x_BND = x_BND + resize_position_table(self.pos_embed, grid, old_grid=self.grid, prefix=1)
        x_BND = self.norm(run(self.blocks, x_BND, taps, grid=grid, prefix=1))
        if taps is not None:
            taps["tokens"] = token_tap(x_BND, grid=grid, prefix=1)
        return x_BND

    def _classify(self, x_BND: Tensor) -> Tensor:
        return self.head(self.head_drop(x_BND[:, 0]))

    def _rebuild(self, x_BND: Tensor, size: tuple[int, ...]) -> Tensor:
        h, w = self._grid(size)
        P = self.patch_size
        pixels = self.decoder(x_BND[:, 1:]).sigmoid().unflatten(2, (-1, P, P)).unflatten(1, (h, w))
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        P = self.patch_size
        if any(extent % P or extent < P for extent in size):
            raise size_error("rr_vit", size, f"does not divide into tokens of {P} pixels", f"Use a multiple of {P}")
        return size[0] // P, size[1] // P


def rr_vit(
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 224,
    patch_size: int = 8,
    embed_dim: int = 128,
    depth: int = 4,
    num_heads: int = 4,
    dropout: float = 0.1,
    drop_path: float = 0.0,
    checkpoint_blocks: bool = False,
) -> RRViT:
    """Patches by linear projection, and blocks of attention without a feed-forward part.

    Args:
        patch_size: pixels per side of a token; the image size must be a multiple.
        embed_dim: width of the tokens.
        depth: blocks.
        num_heads: attention heads.
        dropout: before the classifier.
        drop_path: stochastic depth of the last block.
        checkpoint_blocks: see :class:`RRViT`.

    Raises:
        ModelError: C511 image size that is no multiple of the patch size.
    """
    embedding = PatchEmbedding(in_chans, embed_dim, patch_size=patch_size)
    # Lecun's rule for the patches, as a linear layer would have it.
    nn.init.trunc_normal_(embedding.proj.weight, std=embedding.proj.weight[0].numel() ** -0.5)
    _zero_bias(embedding.proj)
    blocks = [
        AttentionBlock(embed_dim, num_heads=num_heads, drop_path=rate) for rate in drop_path_rates(drop_path, depth)
    ]
    return RRViT(
        embedding,
        nn.ModuleList(blocks),
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        dropout=dropout,
        checkpoint_blocks=checkpoint_blocks,
    )


def hybrid_rr_vit(
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 224,
    embed_dim: int = 256,
    depth: int = 8,
    num_heads: int = 8,
    mlp_ratio: float = 2.0,
    dropout: float = 0.1,
    drop_path: float = 0.0,
    checkpoint_blocks: bool = False,
) -> RRViT:
    """Tokens of three convolutions, each for 4 x 4 pixels, and full transformer blocks.

    224 px are 3,137 tokens: training then wants ``checkpoint_blocks``.

    Args:
        embed_dim: width of the tokens.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the blocks' MLP over that of the tokens.
        dropout: before the classifier.
        drop_path: stochastic depth of the last block.
        checkpoint_blocks: see :class:`RRViT`.

    Raises:
        ModelError: C511 image size that is no multiple of 4.
    """
    stem = nn.Sequential(
        *_convolution(in_chans, 32, stride=2), *_convolution(32, 64, stride=2), *_convolution(64, embed_dim, stride=1)
    )
    blocks = transformer_blocks(
        embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=0.0, drop_path=drop_path
    )
    return RRViT(
        stem,
        blocks,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        patch_size=4,
        embed_dim=embed_dim,
        dropout=dropout,
        checkpoint_blocks=checkpoint_blocks,
    )


def _convolution(in_chans: int, out_chans: int, *, stride: int) -> tuple[nn.Module, ...]:
    """3x3 convolution, batch norm, ReLU. The convolution has the bias that Keras gives it: the count says so."""
    convolution = nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(convolution)
    return convolution, nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True)


def _zero_bias(layer: nn.Conv2d) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
