"""A tiny bundle made without torch."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from medloom.config import EvaluationConfig
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.deployment.runtime import Pipeline, Runtime, open_image
from medloom.evaluation.operating_point import choose_operating_points
from medloom.evaluation.predictions import from_logits
from medloom.evaluation.summary import summarise

CLASSES = ("NORMAL", "PNEUMONIA")
PREPROCESS = Preprocess(size=(32, 24), channels="grey", intensity="percentile", mean=(0.4,), std=(0.3,))


def tiny_weights(classes: int = 2, in_chans: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": (4, in_chans, 5, 5), "head.weight": (classes, 4), "head.bias": (classes,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tiny_model(weights: dict[str, np.ndarray], size: tuple[int, int] = (32, 24)) -> onnx.ModelProto:
    """Convolution, rectifier, mean, linear."""
    in_chans, classes = weights["conv.weight"].shape[1], len(weights["head.bias"])
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", in_chans, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def operating_point(classes: tuple[str, ...] = CLASSES, seed: int = 0, temperature: float = 1.5) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = np.arange(160) % len(classes)
    logits = rng.normal(size=(160, len(classes))) + 2 * np.eye(len(classes))[labels]
    table = from_logits(
        [str(i) for i in range(160)], [None] * 160, [None] * 160, labels, logits, classes, temperature=temperature
    )
    config = EvaluationConfig(resamples=20)
    return choose_operating_points(table, config, timestamp="2026-01-01T00:00:00Z", temperature=temperature)


@functools.cache
def metrics() -> dict[str, Any]:
    """What a run would record: a test split with both classes, and one that lacks positives."""
    rng = np.random.default_rng(0)
    ids, none = [str(i) for i in range(120)], [None] * 120
    labels = np.arange(120) % 2
    logits = rng.normal(size=(120, 2)) + np.eye(2)[labels]
    test = from_logits(ids, none, none, labels, logits, CLASSES, temperature=1.5)
    val = from_logits(ids, none, none, labels * 0, logits, CLASSES, temperature=1.5, split="val")
    config = EvaluationConfig(resamples=20)
    return summarise(test, validation=val, operating_points=operating_point(), temperature=1.5, config=config)


def parts(preprocess: Preprocess = PREPROCESS, **changes: Any) -> dict[str, Any]:
    """Arguments of ``write_bundle`` that fit each other."""
    weights = changes.pop("weights", None) or tiny_weights(in_chans=preprocess.in_chans)
    data = tiny_model(weights, preprocess.size).SerializeToString()
    classes = changes.get("classes", CLASSES)
    pipeline = Pipeline(tuple(classes), "multi_label", preprocess, 1.0, {}, Runtime(data))
    golden = [image[:, :50] for image in golden_images(3, 64, 7)]
    pixels = np.stack([preprocess.to_uint8(open_image(image, "golden")) for image in golden])
    made: dict[str, Any] = {
        "name": "tiny",
        "architecture": {"name": "tiny", "num_classes": len(classes)},
        "classes": classes,
        "task": "binary" if len(classes) == 2 else "multi_class",
        "preprocess": preprocess,
        "temperature": 1.5,
        "operating_point": operating_point(classes),
        "weights": weights,
        "onnx": data,
        "golden_images": golden,
        "golden_logits": pipeline.logits(pixels),
        "expected_input": {"modality": "chest radiograph, frontal", "bits": "8 to 16"},
        "licences": {"model": "Apache-2.0"},
        "provenance": {"data": "0" * 64, "recipe": "1" * 64},
        "metrics": metrics(),
    }
    return made | changes


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()
