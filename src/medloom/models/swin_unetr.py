"""SwinUNETR for volumes, MONAI's own network under our contract: a peer to compare with, not ours.

Shapes: B batch, C channels, X Y Z volume size, K classes.

Reference: Hatamizadeh et al., Swin UNETR, arXiv 2201.01266; github.com/Project-MONAI/MONAI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medloom.blocks.convolution import pad_border
from medloom.blocks.decoders import crop_to
from medloom.blocks.taps import Tap, Taps
from medloom.errors import UsageError
from medloom.models.sizes import size_error, spatial_size

STRIDE = 32


class SwinUNETR(nn.Module):
    """MONAI's network; volumes are padded to multiples of 32 by their border, and the answer is cut to their size.

    Args:
        num_classes: K, the background included.
        in_chans: C.
        image_size: the smallest extents that will come; others work too.
        feature_size: channels at full resolution, a multiple of 12.
        dropout: in the attentions and their MLPs.
        drop_path: stochastic depth of the last block.
        checkpointing: in training, compute the transformer twice and keep little of it.

    Raises:
        UsageError: U208 an impossible option, U210 MONAI is not installed.
        ModelError: C511 a volume of no more than 32 along every axis.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 1,
        image_size: int | Sequence[int] = 96,
        feature_size: int = 24,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if feature_size % 12:
            raise UsageError("U208", "option feature_size", f"{feature_size} does not fit", "Give a multiple of 12")
        size = spatial_size(image_size, 3)
        if max(size) <= STRIDE:
            raise size_error(
                "swin_unetr", size, "leaves a single cell at stride 32", "Use more than 32 along some axis"
            )
        self.network = _monai_network(
            in_channels=in_chans,
            out_channels=num_classes,
            feature_size=feature_size,
            drop_rate=dropout,
            attn_drop_rate=dropout,
            dropout_path_rate=drop_path,
            use_checkpoint=checkpointing,
            spatial_dims=3,
        )

    def forward(self, x_BCXYZ: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, X, Y, Z) -> (B, K, X, Y, Z)``; taps ``features.0`` ... of the padded volume, strides 2 to 32."""
        size = tuple(x_BCXYZ.shape[2:])
        x_BCXYZ = pad_border(x_BCXYZ, (STRIDE,) * 3)
        if taps is not None:
            for i, y_BCXYZ in enumerate(self.network.swinViT(x_BCXYZ, self.network.normalize)):
                taps[f"features.{i}"] = Tap(y_BCXYZ, grid=tuple(y_BCXYZ.shape[2:]))
        return crop_to(self.network(x_BCXYZ), size)

    def train_outputs(self, x_BCXYZ: Tensor) -> dict[str, Tensor]:
        """``logits`` alone: the published model has no deep supervision."""
        return {"logits": self(x_BCXYZ)}

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return tuple(name for name, _ in self.named_parameters() if name.startswith("network.out."))


swin_unetr = SwinUNETR


def _monai_network(**options: Any) -> Any:
    """MONAI is imported here alone; without it everything else works."""
    try:
        from monai.networks.nets.swin_unetr import SwinUNETR as Network
    except ModuleNotFoundError as problem:
        raise UsageError(
            "U210",
            "model swin_unetr",
            f"the package {problem.name} is not installed",
            "Install the extra: pip install 'medloom[volumes]'",
        ) from None
    # Its constructor reads numbers out of tensors, which have none on the meta device.
    with torch.device("cpu"):
        network = Network(**options)
    return network.to(torch.empty(0).device)
