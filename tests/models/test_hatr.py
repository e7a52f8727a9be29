"""HATR: token counts of the paper, its switches, gates that start as the identity, positions that follow the grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medloom.blocks.refinement import TokenWeighting
from medloom.blocks.taps import Taps
from medloom.blocks.tokens import window_grid
from medloom.models.registry import count_parameters, create_model

SMALL: dict[str, Any] = {"num_classes": 2, "in_chans": 1, "image_size": 96, "embed_dim": 32, "depth": 1, "num_heads": 2}


def taps_of(**options: Any) -> Taps:
    taps: Taps = {}
    model = create_model("hatr", **{**SMALL, "trunk": "conv2d", **options}).eval()
    model(torch.rand(2, 1, 96, 96), taps)
    return taps


@pytest.mark.parametrize(("name", "tokens"), [("hatr_resnet50", 36 + 9), ("hatr_conv2d", 169 + 36)])
def test_token_counts_of_the_paper_at_224(name: str, tokens: int) -> None:
    taps: Taps = {}
    with torch.device("meta"):
        create_model(name, num_classes=2)(torch.empty(1, 3, 224, 224), taps)
    assert taps["tokens"].value.shape == (1, 1 + tokens, 512)
    assert sum(t.value.shape[1] for key, t in taps.items() if key.startswith("token_weight.")) == tokens


def test_every_scale_gives_one_weight_per_token() -> None:
    taps = taps_of()
    assert taps["token_weight.0"].grid == (5, 5)
    assert taps["token_weight.1"].grid == (2, 2)
    assert taps["token_weight.0"].value.shape == (2, 25)
    assert taps["embedding.1"].value.shape == (2, 32, 2, 2)
    assert taps["tokens"].value.shape == (2, 1 + 25 + 4, 32)
    assert taps["tokens"].grid == ()


def test_switches_of_the_ablation() -> None:
    assert taps_of(scales=[[2, 1]])["tokens"].grid == (5, 5)
    assert taps_of(scales=[[2, 1]], overlap=False)["tokens"].grid == (3, 3)
    direct = taps_of(scales=[[2, 1]], overlap=False, weighting=False)
    assert not any(key.startswith("token_weight") for key in direct)
    assert direct["tokens"].value.shape == (2, 10, 32)
    weighted = count_parameters("hatr_conv2d", scales=((2, 1),))
    assert weighted - count_parameters("hatr_conv2d", scales=((2, 1),), weighting=False) == 33_312 + 98


def test_gates_start_as_the_identity_and_can_move() -> None:
    gate = TokenWeighting(32)
    x_BDhw = torch.randn(2, 32, 5, 5)
    y_BDhw, weight_B1hw = gate(x_BDhw)
    torch.testing.assert_close(y_BDhw, x_BDhw)
    assert (weight_B1hw == 0.5).all()
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        gate(x_BDhw)[0].square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in gate.parameters())
    assert gate(x_BDhw)[1].std() > 0


def test_a_weight_of_zero_silences_its_token() -> None:
    gate = TokenWeighting(8)
    torch.nn.init.constant_(gate.spatial.conv.weight, -50.0)
    y_BDhw, weight_B1hw = gate(torch.ones(1, 8, 3, 3))
    assert weight_B1hw.max() < 1e-6
    assert y_BDhw.abs().max() < 1e-5


def test_positions_follow_the_grid() -> None:
    model = create_model("hatr", **SMALL, trunk="resnet18", trunk_stride=16).eval()
    taps: Taps = {}
    assert model(torch.rand(2, 1, 160, 128), taps).shape == (2, 2)
    assert taps["token_weight.0"].grid == (9, 7)


def test_windows_overlap_where_the_stride_is_smaller() -> None:
    assert window_grid((14, 14), 2, 1) == (13, 13)
    assert window_grid((7, 7), 3, 2) == (3, 3)
    assert window_grid((2, 5), 3, 1) == (0, 3)


def test_it_learns_from_scratch() -> None:
    """A bright spot left or right: tokens with positions must tell in a few steps, in the default initialisation."""
    torch.manual_seed(0)
    model = create_model("hatr", **{**SMALL, "image_size": 64, "embed_dim": 64, "trunk": "conv2d"}, scales=[[2, 1]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(16):
        labels_B = torch.randint(0, 2, (16,))
        x_BCHW = 0.3 * torch.randn(16, 1, 64, 64)
        for i, label in enumerate(labels_B.tolist()):
            x_BCHW[i, 0, 20:44, 40 * label : 40 * label + 24] += 2.0
        loss = torch.nn.functional.cross_entropy(model(x_BCHW), labels_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.35
