"""The steps of ``medloom quantize``: calibration images, a candidate per runtime, and what the gate says of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medloom.config import DataConfig
from medloom.data.images import decode
from medloom.data.records import Dataset
from medloom.deployment.bundle import Bundle
from medloom.deployment.openvino_ir import Ir
from medloom.deployment.quality_gate import quality_gate
from medloom.deployment.quantize import (
    Quantised,
    onnx_layers,
    openvino_layers,
    prepared_onnx,
    quantise_onnx,
    quantise_openvino,
    with_fallback,
)
from medloom.deployment.runtime import Runtime
from medloom.deployment.runtime_engines import ONNX
from medloom.evaluation.predictions import Predictions
from medloom.workflows.progress import Progress
from medloom.workflows.score import predictions_of

BLOCK = 32
ERROR_IMAGES = 32
Thresholds = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Part:
    """Images of one split as the network takes them, and what the float network says of them."""

    dataset: Dataset
    pixels_NHWC: np.ndarray
    before: Predictions


@dataclass(frozen=True, eq=False)
class Candidate:
    """A coarser network in one runtime.

    Attributes:
        files: what of the bundle it consists of; empty where the float files stay.
        quantised: how many layers, and which stayed float; None where precision alone was lowered.
        val: the gate's report on validation; test and an external set join it in ``reports``.
    """

    name: str
    files: Mapping[str, bytes]
    runtime: Runtime
    quantised: Quantised[Any] | None
    reports: Mapping[str, dict[str, Any]]

    @property
    def passed(self) -> bool:
        return bool(self.reports["val"]["passed"])


def calibration_rows(training: Dataset, count: int, seed: int) -> np.ndarray:
    """Positions of ``count`` training images, as many patients as can be: each gives one before any gives a second."""
    draw = np.random.default_rng(seed)
    of_patient: dict[str, list[int]] = defaultdict(list)
    for row, patient in enumerate(training.groups()):
        of_patient[str(patient)].append(row)
    turns = [list(draw.permutation(rows)) for _, rows in sorted(of_patient.items())]
    turns = [turns[i] for i in draw.permutation(len(turns))]
    chosen: list[int] = []
    while len(chosen) < count and any(turns):
        chosen += [int(rows.pop()) for rows in turns if rows]
    return np.array(sorted(chosen[:count]), dtype=np.int64)


def pixels_of(
    bundle: Bundle, part: Dataset, config: DataConfig, rows: Sequence[int] | np.ndarray | None = None, *, quiet: bool
) -> np.ndarray:
    """``(N, H, W, C)`` uint8 of some records, or all.

    Raises:
        DataError: an image that cannot be read.
    """
    records = part.records if rows is None else [part.records[int(i)] for i in rows]
    out = []
    with Progress("reading images", quiet=quiet) as step:
        for record in records:
            out.append(bundle.preprocess.to_uint8(decode(part, record, config)))
            step(len(out), len(records))
    return np.stack(out)


def part_of(bundle: Bundle, dataset: Dataset, config: DataConfig, split: str, *, quiet: bool) -> Part:
    """Images of a split, answered by the bundle's own network."""
    pixels_NHWC = pixels_of(bundle, dataset, config, quiet=quiet)
    return Part(dataset, pixels_NHWC, table(bundle, bundle.pipeline.runtime, dataset, pixels_NHWC, split))


def table(bundle: Bundle, runtime: Runtime, dataset: Dataset, pixels_NHWC: np.ndarray, split: str) -> Predictions:
    """Answers in a runtime, with the bundle's calibration."""
    pipeline = replace(bundle.pipeline, runtime=runtime)
    blocks = [pipeline.logits(pixels_NHWC[k : k + BLOCK]) for k in range(0, len(pixels_NHWC), BLOCK)]
    return predictions_of(dataset, split, np.concatenate(blocks), pipeline.temperature)


def judged(bundle: Bundle, runtime: Runtime, part: Part, seed: int) -> dict[str, Any]:
    """The gate's report on a coarser network."""
    after = table(bundle, runtime, part.dataset, part.pixels_NHWC, part.before.split)
    return quality_gate(part.before, after, thresholds=bundle.pipeline.thresholds, seed=seed)


def int8_candidate(
    bundle: Bundle, name: str, onnx: bytes, ir: Ir | None, pixels_NHWC: np.ndarray, validation: Part, seed: int
) -> Candidate:
    """A network in eight bits, with as many layers in float as the gate asks for.

    Args:
        pixels_NHWC: calibration images.

    Raises:
        ExportError: X601.
    """
    x_NCHW = np.ascontiguousarray(bundle.preprocess.normalise(pixels_NHWC), dtype=np.float32)
    few_NCHW = x_NCHW[:ERROR_IMAGES]
    wanted_NK = bundle.pipeline.runtime.logits(few_NCHW)
    threads = bundle.pipeline.runtime.threads
    quantise: Callable[[Sequence[str]], Any]
    if name == ONNX:
        ready = prepared_onnx(onnx)
        layers = onnx_layers(ready)

        def quantise(left: Sequence[str]) -> bytes:
            return quantise_onnx(ready, x_NCHW, left)

        def run(network: Any) -> Runtime:
            return Runtime(network, threads=threads)
    else:
        assert ir is not None
        layers = openvino_layers(ir)

        def quantise(left: Sequence[str]) -> Ir:
            return quantise_openvino(ir, x_NCHW, left)

        def run(network: Any) -> Runtime:
            return Runtime(network.xml, weights=network.weights, threads=threads)

    def judge(network: Any) -> tuple[bool, Any]:
        report = judged(bundle, run(network), validation, seed)
        return bool(report["passed"]), report

    def error(network: Any) -> float:
        return float(np.square(run(network).logits(few_NCHW) - wanted_NK).mean())

    found = with_fallback(quantise, layers, judge, error)
    files = {"model.onnx": found.network} if name == ONNX else dict(zip(("model.xml", "model.bin"), found.network))
    return Candidate(name, files, run(found.network), found, {"val": found.judged[1]})


def bfloat16_candidate(bundle: Bundle, ir: Ir, validation: Part, seed: int) -> Candidate:
    """The float network of OpenVINO, computed in bfloat16."""
    runtime = Runtime(ir.xml, weights=ir.weights, threads=bundle.pipeline.runtime.threads, precision="bf16")
    files = {"model.xml": ir.xml, "model.bin": ir.weights}
    return Candidate("openvino", files, runtime, None, {"val": judged(bundle, runtime, validation, seed)})
