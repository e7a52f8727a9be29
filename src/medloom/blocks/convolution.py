"""Convolution with its normalisation and activation: the one unit that our CNN trunks are stacked from.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import nn


def conv_bn_relu(in_chans: int, out_chans: int, kernel_size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU: ``(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))``.

    The convolution has no bias because the norm behind it brings one. Weights start by He's rule (fan out), which
    keeps the scale of the gradients from layer to layer.

    Reference: He et al., Delving deep into rectifiers, arXiv 1502.01852.
    """
    convolution = nn.Conv2d(in_chans, out_chans, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True))
