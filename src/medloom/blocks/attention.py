"""Multi-head self-attention: the fused kernel, or the explicit softmax when somebody wants to see it.

Shapes: B batch, H heads, N tokens (prefix tokens included), D width, E width of one head (D / H by default).

Reference: Vaswani et al., Attention is all you need, arXiv 1706.03762.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_TOKENS = 320
"""Up to here the written-out form is taken: 224 px in patches of 16 lie below, and the scores stay small."""


class Attention(nn.Module):
    """Self-attention over all tokens; parameter names are timm's (``qkv``, ``proj``).

    Args:
        dim: token width D.
        num_heads: H.
        dropout: after the output projection.
        head_dim: E; None shares D among the heads, which must then divide it.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float = 0.0, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")
        self.num_heads = num_heads
        inner_dim = num_heads * (head_dim or dim // num_heads)
        self.qkv = nn.Linear(dim, inner_dim * 3)
        self.proj = nn.Linear(inner_dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        """``(B, N, D) -> (B, N, D)`` through the fused kernel."""
        return self._project(attend(*self._qkv(x_BND)))

    def forward_with_weights(self, x_BND: Tensor, log_size_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same, and the attention ``(B, H, N, N)``; row i holds how token i looks at all tokens (sum 1)."""
        q_BHNE, k_BHNE, v_BHNE = self._qkv(x_BND)
        logits_BHNN = q_BHNE @ k_BHNE.transpose(-2, -1) * q_BHNE.shape[-1] ** -0.5
        if log_size_BN is not None:
            logits_BHNN = logits_BHNN + log_size_BN[:, None, None]
        attention_BHNN = logits_BHNN.softmax(dim=-1)
        return self._project(attention_BHNN @ v_BHNE), attention_BHNN

    def forward_with_class_row(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The same as ``forward``, and how the first token looks at all tokens, mean over the heads: ``(B, N)``.

        One row of the softmax beside the fused kernel: what choosing tokens costs.
        """
        q_BHNE, k_BHNE, v_BHNE = self._qkv(x_BND)
        row_BH1N = (q_BHNE[:, :, :1] @ k_BHNE.transpose(-2, -1) * q_BHNE.shape[-1] ** -0.5).softmax(dim=-1)
        return self._project(attend(q_BHNE, k_BHNE, v_BHNE)), row_BH1N[:, :, 0].mean(dim=1)

    def forward_with_keys(self, x_BND: Tensor, log_size_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Attention to tokens that stand for several (log of how many); also the keys, mean over heads: ``(B, N, E)``.

        Reference: proportional attention of Bolya et al., arXiv 2210.09461, section 3.
        """
        q_BHNE, k_BHNE, v_BHNE = self._qkv(x_BND)
        mask_BHNN = log_size_BN[:, None, None].to(q_BHNE.dtype).expand(-1, 1, x_BND.shape[1], -1)
        out_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=mask_BHNN)
        return self._project(out_BHNE), k_BHNE.mean(dim=1)

    def forward_masked(self, x_BND: Tensor, present_BN: Tensor) -> Tensor:
        """Attention to the tokens that are present (1) and to oneself: ``(B, N, D), (B, N) -> (B, N, D)``.

        What the present tokens become is what they would become without the absent ones (0), and there is a gradient to
        ``present_BN``; nothing is saved.

        Reference: attention masking of Rao et al., arXiv 2106.02034, section 3.3.
        """
        q_BHNE, k_BHNE, v_BHNE = self._qkv(x_BND)
        logits_BHNN = q_BHNE @ k_BHNE.transpose(-2, -1) * q_BHNE.shape[-1] ** -0.5
        own_NN = torch.eye(x_BND.shape[1], device=x_BND.device)
        seen_B1NN = present_BN[:, None, None] + (1.0 - present_BN[:, None, None]) * own_NN
        share_BHNN = logits_BHNN.float().softmax(dim=-1) * seen_B1NN
        share_BHNN = share_BHNN / share_BHNN.sum(dim=-1, keepdim=True).clamp_min(1e-6)
        return self._project(share_BHNN.to(v_BHNE.dtype) @ v_BHNE)

    def _qkv(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1))
        q_BHNE, k_BHNE, v_BHNE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q_BHNE, k_BHNE, v_BHNE

    def _project(self, x_BHNE: Tensor) -> Tensor:
        return self.proj_drop(self.proj(x_BHNE.transpose(1, 2).flatten(2)))


def attend(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention ``(B, H, N, E)`` through the fused kernel, but where writing it out is faster.

    On the CPU the fused kernel is slow in bfloat16, backwards above all (seen with torch 2.13); ViT-S gains from the
    written-out form in training and in answering (``benchmarks/models.py``). In float32, on a GPU, and for many tokens,
    whose scores would not fit, the fused one stays.

    Args:
        bias: added to the logits, of a shape that spreads to ``(B, H, N, N)``.
    """
    few = q_BHNE.shape[2] <= _FEW_TOKENS
    if few and q_BHNE.dtype == torch.bfloat16 and q_BHNE.device.type == "cpu":
        logits_BHNN = q_BHNE * q_BHNE.shape[-1] ** -0.5 @ k_BHNE.transpose(-2, -1)
        return (logits_BHNN if bias is None else logits_BHNN + bias).softmax(dim=-1) @ v_BHNE
    return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=bias)
