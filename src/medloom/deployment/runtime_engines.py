"""The two libraries that run a network on the CPU, behind one face. No torch; each is imported when it is used.

Shapes: B images or windows, C channels, K classes, S the spatial axes.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from typing import Any

import numpy as np

from medloom.errors import ModelError, UsageError

ONNX, OPENVINO = "onnx", "openvino"
TITLES = {ONNX: "ONNX Runtime", OPENVINO: "OpenVINO"}
_CONVERTER = "openvino.tools.ovc"


class OnnxEngine:
    """An ONNX file in ONNX Runtime.

    Raises:
        ModelError: C505 when it cannot be run, or is no network with one image input of a free batch size.
    """

    name = ONNX

    def __init__(self, model: bytes, *, threads: int, place: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised; the console stays ours
        self._place, self._errors = place, _ort_errors()
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except self._errors as problem:
            raise ModelError("C505", place, f"ONNX Runtime refuses it: {first_line(problem)}", "Export again") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.inputs = [(tuple(i.shape), i.type == "tensor(float)") for i in inputs]
        self.outputs = [(tuple(o.shape), o.type == "tensor(float)") for o in outputs]
        self._names = (inputs[0].name, outputs[0].name) if inputs and outputs else ("", "")

    def run(self, x_BCS: np.ndarray) -> np.ndarray:
        """Logits of one batch."""
        given, asked = self._names
        try:
            return np.asarray(self._session.run([asked], {given: x_BCS})[0])
        except self._errors as problem:
            raise ModelError(
                "C505", self._place, f"it fails on {len(x_BCS)} images: {first_line(problem)}", "Export again"
            ) from None


class OpenVinoEngine:
    """An OpenVINO IR: ``model`` is the .xml, ``weights`` the .bin; both from memory, so that no path is followed.

    Batches of one run through a network of a fixed shape, which is faster; all others share one of a free batch size.
    Each is compiled when it is first needed.

    Args:
        precision: ``f32``, or ``bf16`` for layers that are not quantised, where the CPU has it.

    Raises:
        ModelError: C505 when it cannot be run. UsageError: U210 OpenVINO is not installed.
    """

    name = OPENVINO

    def __init__(self, model: bytes, weights: bytes, *, threads: int, place: str, precision: str = "f32") -> None:
        openvino = import_openvino()
        self._openvino, self._place = openvino, place
        # Unless it is told otherwise OpenVINO computes in bfloat16 where the CPU can: another answer on each machine.
        self._hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
        }
        self._core = openvino.Core()
        # Kept: the network's constants lie in this very buffer.
        self._weights = np.frombuffer(weights, dtype=np.uint8)
        self._lock = threading.Lock()  # one request per compiled network
        self._compiled: dict[bool, Any] = {}
        self._model = model
        network = self._fresh = self._read()
        self.inputs = [(_axes(port), port.get_element_type() == openvino.Type.f32) for port in network.inputs]
        self.outputs = [(_axes(port), port.get_element_type() == openvino.Type.f32) for port in network.outputs]

    def run(self, x_BCS: np.ndarray) -> np.ndarray:
        """Logits of one batch."""
        with self._lock:
            try:
                return np.array(self._network(x_BCS)([x_BCS])[0])
            except RuntimeError as problem:
                told = f"it fails on {len(x_BCS)} images: {first_line(problem)}"
                raise ModelError("C505", self._place, told, "Export again") from None

    def _network(self, x_BCS: np.ndarray) -> Any:
        alone = len(x_BCS) == 1
        if alone not in self._compiled:
            network = self._read() if self._fresh is None else self._fresh
            self._fresh = None
            if alone:
                network.reshape(list(x_BCS.shape))
            self._compiled[alone] = self._core.compile_model(network, "CPU", self._hints)
        return self._compiled[alone]

    def _read(self) -> Any:
        try:
            return self._core.read_model(self._model, self._openvino.Tensor(self._weights))
        except RuntimeError as problem:
            raise ModelError(
                "C505", self._place, f"OpenVINO refuses it: {first_line(problem)}", "Export again"
            ) from None


def import_openvino() -> Any:
    """The OpenVINO package.

    Raises:
        UsageError: U210 it is not installed.
    """
    # Its converter of other frameworks' models takes more than half of the import, and an answer does not need it. The
    # package itself goes on without, where that cannot be imported.
    late = "openvino" not in sys.modules and _CONVERTER not in sys.modules
    if late:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError:
        remedy = "Install the extra: pip install 'medloom[deploy]', or choose --runtime onnx"
        raise UsageError("U210", "environment", "the package openvino is not installed", remedy) from None
    finally:
        if late:
            sys.modules.pop(_CONVERTER, None)
    if not hasattr(openvino, "convert_model"):
        openvino.convert_model = _convert_model
    return openvino


def _convert_model(*arguments: Any, **options: Any) -> Any:
    """``openvino.convert_model`` for whoever else in this process wants it, imported then."""
    return importlib.import_module(_CONVERTER).convert_model(*arguments, **options)


def installed(name: str) -> bool:
    """Whether a runtime is installed; nothing is imported."""
    try:
        return importlib.util.find_spec({ONNX: "onnxruntime", OPENVINO: "openvino"}[name]) is not None
    except ValueError:  # blocked: its entry in sys.modules is None
        return False


def usable_cores() -> int:
    """Cores that this process may use: the runtimes would count those of the whole host."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_line(problem: Exception) -> str:
    """What a library said, in one line, without the places in its own sources that it names."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from src/", "Check '"))] or lines
    return (told or [type(problem).__name__])[0][:200]


def _axes(port: Any) -> tuple[int | None, ...]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return ()
    return tuple(axis.get_length() if axis.is_static else None for axis in shape)


def _ort_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return tuple(getattr(ort, name) for name in names)
