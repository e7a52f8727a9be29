"""From an ONNX file to an OpenVINO IR: the same network, written for the faster runtime."""

from __future__ import annotations

import importlib
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from medloom.deployment.bundle_runtimes import refuse_foreign_ir
from medloom.deployment.runtime import Runtime
from medloom.deployment.runtime_engines import first_line, import_openvino
from medloom.errors import ExportError, ModelError


class Ir(NamedTuple):
    """The two files of an IR."""

    xml: bytes
    weights: bytes


def ir_of(onnx: bytes, place: object = "model.onnx") -> Ir:
    """Convert, and see that OpenVINO runs what was written.

    Raises:
        ExportError: X601 an operation that OpenVINO lacks, by its name.
        UsageError: U210 OpenVINO is not installed.
    """
    openvino = import_openvino()
    try:
        network = openvino.Core().read_model(onnx, b"")
        # As OpenVINO's own converter does it: biases become plain additions, which NNCF must see to correct them.
        importlib.import_module("openvino._offline_transformations").apply_moc_transformations(network, False)
    except RuntimeError as problem:
        raise _refused(place, problem) from None
    return serialised(network, place)


def serialised(network: Any, place: object = "model.xml") -> Ir:
    """The files of a network in memory; they are read back and looked at as a bundle's are.

    Raises:
        ExportError: X601 OpenVINO cannot run it. ModelError: X606.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        openvino.serialize(network, str(xml), str(weights))
        made = Ir(xml.read_bytes(), weights.read_bytes())
    refuse_foreign_ir(place, made.xml, len(made.weights))
    try:
        Runtime(made.xml, weights=made.weights, threads=1, place=str(place))
    except ModelError as problem:
        raise ExportError("X601", place, problem.problem, "Answer with --runtime onnx, and report the model") from None
    return made


def _refused(place: object, problem: Exception) -> ExportError:
    """OpenVINO's text goes on for pages: what it says of operations is kept."""
    found = re.findall(r"No conversion rule found for operations: *([^\n]+)", str(problem))
    named = f"no rule for {', '.join(found)}" if found else first_line(problem)
    told = f"OpenVINO cannot convert it: {named[:200]}"
    return ExportError("X601", place, told, "Export with --no-openvino, and answer through ONNX Runtime")
