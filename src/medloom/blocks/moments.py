"""Moment exchange: an image keeps its shapes and takes the contrast of another one of the batch, in feature space.

Shapes: B batch, C channels, H and W map size.

Reference: Manzari et al., MedViT, arXiv 2302.09462 (Patch Momentum Changer); Li et al., On feature normalization and
data augmentation, arXiv 2002.11102.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MomentExchange(nn.Module):
    """Mean and deviation of every channel are those of a random other image; training only.

    The label stays with the image: what it takes from the other one is the level and the contrast of each feature
    map, and where things are is left alone.

    Args:
        probability: that an image takes part.
    """

    def __init__(self, probability: float = 0.5, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.probability = probability
        self.eps = eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``; identity in eval mode."""
        if not self.training:
            return x_BCHW
        B = x_BCHW.shape[0]
        x = x_BCHW.float()  # a variance in half precision would lose the small ones
        variance_BC11, mean_BC11 = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
        deviation_BC11 = (variance_BC11 + self.eps).sqrt()
        other_B = torch.randperm(B, device=x.device)
        exchanged = (x - mean_BC11) / deviation_BC11 * deviation_BC11[other_B] + mean_BC11[other_B]
        takes_part_B111 = torch.rand(B, 1, 1, 1, device=x.device) < self.probability
        return torch.where(takes_part_B111, exchanged.to(x_BCHW.dtype), x_BCHW)
