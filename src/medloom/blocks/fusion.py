"""Joining two token sequences by cross-attention: the fused kernel, or the explicit softmax to look at.

Shapes: B batch, H heads, N query tokens, M tokens that are looked at, D width, E width of one head.

Reference: Vaswani et al., Attention is all you need, arXiv 1706.03762, section 3.2.3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Each of N tokens gathers from M others.

    Args:
        dim: width D of both sequences.
        num_heads: H.
        head_dim: E; None shares D among the heads, which must then divide it.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")
        self.num_heads = num_heads
        inner_dim = num_heads * (head_dim or dim // num_heads)
        self.q = nn.Linear(dim, inner_dim)
        self.kv = nn.Linear(dim, inner_dim * 2)
        self.proj = nn.Linear(inner_dim, dim)

    def forward(self, query_BND: Tensor, context_BMD: Tensor) -> Tensor:
        """``(B, N, D), (B, M, D) -> (B, N, D)`` through the fused kernel."""
        q_BHNE, k_BHME, v_BHME = self._qkv(query_BND, context_BMD)
        return self._project(F.scaled_dot_product_attention(q_BHNE, k_BHME, v_BHME))

    def forward_with_weights(self, query_BND: Tensor, context_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention ``(B, H, N, M)``; row i holds how query i looks at the others (sum 1)."""
        q_BHNE, k_BHME, v_BHME = self._qkv(query_BND, context_BMD)
        attention_BHNM = (q_BHNE @ k_BHME.transpose(-2, -1) * q_BHNE.shape[-1] ** -0.5).softmax(dim=-1)
        return self._project(attention_BHNM @ v_BHME), attention_BHNM

    def _qkv(self, query_BND: Tensor, context_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHNE = self.q(query_BND).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_BHME, v_BHME = self.kv(context_BMD).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q_BHNE, k_BHME, v_BHME

    def _project(self, x_BHNE: Tensor) -> Tensor:
        return self.proj(x_BHNE.transpose(1, 2).flatten(2))
