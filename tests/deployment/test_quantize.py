"""Eight bits: what is quantised, what the gate lets pass, and what a refusal leaves (X604)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL

import medloom
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, Record
from medloom.deployment import quantize as networks
from medloom.deployment.bundle_files import read_arrays
from medloom.deployment.bundle_folder import golden_bytes
from medloom.deployment.export import export_bundle, onnx_bytes
from medloom.deployment.openvino_ir import ir_of
from medloom.deployment.quantize import (
    onnx_layers,
    openvino_layers,
    prepared_onnx,
    quantise_onnx,
    quantise_openvino,
)
from medloom.deployment.runtime import Runtime
from medloom.errors import GateError, ModelError, UsageError
from medloom.models.registry import create_model
from medloom.workflows import quantize as verb
from medloom.workflows.quantize import quantize
from medloom.workflows.quantize_steps import calibration_rows

ARCHITECTURE = {"name": "conv2d", "num_classes": 2, "in_chans": 1, "image_size": [32, 32]}
PREPROCESS = Preprocess(size=(32, 32), channels="grey", mean=(0.4,), std=(0.3,))


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, every second one with a bright square: ``(N, 32, 32)`` uint8 and labels."""
    draw = np.random.default_rng(seed)
    images = draw.integers(40, 140, size=(count, 32, 32), dtype=np.uint8)
    for k in range(1, count, 2):
        y, x = draw.integers(2, 18, size=2)
        images[k, y : y + 12, x : x + 12] += 90
    return images, np.arange(count) % 2


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for split, count, seed in (("train", 40, 1), ("val", 48, 2), ("test", 30, 3)):
        images, labels = pictures(count, seed)
        for k, (image, label) in enumerate(zip(images, labels)):
            place = root / split / ("NORMAL", "PNEUMONIA")[label] / f"{split}{k}_1.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            PIL.fromarray(image).save(place)
    return root


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model(**ARCHITECTURE)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    images, labels = pictures(128, 0)
    x_BCHW = torch.from_numpy(PREPROCESS.normalise(images[..., None]).copy())
    for _ in range(25):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x_BCHW), torch.from_numpy(labels)).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def float_bundle(trained: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(
        trained,
        tmp_path_factory.mktemp("float") / "bundle",
        name="squares",
        architecture=ARCHITECTURE,
        classes=("NORMAL", "PNEUMONIA"),
        task="binary",
        preprocess=PREPROCESS,
        images=list(pictures(4, 9)[0]),
    )


@pytest.fixture(scope="module")
def quantised(float_bundle: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "bundle-int8"
    quantize(float_bundle, data=labelled, out=out, images=64, accept=("D120",), external=labelled)
    return out


def document(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "model.json").read_text()))


def test_X604_figures_of_every_split_are_recorded_and_flips_listed_beside(quantised: Path) -> None:
    recorded = document(quantised)["quantisation"]
    assert recorded["precision"] == "int8"
    assert recorded["calibration_images"] == 40  # all that there are, of 64 that were asked for
    report = json.loads(quantised.with_name("bundle-int8.json").read_text())
    for name in ("openvino", "onnx"):
        for split, count in (("val", 48), ("test", 30), ("external", 118)):
            figures = recorded["networks"][name][split]
            assert figures["images"] == count
            assert figures["auc_loss"] <= 0.005
            assert figures["mean_shift"] <= 0.02
            assert "listed" in report["networks"][name][split]["flips"]
    assert "val5_1" not in (quantised / "model.json").read_text()  # no image is named in a bundle
    card = (quantised / "CARD.md").read_text()
    assert "decisions turned over" in card
    assert "network: the float one that this was made from" in card


def test_int8_bundles_answer_in_both_runtimes_near_the_float_one(quantised: Path, float_bundle: Path) -> None:
    images = list(pictures(12, 77)[0])
    wanted = [a.probabilities["PNEUMONIA"] for a in medloom.load(float_bundle).predict(images)]
    for name in ("openvino", "onnx"):
        model = medloom.load(quantised, runtime=name)
        assert model.document["runtimes"][name] | {"milliseconds_per_image_at_batch": 0} == {
            "precision": "int8",
            "tolerance": 0.02,
            "milliseconds_per_image_at_batch": 0,
        }
        found = [a.probabilities["PNEUMONIA"] for a in model.predict(images)]
        assert found == pytest.approx(wanted, abs=0.05)
        assert found != wanted
    assert (quantised / "model.bin").stat().st_size < 0.4 * (float_bundle / "model.onnx").stat().st_size


def test_X604_what_does_not_hold_is_refused_and_nothing_is_left(
    float_bundle: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is coarse beyond use: constants of the last layer are thrown away."""
    import onnx
    from onnx import numpy_helper

    real = quantise_onnx

    def ruined(data: bytes, x_NCHW: np.ndarray, keep_float: Sequence[str] = ()) -> bytes:
        model = onnx.load_from_string(real(data, x_NCHW, keep_float))
        scales = [t for t in model.graph.initializer if t.name.endswith("_scale") and t.dims in ([], [1])]
        for tensor in scales:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(60), tensor.name))
        return bytes(model.SerializeToString())

    monkeypatch.setattr("medloom.workflows.quantize_steps.quantise_onnx", ruined)
    monkeypatch.setattr(networks, "GROUPS", 2)
    with pytest.raises(GateError) as caught:
        quantize(float_bundle, data=labelled, out=tmp_path / "b", images=8, runtimes=("onnx",), accept=("D120",))
    assert (caught.value.code, caught.value.exit_code) == ("X604", 6)
    assert "at most" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_calibration_takes_one_image_of_each_patient_before_any_second() -> None:
    records = tuple(Record(f"i{k}", f"i{k}.png", (0,), patient=f"p{min(k // 3, 3)}") for k in range(20))
    training = Dataset("d", Path(), ("a",), records)
    rows = calibration_rows(training, 5, 0)
    owners = [records[k].patient for k in rows]
    assert len(set(owners)) == 4
    assert sorted(calibration_rows(training, 99, 0)) == list(range(20))


def test_named_layers_stay_float_in_both_files(trained: torch.nn.Module) -> None:
    onnx = onnx_bytes(trained, in_chans=1, size=(32, 32))
    x_NCHW = PREPROCESS.normalise(pictures(8, 4)[0][..., None])
    want = Runtime(onnx).logits(x_NCHW)
    ir = ir_of(onnx)
    off = []
    for left in ((), openvino_layers(ir)):
        made = quantise_openvino(ir, x_NCHW, left)
        off.append(np.abs(Runtime(made.xml, weights=made.weights).logits(x_NCHW) - want).max())
    assert off[1] < 0.01 < off[0] < 0.1  # what only moves numbers about, as pooling does, may stay coarse
    ready = prepared_onnx(onnx)
    off = [
        np.abs(Runtime(quantise_onnx(ready, x_NCHW, left)).logits(x_NCHW) - want).max()
        for left in ((), onnx_layers(ready)[:1], onnx_layers(ready))
    ]
    assert off[2] < 1e-5 < off[1] != off[0]


def test_U245_U212_U246_U244_what_cannot_be_quantised(
    quantised: Path, float_bundle: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, arguments in {
        "U245": {"source": quantised, "data": labelled},
        "U212": {"source": float_bundle, "data": labelled, "out": tmp_path},
        "U244": {"source": float_bundle, "out": tmp_path / "b"},
        "U246": {"source": float_bundle, "runtimes": ("abacus",)},
    }.items():
        with pytest.raises(UsageError) as caught:
            quantize(**arguments)  # type: ignore[arg-type]
        assert caught.value.code == code
    monkeypatch.setattr("medloom.machine.has_bfloat16", lambda: False)
    with pytest.raises(UsageError) as caught:
        quantize(float_bundle, precision="bf16")
    assert caught.value.code == "U246"
    assert verb.TOLERANCES["int8"] < 0.25


def test_U212_what_an_earlier_bundle_was_judged_by_is_not_written_over(
    float_bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.json").write_text("of another")
    with pytest.raises(UsageError, match=r"U212.*b\.json"):
        quantize(float_bundle, data=labelled, out=tmp_path / "b")
    assert (tmp_path / "b.json").read_text() == "of another"
    assert not (tmp_path / "b").exists()


def test_bfloat16_keeps_the_float_files_and_says_so(float_bundle: Path, labelled: Path, tmp_path: Path) -> None:
    from medloom.machine import has_bfloat16

    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    out = tmp_path / "bundle-bf16"
    quantize(float_bundle, data=labelled, out=out, precision="bf16", accept=("D120",))
    assert document(out)["runtimes"]["openvino"]["precision"] == "bfloat16"
    assert document(out)["quantisation"]["calibration_images"] == 0
    assert (out / "model.onnx").read_bytes() == (float_bundle / "model.onnx").read_bytes()
    image = pictures(2, 5)[0][1]
    exact, coarse = (medloom.load(out, runtime=n).predict(image)[0].logits["PNEUMONIA"] for n in ("onnx", "openvino"))
    assert exact == pytest.approx(coarse, rel=0.05, abs=0.05)
    assert exact != coarse


@pytest.mark.parametrize("name", ["openvino", "onnx"])
@pytest.mark.parametrize(("off", "code"), [(0.01, None), (0.1, "C507")])
def test_X605_a_cpu_that_rounds_otherwise_answers_or_is_refused_by_name(
    quantised: Path, tmp_path: Path, forge: Any, name: str, off: float, code: str | None
) -> None:
    bundle = Path(shutil.copytree(quantised, tmp_path / "bundle"))
    arrays = dict(read_arrays("golden.npz", (bundle / "golden.npz").read_bytes()))
    # As a CPU would find it whose own answers are that far from those of the one it was quantised on.
    arrays[f"logits_{name}"] = arrays[f"logits_{name}"] + off * np.maximum(1.0, np.abs(arrays[f"logits_{name}"]))
    forge(bundle, {"golden.npz": golden_bytes(**arrays)})
    if code is None:
        assert medloom.load(bundle, runtime=name).pipeline.runtime.name == name
        return
    with pytest.raises(ModelError, match=rf"{code}.*off in {name} .*This CPU may round otherwise"):
        medloom.load(bundle, runtime=name)
    other = {"openvino": "onnx", "onnx": "openvino"}[name]
    assert medloom.load(bundle, runtime=other).pipeline.runtime.name == other
