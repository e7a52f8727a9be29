"""A trunk that stands still for the first epochs, so that a fresh head does not shake published weights below it.

Standing still is meant in full: no gradient, no weight decay, no running statistics, no stochastic depth. What is
frozen follows from the recipe and the epoch alone, so a resumed run needs to remember nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from medloom.config import Recipe
from medloom.training.token_stages import standing_still


def hold(model: nn.Module, epoch: int, freeze_epochs: int, still: tuple[str, ...] = ()) -> bool:
    """Freeze the trunk in the first ``freeze_epochs`` epochs, and thaw it in all later ones.

    Args:
        model: a registered model; what is frozen is its ``trunk``, or all but its ``head_parameters()`` where it has
            none.
        epoch: from 1.
        freeze_epochs: 0 leaves the trunk alone.
        still: beginnings of the names of parameters that stand still in this epoch besides.

    Returns:
        Whether anything changed. The wrapper that averages gradients between processes must then be made anew, since
        it decides once which gradients to wait for.
    """
    frozen = {id(parameter) for parameter in _trunk_parameters(model)} if epoch <= freeze_epochs else set()
    changed = False
    for name, parameter in model.named_parameters():
        learns = id(parameter) not in frozen and not (still and name.startswith(still))
        changed |= parameter.requires_grad != learns
        parameter.requires_grad_(learns)
    return changed


def hold_for(model: nn.Module, recipe: Recipe, epoch: int) -> bool:
    """Freeze and thaw as the recipe has it for this epoch, for the trunk and for a scorer; whether anything changed."""
    return hold(model, epoch, recipe.train.freeze_epochs, standing_still(recipe, model, epoch))


def train_mode(net: nn.Module) -> None:
    """Training mode for all that learns, evaluation mode for every part of which nothing does."""
    net.train()
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _trunk_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    trunk = getattr(model, "trunk", None)
    if isinstance(trunk, nn.Module):
        yield from trunk.parameters()
        return
    owners = {name.rpartition(".")[0] for name in model.head_parameters()}  # type: ignore[operator]
    # The last of a row of layers: the whole row is the classifier.
    head = tuple(f"{owner.rstrip('0123456789').rstrip('.')}." for owner in owners)
    yield from (parameter for name, parameter in model.named_parameters() if not name.startswith(head))
