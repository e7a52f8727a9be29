"""Self-attention in which all tokens ask and averages of tokens answer: MedViT's ESA.

Parameter names are those of the published MedViT, so that its weights load.

Shapes: B batch, D width, H heads, E width of one head, h and w grid, N = h * w tokens, M keys.

Reference: Manzari et al., MedViT, arXiv 2302.09462, section 3; Wang et al., PVT, arXiv 2102.12122 (reduced keys).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyPooling = Literal["raster", "grid"]


class PooledAttention(nn.Module):
    """Multi-head attention whose keys and values are averages of ``reduction ** 2`` tokens.

    Args:
        dim: D.
        head_dim: E.
        reduction: 1 leaves the keys as they are.
        pooling: ``raster``: averages of ``reduction ** 2`` tokens that follow each other in reading order, as
            published: a strip of a row, and a last remainder is left out; ``grid``: averages of squares.
    """

    def __init__(self, dim: int, *, head_dim: int, reduction: int, pooling: KeyPooling) -> None:
        super().__init__()
        self.num_heads = dim // head_dim
        self.reduction = reduction
        self.pooling = pooling
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim) if reduction > 1 else nn.Identity()

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w) -> (B, D, h, w)`` through the fused kernel."""
        q_BHNE, k_BHME, v_BHME = self._qkv(x_BDhw)
        return self._project(F.scaled_dot_product_attention(q_BHNE, k_BHME, v_BHME), x_BDhw)

    def forward_with_weights(self, x_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention ``(B, H, N, N)``: that to a key is shared out among the tokens it averages."""
        q_BHNE, k_BHME, v_BHME = self._qkv(x_BDhw)
        attention_BHNM = (q_BHNE @ k_BHME.transpose(-2, -1) * q_BHNE.shape[-1] ** -0.5).softmax(dim=-1)
        y_BDhw = self._project(attention_BHNM @ v_BHME, x_BDhw)
        h, w = x_BDhw.shape[-2:]
        each_token_1Nhw = torch.eye(h * w, dtype=attention_BHNM.dtype, device=x_BDhw.device).unflatten(1, (h, w))[None]
        share_NM = self._pool(each_token_1Nhw)[0]
        return y_BDhw, attention_BHNM @ share_NM.transpose(0, 1)

    def _pool(self, x_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w) -> (B, D, M)``."""
        if self.reduction == 1:
            return x_BDhw.flatten(2)
        if self.pooling == "raster":
            return F.avg_pool1d(x_BDhw.flatten(2), self.reduction**2)
        return F.avg_pool2d(x_BDhw, self.reduction, ceil_mode=True, count_include_pad=False).flatten(2)

    def _qkv(self, x_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys_BMD = self.norm(self._pool(x_BDhw)).transpose(1, 2)
        tokens_BND = x_BDhw.flatten(2).transpose(1, 2)
        return self._heads(self.q(tokens_BND)), self._heads(self.k(keys_BMD)), self._heads(self.v(keys_BMD))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _project(self, y_BHNE: Tensor, x_BDhw: Tensor) -> Tensor:
        y_BND = self.proj(y_BHNE.transpose(1, 2).flatten(2))
        return y_BND.transpose(1, 2).unflatten(2, tuple(x_BDhw.shape[-2:]))
