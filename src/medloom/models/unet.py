"""U-Net for images and volumes, in nnU-Net's plain form: the baseline that every hybrid must beat.

It is MONAI's ``DynUNet`` weight for weight (a test holds it), without the package and for inputs of any extent.

Shapes: B batch, C channels, K classes, S all spatial axes (H W, or X Y Z).

Reference: Ronneberger et al., U-Net, arXiv 1505.04597; Isensee et al., nnU-Net, arXiv 1904.08128.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from medloom.blocks.convolution import convolution
from medloom.blocks.decoders import PlainUp, deep_heads, deep_logits, extent_at, plain_stage
from medloom.blocks.taps import Tap, Taps
from medloom.errors import UsageError
from medloom.models.sizes import size_error, spatial_size


class UNet(nn.Module):
    """Levels of two convolutions down, transposed convolutions and skips up.

    Args:
        spatial_dims: 2 or 3.
        num_classes: K, the background included.
        in_chans: C.
        image_size: the smallest extents that will come; others work too.
        dims: channels of the levels, from fine to coarse.
        strides: one list of one stride per axis for every level but the first; None halves every axis every time.
            Thick slices want 1 along their axis first.
        deep_supervision: the decoder's maps behind the finest, the coarsest left out, learn too (``train_outputs``).

    Raises:
        UsageError: U208 an impossible option.
        ModelError: C511 a size that leaves one cell at the coarsest level, whose norm would have no statistics.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        num_classes: int,
        in_chans: int,
        image_size: int | Sequence[int],
        dims: Sequence[int] = (32, 64, 128, 256, 512),
        strides: Sequence[Sequence[int]] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.steps = level_strides(strides, dims, spatial_dims)
        check_coarsest("unet", spatial_size(image_size, spatial_dims), self.steps)
        still = (1,) * spatial_dims
        self.trunk = plain_levels(in_chans, dims, (still, *self.steps), bias=False)
        self.decoder = nn.ModuleList(
            PlainUp(dims[i + 1], dims[i], stride=self.steps[i], bias=False) for i in reversed(range(len(self.steps)))
        )
        self.deep_strides = supervised_strides(self.steps) if deep_supervision else {}
        channels = {stride: dims[level] for stride, level in self.deep_strides.items()}
        self.deep_heads = deep_heads(channels, num_classes, dims=spatial_dims)
        self.head = convolution(spatial_dims, dims[0], num_classes, 1)

    def forward(self, x_BCS: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``; taps ``features.0`` ... of the way down, ``decoded.0`` ... of the way up."""
        maps = pass_levels(self.trunk, x_BCS)
        decoded = climb(self.decoder, maps)
        if taps is not None:
            tap_maps(taps, maps, decoded)
        return self.head(decoded[-1])

    def train_outputs(self, x_BCS: Tensor) -> dict[str, Tensor]:
        """``logits``, and with deep supervision ``deep.2``, ``deep.4`` ..., each ``(B, K, *S / stride)``."""
        decoded = climb(self.decoder, pass_levels(self.trunk, x_BCS))
        deep = {stride: decoded[-1 - level] for stride, level in self.deep_strides.items()}
        return {"logits": self.head(decoded[-1]), **deep_logits(self.deep_heads, deep)}

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return tuple(name for name, _ in self.named_parameters() if name.startswith(("head.", "deep_heads.")))


unet = functools.partial(UNet, spatial_dims=2)


def unet_3d(
    *,
    num_classes: int,
    in_chans: int = 1,
    image_size: int | Sequence[int] = 96,
    dims: Sequence[int] = (24, 48, 96, 152, 240),
    strides: Sequence[Sequence[int]] | None = None,
    deep_supervision: bool = False,
) -> UNet:
    """The same for volumes, with as many parameters as ``maxvit_unet_3d_tiny``; options as of :class:`UNet`."""
    return UNet(
        spatial_dims=3,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        dims=dims,
        strides=strides,
        deep_supervision=deep_supervision,
    )


def plain_levels(
    in_chans: int, dims: Sequence[int], strides: Sequence[tuple[int, ...]], *, bias: bool
) -> nn.ModuleList:
    """The way down: one stage per level."""
    before = (in_chans, *dims)
    return nn.ModuleList(plain_stage(b, d, stride=s, bias=bias) for b, d, s in zip(before, dims, strides))


def pass_levels(levels: nn.ModuleList, x_BCS: Tensor) -> list[Tensor]:
    """The maps of all levels, from fine to coarse."""
    maps = []
    for level in levels:
        x_BCS = level(x_BCS)
        maps.append(x_BCS)
    return maps


def climb(decoder: nn.ModuleList, maps: list[Tensor]) -> list[Tensor]:
    """The decoder's maps, from coarse to fine; the last has the grid of the first of ``maps``."""
    decoded, x_BCS = [], maps[-1]
    for up, skip_BCS in zip(decoder, reversed(maps[:-1])):
        x_BCS = up(x_BCS, skip_BCS)
        decoded.append(x_BCS)
    return decoded


def tap_maps(taps: Taps, maps: list[Tensor], decoded: list[Tensor]) -> None:
    """Write both ways of a U-shaped network."""
    for kind, group in (("features", maps), ("decoded", decoded)):
        for i, x_BCS in enumerate(group):
            taps[f"{kind}.{i}"] = Tap(x_BCS, grid=tuple(x_BCS.shape[2:]))


def supervised_strides(steps: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """Stride and level of the decoder's maps that learn too, as nnU-Net has it: all but the finest, whose logits are
    the answer, and the coarsest."""
    strides = [math.prod(max(step) for step in steps[:level]) for level in range(len(steps) + 1)]
    return {strides[level]: level for level in range(1, len(steps) - 1)}


def level_strides(
    strides: Sequence[Sequence[int]] | None, dims: Sequence[int], spatial_dims: int
) -> tuple[tuple[int, ...], ...]:
    """One stride per axis between neighbouring levels, checked; None is 2 along every axis.

    Raises:
        UsageError: U208.
    """
    if len(dims) < 2 or any(not isinstance(d, int) or d < 1 for d in dims):
        raise UsageError("U208", "option dims", f"{list(dims)!r} does not fit", "Give two numbers from 1 on, or more")
    if strides is None:
        return ((2,) * spatial_dims,) * (len(dims) - 1)
    steps = tuple(tuple(step) if isinstance(step, Sequence) else () for step in strides)
    if len(steps) != len(dims) - 1 or any(len(s) != spatial_dims or set(s) - {1, 2} or max(s) == 1 for s in steps):
        wanted = f"Give {len(dims) - 1} lists of {spatial_dims} numbers, each 1 or 2, and a 2 in each list"
        raise UsageError("U208", "option strides", f"{list(strides)!r} does not fit", wanted)
    return steps


def check_coarsest(name: str, size: tuple[int, ...], steps: Sequence[tuple[int, ...]]) -> None:
    """Refuse sizes of which one cell is left: instance norm has nothing to norm there.

    Raises:
        ModelError: C511.
    """
    if math.prod(extent_at(size, steps)) == 1:
        stride = math.prod(max(step) for step in steps)
        remedy = f"Use more than {stride} along some axis, or fewer levels"
        raise size_error(name, size, "leaves a single cell at the coarsest level", remedy)
