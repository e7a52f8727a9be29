"""The recipes of the slides' CNN baselines and of MedViT: valid, in the slides' setting, and their models are built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medloom.config import load_recipe
from medloom.data.preprocess import Preprocess
from medloom.models.registry import create_model

RECIPES = Path(__file__).parents[2] / "recipes"
COUNTS = {
    "resnet50": 24_036_174,
    "densenet121": 7_219_854,
    "efficientnet_b0": 4_339_082,
    "medvit_large": 57_689_854,
    "medvit_small": 31_150_790,
}


@pytest.mark.parametrize("size", [64, 128, 224])
@pytest.mark.parametrize("model", COUNTS)
def test_recipe_of_the_slides_is_valid_and_its_model_is_built(model: str, size: int) -> None:
    recipe = load_recipe(RECIPES / f"chestmnist_{model}.yaml", [] if size == 64 else [f"preprocess.size={size}"])
    assert recipe.name == f"chestmnist_{model}"
    preprocess = Preprocess.from_config(recipe.preprocess)
    assert (preprocess.size, preprocess.mean, preprocess.std) == ((size, size), (0.0,) * 3, (1.0,) * 3)
    with torch.device("meta"):
        network = create_model(
            recipe.model.name, num_classes=14, in_chans=3, image_size=preprocess.size, **recipe.model.options
        ).eval()
        assert network(torch.empty(2, 3, size, size)).shape == (2, 14)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[model]


@pytest.mark.parametrize("model", COUNTS)
def test_recipe_of_the_slides_says_what_is_theirs_and_what_is_ours(model: str) -> None:
    path = RECIPES / f"chestmnist_{model}.yaml"
    recipe = load_recipe(path)
    header = path.read_text().partition("name:")[0]
    assert f"medloom train recipes/{path.name}" in header
    assert f"{COUNTS[model]:,}" in header
    assert "MedMNIST's own protocol" in header
    train, augment = recipe.train, recipe.augment
    assert (train.optimizer, train.learning_rate, train.batch_size, train.epochs) == ("adam", 1e-3, 128, 100)
    assert (train.schedule, train.step_epochs, train.step_factor) == ("step", (50, 75), 0.1)
    assert (recipe.loss.name, recipe.imbalance.method) == ("bce", "none")
    assert min(augment.flip, augment.rotate, augment.translate) > 0
    assert augment.zoom != (1.0, 1.0)
    assert (augment.brightness, augment.contrast, augment.noise, augment.erase) == (0.0, 0.0, 0.0, 0.0)
