"""Adaptive token weighting of HATR: channel attention, then spatial attention that gives one weight per patch token.

Both gates multiply by twice a sigmoid, so that at zero logits they are the identity: the module starts as the plain
embedding instead of shrinking it four times, and learns from there what to raise and what to lower.

Shapes: B batch, D channels, h and w grid of the tokens.

Reference: Woo et al., CBAM, arXiv 1807.06521 (order and form); Zhang, HATR, EMITI 2025, 10.5220/0014361900004718.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelGate(nn.Module):
    """A weight per channel from the mean and the maximum over the grid, through one shared two-layer network."""

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        # Zero logits at the start. fc1 gets its first gradient as soon as fc2 has moved, one step later.
        nn.init.trunc_normal_(self.fc1.weight, std=0.02)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w) -> (B, D, 1, 1)``, in (0, 1), 0.5 is neutral."""
        mean_BD, peak_BD = x_BDhw.mean(dim=(2, 3)), x_BDhw.amax(dim=(2, 3))
        logits_BD = self._shared(mean_BD) + self._shared(peak_BD)
        return logits_BD.sigmoid()[:, :, None, None]

    def _shared(self, x_BD: Tensor) -> Tensor:
        return self.fc2(self.fc1(x_BD).relu())


class SpatialGate(nn.Module):
    """A weight per place from the mean and the maximum over the channels, through one 7x7 convolution."""

    def __init__(self, *, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w) -> (B, 1, h, w)``, in (0, 1), 0.5 is neutral."""
        summary_B2hw = torch.cat([x_BDhw.mean(dim=1, keepdim=True), x_BDhw.amax(dim=1, keepdim=True)], dim=1)
        return self.conv(summary_B2hw).sigmoid()


class TokenWeighting(nn.Module):
    """Channel gate, then spatial gate; returns the weighted embedding and the weight of every token."""

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.channel = ChannelGate(dim, reduction=reduction)
        self.spatial = SpatialGate()

    def forward(self, x_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, D, h, w) -> (B, D, h, w)`` and the token weights ``(B, 1, h, w)`` in (0, 1), 0.5 is neutral."""
        x_BDhw = x_BDhw * (2.0 * self.channel(x_BDhw))
        weight_B1hw = self.spatial(x_BDhw)
        return x_BDhw * (2.0 * weight_B1hw), weight_B1hw
