"""MaxViT without its classifier, in two and three dimensions: maps at strides 2, 4, 8, 16 and 32.

In two dimensions it is timm's ``maxvit_tiny_tf`` weight for weight. Its first convolution has no bias here, because the
batch norm behind it takes any away; timm's is counted into that norm's mean.

Shapes: B batch, C channels, S all spatial axes.

Reference: Tu et al., MaxViT, arXiv 2204.01697; weights: github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.convolution import NormKind, convolution, normalisation, pad_strided, strided_padding
from medloom.blocks.decoders import extent_at
from medloom.blocks.maxvit import HEAD_DIM, maxvit_blocks, pass_blocks
from medloom.blocks.transformer import drop_path_rates
from medloom.blocks.windows import Positions, RelativePositions
from medloom.errors import UsageError

STAGES = 4
_LEAST_WINDOW = 4
_CHECKPOINTED = 2

Steps = tuple[tuple[int, ...], ...]
Windows = int | Sequence[int] | Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class FeatureMap:
    """What one map of a trunk is: its channels, and the stride along each axis."""

    channels: int
    strides: tuple[int, ...]


class MaxViTTrunk(nn.Module):
    """Stem and four stages.

    Args:
        in_chans: C.
        stem_dim: channels at stride 2.
        dims: channels of the stages, multiples of 32.
        depths: blocks of the stages.
        strides: five, of the stem and of the stages, one per axis each.
        windows: of the stages, one per axis each.
        norm: kind of the convolutions' norms.
        dropout: in the attentions' projections.
        drop_path: stochastic depth of the last block, growing linearly from 0 in the first.
        checkpointing: in training, compute stages 1 and 2 twice and keep little of them.
        positions: what makes the attentions' relative positions.

    Attributes:
        feature_info: channels and strides of each map, from fine to coarse.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        stem_dim: int,
        dims: Sequence[int],
        depths: Sequence[int],
        strides: Steps,
        windows: Steps,
        norm: NormKind,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        positions: Positions = RelativePositions,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = Stem(in_chans, stem_dim, stride=strides[0], norm=norm)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for i, (before, dim, depth) in enumerate(zip((stem_dim, *dims), dims, depths)):
            blocks = maxvit_blocks(
                before,
                dim,
                stride=strides[i + 1],
                window=windows[i],
                norm=norm,
                dropout=dropout,
                drop_paths=[next(rates) for _ in range(depth)],
                positions=positions,
            )
            self.stages.append(nn.ModuleDict({"blocks": blocks}))
        reductions = accumulate(strides, lambda a, b: tuple(x * y for x, y in zip(a, b)))
        self.feature_info = [FeatureMap(c, r) for c, r in zip((stem_dim, *dims), reductions)]

    def forward(self, x_BCS: Tensor) -> list[Tensor]:
        """``(B, C, *S)`` to five maps from fine to coarse; every halving rounds up."""
        maps = [self.stem(x_BCS)]
        for i, stage in enumerate(self.stages):
            saves = self.checkpointing and i < _CHECKPOINTED
            maps.append(pass_blocks(stage["blocks"], maps[-1], checkpointing=saves))  # type: ignore[index]
        return maps

    def translate(self, state: dict[str, Tensor], *, prefix: str) -> tuple[dict[str, Tensor], str] | None:
        """Weights of timm's network as those of this trunk under ``prefix``; None where they are not."""
        own = self.state_dict().keys()
        rest = state.keys() - own - {"stem.conv1.bias"}
        if not own <= state.keys() or not all(name.startswith("head.") for name in rest):
            return None
        behind = len(rest)
        taken = {name: state[name] for name in own}
        if "stem.conv1.bias" in state:
            taken["stem.norm1.running_mean"] = state["stem.norm1.running_mean"] - state["stem.conv1.bias"]
        told = f"timm's own names: the trunk{f', without {behind} tensors behind it' if behind else ''}"
        return {prefix + name: value for name, value in taken.items()}, told


class Stem(nn.Module):
    """Strided convolution, norm, GELU, convolution."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: tuple[int, ...], norm: NormKind) -> None:
        super().__init__()
        dims = len(stride)
        self.stride = stride
        padding = strided_padding(stride)
        self.conv1 = convolution(dims, in_chans, out_chans, 3, stride=stride, padding=padding, bias=False)
        self.norm1 = normalisation(norm, dims, out_chans, eps=1e-3)
        self.conv2 = convolution(dims, out_chans, out_chans, 3, padding=1)

    def forward(self, x_BCS: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C', *ceil(S / stride))``."""
        return self.conv2(F.gelu(self.norm1(self.conv1(pad_strided(x_BCS, self.stride))), approximate="tanh"))


def stage_strides(strides: Sequence[Sequence[int]] | None, dims: int) -> Steps:
    """The five strides, checked; None is 2 along every axis.

    Raises:
        UsageError: U208.
    """
    if strides is None:
        return ((2,) * dims,) * (STAGES + 1)
    steps = tuple(tuple(step) if isinstance(step, Sequence) else () for step in strides)
    if len(steps) != STAGES + 1 or any(len(step) != dims or set(step) - {1, 2} for step in steps):
        wanted = f"Give {STAGES + 1} lists of {dims} numbers, each 1 or 2: the stem's, then the stages'"
        raise UsageError("U208", "option strides", f"{list(strides)!r} does not fit", wanted)
    return steps


def stage_windows(window: Windows, size: tuple[int, ...], strides: Steps) -> Steps:
    """Cells per axis of the windows of the four stages.

    None goes by the image: along each axis the smallest multiple of its coarsest map that has at least four cells (7 at
    224, 8 at 256, 6 at 96, 4 at 64), so that windows divide the maps of all stages or nearly do. A number, or one per
    axis, holds for all stages; else one list per stage. No window is larger than its stage's map.

    Raises:
        UsageError: U208.
    """
    dims = len(size)
    maps = [extent_at(size, strides[: i + 2]) for i in range(STAGES)]
    if window is None:
        wide = tuple(cells * math.ceil(_LEAST_WINDOW / cells) for cells in maps[-1])
        wanted: list[tuple[int, ...]] = [wide] * STAGES
    elif isinstance(window, int):
        wanted = [(window,) * dims] * STAGES
    elif all(isinstance(w, int) for w in window):
        wanted = [tuple(window)] * STAGES  # type: ignore[arg-type]
    else:
        wanted = [tuple(w) if isinstance(w, Sequence) else () for w in window]
    fits = all(len(w) == dims and all(isinstance(n, int) and n >= 1 for n in w) for w in wanted)
    if len(wanted) != STAGES or not fits:
        remedy = f"Give a number, {dims} numbers, or {STAGES} lists of {dims}, each from 1 on"
        raise UsageError("U208", "option window", f"{window!r} does not fit", remedy)
    return tuple(tuple(map(min, w, cells)) for w, cells in zip(wanted, maps))


def check_dims(dims: Sequence[int], depths: Sequence[int]) -> None:
    """Refuse widths and depths that are no network.

    Raises:
        UsageError: U208.
    """
    if len(dims) != STAGES or any(not isinstance(d, int) or d < HEAD_DIM or d % HEAD_DIM for d in dims):
        raise UsageError(
            "U208", "option dims", f"{list(dims)!r} does not fit", f"Give {STAGES} multiples of {HEAD_DIM}"
        )
    if len(depths) != STAGES or any(not isinstance(d, int) or d < 1 for d in depths):
        raise UsageError("U208", "option depths", f"{list(depths)!r} does not fit", f"Give {STAGES} numbers from 1 on")
