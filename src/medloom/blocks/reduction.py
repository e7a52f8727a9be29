"""Fewer tokens inside a stack of transformer blocks: dropping (EViT) and merging (ToMe), behind one call.

A *runner* has the signature of :func:`medloom.blocks.transformer.run_blocks`; a model whose body is our own transformer
runs its blocks through ``self.runner``, and another one is put there by :func:`medloom.models.pruning.reduce_tokens`.
No parameters are added, so one checkpoint serves every runner and every rate.

Shapes: B batch, H heads, N tokens (prefix P included), D width, E width of one head, K kept, M merged away.

Reference: Liang et al., EViT, arXiv 2202.07800; Bolya et al., Token merging, arXiv 2210.09461.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.selection import gather_tokens, keep_count, kept_mask, ranked
from medloom.blocks.taps import Tap, Taps
from medloom.blocks.transformer import AttentionBlock, Block


@dataclass(frozen=True)
class Dropping:
    """EViT: behind the attention of some blocks the tokens that CLS looks at least are fused into one.

    The fused token is their mean: the weights, by which CLS looks at them, are made to sum to one. The paper takes the
    plain sum of a_i x_i, whose size follows the attention that they have together.

    Attributes:
        keep_rate: share of the grid tokens that each cut keeps.
        at: blocks (from 0) that cut.
    """

    keep_rate: float
    at: tuple[int, ...] = (3, 6, 9)

    def __call__(
        self, blocks: Iterable[nn.Module], x_BND: Tensor, taps: Taps | None, *, grid: tuple[int, ...], prefix: int
    ) -> Tensor:
        """``(B, N, D)`` to fewer; with taps also ``kept`` ``(B, cells)``, for the tokens that reached the end."""
        cells = x_BND.shape[1] - prefix
        place_BN: Tensor | None = None
        fused = 0  # fused tokens stand at the end and are never dropped
        for i, block in enumerate(blocks):
            assert isinstance(block, Block | AttentionBlock)
            if taps is not None:
                taps[f"attention.{i}"] = Tap(
                    block.attn.forward_with_weights(block.normed(x_BND))[1],
                    grid=grid if place_BN is None else (),
                    prefix=prefix,
                )
            grid_tokens = x_BND.shape[1] - prefix - fused
            k = keep_count(grid_tokens, self.keep_rate)
            if i not in self.at or k >= grid_tokens:
                x_BND = block(x_BND)
                continue
            update_BND, row_BN = block.attn.forward_with_class_row(block.normed(x_BND))
            x_BND = x_BND + block.drop_path(update_BND)
            order_BN = ranked(row_BN[:, prefix : prefix + grid_tokens])
            kept_BK, rest_BR = order_BN[:, :k] + prefix, order_BN[:, k:] + prefix
            weight_BR = row_BN.gather(1, rest_BR)
            weight_BR = weight_BR / weight_BR.sum(dim=1, keepdim=True)
            fused_B1D = weight_BR[:, None] @ gather_tokens(x_BND, rest_BR)
            x_BND = torch.cat(
                [x_BND[:, :prefix], gather_tokens(x_BND, kept_BK), x_BND[:, prefix + grid_tokens :], fused_B1D], dim=1
            )
            fused += 1
            place_BN = kept_BK - prefix if place_BN is None else place_BN.gather(1, kept_BK - prefix)
            x_BND = block.feed_forward(x_BND)
        if taps is not None and place_BN is not None:
            taps["kept"] = Tap(kept_mask(place_BN, cells), grid=grid)
        return x_BND


@dataclass(frozen=True)
class Merging:
    """ToMe: behind the attention of every block the most alike pairs of tokens become their mean.

    Attributes:
        keep_rate: share of the grid tokens that is left behind the last block, each block taking away as many; a block
            takes at most half of those that reach it.
    """

    keep_rate: float

    def __call__(
        self, blocks: Iterable[nn.Module], x_BND: Tensor, taps: Taps | None, *, grid: tuple[int, ...], prefix: int
    ) -> Tensor:
        """``(B, N, D)`` to fewer; with taps also ``token_size`` ``(B, cells)``: how many cells share a cell's token."""
        blocks = list(blocks)
        merged = round((x_BND.shape[1] - prefix) * (1.0 - self.keep_rate) / len(blocks))
        size_BN = torch.ones_like(x_BND[:, :, 0])
        group_BNn: Tensor | None = None
        if taps is not None:
            cells = x_BND.shape[1] - prefix
            group_BNn = torch.eye(cells, device=x_BND.device).expand(x_BND.shape[0], -1, -1)
        for i, block in enumerate(blocks):
            assert isinstance(block, Block | AttentionBlock)
            y_BND = block.normed(x_BND)
            if taps is not None:
                whole = x_BND.shape[1] == prefix + cells
                taps[f"attention.{i}"] = Tap(
                    block.attn.forward_with_weights(y_BND, log_size_BN=size_BN.log())[1],
                    grid=grid if whole else (),
                    prefix=prefix,
                )
            update_BND, key_BNE = block.attn.forward_with_keys(y_BND, log_size_BN=size_BN.log())
            x_BND = x_BND + block.drop_path(update_BND)
            count = min(merged, (x_BND.shape[1] - prefix) // 2)
            if count:
                stay_BA, to_BMb = match(key_BNE[:, prefix:], count)
                if group_BNn is not None:
                    group_BNn = _pool(group_BNn, stay_BA, to_BMb)
                sum_BND = _pool(x_BND[:, prefix:] * size_BN[:, prefix:, None], stay_BA, to_BMb)
                new_BN1 = _pool(size_BN[:, prefix:, None], stay_BA, to_BMb)
                x_BND = torch.cat([x_BND[:, :prefix], sum_BND / new_BN1], dim=1)
                size_BN = torch.cat([size_BN[:, :prefix], new_BN1[:, :, 0]], dim=1)
            x_BND = block.feed_forward(x_BND)
        if taps is not None and group_BNn is not None:
            taps["token_size"] = Tap((group_BNn * group_BNn.sum(2, keepdim=True)).sum(1), grid=grid)
        return x_BND


def match(key_BNE: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: every second token looks for its likeness among the others, the best ``count`` merge.

    Returns:
        positions ``(B, A)`` of the even tokens that stay, in their order, followed by those that go; and the matrix
        ``(B, count, odd tokens)`` of zeros and ones that says where each of the latter goes. It is applied as a matrix
        product because exporters and runtimes disagree on scatter with reduction.
    """
    key_BNE = F.normalize(key_BNE, dim=-1)
    even_BAE, odd_BbE = key_BNE[:, ::2], key_BNE[:, 1::2]
    best_BA, target_BA = (even_BAE @ odd_BbE.transpose(1, 2)).max(dim=2)
    order_BA = ranked(best_BA)
    go_BM = order_BA[:, :count]
    stay_BA = order_BA[:, count:].sort(dim=1).values
    target_BM = target_BA.gather(1, go_BM)
    places = torch.arange(odd_BbE.shape[1], device=key_BNE.device)
    to_BMb = (target_BM[:, :, None] == places).to(key_BNE.dtype)
    return torch.cat([stay_BA, go_BM], dim=1), to_BMb


def _pool(x_BND: Tensor, order_BA: Tensor, to_BMb: Tensor) -> Tensor:
    """Sums: the even tokens that stay as they are, the odd ones with what was merged into them."""
    count = to_BMb.shape[1]
    even_BAD = gather_tokens(x_BND[:, ::2], order_BA)
    stay_BAD, go_BMD = even_BAD[:, : even_BAD.shape[1] - count], even_BAD[:, even_BAD.shape[1] - count :]
    return torch.cat(
        [stay_BAD, x_BND[:, 1::2] + to_BMb.to(x_BND.dtype).transpose(1, 2) @ go_BMD.to(x_BND.dtype)], dim=1
    )
