"""Taps to maps: what is shown, what has no grid, and which models have anything to show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medloom.blocks.taps import Tap
from medloom.errors import ModelError
from medloom.explanation.token_maps import MODELS_WITH_MAPS, TokenMaps, token_maps
from medloom.models.pruning import reduce_tokens
from medloom.models.registry import create_model, list_models

SMALL: dict[str, dict[str, Any]] = {
    "token_pruned": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "token_pruned_resnet18": {"patch_size": 8, "embed_dim": 32, "num_heads": 2},
    "dynamic_vit": {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "hatr": {"trunk": "resnet18", "trunk_stride": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "hatr_conv2d": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "hatr_resnet50": {"trunk_stride": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "vit_tiny": {"patch_size": 16},
    "conv2d": {},
}


def taps_of(name: str, size: int = 96) -> dict[str, Any]:
    model = create_model(name, num_classes=2, in_chans=1, image_size=size, **SMALL[name]).eval()
    taps: dict[str, Any] = {}
    with torch.inference_mode():
        model(torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0)), taps=taps)
    return taps


@pytest.mark.parametrize("name", SMALL)
def test_the_list_of_models_with_maps_is_true(name: str) -> None:
    assert bool(token_maps(taps_of(name))) == (name in MODELS_WITH_MAPS)


def test_C514_the_models_that_the_refusal_names_are_those_of_the_registry_that_have_maps() -> None:
    """Every registered model, on the meta device: no weights are made and nothing is computed."""
    found = []
    for name in list_models(task="classification"):
        with torch.device("meta"):
            model = create_model(name, num_classes=2, in_chans=3, image_size=224).eval()
        taps: dict[str, Any] = {}
        with torch.inference_mode():
            model(torch.zeros(1, 3, 224, 224, device="meta"), taps=taps)
        shown = [tap for key, tap in taps.items() if key in ("token_score", "kept") or key.startswith("token_weight")]
        found += [name] * any(tap.grid for tap in shown)
    assert sorted(found) == sorted(MODELS_WITH_MAPS)


def test_maps_are_the_taps_of_their_image() -> None:
    taps = taps_of("token_pruned", 64)
    for row in (0, 1):
        maps = token_maps(taps, row)
        assert maps.kept is not None
        assert list(maps.weights) == ["token_score"]
        assert np.array_equal(maps.weights["token_score"].ravel(), taps["token_score"].value[row].numpy())
        cells = maps.kept_cells()
        assert cells is not None
        assert len(cells) == 32
        best = taps["token_score"].value[row].topk(32).indices.tolist()
        assert sorted(r * 8 + c for r, c in cells) == sorted(best)


def test_a_merged_or_pruned_vit_shows_its_kept_tokens_where_it_has_them() -> None:
    model = create_model("vit_tiny", num_classes=2, in_chans=1, image_size=64, patch_size=8).eval()
    taps: dict[str, Any] = {}
    reduce_tokens(model, "evit", keep_rate=0.5)(torch.rand(1, 1, 64, 64), taps=taps)
    kept = token_maps(taps).kept
    assert kept is not None
    assert 0 < kept.sum() < 64


def test_what_has_no_grid_is_left_out() -> None:
    maps = token_maps({"kept": Tap(torch.ones(1, 20)), "token_weight.0": Tap(torch.ones(1, 20))})
    assert maps.kept is None
    assert not maps


def test_C508_weights_that_are_no_numbers() -> None:
    with pytest.raises(ModelError) as caught:
        token_maps({"token_score": Tap(torch.tensor([[0.0, float("nan")]]), grid=(1, 2))})
    assert caught.value.code == "C508"


def test_nothing_kept_is_not_the_same_as_nothing_dropped() -> None:
    assert TokenMaps(kept=np.zeros((2, 2), np.uint8)).kept_cells() == []
    assert TokenMaps().kept_cells() is None
