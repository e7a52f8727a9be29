"""The rows C505 to C508 and C510 of docs/errors.md: parts of other bundles, edited values, weights that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from spoilt_bundle import Forge, document, edit, refused, refused_swap
from tiny_bundle import CLASSES, npz, operating_point, parts, tiny_model, tiny_weights

from medloom.deployment.bundle import load, write_bundle
from medloom.errors import ModelError


def test_C505_parts_that_do_not_fit_each_other(bundle: Path, forge: Forge) -> None:
    three = tiny_weights(classes=3)
    saved = save(three, metadata={"classes": json.dumps(list(CLASSES))})
    forge(bundle, {"model.onnx": tiny_model(three).SerializeToString(), "model.safetensors": saved})
    assert "classes" in str(refused(bundle, "C505"))
    for size in ((24, 32), (32, 32)):
        forge(bundle, {"model.onnx": tiny_model(tiny_weights(), size).SerializeToString()})
        refused(bundle, "C505")
    colour = tiny_model(tiny_weights(in_chans=3)).SerializeToString()
    forge(bundle, {"model.onnx": colour})
    refused(bundle, "C505")


def test_C505_an_unknown_operator_names_itself(bundle: Path, forge: Forge) -> None:
    model = tiny_model(tiny_weights())
    model.graph.node[1].op_type = "Rectify"
    forge(bundle, {"model.onnx": model.SerializeToString()})
    assert "Rectify" in str(refused(bundle, "C505"))


def test_C505_a_fixed_batch_is_refused(bundle: Path, forge: Forge) -> None:
    model = tiny_model(tiny_weights())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    forge(bundle, {"model.onnx": model.SerializeToString()})
    refused(bundle, "C505")


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0, "operating_point": None},
        {"temperature": "warm", "operating_point": None},
        {"task": "guess"},
        {"decoding": {"frames": "all", "max_megapixels": 64.0}},
        {"decoding": {}},
        {"preprocess": {}},
        {"preprocess": None},
        {"operating_point": {"points": 3}},
        {"operating_point": 7},
    ],
)
def test_C505_values_that_make_no_sense(bundle: Path, forge: Forge, changes: dict[str, Any]) -> None:
    forge(bundle, **changes)
    with pytest.raises(ModelError) as caught:
        load(bundle)
    assert caught.value.code in ("C505", "C510")


def test_C506_permuted_classes(bundle: Path, forge: Forge) -> None:
    edit(bundle, classes=list(reversed(CLASSES)))
    refused(bundle, "C506")
    forge(bundle, classes=list(reversed(CLASSES)), operating_point=None)
    assert "NORMAL" in str(refused(bundle, "C506"))  # the weights' own file knows better


def test_C506_renamed_class(bundle: Path) -> None:
    edit(bundle, classes=["NORMAL", "COVID"])
    refused(bundle, "C506")


_SWAPS = [
    {"mean": [0.5]},
    {"std": [0.31]},
    {"intensity": "none"},
    {"intensity": "equalize"},
    {"resize": "pad"},
    {"resize": "crop"},
    {"percentiles": [2.0, 98.0]},
]


@pytest.mark.parametrize("swap", _SWAPS, ids=str)
def test_C507_swapped_preprocessing(bundle: Path, forge: Forge, swap: dict[str, Any]) -> None:
    refused_swap(bundle, forge, "preprocess", swap)


def test_C507_swapped_colour_order_is_seen_by_coloured_golden_images(tmp_path: Path, forge: Forge) -> None:
    from medloom.data.phantom import golden_images
    from medloom.data.preprocess import Preprocess
    from medloom.deployment.runtime import Pipeline, Runtime

    rule = Preprocess(size=(32, 24), channels="rgb", mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
    made = parts(rule)
    colour = np.stack(golden_images(3, 64, 1), axis=2)
    pipeline = Pipeline(CLASSES, "binary", rule, 1.0, {}, Runtime(made["onnx"]))
    logits = [list(next(iter(pipeline.stream([colour]))).logits.values())]
    bundle = write_bundle(tmp_path / "b", **(made | {"golden_images": [colour], "golden_logits": np.array(logits)}))
    weights = made["weights"] | {"conv.weight": made["weights"]["conv.weight"][:, ::-1].copy()}
    forge(bundle, {"model.onnx": tiny_model(weights).SerializeToString()})
    refused(bundle, "C507")


def test_C507_another_network_with_equal_shapes(bundle: Path, forge: Forge) -> None:
    forge(bundle, {"model.onnx": tiny_model(tiny_weights(seed=1)).SerializeToString()})
    assert "golden" in str(refused(bundle, "C507"))


def test_C507_edited_answers_and_no_answers(bundle: Path, forge: Forge) -> None:
    with np.load(bundle / "golden.npz") as golden:
        images, logits = golden["images"], golden["logits"]
    forge(bundle, {"golden.npz": npz(images=images, logits=logits + np.float32(1e-3))})
    refused(bundle, "C507")
    forge(bundle, {"golden.npz": npz(images=images[:0], logits=logits[:0])})
    refused(bundle, "C507")
    forge(bundle, {"golden.npz": npz(images=np.zeros_like(images), logits=logits)})
    refused(bundle, "C507")


def test_C508_weights_with_nan_or_all_zero(bundle: Path, forge: Forge) -> None:
    metadata = {"classes": json.dumps(list(CLASSES))}
    for value in (np.nan, -np.inf, 0.0):
        weights = {name: np.full_like(w, value) for name, w in tiny_weights().items()}
        forge(bundle, {"model.safetensors": save(weights, metadata=metadata)})
        refused(bundle, "C508")
    one = tiny_weights()
    one["head.weight"][0, 0] = np.nan
    forge(bundle, {"model.safetensors": save(one, metadata=metadata)})
    assert "head.weight" in str(refused(bundle, "C508"))


def test_C508_a_network_that_answers_nan(bundle: Path, forge: Forge) -> None:
    weights = tiny_weights()
    weights["head.bias"][:] = np.nan
    forge(bundle, {"model.onnx": tiny_model(weights).SerializeToString()})
    refused(bundle, "C508")


def test_C510_edited_threshold_and_temperature(bundle: Path, forge: Forge) -> None:
    point = document(bundle)["operating_point"]
    point["points"][0]["threshold"] = 0.01
    edit(bundle, operating_point=point)
    refused(bundle, "C510")
    forge(bundle, operating_point=point)  # the point carries its own hash
    refused(bundle, "C510")
    forge(bundle, operating_point=operating_point(), temperature=2.0)
    refused(bundle, "C510")


def test_C510_another_models_operating_point(bundle: Path, forge: Forge, tmp_path: Path) -> None:
    other = write_bundle(
        tmp_path / "other", **parts(weights=tiny_weights(seed=5), operating_point=operating_point(seed=4))
    )
    edit(bundle, operating_point=document(other)["operating_point"])
    refused(bundle, "C510")
    edit(bundle, temperature=1.7)
    refused(bundle, "C510")


def test_C510_thresholds_of_other_classes(bundle: Path, forge: Forge) -> None:
    forge(bundle, operating_point=operating_point(("A", "B")))
    refused(bundle, "C510")
