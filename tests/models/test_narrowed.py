"""Pruned networks are built again from their plan, and a foreign plan is refused (C505, C516)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from medloom.errors import ModelError, UsageError
from medloom.models.macs import count_macs
from medloom.models.narrowed import narrow, plan_of
from medloom.models.prune import original_of, prune_step
from medloom.models.registry import create_model

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"image_size": 32},
    "conv2d": {"image_size": 32},
    "hatr_conv2d": {"image_size": 64, **SMALL},
    "vit": {"image_size": 32, "patch_size": 8, **SMALL},
    "token_pruned": {"image_size": 64, "patch_size": 8, **SMALL},
    "dynamic_vit": {"image_size": 64, "patch_size": 8, **SMALL},
    "convnext_deit_atto": {"image_size": 64},
}


def _pruned(name: str, share: float = 0.3, **what: Any) -> tuple[torch.nn.Module, torch.nn.Module, tuple[str, ...]]:
    torch.manual_seed(0)
    model = create_model(name, num_classes=2, in_chans=1, **NETWORKS[name]).eval()
    whole = create_model(name, num_classes=2, in_chans=1, **NETWORKS[name])
    size = NETWORKS[name]["image_size"]
    x_BCHW, original = torch.randn(4, 1, size, size), original_of(model)
    dropped: tuple[str, ...] = ()
    for part in (share / 2, share):
        dropped += prune_step(model, original, part, x_BCHW=x_BCHW, target=torch.tensor([0, 1, 0, 1]), **what)
    return model, whole, dropped


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_is_built_again_and_does_less(name: str) -> None:
    model, whole, dropped = _pruned(name)
    size = NETWORKS[name]["image_size"]
    before = count_macs(whole, 1, size)
    plan = json.loads(json.dumps(plan_of(model, whole, dropped)))
    again = create_model(name, num_classes=2, in_chans=1, pruned=plan, **NETWORKS[name]).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    x_BCHW = torch.randn(2, 1, size, size)
    with torch.no_grad():
        assert torch.equal(again(x_BCHW), model(x_BCHW))
    assert count_macs(model, 1, size) < 0.8 * before
    assert count_macs(again, 1, size) == count_macs(model, 1, size)
    if name in ("vit", "token_pruned", "hatr_conv2d"):
        assert dropped
        assert any("num_heads" in change for change in plan["widths"].values())


def test_only_the_kinds_that_are_asked_for_go() -> None:
    model, _, dropped = _pruned("vit", share=0.5, kinds=("units",))
    assert dropped == ()
    assert {block.attn.num_heads for block in model.blocks} == {4}
    assert {block.mlp.fc1.out_features for block in model.blocks} == {64}


def test_the_least_important_channels_go() -> None:
    torch.manual_seed(0)
    model = create_model("conv2d", num_classes=2, in_chans=1, image_size=32).eval()
    norm = model.trunk.stacks[0][0][1]
    with torch.no_grad():
        norm.weight[::2] = 1e-6
        norm.bias[::2] = 0.0
    kept = norm.weight[1::2].clone()
    prune_step(
        model, original_of(model), 0.5, x_BCHW=torch.randn(4, 1, 32, 32), target=torch.tensor([0, 1, 1, 0]),
        kinds=("channels",),
    )  # fmt: skip
    assert torch.equal(model.trunk.stacks[0][0][1].weight, kept)


@pytest.mark.parametrize(
    "plan",
    [
        {"dropped": []},
        {"dropped": ["blocks.9"], "widths": {}},
        {"dropped": ["head.weight"], "widths": {}},
        {"dropped": [], "widths": {"blocks.7.mlp.fc1": {"out_features": 4}}},
        {"dropped": [], "widths": {"blocks.0.mlp.fc1": {"out_features": 1 << 40}}},
        {"dropped": [], "widths": {"blocks.0.mlp.fc1": {"out_features": 0}}},
        {"dropped": [], "widths": {"blocks.0.mlp.fc1": {"out_features": True}}},
        {"dropped": [], "widths": {"blocks.0.mlp.fc1": {"__class__": 3}}},
        {"dropped": [], "widths": {"blocks.0": 3}},
    ],
)
def test_c505_a_plan_that_is_not_of_the_network(plan: dict[str, Any]) -> None:
    model = create_model("vit", num_classes=2, in_chans=1, **NETWORKS["vit"])
    with pytest.raises(ModelError, match="C505"):
        narrow(model, plan)


def test_c516_networks_whose_graph_is_not_followed_say_so_in_one_line() -> None:
    model = create_model("coatnet_0", num_classes=2, in_chans=1, image_size=64)
    with pytest.raises(ModelError, match="C516") as refusal:
        prune_step(model, original_of(model), 0.3, x_BCHW=torch.randn(2, 1, 64, 64), target=torch.tensor([0, 1]))
    assert "\n" not in str(refusal.value)


def test_u236_an_unknown_kind() -> None:
    model = create_model("conv2d", num_classes=2, in_chans=1, image_size=32)
    with pytest.raises(UsageError, match="U236"):
        prune_step(
            model, original_of(model), 0.3, x_BCHW=torch.randn(2, 1, 32, 32), target=torch.tensor([0, 1]),
            kinds=("neurons",),
        )  # fmt: skip
