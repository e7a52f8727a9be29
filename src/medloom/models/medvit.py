"""MedViT: convolutional blocks, and at the end of each stage one block of reduced self-attention beside them.

Written from the paper and its block description; the parameters have the names and shapes of the published code, so
that its weights load. That code leaves batch norms out while it is exported and so exports another network; nothing
here asks whether it is being exported.

Shapes: B batch, C channels, H and W image size, h and w grid of a stage, D width, N = h * w tokens, K classes.

Reference: Manzari et al., MedViT: a robust vision transformer for generalized medical image classification,
arXiv 2302.09462, section 3; Li et al., Next-ViT, arXiv 2207.05501.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medloom.blocks.local_attention import ConvAttention, ConvNormReLU, LocalFeedForward, PatchProjection
from medloom.blocks.moments import MomentExchange
from medloom.blocks.pooled_attention import KeyPooling, PooledAttention
from medloom.blocks.taps import Tap, Taps
from medloom.blocks.transformer import DropPath
from medloom.errors import UsageError
from medloom.models.sizes import pair, size_error

HEAD_DIM = 32
STEM_WIDTHS = (64, 32, 64, 64)
STAGE_WIDTHS = (96, 192, 384, 768)
ATTENTION_WIDTHS = (None, 256, 512, 1024)  # of the blocks with self-attention, which the first stage has none of
REDUCTIONS = (8, 4, 2, 1)
ATTENTION_EVERY = 5  # in the third stage
ATTENTION_SHARE = 0.75  # of an LTB's channels; the convolution has the rest


class ECB(nn.Module):
    """Efficient convolution block: ``x + MHCA(x)``, then ``x + LFFN(norm(x))``.

    LFFN has a residual of its own, so the second step is ``x + norm(x) + conv(norm(x))``: a doubled residual, kept
    because the published weights were trained with it.
    """

    def __init__(self, in_chans: int, dim: int, *, stride: int, drop_path: float) -> None:
        super().__init__()
        self.patch_embed = PatchProjection(in_chans, dim, stride=stride)
        self.mhca = ConvAttention(dim, head_dim=HEAD_DIM)
        self.drop_path = DropPath(drop_path)
        self.norm = nn.BatchNorm2d(dim)
        self.conv = LocalFeedForward(dim, ratio=3)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, D, ceil(h / stride), ceil(w / stride))``."""
        x_BDhw = self.patch_embed(x_BChw)
        x_BDhw = x_BDhw + self.drop_path(self.mhca(x_BDhw))
        return x_BDhw + self.conv(self.norm(x_BDhw))


class LTB(nn.Module):
    """Local transformer block: three quarters of the channels from self-attention, the rest convolved from those.

    Stochastic depth is shared out among the two branches as the channels are, as in Next-ViT.
    """

    def __init__(
        self, in_chans: int, dim: int, *, stride: int, reduction: int, pooling: KeyPooling, drop_path: float
    ) -> None:
        super().__init__()
        attended = int(dim * ATTENTION_SHARE + HEAD_DIM / 2) // HEAD_DIM * HEAD_DIM
        self.patch_embed = PatchProjection(in_chans, attended, stride=stride)
        self.norm1 = nn.BatchNorm2d(attended)
        self.e_mhsa = PooledAttention(attended, head_dim=HEAD_DIM, reduction=reduction, pooling=pooling)
        self.attention_drop_path = DropPath(drop_path * ATTENTION_SHARE)
        self.projection = PatchProjection(attended, dim - attended)
        self.mhca = ConvAttention(dim - attended, head_dim=HEAD_DIM)
        self.convolution_drop_path = DropPath(drop_path * (1 - ATTENTION_SHARE))
        self.norm2 = nn.BatchNorm2d(dim)
        self.conv = LocalFeedForward(dim, ratio=2)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, D, ceil(h / stride), ceil(w / stride))``."""
        x = self.patch_embed(x_BChw)
        return self._mix(x, self.e_mhsa(self.norm1(x)))

    def forward_with_weights(self, x_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention ``(B, heads, N, N)``."""
        x = self.patch_embed(x_BChw)
        update, attention_BHNN = self.e_mhsa.forward_with_weights(self.norm1(x))
        return self._mix(x, update), attention_BHNN

    def _mix(self, x: Tensor, update: Tensor) -> Tensor:
        x = x + self.attention_drop_path(update)
        local = self.projection(x)
        local = local + self.convolution_drop_path(self.mhca(local))
        x_BDhw = torch.cat([x, local], dim=1)
        return x_BDhw + self.conv(self.norm2(x_BDhw))


class MedViT(nn.Module):
    """Stem, four stages of ECB and LTB, batch norm, global average pooling, linear layer.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels; any other size works too from the least one on, which is 25 px for ``raster``.
        depths: blocks per stage; the third must be a multiple of 5 (four ECB and an LTB, repeated), or two blocks
            and more of which the last is the LTB.
        drop_path: stochastic depth of the last block; it grows linearly from 0 in the first. None takes the published
            rates: 0.1, and 0.2 where the third stage has 20 blocks or more.
        dropout: before the classifier; the published model has none.
        pooling: of keys: ``raster``, along the reading order, as published, or ``grid``, in squares.
        pmc: the paper's Patch Momentum Changer behind the first stage, in training: feature mean and deviation are
            exchanged within the batch. The published code does not have it.

    Raises:
        UsageError: U208 impossible option value.
        ModelError: C511 image too small.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        depths: Sequence[int] = (3, 4, 5, 3),
        drop_path: float | None = None,
        dropout: float = 0.0,
        pooling: KeyPooling = "raster",
        pmc: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("raster", "grid"):
            raise UsageError("U208", "option pooling", f"{pooling!r} is not known", "Choose raster or grid")
        self.pooling = pooling
        stages = [stage_plan(stage, depth) for stage, depth in enumerate(_checked(depths))]
        self.ends = tuple(sum(len(plan) for plan in stages[: i + 1]) - 1 for i in range(len(stages)))
        self._check_size(pair(image_size))
        before = (in_chans, *STEM_WIDTHS)
        self.stem = nn.Sequential(
            *(ConvNormReLU(a, b, stride=2 if i in (0, 3) else 1) for i, (a, b) in enumerate(zip(before, STEM_WIDTHS)))
        )
        blocks: list[nn.Module] = []
        width, last = STEM_WIDTHS[-1], self.ends[-1]
        if drop_path is None:
            drop_path = 0.2 if depths[2] >= 20 else 0.1
        if not 0.0 <= drop_path < 1.0:
            raise UsageError("U208", "option drop_path", f"{drop_path} is not a share", "Give a number below 1")
        for stage, plan in enumerate(stages):
            for i, (dim, attends) in enumerate(plan):
                stride = 2 if stage > 0 and i == 0 else 1
                rate = drop_path * len(blocks) / last
                if attends:
                    reduction = REDUCTIONS[stage]
                    blocks.append(LTB(width, dim, stride=stride, reduction=reduction, pooling=pooling, drop_path=rate))
                else:
                    blocks.append(ECB(width, dim, stride=stride, drop_path=rate))
                width = dim
        self.features = nn.ModuleList(blocks)
        self.exchange = MomentExchange() if pmc else nn.Identity()
        self.norm = nn.BatchNorm2d(width)
        self.proj_head = nn.Sequential(nn.Linear(width, num_classes))
        self.drop = nn.Dropout(dropout)
        _init(self)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``.

        Taps: ``features.0`` to ``features.3`` the maps of the stages; ``attention.i`` of the i-th LTB on that stage's
        grid; ``tokens`` ``(B, N, D)`` the normalised last map.

        Raises:
            ModelError: C511, an image that is too small.
        """
        self._check_size((x_BCHW.shape[-2], x_BCHW.shape[-1]))
        x = self.stem(x_BCHW)
        for i, block in enumerate(self.features):
            if taps is not None and isinstance(block, LTB):
                x, attention_BHNN = block.forward_with_weights(x)
                count = sum(key.startswith("attention.") for key in taps)
                taps[f"attention.{count}"] = Tap(attention_BHNN, grid=tuple(x.shape[-2:]))
            else:
                x = block(x)
            if i == self.ends[0]:
                x = self.exchange(x)
            if taps is not None and i in self.ends:
                taps[f"features.{self.ends.index(i)}"] = Tap(x, grid=tuple(x.shape[-2:]))
        x_BDhw = self.norm(x)
        if taps is not None:
            taps["tokens"] = Tap(x_BDhw.flatten(2).transpose(1, 2), grid=tuple(x_BDhw.shape[-2:]))
        return self.proj_head(self.drop(x_BDhw.mean(dim=(2, 3))))

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("proj_head.0.weight", "proj_head.0.bias")

    def parameter_blocks(self) -> dict[str, int | None]:
        """For each parameter the block that it belongs to, from 0 at the input; None outside of blocks."""
        return {
            name: int(name.split(".")[1]) if name.startswith("features.") else None
            for name, _ in self.named_parameters()
        }

    def _check_size(self, size: tuple[int, int]) -> None:
        """Along the reading order a stage must have as many tokens as one key averages; squares may be cut."""
        for stage, width in enumerate(ATTENTION_WIDTHS):
            h, w = (-(-extent // 2 ** (stage + 2)) for extent in size)
            needed = REDUCTIONS[stage] ** 2 if self.pooling == "raster" and width is not None else 1
            if h * w < needed:
                raise size_error(
                    "medvit",
                    size,
                    f"leaves {h * w} tokens in stage {stage + 1}, and one key averages {needed}",
                    "Use at least 32 pixels, or pooling=grid",
                )


def stage_plan(stage: int, depth: int) -> list[tuple[int, bool]]:
    """Width of every block of a stage (0 to 3), and whether it is an LTB."""
    width, attention_width = STAGE_WIDTHS[stage], ATTENTION_WIDTHS[stage]
    if attention_width is None:
        return [(width, False)] * depth
    every = ATTENTION_EVERY if stage == 2 and depth % ATTENTION_EVERY == 0 else depth
    return [(attention_width, True) if (i + 1) % every == 0 else (width, False) for i in range(depth)]


medvit_tiny = functools.partial(MedViT, depths=(3, 4, 5, 3))
medvit_small = functools.partial(MedViT, depths=(3, 4, 10, 3))
medvit_base = functools.partial(MedViT, depths=(3, 4, 20, 3))
medvit_large = functools.partial(MedViT, depths=(3, 4, 30, 3))


def _checked(depths: Sequence[int]) -> Sequence[int]:
    whole = len(depths) == len(STAGE_WIDTHS) and all(isinstance(n, int) and n > 0 for n in depths)
    if not whole or min(depths[1:]) < 2 or (depths[2] % ATTENTION_EVERY and depths[2] > ATTENTION_EVERY):
        raise UsageError(
            "U208",
            "option depths",
            f"{tuple(depths)} are not four depths",
            "Write [3, 4, 5, 3]: 1, 2, 2 and 2 at least, the third up to 5 or a multiple of 5",
        )
    return depths


def _init(model: nn.Module) -> None:
    """Truncated normal 0.02 for every weight that multiplies; batch norms start as 1 and 0, biases as 0.

    One exception: the channel weights of a feed-forward pass through two or three ReLU units. With a bias of zero,
    in one block of four to eight all of them start dead, and a dead one never learns; so they start alive.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 1.0 if name.endswith(".fc.0") else 0.0)
