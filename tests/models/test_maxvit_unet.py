"""MaxViT-UNet: timm's features from timm's weights, windows and strides per axis, what options may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medloom.blocks.taps import Taps
from medloom.errors import ModelError, UsageError
from medloom.models import maxvit_unet
from medloom.models.maxvit_trunk import stage_windows
from medloom.models.registry import create_model
from medloom.models.timm_networks import create_network
from medloom.models.weights import load_weights

SMALL = {"dims": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "stem_dim": 16, "skip_dim": 16, "decoder_depth": 1}
ALWAYS_TWO = ((2, 2),) * 5


def windows_of(model: torch.nn.Module) -> list[tuple[int, ...]]:
    return [stage["blocks"][0].attn_grid.window for stage in model.trunk.stages]


def test_features_are_timms_with_timms_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_network("maxvit_tiny_tf_224", in_chans=3, image_size=(224, 224)).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and (value.ndim < 2 or "rel_pos" in name):
                value.add_(0.2 * torch.randn_like(value))  # biases, means and tables, which start at nothing
    save_file(network.state_dict(), tmp_path / "maxvit.safetensors")
    model = create_model("maxvit_unet", num_classes=2).eval()
    told, rest = load_weights(model, tmp_path / "maxvit.safetensors")
    assert told == "weights have timm's own names: the trunk, without 6 tensors behind it"
    assert rest == "the rest stays as it was: decoder, fine, head"
    x_BCHW = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        theirs = network.double().forward_intermediates(x_BCHW, intermediates_only=True)
        for ours, wanted in zip(model.double().trunk(x_BCHW), theirs, strict=True):
            np.testing.assert_allclose(ours.numpy(), wanted.numpy(), atol=2e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"stem.conv1.weight": torch.zeros(1) + 1}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="C505"):
        load_weights(create_model("maxvit_unet", num_classes=2, **SMALL), tmp_path / "other.safetensors")


def test_position_tables_follow_another_window(tmp_path: Path) -> None:
    """Bicubic on the offsets: the middle, which is the cell itself, stays the middle."""
    torch.manual_seed(0)
    for name, sizes, shapes in (
        ("maxvit_unet", (224, 256), ("2x13x13", "2x15x15")),
        ("maxvit_unet_3d_tiny", (32, 64), ("8x1x1x1", "8x3x3x3")),
    ):
        options: dict[str, Any] = SMALL if name == "maxvit_unet" else {}
        small, large = (create_model(name, num_classes=2, in_chans=1, image_size=s, **options) for s in sizes)
        tables = {key for key, _ in small.named_parameters() if key.endswith("relative_position_bias_table")}
        with torch.no_grad():
            for key in tables:
                small.get_parameter(key).fill_(0.25)
        save_file(small.state_dict(), tmp_path / f"{name}.safetensors")
        notices = load_weights(large, tmp_path / f"{name}.safetensors")
        assert any(f"from {shapes[0]} to {shapes[1]}" in text for text in notices)
        for key in tables:
            torch.testing.assert_close(large.get_parameter(key), torch.full_like(large.get_parameter(key), 0.25))


def test_grey_volumes_start_from_weights_of_several_channels(tmp_path: Path) -> None:
    options = {"num_classes": 2, "image_size": 32}
    several = create_model("maxvit_unet_3d_tiny", in_chans=3, **options).eval()
    save_file(several.state_dict(), tmp_path / "w.safetensors")
    grey = create_model("maxvit_unet_3d_tiny", in_chans=1, **options).eval()
    assert any("32x3x3x3x3 to 32x1x3x3x3" in text for text in load_weights(grey, tmp_path / "w.safetensors"))
    x_B1XYZ = torch.randn(1, 1, 16, 20, 12)
    with torch.no_grad():
        torch.testing.assert_close(grey(x_B1XYZ), several(x_B1XYZ.expand(-1, 3, -1, -1, -1)), atol=1e-4, rtol=1e-4)


def test_positions_by_an_mlp_need_no_conversion(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"rel_pos": "mlp", "num_classes": 2, **SMALL}
    small, large = (create_model("maxvit_unet", image_size=size, **options).eval() for size in (64, 160))
    assert windows_of(small) != windows_of(large)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    assert load_weights(large, tmp_path / "small.safetensors") == ()
    small.train_outputs(torch.randn(1, 3, 64, 64))["logits"].square().sum().backward()
    of_positions = [p for name, p in small.named_parameters() if "rel_pos.mlp" in name and "2.bias" not in name]
    assert all(p.grad.abs().sum() > 0 for p in of_positions)


@pytest.mark.parametrize(
    ("extent", "wanted"),
    [(224, [7, 7, 7, 7]), (256, [8] * 4), (384, [12] * 4), (96, [6, 6, 6, 3]), (64, [4, 4, 4, 2]), (48, [4, 4, 3, 2])],
)
def test_windows_follow_the_image(extent: int, wanted: list[int]) -> None:
    windows = stage_windows(None, (extent, extent), ALWAYS_TWO)
    assert windows == tuple((w, w) for w in wanted)


def test_windows_may_be_told_for_all_or_for_each_stage() -> None:
    assert stage_windows(8, (224, 96), ALWAYS_TWO) == ((8, 8), (8, 8), (8, 6), (7, 3))
    assert stage_windows([5, 3], (224, 224), ALWAYS_TWO) == ((5, 3),) * 4
    each = [[8, 8], [8, 4], [4, 4], [2, 2]]
    assert stage_windows(each, (224, 224), ALWAYS_TWO) == tuple(map(tuple, each))


def test_thick_slices_have_strides_and_windows_of_their_own() -> None:
    thick = [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    model = create_model(
        "maxvit_unet_3d_tiny",
        num_classes=2,
        image_size=(64, 64, 16),
        strides=thick,
        window=[[4, 4, 2], [4, 4, 2], [4, 4, 4], [2, 2, 2]],
        deep_supervision=True,
    ).eval()
    assert windows_of(model) == [(4, 4, 2), (4, 4, 2), (4, 4, 4), (2, 2, 2)]
    assert [info.strides for info in model.trunk.feature_info] == [
        (2, 2, 1), (4, 4, 1), (8, 8, 2), (16, 16, 4), (32, 32, 8)
    ]  # fmt: skip
    assert [info.channels for info in model.trunk.feature_info] == [32, 32, 64, 128, 256]
    x_BCXYZ = torch.randn(1, 1, 40, 33, 9)
    taps: Taps = {}
    with torch.no_grad():
        assert model(x_BCXYZ, taps).shape == (1, 2, 40, 33, 9)
        outputs = model.train_outputs(x_BCXYZ)
    assert taps["features.4"].grid == (2, 2, 2)
    assert {key: tuple(value.shape[2:]) for key, value in outputs.items()} == {
        "logits": (40, 33, 9),
        "deep.4": (10, 9, 9),
        "deep.8": (5, 5, 5),
        "deep.16": (3, 3, 3),
    }


def test_of_two_stages_with_one_longest_stride_the_finer_learns() -> None:
    strides = [[2, 2, 1], [2, 2, 1], [1, 1, 2], [2, 2, 2], [2, 2, 2]]
    options = {"num_classes": 2, "image_size": (32, 32, 16), "strides": strides, "deep_supervision": True}
    model = create_model("maxvit_unet_3d_tiny", **options).eval()
    with torch.no_grad():
        outputs = model.train_outputs(torch.randn(1, 1, 32, 32, 16))
    assert {key: tuple(value.shape[2:]) for key, value in outputs.items()} == {
        "logits": (32, 32, 16),
        "deep.4": (8, 8, 16),
        "deep.8": (4, 4, 4),
    }


def test_checkpointing_changes_no_answer_and_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = create_model("maxvit_unet", num_classes=2, checkpointing=checkpointing, norm="group", **SMALL).train()
        model(torch.ones(1, 3, 40, 24)).square().mean().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], plain, msg=key)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": [7, 7, 7]}, "Give a number, 2 numbers, or 4 lists of 2"),
        ({"window": 0}, "from 1 on"),
        ({"window": [[7, 7]] * 3}, "4 lists of 2"),
        ({"window": [7, "a"]}, "option window"),
        ({"strides": [[2, 2]] * 4}, "Give 5 lists of 2 numbers"),
        ({"strides": [[2, 2, 2]] * 5}, "each 1 or 2"),
        ({"strides": [[3, 2]] * 5}, "each 1 or 2"),
        ({"strides": [2] * 5}, "Give 5 lists"),
        ({"dims": [32, 64, 128]}, "4 multiples of 32"),
        ({"dims": [32, 64, 128, 200]}, "4 multiples of 32"),
        ({"depths": [2, 2, 0, 2]}, "4 numbers from 1 on"),
        ({"rel_pos": "sine"}, "Choose table or mlp"),
        ({"norm": "layer"}, "Choose batch, group or instance"),
        ({"deep_supervision": "yes"}, "true or false"),
    ],
)
def test_U208_what_cannot_be_built_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused, torch.device("meta"):
        create_model("maxvit_unet", num_classes=2, **options)
    assert refused.value.code == "U208"
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["maxvit_unet_mini", "maxvit_unet_3d_tiny"])
def test_U208_published_weights_are_not_fetched_for_another_trunk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(maxvit_unet, "create_network", lambda *args, **options: pytest.fail("fetched"))
    with pytest.raises(UsageError, match=r"U208.*MaxViT-T"):
        create_model(name, num_classes=2, pretrained=True)


def test_published_weights_fill_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def network(name: str, *, pretrained: bool, **options: Any) -> torch.nn.Module:
        asked.update(options, name=name, pretrained=pretrained)
        return create_network(name, **options)

    monkeypatch.setattr(maxvit_unet, "create_network", network)
    torch.manual_seed(0)
    model = create_model("maxvit_unet", num_classes=2, in_chans=1, image_size=64, pretrained=True)
    assert asked == {
        "name": "maxvit_tiny_tf_224", "pretrained": True, "in_chans": 1, "image_size": (224, 224)
    }  # fmt: skip
    torch.manual_seed(0)
    fresh = create_model("maxvit_unet", num_classes=2, in_chans=1, image_size=64)
    assert not torch.equal(model.trunk.stem.conv2.weight, fresh.trunk.stem.conv2.weight)
    assert torch.equal(model.head.weight, fresh.head.weight)
