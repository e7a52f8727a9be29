"""A CNN-ViT hybrid that looks at few tokens: the convolutional stem scores and embeds the patches, the best are kept.

One stem serves both purposes, so choosing costs a hundredth of what it saves. The kept tokens carry their positions;
one package token stands for the rest; optionally a second cut half way through the blocks goes by what CLS attends to.
Weights do not depend on the keep rate: one checkpoint serves all of them (:meth:`TokenPruned.set_keep`).

Shapes: B batch, C channels, H and W image size, D token width, h and w token grid, N grid tokens, M kept, K classes.

Reference: MedLoom's own, from the plan "CNN-ViT dynamic token pruning" (2025), whose scorer was never trained; second
cut: Liang et al., EViT, arXiv 2202.07800; package token: Kong et al., SPViT, arXiv 2112.13890; convolutional stem: Xiao
et al., arXiv 2106.14881; straight-through gate: Bengio et al., arXiv 1308.3432.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medloom.blocks.convolution import conv_bn_relu
from medloom.blocks.reduction import Dropping
from medloom.blocks.selection import TokenScorer, check_keep, keep_count, kept_mask, split_tokens, straight_through
from medloom.blocks.taps import Tap, Taps
from medloom.blocks.tokens import resize_positions, to_tokens
from medloom.blocks.transformer import Runner, init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError
from medloom.models.backbones import TimmTrunk
from medloom.models.sizes import pair, size_error

BUCKETS = (0.3, 0.5, 0.7, 1.0)
"""Keep rates of the adaptive mode and of training for several rates at once."""


class TokenPruned(nn.Module):
    """Stem, scorer, top-k, transformer.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels, a multiple of ``patch_size``; other multiples work too, with interpolated positions.
        patch_size: pixels per side of a token: 4, 8, 16 or 32.
        trunk: ``conv`` is the light stem (one strided 3x3 convolution per halving); any timm name takes that network's
            map of stride ``patch_size`` instead.
        keep_rate: share of the tokens that enter the blocks; 1 is the dense twin.
        second_keep: share of those that survive half way; 1 leaves the second cut out.
        mass: share of the scores' softmax that the adaptive mode holds; see :meth:`set_keep`.
        embed_dim: D.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the blocks' MLP over D.
        dropout: on the tokens and in the blocks.
        drop_path: stochastic depth of the last block.
        pretrained: fetch timm's weights for the trunk.

    Raises:
        UsageError: U206 unknown trunk, U208 impossible option value.
        ModelError: C511 image size that is no multiple of the patch size.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        trunk: str = "conv",
        keep_rate: float = 0.5,
        second_keep: float = 1.0,
        mass: float = 0.9,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if patch_size not in (4, 8, 16, 32):
            raise UsageError("U208", "option patch_size", f"{patch_size} is not possible", "Choose 4, 8, 16 or 32")
        if num_heads < 1 or embed_dim % num_heads:
            raise UsageError(
                "U208", "option num_heads", f"{embed_dim} channels do not divide by {num_heads}", "Change one"
            )
        self.patch_size = patch_size
        self.grid = self._grid(pair(image_size))
        self.keep_rate, self.second_keep = check_keep(keep_rate), check_keep(second_keep, "second_keep")
        self.adaptive, self.mass = False, check_keep(mass, "mass")
        self.stem = _stem(trunk, in_chans, pair(image_size), patch_size, embed_dim, pretrained)
        self.scorer = TokenScorer(embed_dim)
        self.position_1Dhw = nn.Parameter(torch.empty(1, embed_dim, *self.grid))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.token_drop = nn.Dropout(dropout)
        self.blocks = transformer_blocks(
            embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=drop_path
        )
        self.runner: Runner = run_blocks
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.scorer_head = nn.Linear(embed_dim, num_classes)
        for parameter in (self.position_1Dhw, self.cls_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        init_transformer(self)

    def set_keep(self, rate: float, *, second: float | None = None, adaptive: bool | None = None) -> None:
        """Another keep rate for the same weights, from the next call on; what is not given stays as it is.

        Args:
            rate: share of the tokens that enter the blocks.
            second: share of those that survive half way.
            adaptive: keep more tokens where the scores are flat (many matter alike), fewer where few tokens hold
                ``mass`` of them: the smallest bucket of 0.3, 0.5, 0.7 and 1 that holds ``mass`` of the softmax of the
                image's scores. Its shapes follow the image, so this is for PyTorch; a bundle is exported at
                ``keep_rate``.

        Raises:
            UsageError: U208, a rate outside (0, 1].
        """
        second = self.second_keep if second is None else check_keep(second, "second_keep")
        if second < 1.0 and self.runner is not run_blocks:
            raise UsageError(
                "U208", "option second_keep", "reduce_tokens is in the blocks already", "Use one of the two"
            )
        self.keep_rate, self.second_keep = check_keep(rate), second
        self.adaptive = self.adaptive if adaptive is None else adaptive

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``.

        Taps: ``features`` map behind the stem; ``token_score`` ``(B, N)`` and ``kept`` ``(B, N)`` of zeros and ones,
        both on the grid; ``attention.i`` and ``tokens`` over CLS, package and kept tokens, without a grid (not in the
        adaptive mode, where their number differs from image to image).

        Raises:
            ModelError: C511, a size that is no multiple of the patch size.
        """
        x_BDhw, score_BN = self._embed(x_BCHW, taps)
        if not self.adaptive:
            return self.head(self._class_token(x_BDhw, score_BN, self.keep_rate, taps))
        rate_B = self.rates(score_BN)
        groups = [(rate_B == rate).nonzero()[:, 0] for rate in BUCKETS]
        parts, kept = [], []
        for rate, rows in zip(BUCKETS, groups, strict=True):
            if len(rows):
                inner: Taps | None = None if taps is None else {}
                parts.append(self._class_token(x_BDhw[rows], score_BN[rows], rate, inner))
                kept += [] if inner is None else [inner["kept"].value]
        order_B = torch.cat(groups).argsort()
        if taps is not None:
            taps["kept"] = Tap(torch.cat(kept)[order_B], grid=self._grid(tuple(x_BCHW.shape[-2:])))
        return self.head(torch.cat(parts)[order_B])

    def train_outputs(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """What training reads, each with gradient to the scorer.

        ``logits`` (B, K), kept tokens times a gate of value one; ``scorer_logits`` (B, K), a classifier of the mean of
        the features under the softmax of the scores (multiple instances: the image is its patches); ``token_score``
        (B, N).
        """
        x_BDhw, score_BN = self._embed(x_BCHW, None)
        return {
            "logits": self.head(self._class_token(x_BDhw, score_BN, self.keep_rate, None, gated=True)),
            "scorer_logits": self._bag_logits(x_BDhw, score_BN),
            "token_score": score_BN,
        }

    def scorer_outputs(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The same without the blocks, for the stage in which stem and scorer learn alone."""
        x_BDhw, score_BN = self._embed(x_BCHW, None)
        logits_BK = self._bag_logits(x_BDhw, score_BN)
        return {"logits": logits_BK, "scorer_logits": logits_BK, "token_score": score_BN}

    def rates(self, score_BN: Tensor) -> Tensor:
        """The smallest bucket per image that holds ``mass`` of the softmax of its scores, ``(B,)``."""
        share_BN = score_BN.softmax(dim=1).sort(dim=1, descending=True).values.cumsum(dim=1)
        rate_B = torch.full_like(share_BN[:, 0], BUCKETS[-1], dtype=torch.float64)
        for rate in reversed(BUCKETS[:-1]):
            enough_B = share_BN[:, keep_count(share_BN.shape[1], rate) - 1] >= self.mass
            rate_B = torch.where(enough_B, rate, rate_B)
        return rate_B

    @property
    def trunk(self) -> nn.Module:
        """What published weights are for, and what ``train.freeze_epochs`` holds: the timm network, or the stem."""
        first = self.stem[0]
        return first if isinstance(first, TimmTrunk) else self.stem

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return tuple(f"{head}.{kind}" for head in ("head", "scorer_head") for kind in ("weight", "bias"))

    def _bag_logits(self, x_BDhw: Tensor, score_BN: Tensor) -> Tensor:
        return self.scorer_head((score_BN.softmax(dim=1)[:, None] @ to_tokens(x_BDhw))[:, 0])

    def _embed(self, x_BCHW: Tensor, taps: Taps | None) -> tuple[Tensor, Tensor]:
        grid = self._grid(tuple(x_BCHW.shape[-2:]))
        x_BDhw = self.stem(x_BCHW)
        score_BN = self.scorer(x_BDhw)
        if taps is not None:
            taps["features.0"] = Tap(x_BDhw, grid=grid)
            taps["token_score"] = Tap(score_BN, grid=grid)
        return x_BDhw, score_BN

    def _class_token(
        self, x_BDhw: Tensor, score_BN: Tensor, rate: float, taps: Taps | None, *, gated: bool = False
    ) -> Tensor:
        h, w = x_BDhw.shape[-2:]
        x_BND = to_tokens(x_BDhw + resize_positions(self.position_1Dhw, (h, w)))
        kept_BMD, package_B1D, index_BM = split_tokens(x_BND, score_BN, keep_count(h * w, rate))
        if gated:
            kept_BMD = kept_BMD * straight_through(score_BN.gather(1, index_BM))
        first = [self.cls_token.expand(x_BND.shape[0], -1, -1)]
        if package_B1D is not None:
            first.append(package_B1D)
        x_BND = self.token_drop(torch.cat([*first, kept_BMD], dim=1))
        run = Dropping(self.second_keep, at=(len(self.blocks) // 2,)) if self.second_keep < 1.0 else self.runner
        x_BND = self.norm(run(self.blocks, x_BND, taps, grid=(), prefix=len(first)))
        if taps is not None:
            mask_BN = kept_mask(index_BM, h * w)
            if "kept" in taps:  # the second cut speaks of places among the kept
                mask_BN = torch.zeros_like(mask_BN).scatter(1, index_BM, taps["kept"].value)
            taps["kept"] = Tap(mask_BN, grid=(h, w))
            taps["tokens"] = Tap(x_BND, prefix=len(first))
        return x_BND[:, 0]

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        if any(extent % self.patch_size or extent < self.patch_size for extent in size):
            raise size_error(
                "token_pruned", size, "does not divide into tokens", f"Use a multiple of {self.patch_size}"
            )
        return size[0] // self.patch_size, size[1] // self.patch_size


token_pruned = TokenPruned
token_pruned_resnet18 = functools.partial(TokenPruned, trunk="resnet18", depth=6)


def conv_stem(in_chans: int, embed_dim: int, patch_size: int) -> nn.Sequential:
    """One strided 3x3 convolution per halving, widths doubling to D, and a 1x1 convolution at the end."""
    halvings = patch_size.bit_length() - 1
    widths: Sequence[int] = [max(embed_dim >> (halvings - 1 - i), 8) for i in range(halvings)]
    layers: list[nn.Module] = [
        conv_bn_relu(before, width, 3, stride=2) for before, width in zip([in_chans, *widths], widths)
    ]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))


def _stem(
    trunk: str, in_chans: int, size: tuple[int, int], patch_size: int, embed_dim: int, pretrained: bool
) -> nn.Sequential:
    if trunk == "conv":
        if pretrained:
            raise UsageError("U208", "option pretrained", "the light stem has no published weights", "Leave it out")
        return conv_stem(in_chans, embed_dim, patch_size)
    name = trunk.removeprefix("timm/")
    network = TimmTrunk(name, in_chans=in_chans, image_size=size, stride=patch_size, pretrained=pretrained)
    return nn.Sequential(network, nn.Conv2d(network.channels, embed_dim, 1))
