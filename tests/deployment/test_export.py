"""Export to ONNX, and the gate that keeps a network that answers otherwise out of a bundle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medloom
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.deployment.export import export_bundle, export_onnx, restore_model
from medloom.deployment.parity import check_parity, judge
from medloom.deployment.runtime import Pipeline, Prediction, Runtime, open_image
from medloom.errors import ExportError, ModelError
from medloom.models.registry import create_model

CLASSES = ("NORMAL", "PNEUMONIA")
RULE = Preprocess(size=(32, 32), channels="grey", mean=(0.5,), std=(0.25,))
ARCHITECTURE: dict[str, Any] = {"name": "conv2d", "num_classes": 2, "in_chans": 1, "image_size": 32}


class Small(nn.Module):
    """Enough layers to have a module inside a module."""

    def __init__(self, step: nn.Module | None = None, *, twisted: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), step or nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.twisted = twisted

    def forward(self, x_BCHW: Tensor, taps: dict[str, Any] | None = None) -> Tensor:
        logits_BK = self.head(self.stem(x_BCHW).mean((2, 3)))
        # The negative control: an operation that means one thing when traced and another when run.
        return logits_BK * 1.01 if self.twisted and torch.compiler.is_exporting() else logits_BK


class Bessel(nn.Module):
    """An operation that ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    """A decision on the data, which no tracer can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def made(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "small",
        "architecture": ARCHITECTURE,
        "classes": CLASSES,
        "task": "binary",
        "preprocess": RULE,
        "images": golden_images(5, 48, 11),
    }
    return values | changes


@pytest.fixture(scope="module")
def conv2d() -> nn.Module:
    torch.manual_seed(0)
    return create_model(**ARCHITECTURE).eval()


@pytest.fixture(scope="module")
def exported(conv2d: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    conv2d.train()  # export must not depend on the mode, nor change it
    written = export_bundle(conv2d, tmp_path_factory.mktemp("exported") / "bundle", **made())
    assert conv2d.training
    conv2d.eval()
    return written


def test_exported_bundle_answers_as_torch_does(exported: Path, conv2d: nn.Module) -> None:
    bundle = medloom.load(exported)
    images = golden_images(7, 60, 5)
    pixels = np.stack([bundle.preprocess.to_uint8(_image(i)) for i in images])
    with torch.inference_mode():
        expected = conv2d(torch.from_numpy(bundle.preprocess.normalise(pixels))).numpy()
    found = np.array([list(a.logits.values()) for a in bundle.predict(images)])
    assert np.abs(found - expected).max() < 1e-5


def _image(pixels: np.ndarray) -> Any:
    from medloom.deployment.runtime import open_image

    return open_image(pixels, "x")


def test_parity_and_latency_are_recorded(exported: Path) -> None:
    document = medloom.load(exported).document
    assert document["parity"]["batches"] == [1, 2, 7, 32]
    assert document["parity"]["flips"] == 0
    assert document["parity"]["max_probability_difference"] < 1e-4
    assert document["latency"]["milliseconds_per_image_at_batch"]["1"] > 0


def test_no_path_of_this_machine_is_in_the_bundle(exported: Path) -> None:
    for entry in exported.iterdir():
        data = entry.read_bytes()
        for trace in (b"site-packages", b"stack_trace", str(Path(torch.__file__).parents[2]).encode(), b"test_export"):
            assert trace not in data, entry


def test_golden_images_prove_the_resizing_too(exported: Path) -> None:
    with np.load(exported / "golden.npz") as golden:
        height, width = golden["images"].shape[1:3]
    assert height != width
    assert (height, width) != RULE.size


def test_C505_weights_of_another_architecture(exported: Path, conv2d: nn.Module) -> None:
    bundle = medloom.load(exported)
    restored = restore_model(bundle)
    for name, tensor in conv2d.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name])
    bundle.document["architecture"]["num_classes"] = 3  # type: ignore[index]
    with pytest.raises(ModelError, match="C505"):
        restore_model(bundle)


def test_X601_a_missing_operator_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_onnx(Small(Bessel()), tmp_path / "m.onnx", in_chans=1, size=(32, 32))
    assert caught.value.code == "X601"
    assert caught.value.exit_code == 5
    assert "bessel_j0" in str(caught.value)
    assert "stem.1" in caught.value.place
    assert "Bessel" in caught.value.place
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_X601_a_branch_on_the_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"error\[X601\].*traced") as caught:
        export_bundle(Small(Branch()), tmp_path / "b", **made())
    assert "/" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_X602_a_wrong_operation_is_caught_and_nothing_is_left(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wrong = Small(twisted=True)
    with torch.no_grad():
        wrong.head.weight *= 20
    with pytest.raises(ExportError) as caught:
        export_bundle(wrong, tmp_path / "b", **made())
    assert caught.value.code == "X602"
    assert caught.value.exit_code == 5
    assert caught.value.place.startswith("image ")
    assert "at most" in caught.value.problem
    assert "decisions flipped" in caught.value.problem
    assert list(tmp_path.iterdir()) == []


def test_X602_an_old_bundle_survives_a_failed_export(tmp_path: Path, exported: Path) -> None:
    import shutil

    target = Path(shutil.copytree(exported, tmp_path / "b"))
    before = medloom.load(target).hash
    with pytest.raises(ExportError):
        export_bundle(Small(Branch()), target, **made())
    assert medloom.load(target).hash == before


def _pipeline(exported: Path, **changes: Any) -> Pipeline:
    runtime = Runtime((exported / "model.onnx").read_bytes())
    values = {"task": "binary", "temperature": 1.0, "thresholds": {}, **changes}
    return Pipeline(CLASSES, preprocess=changes.pop("preprocess", RULE), runtime=runtime, **{**values, **changes})


def test_X602_a_decision_that_flips_is_refused_however_small_the_difference(exported: Path, conv2d: nn.Module) -> None:
    images = golden_images(4, 48, 11)
    scores = [a.probabilities["PNEUMONIA"] for a in _pipeline(exported).stream(images)]
    shifted = create_model(**ARCHITECTURE).eval()
    shifted.load_state_dict(conv2d.state_dict())
    with torch.no_grad():
        bias = next(p for name, p in reversed(list(shifted.named_parameters())) if p.shape == (2,))
        bias += torch.tensor([0.0, 1e-5])
    with pytest.raises(ExportError, match=r"X602.*[1-9]\d* of \d+ decisions flipped"):
        check_parity(shifted, _pipeline(exported, thresholds={"PNEUMONIA": scores[0] + 1e-6}), images)
    assert check_parity(shifted, _pipeline(exported), images)["flips"] == 0


def test_X602_skewed_preprocessing_is_caught(
    exported: Path, conv2d: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = golden_images(4, 48, 11)
    right = Preprocess.normalise
    monkeypatch.setattr(Preprocess, "normalise", lambda self, x: right(self, x) * np.float32(1.05))
    with pytest.raises(ExportError, match="X602"):
        check_parity(conv2d, _pipeline(exported), images)


@pytest.mark.parametrize(
    "found",
    [
        {"EFFUSION": float("nan"), "NODULE": 0.2},
        {"EFFUSION": 0.1, "NODULE": float("nan")},
        {"EFFUSION": 0.1},
        {"EFFUSION": 0.1, "NODULE": 0.2, "MASS": 0.2},
        {},
    ],
)
def test_X602_a_class_without_an_answer_is_no_equal_one(found: dict[str, float]) -> None:
    right = {"EFFUSION": 0.1, "NODULE": 0.2}
    good, bad = (Prediction("a.png", "", values, "labels", None, right) for values in (right, found))
    assert judge([(good, good)], 1, (1,), 1e-4)["max_probability_difference"] == 0.0
    with pytest.raises(ExportError, match=r"X602.*a\.png"):
        judge([(good, good), (good, bad)], 2, (1,), 1e-4)


def test_X602_real_images_pass(exported: Path, conv2d: nn.Module, real_data: Path) -> None:
    images = sorted((real_data / "chest_xray").glob("test/*/*.jpeg"))[::40]
    report = check_parity(conv2d, _pipeline(exported), images, batches=(1, 7))
    assert report["images"] == len(images) > 5
    assert report["max_probability_difference"] <= 1e-4


def test_X603_dynamic_batch_runs_at_every_size(exported: Path, conv2d: nn.Module) -> None:
    runtime = Runtime((exported / "model.onnx").read_bytes())
    x_BCHW = torch.randn(32, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = conv2d(x_BCHW).numpy()
    for batch in (1, 2, 7, 32):
        assert np.abs(runtime.logits(x_BCHW[:batch].numpy()) - expected[:batch]).max() < 1e-4


def test_export_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(Small(), tmp_path / "m.onnx", in_chans=1, size=(32, 32))
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "in_chans", "options"),
    [
        ("resnet18", 1, {}),
        ("conv2d", 3, {}),
        ("vit_small", 3, {}),
        ("hatr_conv2d", 1, {}),
        ("hatr_resnet50", 3, {}),
        ("hatr", 1, {"trunk": "resnet18", "trunk_stride": 16}),
    ],
)
def test_X602_every_kind_of_model_keeps_its_answers(
    tmp_path: Path, real_data: Path, name: str, in_chans: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    architecture = {"name": name, "num_classes": 2, "in_chans": in_chans, "image_size": 96, **options}
    if name == "vit_small":
        architecture["image_size"] = 224
    size = architecture["image_size"]
    channels = "grey" if in_chans == 1 else "replicate"
    rule = Preprocess(size=(size, size), channels=channels, mean=(0.5,) * in_chans, std=(0.25,) * in_chans)  # type: ignore[arg-type]
    images = sorted((real_data / "chest_xray").glob("test/*/*.jpeg"))[::100]
    values = made(architecture=architecture, preprocess=rule, images=images)
    bundle = medloom.load(export_bundle(create_model(**architecture), tmp_path / "b", **values))
    assert bundle.document["parity"]["max_probability_difference"] <= 1e-4
    restore_model(bundle)


@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_golden_images_fit_a_model_that_does_not_resize(channels: Any) -> None:
    from medloom.deployment.export import golden_inputs

    rule = Preprocess(size=(40, 64), resize="none", channels=channels, mean=(), std=())
    shapes = {rule.to_uint8(open_image(picture, "golden")).shape for picture in golden_inputs(rule, 0)}
    assert shapes == {(40, 64, rule.stored_channels)}
