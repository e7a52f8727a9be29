"""A network with parts physically taken out, and the plan by which it is built again: fewer channels, heads, hidden
units and blocks.

The plan stands in ``model.json`` beside the name of the network. It can only take away: what it names must be there,
and no width may grow, so a foreign plan can neither run code nor claim memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medloom.errors import ModelError

PLACE = "architecture.pruned"
_AGAIN = "Take the bundle as medloom prune wrote it"
_WIDTHS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features",),
    nn.BatchNorm1d: ("num_features",),
}
_HEADS = "num_heads"


def narrow(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Take out of a freshly built ``model`` what the plan says; the weights that stay mean nothing until they are
    loaded.

    Args:
        plan: ``dropped``: names of blocks in the order in which they were taken out, each as it was called then;
            ``widths``: module name to its attributes, in the names after that.

    Raises:
        ModelError: C505, the plan is not of this network.
    """
    if not isinstance(plan, Mapping) or set(plan) != {"dropped", "widths"}:
        raise ModelError("C505", PLACE, "it does not say what was dropped and what was narrowed", _AGAIN)
    for name in plan["dropped"]:
        drop_block(model, str(name))
    modules = dict(model.named_modules())
    for name, wanted in plan["widths"].items():
        module = modules.get(str(name))
        if module is None or not isinstance(wanted, Mapping):
            raise ModelError("C505", PLACE, f"this network has no part '{name}'", _AGAIN)
        for key, value in wanted.items():
            old = getattr(module, key, None) if key in attributes_of(module) else None
            if not isinstance(old, int) or isinstance(value, bool) or not isinstance(value, int):
                raise ModelError("C505", PLACE, f"'{name}' has no width '{key}'", _AGAIN)
            if not 1 <= value <= old:
                raise ModelError("C505", PLACE, f"'{name}' cannot have {key} {value}, it has {old}", _AGAIN)
            setattr(module, key, value)
        _cut(module)
    return model


def plan_of(model: nn.Module, original: nn.Module, dropped: tuple[str, ...]) -> dict[str, Any]:
    """The plan that makes ``model`` from ``original``, which loses its dropped blocks here.

    Raises:
        ModelError: C516, what was narrowed cannot be described so.
    """
    for name in dropped:
        drop_block(original, name)
    before = dict(original.named_modules())
    widths: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        old, keys = before[name], attributes_of(module)
        changed = {key: getattr(module, key) for key in keys if getattr(module, key) != getattr(old, key)}
        if changed:
            widths[name] = changed
    plan = {"dropped": list(dropped), "widths": widths}
    narrow(original, {"dropped": [], "widths": widths})
    wanted, given = shapes_of(model), shapes_of(original)
    odd = [name for name in wanted if wanted[name] != given.get(name)]
    if odd or wanted.keys() != given.keys():
        told = (
            f"'{odd[0] if odd else sorted(given.keys() ^ wanted.keys())[0]}' was narrowed in a way that no plan tells"
        )
        raise ModelError("C516", type(model).__name__, told, "Prune fewer kinds of parts with --what")
    return plan


def drop_block(model: nn.Module, name: str) -> None:
    """Take one entry out of a list of blocks; those behind it move up.

    Raises:
        ModelError: C505, there is no such entry.
    """
    holder, _, index = name.rpartition(".")
    try:
        blocks = model.get_submodule(holder)
    except AttributeError:
        blocks = None
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not index.isdigit() or int(index) >= len(blocks):
        raise ModelError("C505", PLACE, f"this network has no block '{name}'", _AGAIN)
    del blocks[int(index)]


def attributes_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the widths that a module has."""
    keys = next((keys for kind, keys in _WIDTHS.items() if isinstance(module, kind)), ())
    return (*keys, _HEADS) if isinstance(getattr(module, _HEADS, None), int) else keys


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _cut(module: nn.Module) -> None:
    """Tensors of the sizes that the attributes say."""
    if isinstance(module, nn.Conv2d):
        if module.in_channels % module.groups or module.out_channels % module.groups:
            raise ModelError("C505", PLACE, f"{module.groups} groups do not divide the channels", _AGAIN)
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        _resize(module, {"weight": shape, "bias": shape[:1]})
    elif isinstance(module, nn.Linear):
        _resize(module, {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)})
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        names = ("weight", "bias", "running_mean", "running_var")
        _resize(module, dict.fromkeys(names, (module.num_features,)))


def _resize(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        old: Tensor | None = getattr(module, name)
        if old is None:
            continue
        new = old.detach()[tuple(slice(0, n) for n in shape)].clone()
        if isinstance(old, nn.Parameter):
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(module, name, new)
