"""Networks in eight bits: OpenVINO's through NNCF, and ONNX Runtime's; softmax and norms stay float.

Both take a float network and calibration batches and give the same kind of file back, with the layers that are named
left in float; :func:`with_fallback` finds out which layers those must be. No torch.

Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018. Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from medloom.deployment.openvino_ir import Ir, serialised
from medloom.deployment.runtime_engines import import_openvino
from medloom.errors import ExportError, UsageError

Network = TypeVar("Network")
GROUPS = 8
"""Into so many groups of neighbouring layers a network is divided to find what hurts."""

FLOAT_SHARE = 0.5
"""With more of its layers in float a network is no longer called quantised."""

_FLOAT_TYPES = ("Softmax", "SoftMax", "LogSoftmax", "MVN", "NormalizeL2")
_OPENVINO_LAYERS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
_ONNX_LAYERS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Quantised(Generic[Network]):
    """A network in eight bits.

    Attributes:
        layers: how many layers there are to quantise.
        float_layers: names of those that were left in float.
        judged: what ``judge`` said of it.
    """

    network: Network
    layers: int
    float_layers: tuple[str, ...]
    judged: Any


def with_fallback(
    quantise: Callable[[Sequence[str]], Network],
    layers: Sequence[str],
    judge: Callable[[Network], tuple[bool, Any]],
    error: Callable[[Network], float],
) -> Quantised[Network]:
    """Quantise everything; where that is judged too coarse, leave those groups of layers in float that hurt most.

    Neighbouring layers form ``GROUPS`` groups. Each is left in float alone, and ``error`` says how far the outputs then
    are from the float network's; in that order groups are left out one after another until ``judge`` passes it.

    Args:
        quantise: the network with these layers in float.
        layers: names in order of computation.
        judge: whether it may be used, and the figures.
        error: on calibration images, so that validation images are not used for the choice.

    Returns:
        The first that passed; if none did before ``FLOAT_SHARE`` of the layers were float, the best of them by
        ``error``, whose ``judged`` says that it may not be used.
    """
    best = Quantised(network := quantise(()), len(layers), (), judge(network))
    if best.judged[0] or len(layers) < 2:
        return best
    least = error(network)
    groups = [tuple(part) for part in np.array_split(np.array(layers, dtype=object), min(GROUPS, len(layers)))]
    gains = sorted(groups, key=lambda group: error(quantise(group)))
    left: tuple[str, ...] = ()
    for group in gains:
        left = (*left, *group)
        if len(left) > FLOAT_SHARE * len(layers):
            break
        tried = Quantised(network := quantise(left), len(layers), left, judge(network))
        if tried.judged[0]:
            return tried
        if (off := error(network)) < least:
            best, least = tried, off
    return best


def openvino_layers(ir: Ir) -> tuple[str, ...]:
    """Names of the layers that hold most of the work, in order of computation."""
    network = _network(ir)
    return tuple(o.get_friendly_name() for o in network.get_ordered_ops() if o.get_type_name() in _OPENVINO_LAYERS)


def quantise_openvino(ir: Ir, images_NCHW: np.ndarray, keep_float: Sequence[str] = ()) -> Ir:
    """An IR in eight bits, calibrated on ``images_NCHW`` (float32, as the network takes them).

    Networks with attention are quantised by NNCF's rules for transformers: activations of matrix products symmetric,
    their channels smoothed into the weights before (Xiao et al., "SmoothQuant", ICML 2023).

    Raises:
        UsageError: U210 NNCF or OpenVINO is not installed. ExportError: X601 NNCF cannot quantise this network.
    """
    nncf = import_nncf()
    range_estimator = importlib.import_module("nncf.quantization.range_estimator")
    network = _network(ir)
    attends = any(o.get_type_name() in ("Softmax", "ScaledDotProductAttention") for o in network.get_ordered_ops())
    data = nncf.Dataset([images_NCHW[k : k + 1] for k in range(len(images_NCHW))])
    with _quiet():
        try:
            made = nncf.quantize(
                network,
                data,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images_NCHW),
                model_type=nncf.ModelType.TRANSFORMER if attends else None,
                # Not the mean of the images' own ranges, as NNCF would: a rare bright finding must not be cut off.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    activations_range_estimator_params=range_estimator.RangeEstimatorParametersSet.MINMAX
                ),
                ignored_scope=nncf.IgnoredScope(names=list(keep_float), types=list(_FLOAT_TYPES), validate=False),
            )
        except Exception as problem:
            told = f"NNCF cannot quantise it: {' '.join(str(problem).split())[:200]}"
            raise ExportError("X601", "model.xml", told, "Quantise with --runtimes onnx") from problem
    return serialised(made)


def onnx_layers(onnx: bytes) -> tuple[str, ...]:
    """Names of the layers that hold most of the work, in order of computation."""
    import onnx as library

    graph = library.load_from_string(onnx).graph
    return tuple(node.name for node in graph.node if node.op_type in _ONNX_LAYERS)


def prepared_onnx(onnx: bytes) -> bytes:
    """The file to name layers in and to quantise: shapes are inferred, and operations fused as the runtime will do it.

    Pairs are then not torn apart; a fused layer has another name than those that it came from.

    Raises:
        ExportError: X601 ONNX Runtime cannot quantise this network.
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, ready = Path(folder, "float.onnx"), Path(folder, "ready.onnx")
        given.write_bytes(onnx)
        try:
            quantization.shape_inference.quant_pre_process(str(given), str(ready), skip_symbolic_shape=True)
        except Exception as problem:
            raise _not_quantised(problem) from problem
        return ready.read_bytes()


def quantise_onnx(onnx: bytes, images_NCHW: np.ndarray, keep_float: Sequence[str] = ()) -> bytes:
    """An ONNX file in eight bits for ONNX Runtime: weights signed and per channel, activations unsigned, QDQ form.

    Args:
        onnx: as ``prepared_onnx`` gives it.

    Raises:
        ExportError: X601 ONNX Runtime cannot quantise this network. ValueError: a layer to keep that it has not.
    """
    import onnx as library
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(range(len(images_NCHW)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {name: images_NCHW[row : row + 1]}

    proto = library.load_from_string(onnx)
    name = proto.graph.input[0].name
    if unknown := set(keep_float) - {node.name for node in proto.graph.node}:
        raise ValueError(f"no layers that could stay float: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        ready, made = Path(folder, "ready.onnx"), Path(folder, "int8.onnx")
        ready.write_bytes(onnx)
        try:
            quantization.quantize_static(
                str(ready),
                str(made),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_ONNX_LAYERS),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=list(keep_float),
            )
        except Exception as problem:
            raise _not_quantised(problem) from problem
        return made.read_bytes()


def import_nncf() -> Any:
    """NNCF, kept from sending anything anywhere: it reports its use to its makers otherwise.

    Raises:
        UsageError: U210 it is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with _quiet():
            import nncf
    except ImportError:
        remedy = "Install the extra: pip install 'medloom[deploy]'"
        raise UsageError("U210", "environment", "the package nncf is not installed", remedy) from None
    return nncf


def _not_quantised(problem: Exception) -> ExportError:
    told = f"ONNX Runtime cannot quantise it: {' '.join(str(problem).split())[:200]}"
    return ExportError("X601", "model.onnx", told, "Quantise with --runtimes openvino")


def _network(ir: Ir) -> Any:
    openvino = import_openvino()
    # A copy of the buffer: the network's constants lie in it as long as it lives.
    return openvino.Core().read_model(ir.xml, openvino.Tensor(np.frombuffer(ir.weights, dtype=np.uint8).copy()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries log their progress and warn of what is settled here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
