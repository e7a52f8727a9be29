"""Multi-head self-attention: the fused kernel, or the explicit softmax when somebody wants to see it.

Shapes: B batch, H heads, N tokens (prefix tokens included), D width, E width of one head (D / H).

Reference: Vaswani et al., Attention is all you need, arXiv 1706.03762.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention over all tokens; parameter names are timm's (``qkv``, ``proj``).

    Args:
        dim: token width D.
        num_heads: H; D must be a multiple of it.
        dropout: after the output projection.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        """``(B, N, D) -> (B, N, D)`` through the fused kernel."""
        q_BHNE, k_BHNE, v_BHNE = self._qkv(x_BND)
        return self._project(F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE))

    def forward_with_weights(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention ``(B, H, N, N)``; row i holds how token i looks at all tokens (sum 1)."""
        q_BHNE, k_BHNE, v_BHNE = self._qkv(x_BND)
        attention_BHNN = (q_BHNE @ k_BHNE.transpose(-2, -1) * q_BHNE.shape[-1] ** -0.5).softmax(dim=-1)
        return self._project(attention_BHNN @ v_BHNE), attention_BHNN

    def _qkv(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = x_BND.shape
        qkv = self.qkv(x_BND).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        q_BHNE, k_BHNE, v_BHNE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q_BHNE, k_BHNE, v_BHNE

    def _project(self, x_BHNE: Tensor) -> Tensor:
        return self.proj_drop(self.proj(x_BHNE.transpose(1, 2).flatten(2)))
