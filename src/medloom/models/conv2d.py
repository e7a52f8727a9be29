"""Conv2D: the three-stack CNN of the HATR paper, as a trunk and as a classifier.

The paper says: three stacks with 64, 128 and 256 channels that end in ``[batch, 256, 14, 14]``. Three halvings of 224
give 28, so one more is needed; where it happens is not said. ``reading`` chooses.

Shapes: B batch, C channels, H and W image size, h and w map size, K classes.

Reference: Zhang, HATR, EMITI 2025, DOI 10.5220/0014361900004718, section 2.3.1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from medloom.blocks.convolution import conv_bn_relu
from medloom.blocks.heads import PooledHead
from medloom.blocks.taps import Tap, Taps
from medloom.errors import UsageError
from medloom.models.sizes import pair, size_error

Reading = Literal["stride", "pool", "double"]
_WIDTHS = (64, 128, 256)


class Conv2DTrunk(nn.Module):
    """Three stacks, one sixteenth of the image size: ``(B, C, 224, 224) -> (B, 256, 14, 14)``.

    Args:
        in_chans: C.
        image_size: in pixels, for ``grid``; the trunk itself takes any size from 16 on.
        reading: ``stride``: the first convolution halves, each stack ends in a 2x2 max-pool (371,264 parameters);
            ``pool``: no stride, a last 2x2 average pool instead; ``double``: as ``stride`` with two convolutions
            per stack (1,146,304).

    Raises:
        UsageError: U208 unknown reading.
        ModelError: C511 image smaller than one cell.
    """

    channels = _WIDTHS[-1]
    stride = 16

    def __init__(self, *, in_chans: int, image_size: tuple[int, int], reading: Reading = "stride") -> None:
        super().__init__()
        if reading not in ("stride", "pool", "double"):
            raise UsageError("U208", "option reading", f"{reading!r} is not known", "Choose stride, pool or double")
        if min(image_size) < self.stride:
            raise size_error("conv2d", image_size, "leaves less than one cell at stride 16", "Use at least 16 pixels")
        self.grid = (image_size[0] // self.stride, image_size[1] // self.stride)
        stacks = []
        for i, (before, width) in enumerate(zip((in_chans, *_WIDTHS), _WIDTHS)):
            layers: list[nn.Module] = [conv_bn_relu(before, width, 3, stride=2 if i == 0 and reading != "pool" else 1)]
            if reading == "double":
                layers.append(conv_bn_relu(width, width, 3))
            stacks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.stacks = nn.ModuleList(stacks)
        self.last_pool = nn.AvgPool2d(2) if reading == "pool" else nn.Identity()

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, 256, H / 16, W / 16)``; taps ``features.0`` to ``features.2`` hold the stacks."""
        for i, stack in enumerate(self.stacks):
            x_BCHW = stack(x_BCHW)
            if i == len(self.stacks) - 1:
                x_BCHW = self.last_pool(x_BCHW)
            if taps is not None:
                taps[f"features.{i}"] = Tap(x_BCHW, grid=tuple(x_BCHW.shape[-2:]))
        return x_BCHW


class Conv2D(nn.Module):
    """The trunk with global average pooling, dropout and a linear layer.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels.
        reading: see :class:`Conv2DTrunk`.
        dropout: before the classifier.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        reading: Reading = "stride",
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.trunk = Conv2DTrunk(in_chans=in_chans, image_size=pair(image_size), reading=reading)
        self.head = PooledHead(self.trunk.channels, num_classes, dropout=dropout)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``; taps as of the trunk."""
        return self.head(self.trunk(x_BCHW, taps))

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("head.fc.weight", "head.fc.bias")


conv2d = Conv2D
