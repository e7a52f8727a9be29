"""Fewer tokens in a model that was trained with all of them: EViT's dropping and ToMe's merging, by one call.

For every model whose body is our own transformer (ViT and DeiT, HATR, the ConvNeXt-DeiT hybrid, RR-ViT); the
token-pruned hybrid has its own cut in front of the blocks and takes these as well behind it.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from medloom.blocks.reduction import Dropping, Merging
from medloom.blocks.selection import check_keep
from medloom.blocks.transformer import Runner, run_blocks
from medloom.errors import UsageError


def reduce_tokens(
    model: nn.Module,
    method: Literal["none", "evit", "tome"],
    *,
    keep_rate: float = 0.7,
    at: tuple[int, ...] | None = None,
) -> nn.Module:
    """Let ``model`` pass fewer tokens through its blocks from now on; its weights stay as they are.

    Args:
        method: ``evit`` cuts at some blocks, ``tome`` merges a little in each, ``none`` takes all tokens again.
        keep_rate: for ``evit`` the share that each cut keeps; for ``tome`` the share that is left at the end, of
            the tokens that enter the blocks.
        at: blocks that cut; default a quarter, a half and three quarters of the way (3, 6, 9 of 12).

    Returns:
        ``model``, changed in place.

    Raises:
        UsageError: U208 a model without such a body, an unknown method, a rate outside (0, 1].
    """
    body = next((part for part in model.modules() if hasattr(part, "runner")), None)
    if body is None:
        name = type(model).__name__
        remedy = "Choose a vit, deit, hatr, convnext_deit, rr_vit or token_pruned model"
        raise UsageError("U208", name, "its body is not our transformer", remedy)
    if method != "none" and getattr(body, "second_keep", 1.0) < 1.0:
        remedy = "Leave one of the two out: set_keep(rate, second=1)"
        raise UsageError("U208", "option second_keep", "it already cuts half way through the blocks", remedy)
    body.runner = _runner(method, check_keep(keep_rate), at, len(body.blocks))  # type: ignore[assignment, arg-type]
    return model


def _runner(method: str, keep_rate: float, at: tuple[int, ...] | None, depth: int) -> Runner:
    if method == "none":
        return run_blocks
    if method == "evit":
        return Dropping(keep_rate, at if at is not None else tuple(sorted({depth // 4, depth // 2, 3 * depth // 4})))
    if method == "tome":
        return Merging(keep_rate)
    raise UsageError("U208", "option method", f"{method!r} is not known", "Choose none, evit or tome")
