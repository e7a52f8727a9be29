"""Multiply-adds: against hand counts, against published counts, and those that the cards state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medloom.models.cards import CARDS
from medloom.models.macs import count_macs, macs_of
from medloom.models.registry import create_model, list_models

LIGHT = 25_000_000  # parameters


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(1)


def test_a_convolution_is_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(8), nn.ReLU())
    assert count_macs(model, 3, (10, 6)) == 8 * 3 * 9 * 5 * 3


def test_attention_is_counted_by_hand_through_the_fused_kernels() -> None:
    n, d = 16, 8
    model = Attends().eval()
    assert count_macs(model, 8, 4) == n * d * 3 * d + 2 * n * n * d + n * d * d


def test_the_mode_and_the_weights_are_left_as_they_were() -> None:
    model = create_model("conv2d", num_classes=2, image_size=64).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_macs(model, 3, 64)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# MODELS.md section 1: the counts of fvcore and timm, 224 px (GMACs, rounded there to two decimals).
PUBLISHED = {
    "resnet18": 1.81,
    "resnet50": 4.09,
    "densenet121": 2.83,
    "efficientnet_b0": 0.39,
    "vit_tiny": 1.25,
    "vit_small": 4.60,
    "vit_base": 17.56,
    "conv2d": 0.48,
    "hatr_resnet50": 4.79,
    "hatr_conv2d": 3.38,
    "coatnet_0": 4.55,
    "maxvit_tiny": 5.55,
    "convnext_base": 15.35,
    "medvit_small": 5.86,
    "medvit_base": 8.36,
    "medvit_large": 10.86,
    "rr_vit": 0.850,
    "hybrid_rr_vit": 54.0,
    "dbct": 1.30,
    "convnext_deit": 18.56,
    "coatnet_1": 8.64,
    "coatnet_2": 16.43,
    "maxvit_unet": 10.03,
    "maxvit_unet_mini": 3.04,
    "maxvit_unet_3d_tiny": 20.9,
    "transunet_3d": 220.0,
    "transunet_3d_small": 203.0,
}
OF_SEGMENTERS = ("maxvit_unet", "maxvit_unet_mini", "maxvit_unet_3d_tiny", "transunet_3d", "transunet_3d_small")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny", "hatr_conv2d", "maxvit_tiny"])
def test_counts_are_those_of_fvcore_and_timm(name: str) -> None:
    assert macs_of(name) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.02)


def test_counts_of_segmenters_are_those_of_our_first_builds() -> None:
    assert macs_of("transunet", num_classes=9) / 1e9 == pytest.approx(29.23, rel=0.001)
    assert macs_of("maxvit_unet_3d_small", num_classes=14) / 1e9 == pytest.approx(31.7, rel=0.002)
    assert macs_of("maxvit_unet_mini") / 1e9 == pytest.approx(3.04, rel=0.005)


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in PUBLISHED if n in CARDS])
def test_every_published_count_is_met(name: str) -> None:
    if name in OF_SEGMENTERS:
        assert macs_of(name) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)
        return
    channels = 1 if name in ("rr_vit", "hybrid_rr_vit", "dbct") else 3
    classes = 14 if channels == 1 else 1000
    assert macs_of(name, num_classes=classes, in_chans=channels) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", [n for n in list_models() if int(CARDS[n]["parameters"]) < LIGHT][:8])
def test_the_cards_of_light_models_state_what_is_counted(name: str) -> None:
    assert CARDS[name]["macs"] == macs_of(name)


@pytest.mark.long
@pytest.mark.parametrize("name", list_models())
def test_every_card_states_what_is_counted(name: str) -> None:
    assert CARDS[name]["macs"] == macs_of(name)
