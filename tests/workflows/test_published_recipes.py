"""Every recipe that is shipped can be read, and its network can be built at the size that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medloom.config import load_recipe
from medloom.data.patients import assign_patients
from medloom.data.preprocess import Preprocess
from medloom.data.records import Record
from medloom.models.registry import create_model, list_models

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
PAPER = ("densenet121", "efficientnet_b0", "coatnet_0", "maxvit_tiny", "convnext_deit", "convnext_deit_atto")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_builds_its_network_at_its_size(path: Path) -> None:
    recipe = load_recipe(path)
    preprocess = Preprocess.from_config(recipe.preprocess)
    masks = recipe.model.name in list_models(task="segmentation")
    size: tuple[int, ...] = recipe.segmentation.patch or preprocess.size
    in_chans = 1 if recipe.segmentation.patch else preprocess.in_chans
    with torch.device("meta"):
        model = create_model(
            recipe.model.name, num_classes=3, in_chans=in_chans, image_size=size, **recipe.model.options
        ).eval()
        answer = model(torch.empty(2, in_chans, *size))
    assert answer.shape == ((2, 3, *size) if masks else (2, 3))


@pytest.mark.parametrize(
    ("patch", "slide"),
    [
        ("normal/normal_001_37276_186047.png", "normal_001"),
        ("normal/tumor_004_37276_186047.png", "tumor_004"),
        ("tumor/tumor_110_0_256.png", "tumor_110"),
        ("tumor/test_002_512_0.png", "test_002"),
        ("tumor/other_002_512_0.png", None),
    ],
)
def test_the_slide_of_every_kind_of_name_in_camelyon16(patch: str, slide: str | None) -> None:
    rule = load_recipe(FOLDER / "camelyon16.yaml").data.patient
    assert [r.patient for r in assign_patients((Record(patch, patch),), rule)] == [slide]


@pytest.mark.parametrize("name", [*PAPER, "medvit_small", "resnet50", "hatr_resnet50", "vit_small", "conv2d"])
def test_recipes_of_one_table_differ_in_their_network_alone(name: str) -> None:
    reference = load_recipe(FOLDER / "pneumonia_resnet50.yaml").as_dict()
    values = load_recipe(FOLDER / f"pneumonia_{name}.yaml").as_dict()
    assert values["name"] == f"pneumonia_{name}"
    assert values["model"]["name"] == name
    for key in values.keys() - {"name", "model"}:
        assert values[key] == reference[key], key


def test_the_edge_default_sees_and_learns_what_the_default_does_with_one_look_at_an_image() -> None:
    default, edge = (load_recipe(FOLDER / f"{name}.yaml").as_dict() for name in ("pneumonia", "pneumonia_edge"))
    for part in ("data", "preprocess", "augment", "imbalance"):
        assert edge[part] == default[part], part
    assert not edge["evaluation"]["flip_average"]  # an answer would take twice as long
