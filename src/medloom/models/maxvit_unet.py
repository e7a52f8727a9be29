"""MaxViT-UNet: a MaxViT going down, MaxViT blocks going up, for images and for volumes.

Shapes: B batch, C channels, K classes, S all spatial axes (H W, or X Y Z).

Reference: Khan et al., MaxViT-UNet, arXiv 2305.08396. Ours differs where the published code contradicts the paper or
stops early: heads of 32 channels instead of 32 heads, MBConv with its widening convolution, the true MaxViT-T as the
trunk of the large one, decoding down to the full grid. There is no published form for volumes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from medloom.blocks.convolution import NormKind, convolution, normalisation, transposed
from medloom.blocks.decoders import crop_to, deep_heads, deep_logits, upsample
from medloom.blocks.maxvit import init_maxvit, maxvit_blocks, pass_blocks
from medloom.blocks.taps import Tap, Taps
from medloom.blocks.windows import POSITIONS, Positions
from medloom.errors import UsageError
from medloom.models.maxvit_trunk import MaxViTTrunk, Windows, check_dims, stage_strides, stage_windows
from medloom.models.sizes import spatial_size
from medloom.models.timm_networks import create_network
from medloom.models.weights import adopt

_TIMM_NAME = "maxvit_tiny_tf_224"
_PUBLISHED = (2, 64, (64, 128, 256, 512), (2, 2, 5, 2), "batch", "table")


class MaxViTUNet(nn.Module):
    """Trunk, decoder of MaxViT blocks down to stride 4, two convolutional steps to the input's grid.

    Any extent of the input will do: halving rounds up, and windows that do not divide a map are padded and masked.

    Args:
        spatial_dims: 2 or 3.
        num_classes: K, the background included.
        in_chans: C.
        image_size: the extents that windows are chosen for; others work too.
        stem_dim: channels at stride 2 of the trunk.
        dims: channels of the stages, multiples of 32.
        depths: blocks of the trunk's stages.
        decoder_depth: blocks of each decoder stage.
        skip_dim: channels of the decoder at stride 2.
        out_dim: channels of the decoder at stride 1.
        window: cells per axis of windows and grids: a number, one per axis, or one list per stage; None goes by
            ``image_size``.
        rel_pos: ``table``, a number per offset, or ``mlp``, a small network on the offset, which needs no
            interpolation for another window.
        strides: five lists of one stride per axis, for the stem and the stages; None halves every axis every time.
            Thick slices want 1 first.
        norm: of the convolutions: ``batch``, ``group`` (needs no batch) or ``instance``; None is batch norm in two
            dimensions and group norm in three, where a batch is one or two volumes.
        dropout: in the attentions' projections of trunk and decoder.
        drop_path: stochastic depth of the trunk's last block.
        deep_supervision: the decoder's maps at strides 4, 8 and 16 learn too (``train_outputs``).
        checkpointing: in training, compute stages 1 and 2 and the finest decoder stage twice: less memory, more time.
        pretrained: fetch timm's ImageNet weights for the trunk (two dimensions, default widths and depths).

    Raises:
        UsageError: U208 an impossible option.
        ModelError: C513 weights not to be had.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        num_classes: int,
        in_chans: int,
        image_size: int | Sequence[int],
        stem_dim: int = 64,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        decoder_depth: int = 2,
        skip_dim: int = 64,
        out_dim: int = 32,
        window: Windows = None,
        rel_pos: str = "table",
        strides: Sequence[Sequence[int]] | None = None,
        norm: NormKind | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        deep_supervision: bool = False,
        checkpointing: bool = False,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        norm = norm or ("batch" if spatial_dims == 2 else "group")
        if norm not in ("batch", "group", "instance"):
            raise UsageError("U208", "option norm", f"{norm!r} is not known", "Choose batch, group or instance")
        if rel_pos not in POSITIONS:
            raise UsageError("U208", "option rel_pos", f"{rel_pos!r} is not known", f"Choose {' or '.join(POSITIONS)}")
        check_dims(dims, depths)
        if pretrained and (spatial_dims, stem_dim, tuple(dims), tuple(depths), norm, rel_pos) != _PUBLISHED:
            raise UsageError(
                "U208",
                "option pretrained",
                "the published weights are of MaxViT-T, for images, with batch norm and tables of positions",
                "Use maxvit_unet with its default dims, depths, stem_dim, norm and rel_pos, or leave pretrained away",
            )
        steps = stage_strides(strides, spatial_dims)
        windows = stage_windows(window, spatial_size(image_size, spatial_dims), steps)
        self.checkpointing = checkpointing
        self.trunk = MaxViTTrunk(
            in_chans=in_chans,
            stem_dim=stem_dim,
            dims=dims,
            depths=depths,
            strides=steps,
            windows=windows,
            norm=norm,
            dropout=dropout,
            drop_path=drop_path,
            checkpointing=checkpointing,
            positions=POSITIONS[rel_pos],
        )
        self.decoder = nn.ModuleList(
            DecoderStage(
                dims[i + 1],
                dims[i],
                depth=decoder_depth,
                stride=steps[i + 2],
                window=windows[i],
                norm=norm,
                dropout=dropout,
                positions=POSITIONS[rel_pos],
            )
            for i in (2, 1, 0)
        )
        self.fine = FineStages(dims[0], stem_dim, skip_dim, out_dim, strides=(steps[1], steps[0]), norm=norm)
        # By the longest stride; of two stages that share it, as those of thick slices may, the finer learns.
        self.deep_strides: dict[int, int] = {}
        for i, level in enumerate(self.trunk.feature_info[1:4] if deep_supervision else ()):
            self.deep_strides.setdefault(max(level.strides), i)
        channels = {stride: dims[i] for stride, i in self.deep_strides.items()}
        self.deep_heads = deep_heads(channels, num_classes, dims=spatial_dims)
        self.head = convolution(spatial_dims, out_dim, num_classes, 1)
        init_maxvit(self)
        if pretrained:
            published = create_network(_TIMM_NAME, in_chans=in_chans, image_size=(224, 224), pretrained=True)
            adopt(self, published.state_dict(), _TIMM_NAME)

    def forward(self, x_BCS: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``; taps ``features.0`` to ``features.4`` of the trunk, ``decoded.0`` ... of the
        decoder from coarse to fine."""
        maps = self.trunk(x_BCS)
        decoded = self._decode(maps)
        if taps is not None:
            for kind, group in (("features", maps), ("decoded", decoded)):
                for i, y_BCS in enumerate(group):
                    taps[f"{kind}.{i}"] = Tap(y_BCS, grid=tuple(y_BCS.shape[2:]))
        return self.head(self.fine(decoded[-1], maps[0], tuple(x_BCS.shape[2:])))

    def train_outputs(self, x_BCS: Tensor) -> dict[str, Tensor]:
        """``logits``, and with deep supervision ``deep.4``, ``deep.8``, ``deep.16``, each ``(B, K, *S / stride)``."""
        maps = self.trunk(x_BCS)
        decoded = self._decode(maps)
        deep = {stride: decoded[-1 - i] for stride, i in self.deep_strides.items()}
        logits_BKS = self.head(self.fine(decoded[-1], maps[0], tuple(x_BCS.shape[2:])))
        return {"logits": logits_BKS, **deep_logits(self.deep_heads, deep)}

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return tuple(name for name, _ in self.named_parameters() if name.startswith(("head.", "deep_heads.")))

    def translate(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """timm's weights of a MaxViT of this trunk's widths and depths as those of the trunk; None for others."""
        return self.trunk.translate(state, prefix="trunk.")

    def _decode(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of the decoder at strides 16, 8 and 4."""
        decoded, x_BCS = [], maps[4]
        for i, stage in enumerate(self.decoder):
            finest = i == len(self.decoder) - 1
            x_BCS = stage(x_BCS, maps[3 - i], checkpointing=self.checkpointing and finest)
            decoded.append(x_BCS)
        return decoded


class DecoderStage(nn.Module):
    """Transposed convolution, the skip beside it, MaxViT blocks."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        depth: int,
        stride: tuple[int, ...],
        window: tuple[int, ...],
        norm: NormKind,
        dropout: float,
        positions: Positions,
    ) -> None:
        super().__init__()
        self.up = transposed(len(stride), in_chans, out_chans, stride)
        self.blocks = maxvit_blocks(
            2 * out_chans,
            out_chans,
            stride=(1,) * len(stride),
            window=window,
            norm=norm,
            dropout=dropout,
            drop_paths=[0.0] * depth,
            positions=positions,
        )

    def forward(self, x_BCS: Tensor, skip_BCS: Tensor, *, checkpointing: bool) -> Tensor:
        """``(B, C, *S)`` and a finer ``(B, C', *S')`` to ``(B, C', *S')``."""
        return pass_blocks(self.blocks, upsample(x_BCS, self.up, skip_BCS), checkpointing=checkpointing)


class FineStages(nn.Module):
    """From stride 4 to stride 2, where the stem's map is the skip, and to the input's grid; no attention any more."""

    def __init__(
        self,
        in_chans: int,
        stem_dim: int,
        skip_dim: int,
        out_dim: int,
        *,
        strides: tuple[tuple[int, ...], tuple[int, ...]],
        norm: NormKind,
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        self.up1 = transposed(dims, in_chans, skip_dim, strides[0])
        self.conv1 = _conv_norm_gelu(dims, skip_dim + stem_dim, skip_dim, norm)
        self.up2 = transposed(dims, skip_dim, out_dim, strides[1])
        self.conv2 = _conv_norm_gelu(dims, out_dim, out_dim, norm)

    def forward(self, x_BCS: Tensor, stem_BCS: Tensor, size: tuple[int, ...]) -> Tensor:
        """``(B, C, *S / 4)`` and ``(B, C', *S / 2)`` to ``(B, out_dim, *size)``."""
        x_BCS = self.conv1(upsample(x_BCS, self.up1, stem_BCS))
        return self.conv2(crop_to(self.up2(x_BCS), size))


def _conv_norm_gelu(dims: int, in_chans: int, out_chans: int, norm: NormKind) -> nn.Sequential:
    return nn.Sequential(
        convolution(dims, in_chans, out_chans, 3, padding=1, bias=False),
        normalisation(norm, dims, out_chans),
        nn.GELU(),
    )


_SMALL: dict[str, Any] = {
    "dims": (32, 64, 128, 256),
    "depths": (2, 2, 2, 2),
    "stem_dim": 32,
    "skip_dim": 32,
    "out_dim": 16,
}

maxvit_unet = functools.partial(MaxViTUNet, spatial_dims=2)
maxvit_unet_mini = functools.partial(MaxViTUNet, spatial_dims=2, **_SMALL)
maxvit_unet_3d_tiny = functools.partial(MaxViTUNet, spatial_dims=3, **_SMALL, decoder_depth=1)
maxvit_unet_3d_small = functools.partial(
    MaxViTUNet, spatial_dims=3, **{**_SMALL, "dims": (64, 128, 256, 512)}, decoder_depth=1
)
