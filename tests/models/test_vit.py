"""Our vision transformers against timm's, and what happens to positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medloom.blocks.taps import Taps
from medloom.blocks.tokens import sincos_positions
from medloom.models.registry import create_model
from medloom.models.timm_networks import load_timm


def timm_twin(name: str, **options: Any) -> nn.Module:
    network = load_timm().create_model(name, img_size=48, num_classes=5, **options).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)  # timm starts CLS and biases near zero, which would hide a swap
    return network


@pytest.mark.parametrize(
    ("ours", "options", "theirs", "their_options"),
    [
        ("vit_tiny", {}, "vit_tiny_patch16_224", {}),
        ("vit_tiny", {"pool": "avg"}, "vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny", {"pool": "map"}, "vit_tiny_patch16_224", {"global_pool": "map"}),
        ("vit_tiny", {"registers": 4}, "vit_tiny_patch16_224", {"reg_tokens": 4}),
        ("vit_small", {"patch_size": 8}, "vit_small_patch8_224", {}),
        ("deit_small", {}, "deit_small_patch16_224", {}),
        ("deit_small", {"distilled": True}, "deit_small_distilled_patch16_224", {}),
    ],
)
def test_timm_weights_load_and_give_the_same_answers(
    ours: str, options: dict[str, Any], theirs: str, their_options: dict[str, Any]
) -> None:
    twin = timm_twin(theirs, **their_options)
    model = create_model(ours, num_classes=5, image_size=48, **options).eval()
    model.load_state_dict(twin.state_dict(), strict=True)
    x_BCHW = torch.randn(2, 3, 48, 48)
    taps: Taps = {}
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCHW), twin(x_BCHW), atol=1e-5, rtol=0)
        torch.testing.assert_close(model(x_BCHW, taps), twin(x_BCHW), atol=1e-5, rtol=0)
    assert set(taps) == {f"attention.{i}" for i in range(12)} | {"tokens"}


def test_positions_follow_the_grid_as_in_timm() -> None:
    twin = timm_twin("vit_tiny_patch16_224", dynamic_img_size=True)
    model = create_model("vit_tiny", num_classes=5, image_size=48).eval()
    model.load_state_dict(twin.state_dict(), strict=True)
    x_BCHW = torch.randn(2, 3, 80, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCHW), twin(x_BCHW), atol=1e-5, rtol=0)


def test_without_positions_the_order_of_patches_does_not_matter() -> None:
    x_BCHW = torch.randn(1, 3, 32, 32)
    swapped_BCHW = torch.cat([x_BCHW[..., 16:], x_BCHW[..., :16]], dim=-1)
    change = {}
    for positions in ("learned", "sincos", "none"):
        torch.manual_seed(0)
        model = create_model("vit_tiny", num_classes=2, image_size=32, positions=positions).eval()
        with torch.no_grad():
            change[positions] = (model(x_BCHW) - model(swapped_BCHW)).abs().max().item()
    assert change["none"] < 1e-5
    assert change["learned"] > 1e-5
    assert change["sincos"] > 1e-4


def test_fixed_positions_tell_places_apart_and_are_not_weights() -> None:
    positions_ND = sincos_positions(32, (3, 5))[0]
    assert positions_ND.shape == (15, 32)
    assert torch.cdist(positions_ND, positions_ND).add(torch.eye(15)).min() > 0.1
    model = create_model("vit_tiny", num_classes=2, image_size=32, positions="sincos").eval()
    assert not any("pos" in key for key in model.state_dict())
    assert model(torch.rand(1, 3, 48, 32)).shape == (1, 2)


def test_distilled_answer_is_the_mean_of_both_heads() -> None:
    model = create_model("deit_small", num_classes=2, image_size=32, distilled=True).eval()
    x_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = model.train_outputs(x_BCHW)
        torch.testing.assert_close(model(x_BCHW), (outputs["logits"] + outputs["distillation"]) / 2)
    assert not torch.equal(outputs["logits"], outputs["distillation"])
