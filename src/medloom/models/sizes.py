"""Which image sizes a model can work on, and the refusal of those that it cannot.

Shapes: B batch, C channels, H and W image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medloom.errors import ModelError, UsageError


def pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """``(height, width)`` from a number or a pair.

    Raises:
        UsageError: U208, neither of the two, or not positive.
    """
    height, width = spatial_size(image_size, 2)
    return height, width


def spatial_size(image_size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One extent per axis from a number or from as many numbers as there are axes.

    Raises:
        UsageError: U208, neither of the two, or not positive.
    """
    size = (image_size,) * dims if isinstance(image_size, int) else tuple(image_size)
    if len(size) != dims or any(not isinstance(n, int) or n < 1 for n in size):
        remedy = "Give pixels, or height and width" if dims == 2 else f"Give voxels, one number or {dims}"
        raise UsageError("U208", "image_size", f"{image_size!r} is not a size", remedy)
    return size


def size_error(name: str, size: tuple[int, ...], problem: str, remedy: str) -> ModelError:
    """C511: this model cannot work on images of this size."""
    kind = "a volume" if len(size) == 3 else "an image"
    cells = f"{'x'.join(map(str, size))} {'voxels' if len(size) == 3 else 'pixels'}"
    return ModelError("C511", f"model {name}", f"{kind} of {cells} {problem}", remedy)


@torch.no_grad()
def probe(module: nn.Module, parameter: Tensor, name: str, in_chans: int, size: tuple[int, int]) -> Tensor:
    """What ``module`` makes of one black image: the proof that a size is possible. It is left in training mode.

    Raises:
        ModelError: C511, it is not.
    """
    x_1CHW = torch.zeros(1, in_chans, *size, device=parameter.device, dtype=parameter.dtype)
    module.eval()  # batch norm would refuse a map of one cell, and learn from the black image
    try:
        return module(x_1CHW)
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as problem:
        remedy = "Use a larger one, or a multiple of 32"
        raise size_error(name, size, f"does not pass ({first_line(problem)})", remedy) from None
    finally:
        module.train()


def check_cells(name: str, size: tuple[int, int], stride: int) -> None:
    """Refuse an image that is smaller than one cell of the coarsest map.

    Raises:
        ModelError: C511.
    """
    if min(size) < stride:
        raise size_error(
            name,
            size,
            f"leaves less than one cell at stride {stride}",
            f"Use at least {stride} pixels, or a finer stage",
        )


def first_line(problem: Exception) -> str:
    """What a foreign error says first; its stack of details would break the one line that we promise."""
    return (str(problem).splitlines() or [type(problem).__name__])[0]
