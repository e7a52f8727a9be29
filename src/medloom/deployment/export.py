"""From a trained network to a bundle: one ONNX file, and proof that it answers as the network does.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.data.images import MIN_SIDE
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle import Bundle, write_bundle
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.deployment.parity import check_parity, frozen, reference_logits
from medloom.deployment.runtime import Picture, Pipeline, Runtime, open_image
from medloom.errors import ExportError, ModelError
from medloom.evaluation.operating_point import thresholds
from medloom.files import write_bytes

OPSET = 18
GOLDEN = 4
LICENCES = {
    "software": "Apache-2.0 (MedLoom)",
    "weights": "not stated; ask whoever trained them, and mind the terms of the training images",
    "golden images": "synthetic, free of rights and of patients",
}

_CHATTY = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")


def export_onnx(model: nn.Module, path: str | Path, *, in_chans: int, size: tuple[int, ...]) -> Path:
    """Write ``model`` as one ONNX file: float32 ``image (batch, C, *size)`` to ``logits (batch, K)``, any batch.

    Of a segmenter ``logits (batch, K, *size)``; ``size`` has three lengths for volumes.

    Raises:
        ExportError: X601 an operation that ONNX or its runtime has not, with the module it stands in.
        ResourceError: T404, T405 when it cannot be written.
    """
    data = onnx_bytes(model, in_chans=in_chans, size=size)
    write_bytes(path, data)
    return Path(path)


def onnx_bytes(model: nn.Module, *, in_chans: int, size: tuple[int, ...]) -> bytes:
    """The content of the ONNX file; see :func:`export_onnx`."""
    model = frozen(model)
    # Two images: the tracer takes a batch of one for a constant.
    example_BCS = torch.zeros(2, in_chans, *size)
    with _quiet():
        try:
            program = torch.export.export(model, (example_BCS,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as problem:
            raise _untraceable(model, problem) from problem
        try:
            exported = torch.onnx.export(
                program,
                input_names=["image"],
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as problem:
            raise _missing_operator(model, program, problem) from problem
    if exported is None:
        raise ExportError("X601", type(model).__name__, "the exporter gave nothing", "Report this model")
    proto = exported.model_proto
    _strip(proto)
    data = bytes(proto.SerializeToString())
    try:
        Runtime(data)
    except ModelError as problem:
        remedy = "Change that operation in the model, or update onnxruntime"
        raise ExportError("X601", type(model).__name__, problem.problem, remedy) from problem
    return data


def export_bundle(
    model: nn.Module,
    directory: str | Path,
    *,
    name: str,
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    task: str,
    preprocess: Preprocess,
    images: Sequence[Picture],
    temperature: float = 1.0,
    operating_point: Mapping[str, Any] | None = None,
    flip_average: bool = False,
    decoding: Mapping[str, Any] | None = None,
    expected_input: Mapping[str, Any] | None = None,
    licences: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    intended_use: str | None = None,
    golden_seed: int = 0,
) -> Path:
    """Export, compare on real ``images``, record golden answers and latency, and write the bundle.

    Nothing is left in ``directory`` unless every step passed; a bundle that was there before stays until then.

    Args:
        images: validation images for parity.
        architecture: ``{"name": ..., **kwargs}`` with which ``create_model`` builds this model.
        decoding: ``frames`` and ``max_megapixels`` of the data configuration; frames of their own (``all``) are
            answered one file at a time, so they count as ``refuse``.

    Raises:
        ExportError: X601 operator missing, X602 parity.
        ModelError: what ``medloom.load`` would refuse in the bundle.
    """
    model, decoding = frozen(model), of_one_file(decoding)
    onnx = onnx_bytes(model, in_chans=preprocess.in_chans, size=preprocess.size)
    cuts = thresholds(operating_point)
    pipeline = Pipeline(
        tuple(classes), task, preprocess, temperature, cuts, Runtime(onnx), flip_average, **(decoding or {})
    )
    parity = check_parity(model, pipeline, images)
    golden = golden_inputs(preprocess, golden_seed)
    pixels = [preprocess.to_uint8(open_image(image, "golden")) for image in golden]
    return write_bundle(
        directory,
        name=name,
        architecture=architecture,
        classes=classes,
        task=task,
        preprocess=preprocess,
        temperature=temperature,
        operating_point=operating_point,
        flip_average=flip_average,
        decoding=decoding,
        weights={key: tensor.numpy() for key, tensor in model.state_dict().items()},
        onnx=onnx,
        golden_images=golden,
        golden_logits=reference_logits(model, pipeline, pixels),
        expected_input=expected_input or _expected(preprocess),
        licences=licences or LICENCES,
        provenance=provenance or {},
        metrics=metrics,
        latency={"milliseconds_per_image_at_batch": pipeline.runtime.latency(), **timed_on(pipeline.runtime)},
        parity=parity,
        intended_use=intended_use,
    )


def of_one_file(decoding: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The decoding of the data configuration, for one answer per file."""
    if decoding is not None and decoding.get("frames") == "all":
        return {**decoding, "frames": "refuse"}
    return decoding


def timed_on(runtime: Runtime) -> dict[str, Any]:
    """Where and with what the times of an exported network were taken."""
    return {"threads": runtime.threads, "machine": platform.machine(), "runtime": "ONNX Runtime, CPU, float32"}


def restore_model(bundle: Bundle | SegmenterBundle) -> nn.Module:
    """The torch network of a verified bundle, in evaluation mode: for explanation, not for answers.

    Raises:
        ModelError: C505 when the weights do not fit the architecture.
    """
    from medloom.models.registry import create_model
    from medloom.models.weights import load_weights

    model = create_model(**bundle.document["architecture"])
    load_weights(model, bundle.root)
    return model.eval()


def _expected(preprocess: Preprocess) -> dict[str, str]:
    height, width = preprocess.size
    return {
        "content": "one image per file, of the kind that the training images were",
        "colour": "red, green, blue" if preprocess.channels == "rgb" else "grey; colours are turned into grey",
        "depth": "8 or 16 bits per channel, taken from the file",
        "size": f"{height} x {width} pixels, no other"
        if preprocess.resize == "none"
        else f"from {MIN_SIDE} pixels a side; resized to {height} x {width} ({preprocess.resize})",
    }


def golden_inputs(preprocess: Preprocess, seed: int, count: int = GOLDEN) -> list[np.ndarray]:
    """Phantoms that are neither square nor of the model's size, so that resizing is part of what is proved."""
    side = max(64, round(max(preprocess.size) * 1.25))
    height, width = preprocess.size if preprocess.resize == "none" else (side, round(side * 0.9))
    colours = 3 if preprocess.channels == "rgb" else 1
    phantoms = [p[:height, :width] for p in golden_images(count * colours, side, seed)]
    if colours == 1:
        return phantoms
    # Three different ones as channels: the order of colours is then part of it too.
    return [np.stack(phantoms[k : k + 3], axis=2) for k in range(0, len(phantoms), 3)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs its progress, and warns of its own use of a deprecated class."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    try:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*", category=FutureWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _strip(proto: Any) -> None:
    """The exporter writes source paths and stack traces of this machine into every node: they go."""
    pending = [proto]
    while pending:
        message = pending.pop()
        for descriptor, value in message.ListFields():
            if descriptor.name in ("metadata_props", "doc_string"):
                message.ClearField(descriptor.name)
            elif descriptor.message_type is not None:
                pending.extend(value if hasattr(value, "__len__") else [value])


def _untraceable(model: nn.Module, problem: Exception) -> ExportError:
    text = " ".join(str(problem).split())[:200] or type(problem).__name__
    module = re.findall(r"nn_module_stack.*?'([\w.]+)'", str(problem))
    place = f"{type(model).__name__}{'.' + module[-1] if module else ''}"
    return ExportError("X601", place, f"cannot be traced ({text})", "Write that part without data-dependent control")


def _missing_operator(model: nn.Module, program: torch.export.ExportedProgram, problem: Exception) -> ExportError:
    """Name the operation and the module that it stands in, from the exporter's text and the traced graph."""
    text = f"{problem} {problem.__cause__}"
    operators = re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)
    names = re.findall(r"Error when translating node %(\w+)", text)
    operator = operators[0] if operators else (names[0] if names else " ".join(text.split())[:160])
    place = type(model).__name__
    for node in program.graph.nodes:
        same = node.name in names or operator.split(".")[-1] in str(node.target)
        if same and node.op == "call_function" and node.meta.get("nn_module_stack"):
            path, kind = list(node.meta["nn_module_stack"].values())[-1]
            kind = kind if isinstance(kind, str) else kind.__name__
            place = f"{type(model).__name__}.{path} ({kind.split('.')[-1]})".replace("L['self'].", "")
            break
    return ExportError("X601", place, f"ONNX has no operator for {operator}", "Write that step with other operations")
