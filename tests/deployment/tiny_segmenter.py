"""Tiny segmenters, made without torch: a smoothing convolution and a pointwise one, for images and for volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from medloom.data.case_answer import Windows
from medloom.data.case_restore import Grid
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume
from medloom.deployment.bundle_golden import golden_arrays
from medloom.deployment.runtime import Runtime, open_image
from medloom.deployment.segmenter import SegmentPipeline

CLASSES, VALUES = ("background", "lung", "heart"), (0, 255, 7)
KINDS = ("flat", "deep")  # of images, of volumes
PATCH = (12, 10, 8)
FLAT = Preprocess(size=(40, 32), resize="pad", channels="grey", intensity="percentile", mean=(0.4,), std=(0.3,))
DEEP = VolumePreprocess(spacing=(2.0, 2.0, 3.0), mean=(0.3,), std=(0.25,))


def segmenter_weights(axes: int, seed: int = 0, classes: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"body.weight": (4, 1, *(3,) * axes), "head.weight": (classes, 4, *(1,) * axes), "head.bias": (classes,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def segmenter_model(weights: dict[str, np.ndarray], size: tuple[int, ...]) -> onnx.ModelProto:
    classes, pad = len(weights["head.bias"]), [1] * (2 * len(size))
    nodes = [
        helper.make_node("Conv", ["image", "body.weight"], ["a"], pads=pad),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "head.weight", "head.bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, *size])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def a_volume(shape: tuple[int, ...] = (13, 17, 9), seed: int = 3) -> Volume:
    """Blobs at an oblique, flipped place: index axes run to the left, superior and anterior."""
    draw = np.random.default_rng(seed)
    array = draw.normal(100, 10, size=shape)
    array[3:9, 4:12, 2:7] += 300
    array[5:7, 6:9, 3:5] += 400
    angle = np.deg2rad(11)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (turn * [1.7, 2.4, 3.1]) @ np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    affine[:3, 3] = (12.5, -33.0, 71.0)
    return Volume(np.rint(array).astype(np.int16), affine)


def segmenter_parts(axes: int, **changes: Any) -> dict[str, Any]:
    """Arguments of ``write_segmenter`` that fit each other."""
    grid: Grid = changes.pop("preprocess", FLAT if axes == 2 else DEEP)
    settings = {"patch": None if axes == 2 else list(PATCH), "overlap": 0.5, "mirror": False, "keep_largest": False}
    settings |= changes.pop("segmentation", {})
    weights = changes.pop("weights", None) or segmenter_weights(axes)
    size = grid.size if isinstance(grid, Preprocess) else PATCH
    data = segmenter_model(weights, size).SerializeToString()
    pipeline = pipeline_of(grid, settings, data)
    if isinstance(grid, Preprocess):
        from medloom.data.phantom import golden_images

        cases: list[Any] = [open_image(image[:, :50], "golden") for image in golden_images(2, 64, 7)]
    else:
        cases = [a_volume()]
    made: dict[str, Any] = {
        "name": "tiny segmenter",
        "architecture": {"name": "tiny", "num_classes": 3},
        "classes": CLASSES,
        "label_values": VALUES,
        "preprocess": grid,
        "segmentation": settings,
        "weights": weights,
        "onnx": data,
        "golden": golden_arrays(cases, [pipeline.logits(case) for case in cases], grid),
        "expected_input": {"modality": "chest"},
        "licences": {"model": "Apache-2.0"},
        "provenance": {"data": "0" * 64, "recipe": "1" * 64},
    }
    return made | changes


def pipeline_of(grid: Grid, settings: dict[str, Any], data: bytes) -> SegmentPipeline:
    patch = None if settings["patch"] is None else tuple(settings["patch"])
    windows = Windows(patch, settings["overlap"], settings["mirror"])
    return SegmentPipeline(CLASSES, VALUES, grid, windows, settings["keep_largest"], Runtime(data, threads=1))
