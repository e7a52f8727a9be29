"""Optimisers with the two habits that matter for transformers: no decay on norms, biases and positions, and a
learning rate that shrinks towards the input (layer-wise decay; Bao et al., "BEiT", 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from medloom.config import TrainConfig

_UNDECAYED = (
    *("pos_embed", "position_1Dhw", "position_1Dxyz", "cls_position", "relative_position_bias_table", "scale_embed"),
    *("cls_token", "dist_token", "reg_token", "mask_token", "latent"),
)
_POSITIONS = "rel_pos."
_PARTS = 12
_BESIDE_EACH_OTHER = ("scales",)
"""Numbered parts of a model that are not one behind the other."""


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
    # Without layer-wise decay all layers share a group: fewer, larger fused updates.
    layer_of = layers(model) if layer_decay < 1.0 else dict.fromkeys((name for name, _ in model.named_parameters()), 0)
    last = max(layer_of.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in _UNDECAYED and _POSITIONS not in name
        layer = layer_of[name]
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
    """Depth of each parameter, from 0 at the input.

    Depth 0 is what stands before the first block (stem, patch embedding, class token, positions), each block is one
    deeper, and the last depth is what follows the last block (its norm, the classifier). In a model with a trunk, class
    token and positions of the model itself come behind the trunk. What stands between two blocks goes with the later.

    Networks of more than twelve blocks count as twelve parts, as the authors of ConvNeXt train theirs (arXiv
    2201.03545, appendix A): of fifty blocks with a factor of 0.8 each, the first would not move at all.
    """
    names = sorted(_blocks(model).items(), key=lambda item: not item[0].startswith("trunk."))  # stable
    blocks = list(dict.fromkeys(block for _, block in names if block is not None))
    place = {block: i for i, block in enumerate(blocks)}
    depth, met = {}, 0
    for name, block in names:
        met = met if block is None else max(met, place[block] + 1)
        if block is not None:
            depth[name] = 1 + place[block]
        else:
            depth[name] = met + 1 if met else 0
    parts = min(len(blocks), _PARTS)
    last = len(blocks) + 1 if blocks else 0
    merged = [0, *(1 + i * parts // len(blocks) for i in range(len(blocks))), parts + 1] if blocks else [0]
    assert len(merged) == last + 1
    return {name: merged[depth[name]] for name, _ in model.named_parameters()}


def _blocks(model: nn.Module) -> dict[str, str | None]:
    """The block of each parameter: as a part of the model says itself, else its name up to the first number."""
    told: dict[str, str | None] = {}
    for prefix, module in model.named_modules():
        if hasattr(module, "parameter_blocks"):
            start = f"{prefix}." if prefix else ""
            for name, block in module.parameter_blocks().items():
                told[start + name] = None if block is None else f"{start}{block}"
    return {name: told[name] if name in told else _numbered(name) for name, _ in model.named_parameters()}


def _numbered(name: str) -> str | None:
    parts = name.split(".")[:-1]
    # A number at the very end is a layer in a row of layers (convolution, norm), not a block.
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return None if number is None or parts[number - 1] in _BESIDE_EACH_OTHER else ".".join(parts[: number + 1])
