"""Names, options, cards, and the parameter counts of the literature."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from medloom.errors import ModelError, UsageError
from medloom.models.cards import CARDS
from medloom.models.registry import MODELS, count_parameters, create_model, list_models, model_card, model_options

TABLE: list[tuple[str, dict[str, Any], int]] = [
    ("resnet18", {"num_classes": 1000}, 11_689_512),
    ("resnet18", {}, 11_177_538),
    ("resnet50", {"num_classes": 1000}, 25_557_032),
    ("resnet50", {}, 23_512_130),
    ("resnet50", {"num_classes": 14, "in_chans": 1}, 23_530_446),
    ("densenet121", {"num_classes": 1000}, 7_978_856),
    ("densenet121", {"num_classes": 14, "in_chans": 1}, 6_961_934),
    ("efficientnet_b0", {"num_classes": 1000}, 5_288_548),
    ("efficientnet_b0", {"num_classes": 14, "in_chans": 1}, 4_024_906),
    ("vit_tiny", {"num_classes": 1000}, 5_717_416),
    ("vit_small", {"num_classes": 1000}, 22_050_664),
    ("deit_small", {"num_classes": 1000}, 22_050_664),
    ("deit_small", {"num_classes": 1000, "distilled": True}, 22_436_432),
    ("vit_base", {"num_classes": 1000}, 86_567_656),
    ("vit_small", {}, 21_666_434),
    ("conv2d", {}, 371_778),
    ("hatr_resnet50", {"scales": ((2, 1),)}, 38_271_172),
    ("hatr_resnet50", {}, 40_670_022),
    ("hatr_conv2d", {"scales": [[2, 1]]}, 13_628_612),
    ("hatr_conv2d", {}, 14_861_638),
    ("coatnet_0", {"num_classes": 1000}, 25_036_820),
    ("coatnet_1", {"num_classes": 1000}, 42_225_776),
    ("coatnet_2", {"num_classes": 1000}, 74_684_744),
    ("timm/coatnet_0_rw_224", {"num_classes": 1000}, 27_435_562),
    ("maxvit_tiny", {"num_classes": 1000}, 30_916_528),
    ("timm/maxvit_tiny_rw_224", {"num_classes": 1000}, 29_057_312),
    ("convnext_base", {"num_classes": 1000}, 88_591_464),
    ("convnext_base", {}, 87_568_514),
    ("transunet", {"num_classes": 9}, 105_277_081),
    ("maxvit_unet", {}, 37_388_610),
    ("maxvit_unet_mini", {"image_size": 256}, 7_730_986),
    ("maxvit_unet_3d_tiny", {"image_size": 96}, 7_344_184),
    ("maxvit_unet_3d_small", {"num_classes": 14, "image_size": (96, 96, 96)}, 28_575_178),
    ("transunet_3d", {"in_chans": 1, "image_size": 96}, 108_651_106),
    ("transunet_3d_small", {"spatial_dims": 3}, 30_718_690),
]


@pytest.mark.parametrize(("name", "arguments", "count"), TABLE)
def test_parameter_counts_of_the_literature(name: str, arguments: dict[str, Any], count: int) -> None:
    assert count_parameters(name, **arguments) == count


def test_every_model_has_a_card_and_every_card_a_model() -> None:
    assert set(CARDS) == set(MODELS) == set(list_models())
    for name in list_models():
        card = model_card(name)
        told = {"summary", "parameters", "macs", "source", "reading", "criticism"}
        assert set(card) == {*told, "task", "spatial_dims", "in_chans", "image_size"}
        assert card["task"] in ("classification", "segmentation")
    assert model_card("timm/resnet10t")["parameters"] == count_parameters("timm/resnet10t")


def test_models_are_listed_by_what_they_are_for() -> None:
    both = list_models(task="segmentation", spatial_dims=2), list_models(task="segmentation", spatial_dims=3)
    assert {"unet", "transunet", "maxvit_unet_mini"} <= set(both[0])
    assert {"unet_3d", "transunet_3d_tiny", "swin_unetr"} <= set(both[1])
    assert [*list_models(task="classification"), *both[0], *both[1]] == list(list_models())
    assert list_models(task="regression") == ()


def test_names_and_cards_need_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from medloom.models.registry import *; model_card('hatr')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ({"name": "hatr_resnet5"}, "U206", "Did you mean 'hatr_resnet50'"),
        ({"name": "qqqq"}, "U206", "Known: resnet18"),
        ({"name": "timm/resnet51"}, "U206", "resnet50"),
        ({"name": "hatr", "trunk": "resnet51"}, "U206", "resnet50"),
        ({"name": "hatr", "dept": 3}, "U207", "Did you mean 'depth'? Options: trunk, "),
        ({"name": "hatr_conv2d", "trunk": "resnet18"}, "U207", "unknown option 'trunk'"),
        ({"name": "timm/resnet10t", "drop_path": 0.1, "width": 3}, "U207", "Options: dropout, drop_path"),
        ({"name": "densenet121", "drop_path": 0.1}, "U207", "drop_path"),
        ({"name": "hatr", "depth": "four"}, "U208", "a whole number"),
        ({"name": "hatr", "trunk_stride": 16, "dropout": 2.0}, "U208", "dropout"),
        ({"name": "hatr", "trunk_stride": 16, "drop_path": 1.0}, "U208", "drop path"),
        ({"name": "hatr", "overlap": 1}, "U208", "true or false"),
        ({"name": "hatr", "scales": []}, "U208", "none"),
        ({"name": "hatr", "scales": [[2]]}, "U208", "[[2, 1], [3, 2]]"),
        ({"name": "hatr", "scales": [2, 1]}, "U208", "[[2, 1], [3, 2]]"),
        ({"name": "hatr", "num_heads": 7}, "U208", "512 channels do not divide by 7"),
        ({"name": "hatr", "trunk_stride": 7}, "U208", "Choose one of 2, 4, 8, 16, 32"),
        ({"name": "vit_tiny", "pool": "max"}, "U208", "Choose cls, avg or map"),
        ({"name": "deit_small", "distilled": True, "pool": "avg"}, "U208", "pool cls"),
        ({"name": "conv2d", "reading": "loud"}, "U208", "Choose stride, pool or double"),
        ({"name": "conv2d", "pretrained": True}, "U208", "no published weights"),
        ({"name": "vit_tiny", "pretrained": True, "patch_size": 8}, "U208", "patches of 16"),
        ({"name": "resnet18", "num_classes": 0}, "U208", "num_classes"),
        ({"name": "resnet18", "spatial_dims": 3}, "U208", "3 dimensions"),
        ({"name": "unet_3d", "spatial_dims": 2}, "U208", "Use spatial_dims=3"),
        ({"name": "unet_3d", "image_size": (64, 64)}, "U208", "not a size"),
        ({"name": "resnet18", "image_size": (64, 64, 64)}, "U208", "not a size"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        create_model(**{"num_classes": 2, "image_size": 64, **arguments})
    assert refused.value.code == code
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "size", "options", "said"),
    [
        ("resnet50", 20, {}, "at least 32"),
        ("conv2d", 15, {}, "at least 16"),
        ("vit_tiny", 100, {}, "multiple of 16"),
        ("maxvit_tiny", 100, {}, "multiple of 32"),
        ("coatnet_0", 100, {}, "multiple of 32"),
        ("hatr_resnet50", 64, {}, "smaller trunk_stride"),
        ("hatr_conv2d", 32, {}, "too small for a window of 3"),
    ],
)
def test_C511_impossible_size_is_refused(name: str, size: int, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as refused, torch.device("meta"):
        create_model(name, num_classes=2, image_size=size, **options)
    assert refused.value.code == "C511"
    assert said in str(refused.value)
    assert f"{size}x{size}" in str(refused.value)


def test_options_are_told_with_their_defaults() -> None:
    assert model_options("hatr")["scales"] == ((2, 1), (3, 2))
    assert model_options("hatr_resnet50")["trunk_stride"] is None
    assert "trunk" not in model_options("hatr_resnet50")
    assert set(model_options("timm/resnet10t")) == {"dropout", "drop_path", "head_hidden", "checkpointing"}


def test_an_image_need_not_be_square() -> None:
    x_BCHW = torch.rand(2, 1, 96, 64)
    for name in ("conv2d", "resnet18", "vit_tiny", "hatr_conv2d"):
        assert create_model(name, num_classes=2, in_chans=1, image_size=(96, 64)).eval()(x_BCHW).shape == (2, 2)
