"""``medloom export``: an IR beside ONNX, proved in a clean process, for classifiers and segmenters."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from older_cpu import answers_of_an_older_cpu
from PIL import Image as PIL

import medloom
from medloom.config import load_recipe
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.data.sources import open_dataset
from medloom.deployment import openvino_ir
from medloom.deployment.export import export_bundle
from medloom.errors import ExportError, UsageError
from medloom.files import RunDirectory
from medloom.models.registry import create_model
from medloom.workflows.bundle_images import images_of
from medloom.workflows.export import export
from medloom.workflows.predict import predict

ARCHITECTURE = {"name": "conv2d", "num_classes": 2, "in_chans": 1, "image_size": [32, 32]}
Forge = Callable[..., None]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labelled images with a validation part."""
    root = tmp_path_factory.mktemp("labelled")
    images = golden_images(24, 64, 5)
    for k, image in enumerate(images):
        split, name = ("train", "val")[k % 3 == 0], ("NORMAL", "PNEUMONIA")[k % 2]
        (root / split / name).mkdir(parents=True, exist_ok=True)
        PIL.fromarray(image).save(root / split / name / f"p{k}_1.png")
    return root


@pytest.fixture(scope="module")
def float_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export_bundle(
        create_model(**ARCHITECTURE).eval(),
        tmp_path_factory.mktemp("float") / "bundle",
        name="small",
        architecture=ARCHITECTURE,
        classes=("NORMAL", "PNEUMONIA"),
        task="binary",
        preprocess=Preprocess(size=(32, 32), channels="grey", mean=(0.4,), std=(0.3,)),
        images=golden_images(4, 64, 3),
    )


@pytest.fixture(scope="module")
def exported(float_bundle: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    export(float_bundle, data=labelled, out=out, accept=("D120",))
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def document(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "model.json").read_text()))


def test_X603_both_networks_are_proved_at_every_batch_and_recorded(exported: Path, float_bundle: Path) -> None:
    assert {"model.xml", "model.bin"} <= {p.name for p in exported.iterdir()}
    said = document(exported)["runtimes"]
    for name in ("onnx", "openvino"):
        assert said[name]["parity"]["batches"] == [1, 2, 7, 32]
        assert said[name]["parity"]["max_probability_difference"] <= 1e-4
        assert said[name]["parity"]["flips"] == 0
        assert said[name]["milliseconds_per_image_at_batch"]["1"] > 0
    assert "runtimes" not in document(float_bundle)  # a bundle as it was before is still read
    assert medloom.load(float_bundle).pipeline.runtime.name == "onnx"
    card = (exported / "CARD.md").read_text()
    assert "| OpenVINO | float32 |" in card
    assert card.count("## Exactness and speed") == card.count("## Runtimes") == 1


def test_both_runtimes_give_one_answer(exported: Path) -> None:
    image = golden_images(1, 64, 9)[0]
    one, other = (medloom.load(exported, runtime=name).predict(image)[0] for name in ("onnx", "openvino"))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    many = medloom.load(exported, runtime="openvino").predict([image] * 5, batch_size=5)
    assert many[4].probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_the_fastest_runtime_answers_by_the_recorded_times(copy: Path, forge: Forge) -> None:
    for fast, slow in (("onnx", "openvino"), ("openvino", "onnx")):
        said = document(copy)["runtimes"]
        said[fast]["milliseconds_per_image_at_batch"] = {"1": 1.0}
        said[slow]["milliseconds_per_image_at_batch"] = {"1": 2.0}
        forge(copy, runtimes=said)
        assert medloom.load(copy).pipeline.runtime.name == fast
    for values in said.values():
        values.pop("milliseconds_per_image_at_batch")
    forge(copy, runtimes=said)
    assert medloom.load(copy).pipeline.runtime.name == "openvino"


def test_predict_takes_the_runtime_that_was_asked_for_and_says_which(exported: Path, labelled: Path) -> None:
    for name in ("onnx", "openvino"):
        assert predict(exported, [labelled / "val"], runtime=name).values["runtime"] == name


def test_U243_a_runtime_that_the_bundle_has_no_files_for(float_bundle: Path) -> None:
    with pytest.raises(UsageError) as caught:
        medloom.load(float_bundle, runtime="openvino")
    assert caught.value.code == "U243"


def test_U210_and_without_openvino_onnx_answers(exported: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['openvino', 'torch', 'timm']))\n"
        "import medloom\nfrom medloom.errors import UsageError\n"
        f"assert medloom.load({str(exported)!r}).pipeline.runtime.name == 'onnx'\n"
        f"try:\n    medloom.load({str(exported)!r}, runtime='openvino')\n"
        "except UsageError as problem:\n    print(problem.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "U210", done.stderr


def test_only_the_chosen_runtime_is_imported(exported: Path) -> None:
    code = "import sys, medloom; medloom.load({!r}, runtime={!r}); print({!r} in sys.modules, 'torch' in sys.modules)"
    for asked, other in (("onnx", "openvino"), ("openvino", "onnxruntime")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(str(exported), asked, other)], capture_output=True, text=True
        )
        assert done.stdout.split() == ["False", "False"], done.stderr


def test_U244_a_bare_bundle_needs_images(float_bundle: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export(float_bundle)
    assert caught.value.code == "U244"


def test_X602_a_wrong_operator_is_caught_and_nothing_is_left(
    float_bundle: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: OpenVINO gets another activation than was trained; ONNX is right."""
    import openvino

    def wrong(onnx: bytes, place: object = "") -> openvino_ir.Ir:
        network = openvino.Core().read_model(onnx, b"")
        relu = next(op for op in network.get_ordered_ops() if op.get_type_name() == "Relu")
        other = openvino.opset13.tanh(relu.input_value(0))
        for target in list(relu.output(0).get_target_inputs()):
            target.replace_source_output(other.output(0))
        return openvino_ir.serialised(network, place)

    monkeypatch.setattr(openvino_ir, "ir_of", wrong)
    kept = Path(shutil.copytree(float_bundle, tmp_path / "kept"))
    before = {p.name: p.read_bytes() for p in kept.iterdir()}
    with pytest.raises(ExportError) as caught:
        export(kept, data=labelled, accept=("D120",))
    assert (caught.value.code, caught.value.exit_code) == ("X602", 5)
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_X602_parity_alone_sees_a_network_that_golden_images_would_let_pass(
    float_bundle: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that are compared with are others than those that were exported."""

    def other(bundle: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        model = create_model(**ARCHITECTURE).eval()
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if n.endswith("bias")).add_(0.01)
        return model

    from medloom.deployment import export as networks

    real = networks.onnx_bytes
    original = networks.restore_model
    monkeypatch.setattr(networks, "onnx_bytes", lambda model, **kw: real(original(medloom.load(float_bundle)), **kw))
    monkeypatch.setattr(networks, "restore_model", other)
    with pytest.raises(ExportError) as caught:
        export(float_bundle, data=labelled, out=tmp_path / "bundle", accept=("D120",))
    assert caught.value.code == "X602"
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_X601_an_operation_that_openvino_lacks_is_named() -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("NoSuchThing", ["image"], ["logits"], domain="com.example")
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["b", 1, 8, 8]), ("logits", ["b", 2]))
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(helper.make_graph([node], "g", floats[:1], floats[1:]), opset_imports=opsets)
    with pytest.raises(ExportError) as caught:
        openvino_ir.ir_of(model.SerializeToString())
    assert caught.value.code == "X601"
    assert "NoSuchThing" in caught.value.problem


KILLED = """
import os, sys
from medloom.deployment import bundle_folder
from medloom.workflows.export import export
from medloom.files import write_bytes
def dying(path, data):
    write_bytes(path, data)
    if path.name == "model.bin" and str(path).startswith(os.path.dirname(sys.argv[1])):
        os.kill(os.getpid(), 9)
bundle_folder.write_bytes = dying
export(sys.argv[1], data=sys.argv[2], accept=("D120",))
"""


def test_X607_killed_in_mid_export_the_old_bundle_answers(float_bundle: Path, labelled: Path, tmp_path: Path) -> None:
    kept = Path(shutil.copytree(float_bundle, tmp_path / "bundle"))
    before = {p.name: p.read_bytes() for p in kept.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED, str(kept), str(labelled)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before
    assert medloom.load(kept).predict(golden_images(1, 64, 1))[0].probabilities
    assert [p.name for p in tmp_path.iterdir() if "medloom-tmp" in p.name]
    export(kept, data=labelled, accept=("D120",))
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"], "what the killed one left is gone"


def test_the_command_prints_what_was_proved(
    float_bundle: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medloom.cli import main

    command = ["export", str(float_bundle), "--data", str(labelled), "--out", str(tmp_path / "b"), "--no-openvino"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--accept", "D120"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "no decision flipped" in out
    assert not (tmp_path / "b" / "model.xml").exists()


def test_a_run_on_a_table_finds_its_images_beside_it(float_bundle: Path, labelled: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(labelled, tmp_path / "images"))
    files = sorted(root.rglob("*.png"))
    rows = [f"{file.relative_to(root)},{file.parent.name},{file.parent.parent.name}" for file in files]
    (root / "table.csv").write_text("\n".join(["image,label,split", *rows]))
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(float_bundle, run.bundle)
    recipe = load_recipe({"data": {"path": str(root / "table.csv")}})
    run.recipe.write_text(recipe.as_yaml())
    open_dataset(root / "table.csv", recipe.data).write_csv(run.records)
    found = images_of(run.root, medloom.load(run.bundle), data=None)
    part = found.split("val")
    assert found.pictures(part, range(len(part))) == [file for file in files if "val" in file.parts]


@pytest.mark.parametrize("instructions", ["AVX2", "SSE41"])
def test_X605_a_cpu_without_the_newest_instructions_answers_alike(exported: Path, instructions: str) -> None:
    here = [a.probabilities["PNEUMONIA"] for a in medloom.load(exported).predict(golden_images(3, 64, 1))]
    assert answers_of_an_older_cpu(exported, instructions, 64) == pytest.approx(here, abs=1e-4)
