"""Optimisers with the two habits that matter for transformers: no decay on norms, biases and positions, and a
learning rate that shrinks towards the input (layer-wise decay; Bao et al., "BEiT", 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from medloom.config import TrainConfig

_UNDECAYED = ("pos_embed", "cls_token", "dist_token", "mask_token", "relative_position_bias_table")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with Nesterov momentum over the model's parameters.

    Each parameter group carries ``scale``; ``set_learning_rate`` multiplies the schedule's rate by it.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, shrunk by the group's layer-wise scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameters by (layer, decayed or not), in the model's own order; frozen ones are left out."""
    layer_of = layers(model)
    last = max(layer_of.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in _UNDECAYED
        # Without layer-wise decay all layers share a group: fewer, larger fused updates.
        layer = layer_of[name] if layer_decay < 1.0 else last
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "scale": layer_decay ** (last - layer),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def layers(model: nn.Module) -> dict[str, int]:
    """Depth of each parameter, from 0 at the input, read from the names.

    A layer is a name up to its first number (``blocks.3``, ``trunk.layer2.0``), or its first part where it has none;
    parameters of the model itself (class token, positions) belong to the first layer.
    """
    depth: dict[str, int] = {}
    order: dict[str, int] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")[:-1]
        numbered = next((k + 1 for k, part in enumerate(parts) if part.isdigit()), min(1, len(parts)))
        key = ".".join(parts[:numbered])
        depth[name] = 0 if not key else order.setdefault(key, len(order))
    return depth
