"""TransUNet for images: a ResNet whose last map becomes the tokens of a ViT, and a cascaded upsampler with skips.

``base`` is the published R50-ViT-B/16 weight for weight: 105,277,081 parameters at 9 classes. What the published code
could not do, this does: any height and width (the border is repeated up to a multiple of 16 and cut off again),
positions that follow the grid, any number of channels, the fused attention kernel.

Shapes: B batch, C channels, H and W image size, h and w token grid, N tokens, D token width, K classes.

Reference: Chen et al., TransUNet, arXiv 2102.04306, and github.com/Beckschen/TransUNet.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medloom.blocks.convolution import conv_bn_relu, pad_border
from medloom.blocks.decoders import BilinearUp, crop_to
from medloom.blocks.taps import Tap, Taps
from medloom.blocks.tokens import PatchEmbedding, resize_positions, to_tokens
from medloom.blocks.transformer import init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError
from medloom.models.sizes import pair
from medloom.models.standardized_resnet import StandardizedResNet, UnitKind
from medloom.models.timm_networks import create_network
from medloom.models.weights import adopt

STRIDE = 16
_TIMM_NAME = "vit_base_r50_s16_224.orig_in21k"
_TIMM_TRUNK = "patch_embed.backbone."
_PUBLISHED = ("bottleneck", (3, 4, 9), 64, 768, 12, 12)


class TransUNet(nn.Module):
    """CNN trunk up to stride 16, transformer on its cells, decoder over the trunk's skips.

    Args:
        num_classes: K, the background included.
        in_chans: C.
        image_size: sets the grid of the learned positions; others are interpolated.
        unit: of the trunk, ``bottleneck`` (three convolutions) or ``basic`` (two).
        units: of the trunk's three stages, at strides 4, 8 and 16.
        width: channels of the stem.
        embed_dim: D.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the blocks' MLP over D.
        decoder_dims: channels of the map at stride 16, and of the decoder at strides 8, 4, 2 and 1.
        dropout: on the tokens and in the blocks; the published code has 0.1.
        drop_path: stochastic depth of the last block.
        pretrained: fetch the ImageNet-21k weights of trunk and transformer (base size).

    Raises:
        UsageError: U208 an impossible option.
        ModelError: C513 weights not to be had.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | Sequence[int] = 224,
        unit: UnitKind = "bottleneck",
        units: Sequence[int] = (3, 4, 9),
        width: int = 64,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        decoder_dims: Sequence[int] = (512, 256, 128, 64, 16),
        dropout: float = 0.1,
        drop_path: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        _check(unit, units, decoder_dims, embed_dim, num_heads)
        if pretrained and (unit, tuple(units), width, embed_dim, depth, num_heads) != _PUBLISHED:
            remedy = "Use transunet with its default trunk and transformer, or leave pretrained away"
            raise UsageError("U208", "option pretrained", "the published weights are of the base size", remedy)
        self.trunk = StandardizedResNet(in_chans, unit=unit, units=units, width=width)
        *skips, last = self.trunk.channels
        self.patch_embed = PatchEmbedding(last, embed_dim, patch_size=1)
        grid = [math.ceil(extent / STRIDE) for extent in pair(image_size)]
        self.position_1Dhw = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, embed_dim, *grid), std=0.02))
        self.token_drop = nn.Dropout(dropout)
        self.blocks = transformer_blocks(
            embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=drop_path
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.bridge = conv_bn_relu(embed_dim, decoder_dims[0], 3)
        self.decoder = nn.ModuleList(
            BilinearUp(before, skip, dim)
            for before, skip, dim in zip(decoder_dims, (*reversed(skips), 0), decoder_dims[1:])
        )
        self.head = nn.Conv2d(decoder_dims[-1], num_classes, 3, padding=1)
        init_transformer(self)
        if pretrained:
            published = create_network(_TIMM_NAME, in_chans=in_chans, image_size=(224, 224), pretrained=True)
            adopt(self, published.state_dict(), _TIMM_NAME)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K, H, W)``.

        Taps: ``features.0`` to ``features.3`` of the trunk at strides 2, 4, 8 and 16, ``attention.i``, ``tokens``
        behind the last norm; their grid is that of the padded image.
        """
        size = tuple(x_BCHW.shape[2:])
        *skips, x_BChw = self.trunk(pad_border(x_BCHW, (STRIDE, STRIDE)))
        if taps is not None:
            for i, y_BCHW in enumerate((*skips, x_BChw)):
                taps[f"features.{i}"] = Tap(y_BCHW, grid=tuple(y_BCHW.shape[2:]))
        x_BDhw = self.bridge(self._transform(self.patch_embed(x_BChw), taps))
        for up, skip_BCHW in zip(self.decoder, (*reversed(skips), None)):
            x_BDhw = up(x_BDhw, skip_BCHW)
        return crop_to(self.head(x_BDhw), size)

    def train_outputs(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """``logits`` alone: the published model has no deep supervision."""
        return {"logits": self(x_BCHW)}

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("head.weight", "head.bias")

    def translate(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """timm's weights of a ViT on a ResNet of these sizes as those of trunk and transformer; None for others."""
        names = {_theirs(name): name for name, _ in self.named_parameters() if not name.startswith(_OURS_ALONE)}
        rest = state.keys() - names.keys() - {"cls_token"}
        if not names.keys() <= state.keys() or not all(name.startswith("head.") for name in rest):
            return None
        taken = {ours: state[theirs] for theirs, ours in names.items()}
        table_1ND = taken["position_1Dhw"][:, 1:]  # the class token's row stays behind with it
        side = math.isqrt(table_1ND.shape[1])
        taken["position_1Dhw"] = table_1ND.transpose(1, 2).unflatten(2, (side, side))
        return taken, "timm's own names: trunk and transformer, without class token and classifier"

    def _transform(self, x_BDhw: Tensor, taps: Taps | None) -> Tensor:
        grid = tuple(x_BDhw.shape[2:])
        x_BND = self.token_drop(to_tokens(x_BDhw + resize_positions(self.position_1Dhw, grid)))
        x_BND = self.norm(run_blocks(self.blocks, x_BND, taps, grid=grid, prefix=0))
        if taps is not None:
            taps["tokens"] = Tap(x_BND, grid=grid)
        return x_BND.transpose(1, 2).unflatten(2, grid)


_OURS_ALONE = ("bridge.", "decoder.", "head.")

# Sizes of ours: ViT-S on a ResNet-26-like trunk, and four narrow blocks on a ResNet-18-like one for a CPU.
_SMALL: dict[str, Any] = {"units": (2, 3, 4), "embed_dim": 384, "num_heads": 6}
_TINY: dict[str, Any] = {
    **{"unit": "basic", "units": (2, 2, 2), "embed_dim": 256, "depth": 4, "num_heads": 4},
    "decoder_dims": (256, 128, 64, 32, 16),
}

transunet = TransUNet
transunet_small = functools.partial(TransUNet, **_SMALL)
transunet_tiny = functools.partial(TransUNet, **_TINY)


def _theirs(name: str) -> str:
    """timm's name of a parameter of ours."""
    if name == "position_1Dhw":
        return "pos_embed"
    return _TIMM_TRUNK + name.removeprefix("trunk.") if name.startswith("trunk.") else name


def _check(unit: str, units: Sequence[int], decoder_dims: Sequence[int], embed_dim: int, num_heads: int) -> None:
    if unit not in ("bottleneck", "basic"):
        raise UsageError("U208", "option unit", f"{unit!r} is not known", "Choose bottleneck or basic")
    for name, values, count in (("units", units, 3), ("decoder_dims", decoder_dims, 5)):
        if len(values) != count or any(not isinstance(n, int) or n < 1 for n in values):
            remedy = f"Give {count} whole numbers from 1 on"
            raise UsageError("U208", f"option {name}", f"{list(values)!r} does not fit", remedy)
    if num_heads < 1 or embed_dim % num_heads:
        raise UsageError("U208", "option num_heads", f"{embed_dim} channels do not divide by {num_heads}", "Change one")
