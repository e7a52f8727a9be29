"""A recipe that names weights starts from them, and what did not fit as it was is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from medloom.config import load_recipe
from medloom.data.preprocess import Preprocess
from medloom.models.timm_networks import load_timm
from medloom.workflows.networks import architecture_of, build


def test_published_weights_of_one_half_are_taken_and_told(tmp_path: Path) -> None:
    published = load_timm().create_model("convnext_atto")
    save_file(published.state_dict(), tmp_path / "convnext.safetensors")
    recipe = load_recipe(
        {"model": {"name": "convnext_deit_atto", "weights": str(tmp_path / "convnext.safetensors"), "new_head": True}}
    )
    prepared: Any = SimpleNamespace(
        dataset=SimpleNamespace(classes=("normal", "sick")),
        preprocess=Preprocess(size=(64, 64), channels="grey", mean=(0.5,), std=(0.25,)),
    )
    told: list[str] = []
    model: Any = build(recipe, architecture_of(recipe, prepared), told.append)
    assert torch.equal(model.trunk.network.stages[2].blocks[0].gamma, published.stages[2].blocks[0].gamma)
    assert told[0].startswith("weights have timm's own names: the trunk, without")
    assert told[1:] == [
        "the rest stays as it was: adapter, deit",
        "the head starts fresh",
        "trunk.network.stem.0.weight converted from 40x3x4x4 to 40x1x4x4",
    ]
    load_state = {name: value.clone() for name, value in model.state_dict().items()}
    again: Any = build(recipe, architecture_of(recipe, prepared))
    assert all(torch.equal(value, load_state[name]) for name, value in again.state_dict().items()), "the seed decides"
