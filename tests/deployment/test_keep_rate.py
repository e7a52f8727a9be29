"""One checkpoint, bundles at several keep rates: ``medloom export --keep``, and the twin of ``medloom benchmark``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL

import medloom
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle_folder import open_folder
from medloom.deployment.export import export_bundle, restore_model
from medloom.deployment.parity import reference_logits
from medloom.errors import GateError, UsageError
from medloom.models.registry import create_model
from medloom.workflows.benchmark import benchmark
from medloom.workflows.export import export
from medloom.workflows.keep_rate import compared

NETWORK = {"name": "token_pruned", "num_classes": 2, "in_chans": 1, "image_size": [64, 64]}
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "keep_rate": 0.5}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark films and bright ones, which any network tells apart; a validation part that an AUC can be taken of."""
    root, draw = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for k in range(36):
        split, name = ("train" if k < 8 else "val"), ("NORMAL", "PNEUMONIA")[k % 2]
        (root / split / name).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 60, (64, 64), dtype=np.uint8) + np.uint8(180 * (k % 2))
        PIL.fromarray(pixels).save(root / split / name / f"p{k}_1.png")
    return root


def bundle_at(place: Path, *, loud: float = 1.0) -> Path:
    """A bundle at keep rate 0.5; ``loud`` times the logits."""
    torch.manual_seed(1)
    model = create_model(**NETWORK, **SMALL).eval()
    with torch.no_grad():
        model.head.weight *= loud
    return export_bundle(
        model,
        place,
        name="few",
        architecture={**NETWORK, **SMALL},
        classes=("NORMAL", "PNEUMONIA"),
        task="binary",
        preprocess=Preprocess(size=(64, 64), channels="grey", mean=(0.4,), std=(0.3,)),
        images=golden_images(4, 64, 3),
    )


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_at(tmp_path_factory.mktemp("half") / "bundle")


def test_another_rate_is_a_bundle_of_the_same_weights(half: Path, labelled: Path) -> None:
    done = export(half, data=labelled, keep=0.25, accept=("D120",))
    place = half.with_name("bundle-keep0.25")
    assert done.values["bundle"] == place
    said = json.loads((place / "model.json").read_text())
    assert said["architecture"]["keep_rate"] == said["keep"]["rate"] == 0.25
    assert said["keep"]["before"] == 0.5
    assert said["keep"]["made_from"] == medloom.load(half).hash
    assert said["name"] == "few, keep 0.25"
    assert (place / "model.safetensors").read_bytes() == (half / "model.safetensors").read_bytes()
    assert "Keep rate 0.25 in place of 0.5" in (place / "CARD.md").read_text()
    assert done.lines[0].startswith("Keep rate 0.25")

    image = golden_images(1, 64, 9)[0]
    model = restore_model(medloom.load(half))
    model.set_keep(0.25)
    for runtime in ("onnx", "openvino"):
        bundle = medloom.load(place, runtime=runtime)
        (answer,) = bundle.predict(image)
        wanted = reference_logits(model, bundle.pipeline, [bundle.preprocess.to_uint8(open_picture(bundle, image))])
        assert list(answer.logits.values()) == pytest.approx(wanted[0], abs=1e-4)
    other = medloom.load(half).predict(image)[0]
    assert list(answer.logits.values()) != pytest.approx(list(other.logits.values()), abs=1e-4)


def open_picture(bundle: Any, image: np.ndarray) -> Any:
    return bundle.pipeline.open(image, "image")


def test_X604_answers_that_do_not_hold_leave_nothing(tmp_path: Path) -> None:
    for k, image in enumerate(golden_images(28, 64, 5)):  # much alike, so a loud network moves and turns some over
        place = tmp_path / "films" / ("train" if k < 2 else "val") / ("NORMAL", "PNEUMONIA")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        PIL.fromarray(image).save(place / f"p{k}_1.png")
    bundle = bundle_at(tmp_path / "bundles" / "bundle", loud=300.0)
    with pytest.raises(GateError) as caught:
        export(bundle, data=tmp_path / "films", keep=0.25, accept=("D120",))
    assert caught.value.code == "X604"
    assert caught.value.exit_code == 6
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("keep", [0.0, 1.5, float("nan")])
def test_U208_a_rate_that_is_none(half: Path, labelled: Path, tmp_path: Path, keep: float) -> None:
    with pytest.raises(UsageError) as caught:
        export(half, data=labelled, out=tmp_path / "b", keep=keep)
    assert caught.value.code == "U208"
    assert not list(tmp_path.iterdir())


def test_U208_a_model_that_keeps_all_its_tokens(labelled: Path, tmp_path: Path) -> None:
    architecture = {"name": "conv2d", "num_classes": 2, "in_chans": 1, "image_size": [32, 32]}
    bundle = export_bundle(
        create_model(**architecture).eval(),
        tmp_path / "bundle",
        name="all",
        architecture=architecture,
        classes=("NORMAL", "PNEUMONIA"),
        task="binary",
        preprocess=Preprocess(size=(32, 32), channels="grey", mean=(0.4,), std=(0.3,)),
        images=golden_images(2, 64, 3),
    )
    with pytest.raises(UsageError) as caught:
        export(bundle, data=labelled, keep=0.5)
    assert caught.value.code == "U208"


def test_U212_a_folder_that_is_no_bundle_is_left_alone(half: Path, labelled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / "state").write_text("weeks of work")
    with pytest.raises(UsageError) as caught:
        export(half, data=labelled, out=run)
    assert caught.value.code == "U212"
    assert (run / "checkpoint" / "state").read_text() == "weeks of work"


def test_a_twin_with_all_tokens_is_measured_beside(half: Path, tmp_path: Path) -> None:
    done = benchmark([half], out=tmp_path / "page.html", threads=1, seconds=0.0)
    own, twin = done.values["rows"]
    assert (own["keep_rate"], twin["keep_rate"]) == (0.5, 1.0)
    assert twin["twin_of"] == own["bundle"] == str(half)
    (found,) = done.values["fewer_tokens"]
    ratio = twin["batch 16"]["network"]["median_ms"] / own["batch 16"]["network"]["median_ms"]
    assert found["faster"]["batch 16"] == pytest.approx(ratio, abs=0.006)
    assert done.lines[-2] == found["told"]
    assert found["told"] in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "keep" not in open_folder(half).document  # the bundle that was measured is as it was


def test_pruning_that_does_not_pay_is_told() -> None:
    def row(bundle: str, one: float, many: float, **more: Any) -> dict[str, Any]:
        times = {"batch 1": {"network": {"median_ms": one}}, "batch 16": {"network": {"median_ms": many}}}
        return {"bundle": bundle, "runtime": "onnx", "precision": "float32", **times, **more}

    dense = row("b, all tokens", 10.0, 100.0, twin_of="b", keep_rate=1.0)
    (found,) = compared([row("b", 9.8, 50.0, keep_rate=0.5), dense])
    assert found["faster"] == {"batch 1": 1.02, "batch 16": 2.0}
    assert not found["pays"]
    assert found["told"].endswith("pruning does not pay at batch 1")
    (found,) = compared([row("b", 5.0, 50.0, keep_rate=0.5), dense])
    assert found["pays"]
    assert "does not pay" not in found["told"]
    assert compared([row("b", 5.0, 50.0, keep_rate=0.5), {**dense, "runtime": "openvino"}]) == []
