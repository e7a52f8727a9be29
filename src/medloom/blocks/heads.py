"""Classification heads: from a feature map or from tokens to logits.

Shapes: B batch, C channels, N tokens, D token width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.transformer import MLP


class PooledHead(nn.Module):
    """Global average pooling, dropout, linear layer: ``(B, C, H, W) -> (B, K)``."""

    def __init__(self, in_chans: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(in_chans, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, K)``."""
        return self.fc(self.drop(x_BCHW.mean(dim=(2, 3))))


def hidden_head(in_features: int, hidden: int, num_classes: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Linear, ReLU, dropout, linear: ``(B, in_features) -> (B, K)``, started as Keras starts its dense layers.

    Reference: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    """
    layers = nn.Linear(in_features, hidden), nn.Linear(hidden, num_classes)
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), nn.Dropout(dropout), layers[1])


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; parameter names are timm's, so that its ``map`` weights load.

    Reference: Zhai et al., Scaling vision transformers, arXiv 2106.04560 (MAP head).
    """

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x_BND: Tensor) -> Tensor:
        """``(B, N, D) -> (B, D)``."""
        B, N, D = x_BND.shape
        H, E = self.num_heads, D // self.num_heads
        q_BH1E = self.q(self.latent.expand(B, -1, -1)).reshape(B, 1, H, E).transpose(1, 2)
        k_BHNE, v_BHNE = self.kv(x_BND).reshape(B, N, 2, H, E).permute(2, 0, 3, 1, 4).unbind(0)
        pooled_BHE = F.scaled_dot_product_attention(q_BH1E, k_BHNE, v_BHNE)
        y_B1D = self.proj(pooled_BHE.transpose(1, 2).reshape(B, 1, D))
        return (y_B1D + self.mlp(self.norm(y_B1D)))[:, 0]
