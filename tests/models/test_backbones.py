"""timm's networks: the import cure, feature maps, trunks that are cut, weights that cannot be fetched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from medloom.blocks.taps import Taps
from medloom.errors import ModelError, UsageError
from medloom.models import timm_networks
from medloom.models.backbones import TimmTrunk
from medloom.models.registry import create_model

FAKE = "import torch\n{line}\n"
CURE = "import sys; from medloom.models.timm_networks import *; from medloom.models import timm_networks as b\n"


def run(code: str, folder: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{CURE}{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_matching_torchvision_is_left_alone(tmp_path) -> None:
    (tmp_path / "torchvision.py").write_text("MINE = True\n")
    (tmp_path / "timm.py").write_text("import torchvision\n")
    done = run("load_timm(); print(b._declared_operators, sys.modules['torchvision'].MINE)", tmp_path)
    assert done.stdout.strip() == "[] True", done.stderr


def test_missing_operators_are_declared_once(tmp_path) -> None:
    line = "from torch.library import register_fake\nregister_fake('torchvision::nms')(lambda d, s, i: d)"
    (tmp_path / "torchvision.py").write_text(FAKE.format(line=line))
    (tmp_path / "timm.py").write_text("import torchvision\n")
    code = "load_timm(); load_timm(); print(len(b._declared_operators), 'torchvision' in sys.modules)"
    assert run(code, tmp_path).stdout.strip() == "1 True"


def test_another_torchvision_error_is_not_hidden(tmp_path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('the disk is on fire')\n")
    done = run("load_timm()", tmp_path)
    assert done.returncode != 0
    assert "the disk is on fire" in done.stderr


@pytest.mark.parametrize(("stride", "channels", "grid"), [(8, 128, (12, 12)), (16, 256, (6, 6)), (32, 512, (3, 3))])
def test_a_trunk_is_cut_behind_its_stride(stride: int, channels: int, grid: tuple[int, int]) -> None:
    trunk = TimmTrunk("resnet18", in_chans=1, image_size=(96, 96), stride=stride)
    taps: Taps = {}
    x_BDhw = trunk(torch.rand(2, 1, 96, 96), taps)
    assert (trunk.channels, trunk.grid) == (channels, grid)
    assert x_BDhw.shape == (2, channels, *grid)
    x_BDhw.sum().backward()
    assert all(p.grad is not None for p in trunk.parameters()), "a stage behind the map was kept"
    assert len(taps) == {8: 3, 16: 4, 32: 5}[stride]


def test_a_trunk_equals_the_stage_of_the_whole_network() -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", num_classes=2, image_size=64).eval()
    trunk = TimmTrunk("resnet18", in_chans=3, image_size=(64, 64), stride=16).eval()
    trunk.network.load_state_dict(
        {k: v for k, v in model.network.state_dict().items() if k in trunk.network.state_dict()}
    )
    taps: Taps = {}
    x_BCHW = torch.rand(2, 3, 64, 64)
    model(x_BCHW, taps)
    assert torch.equal(trunk(x_BCHW), taps["features.3"].value)


def test_a_transformer_can_be_a_trunk() -> None:
    model = create_model("hatr", num_classes=2, image_size=64, trunk="vit_tiny_patch16_224", embed_dim=64, depth=1)
    assert model.trunk.grid == (4, 4)
    with pytest.raises(ModelError, match="C511"):
        model(torch.rand(2, 3, 96, 96))


def test_small_input_keeps_the_resolution() -> None:
    taps: Taps = {}
    create_model("resnet18", num_classes=2, image_size=28, in_chans=1, small_input=True).eval()(
        torch.rand(1, 1, 28, 28), taps
    )
    assert taps["features.1"].grid == (28, 28)
    assert taps["features.4"].grid == (4, 4)


def test_C513_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = timm_networks.load_timm()

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host\nwith a long explanation")

    monkeypatch.setattr(timm, "create_model", offline)
    for name in ("resnet18", "vit_small", "hatr_resnet50", "timm/resnet10t"):
        with pytest.raises(ModelError) as refused:
            create_model(name, num_classes=2, image_size=96, pretrained=True)
        assert refused.value.code == "C513"
        assert "no route to host" in str(refused.value)
        assert "long explanation" not in str(refused.value)


def test_C513_network_without_published_weights() -> None:
    with pytest.raises(ModelError, match=r"C513.*coatnet_0"):
        create_model("coatnet_0", num_classes=2, image_size=64, pretrained=True)


def test_published_vit_weights_go_into_our_network(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = timm_networks.load_timm()
    make = timm.create_model
    published = make("vit_tiny_patch16_224", img_size=64, in_chans=1, num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: published)
    model = create_model("vit_tiny", num_classes=3, in_chans=1, image_size=64, pretrained=True).eval()
    x_BCHW = torch.rand(2, 1, 64, 64)
    taps: Taps = {}
    model(x_BCHW, taps)
    torch.testing.assert_close(taps["tokens"].value, published.eval().forward_features(x_BCHW), atol=1e-5, rtol=0)


def test_an_unknown_option_of_a_timm_network_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="U207"):
        timm_networks.create_network("resnet18", in_chans=3, image_size=(64, 64), sparkle=True)


def test_C512_a_network_without_feature_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = timm_networks.load_timm()
    monkeypatch.setattr(timm, "create_model", lambda name, **_: torch.nn.Flatten())
    with pytest.raises(ModelError) as caught:
        create_model("timm/resnet10t", num_classes=2, image_size=64)
    assert caught.value.code == "C512"
