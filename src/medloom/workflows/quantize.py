"""``medloom quantize``: a bundle in eight bits, or in bfloat16, taken only where its answers hold."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medloom.errors import ExportError, GateError, UsageError
from medloom.files import write_json
from medloom.workflows.outcome import Outcome

if TYPE_CHECKING:
    from medloom.deployment.bundle import Bundle
    from medloom.deployment.bundle_folder import Opened
    from medloom.workflows.bundle_images import BundleImages
    from medloom.workflows.quantize_steps import Candidate, Part

CALIBRATION_IMAGES = 128
TOLERANCES = {"int8": 0.02, "bfloat16": 0.05}
"""How far golden logits may be off on another CPU, relative to their size above 1: it rounds such steps otherwise."""

CLEAN_MEAN, CLEAN_LARGEST = 0.005, 0.05
"""How far probabilities of a clean process may be from those that were judged: batches are rounded otherwise."""

CLEAN_IMAGES = 48


def quantize(
    source: str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    precision: Literal["int8", "bf16"] = "int8",
    runtimes: Sequence[str] = ("openvino", "onnx"),
    external: str | Path | None = None,
    images: int = CALIBRATION_IMAGES,
    accept: Sequence[str] = (),
    seed: int = 0,
    quiet: bool = True,
) -> Outcome:
    """Write a new bundle whose networks compute in eight bits, calibrated on training images of as many patients.

    Each network is judged on validation images against the float one: AUC, mean shift of the probabilities, decisions
    that turn over (``deployment.quality_gate``). One that does not hold is tried again with the layers in float that
    hurt most, and then refused; the bundle keeps its float network in that runtime. The same figures are reported for
    the test images (counted in the run's ledger) and for ``external``.

    Args:
        source: run directory or bundle.
        data: of a run: where its images lie now; needed by a bare bundle.
        out: default ``bundle-int8`` (``bundle-bf16``) beside the bundle. Beside it, with the ending .json, stands what
            was found, with each decision that turned over by its id; ids stay out of the bundle.
        precision: ``bf16`` keeps the float files and has OpenVINO compute in bfloat16, where the CPU does.
        images: how many training images calibrate, or all where there are fewer; how many they were is recorded.

    Raises:
        GateError: X604, no network holds; nothing is left. ModelError: C515 a bundle that draws masks.
        UsageError: U210, U212, U244, U245, U246 a CPU without bfloat16, or runtimes that are none.
        ExportError: X601, X602. What reading images raises.
    """
    from medloom.deployment.bundle import load_classifier
    from medloom.deployment.bundle_folder import open_folder
    from medloom.deployment.bundle_rewrite import rewrite
    from medloom.workflows.bundle_images import images_of
    from medloom.workflows.quantize_text import layers, recorded, told

    runtimes = _runtimes(runtimes, precision)
    opened = open_folder(source)
    if "quantisation" in opened.document:
        raise UsageError("U245", opened.root, "it is quantised already", "Give the bundle that it was made from")
    place = Path(out) if out is not None else opened.root.with_name(f"{opened.root.name}-{precision}")
    report = place.with_name(f"{place.name}.json")
    for each in (place, report):
        if each.exists():
            raise UsageError("U212", each, "something is already there", "Name another with --out, or move it away")
    bundle = load_classifier(source, runtime="onnx")
    found = images_of(source, bundle, data=data, accept=accept, quiet=quiet)
    validation, candidates, used = _candidates(opened, bundle, found, precision, runtimes, images, seed, quiet)
    taken = [each for each in candidates if each.passed]
    if not taken:
        reasons = "; ".join(f"{each.name}: {', '.join(each.reports['val']['reasons'])}" for each in candidates)
        remedy = "Keep the float bundle, or calibrate on more images with --images"
        raise GateError("X604", opened.root, f"no network holds on validation: {reasons}", remedy)
    taken = _elsewhere(taken, bundle, found, external, accept, seed, quiet)
    kind = "int8" if precision == "int8" else "bfloat16"
    files: dict[str, bytes | None] = {name: data for each in taken for name, data in each.files.items()}
    files["golden.npz"] = _golden(opened, bundle, taken)
    said = _said(opened, taken, kind)
    changes: dict[str, Any] = {
        "name": f"{opened.document['name']} {kind}",
        "runtimes": said,
        "quantisation": recorded(candidates, taken, kind, used),
        # What was found and timed of the float network is not said of this one.
        "parity": {"network": "the float one that this was made from", **opened.document["parity"]},
        "latency": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        twin = rewrite(opened, Path(folder) / "bundle", files=files, changes=changes)
        for name in said:
            said[name]["milliseconds_per_image_at_batch"] = _clean(twin, name, bundle, found, validation, taken)
    rewrite(opened, place, files=files, changes=changes)
    networks = {each.name: {**layers(each), **each.reports} for each in (*candidates, *taken)}
    write_json(report, {"bundle": place.name, "made_from": bundle.hash, "precision": kind, "networks": networks})
    return told(place, report, candidates, taken, said)


def _candidates(
    opened: Opened,
    bundle: Bundle,
    found: BundleImages,
    precision: str,
    runtimes: Sequence[str],
    images: int,
    seed: int,
    quiet: bool,
) -> tuple[Part, list[Candidate], int]:
    """Validation, the networks that were made, and how many images calibrated them."""
    from medloom.deployment.openvino_ir import Ir, ir_of
    from medloom.workflows import quantize_steps as steps

    training = found.split("train")
    validation = steps.part_of(bundle, found.split("val"), found.config, "val", quiet=quiet)
    onnx, ir = opened.content["model.onnx"], None
    if "openvino" in runtimes:
        stored = [opened.content.get(name) for name in ("model.xml", "model.bin")]
        ir = ir_of(onnx, opened.root / "model.xml") if None in stored else Ir(*stored)  # type: ignore[arg-type]
    if precision == "bf16":
        assert ir is not None
        return validation, [steps.bfloat16_candidate(bundle, ir, validation, seed)], 0
    rows = steps.calibration_rows(training, images, seed)
    pixels_NHWC = steps.pixels_of(bundle, training, found.config, rows, quiet=quiet)
    made = [steps.int8_candidate(bundle, name, onnx, ir, pixels_NHWC, validation, seed) for name in runtimes]
    return validation, made, len(rows)


def _elsewhere(
    taken: list[Candidate],
    bundle: Bundle,
    found: BundleImages,
    external: str | Path | None,
    accept: Sequence[str],
    seed: int,
    quiet: bool,
) -> list[Candidate]:
    """Those that hold on validation, with the same figures for the test images and for another data set."""
    from medloom.workflows import quantize_steps as steps
    from medloom.workflows.bundle_images import labelled
    from medloom.workflows.score import open_test

    parts = {}
    test = found.dataset.select("test")
    if len(test):
        if found.run is not None:
            open_test(found.run, "quantize", found.dataset.hash())
        parts["test"] = steps.part_of(bundle, test, found.config, "test", quiet=quiet)
    if external is not None:
        other = labelled(bundle, external, accept=accept, quiet=quiet)
        parts["external"] = steps.part_of(bundle, other.dataset, other.config, "external", quiet=quiet)
    return [
        replace(
            each,
            reports={**each.reports, **{n: steps.judged(bundle, each.runtime, p, seed) for n, p in parts.items()}},
        )
        for each in taken
    ]


def _golden(opened: Opened, bundle: Bundle, taken: Sequence[Candidate]) -> bytes:
    """golden.npz with each coarser network's own answers beside the float ones."""
    from medloom.deployment.bundle_files import read_arrays
    from medloom.deployment.bundle_folder import golden_bytes
    from medloom.deployment.bundle_runtimes import INT8, golden_key
    from medloom.deployment.runtime import open_image

    arrays = dict(read_arrays(opened.root / "golden.npz", opened.content["golden.npz"]))
    pixels = [bundle.preprocess.to_uint8(open_image(image, "golden")) for image in arrays["images"]]
    for each in taken:
        pipeline = replace(bundle.pipeline, runtime=each.runtime)
        own = {"runtimes": {each.name: {"precision": INT8}}}
        arrays[golden_key(own, each.name, "logits")] = np.concatenate([pipeline.logits(p[None]) for p in pixels])
    return golden_bytes(**arrays)


def _said(opened: Opened, taken: Sequence[Candidate], kind: str) -> dict[str, dict[str, Any]]:
    """``runtimes`` of model.json: the coarser networks, and the float ones where none took their place."""
    from medloom.deployment.bundle_runtimes import stated

    said = stated(opened.document)
    for each in taken:
        said[each.name] = {"precision": kind, "tolerance": TOLERANCES[kind]}
    return said


def _clean(
    twin: Path, name: str, bundle: Bundle, found: BundleImages, validation: Part, taken: Sequence[Candidate]
) -> dict[str, float]:
    """Ask the bundle in a clean process, and measure it there.

    Raises:
        ExportError: X602, it answers otherwise than what was judged.
    """
    from medloom.deployment.bundle_clean import ask
    from medloom.workflows import quantize_steps as steps

    runtime = {each.name: each.runtime for each in taken}.get(name)
    rows = np.linspace(0, len(validation.before) - 1, min(CLEAN_IMAGES, len(validation.before)), dtype=int)
    pictures = found.pictures(validation.dataset, rows) if runtime is not None else []
    with ask(twin, name, pictures, (1, 2, 7, 32) if pictures else ()) as clean:
        if runtime is not None:
            judged = steps.table(bundle, runtime, validation.dataset, validation.pixels_NHWC, "val").probabilities
            off = np.array(
                [np.abs(judged[rows[k]] - list(a["probabilities"].values())).max() for k, a in clean.answers]
            )
            if not off.max() <= CLEAN_LARGEST or not off.mean() <= CLEAN_MEAN:
                told = f"a clean process answers otherwise than what was judged: off by {off.max():.1e} at most"
                raise ExportError("X602", twin, told, "Nothing was written. Report the model")
        return clean.milliseconds


def _runtimes(runtimes: Sequence[str], precision: str) -> tuple[str, ...]:
    from medloom.machine import has_bfloat16

    if precision not in ("int8", "bf16"):
        raise UsageError("U246", precision, "not a precision", "Choose int8 or bf16")
    unknown = [name for name in runtimes if name not in ("openvino", "onnx")]
    if unknown or not runtimes:
        raise UsageError("U246", ", ".join(unknown) or "runtimes", "not a runtime", "Choose from openvino, onnx")
    if precision == "bf16":
        if not has_bfloat16():
            raise UsageError("U246", "this CPU", "it has no bfloat16 instructions", "Quantise with --precision int8")
        return ("openvino",)
    return tuple(dict.fromkeys(runtimes))
