"""``medloom export``: the networks of a bundle written anew, each proved from file to answer in a clean process."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.errors import ExportError, ModelError, UsageError
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress

if TYPE_CHECKING:
    from medloom.deployment.bundle import Bundle
    from medloom.deployment.bundle_folder import Opened
    from medloom.deployment.bundle_segmenter import SegmenterBundle

PARITY_IMAGES = 64
PARITY_CASES = 4


def export(
    source: str | Path,
    *,
    openvino: bool = True,
    data: str | Path | None = None,
    out: str | Path | None = None,
    keep: float | None = None,
    accept: Sequence[str] = (),
    quiet: bool = True,
) -> Outcome:
    """Write ONNX, and beside it an OpenVINO IR, from the weights of a bundle; in its place, or into ``out``.

    Each network is asked in a process of its own without torch, in batches of 1, 2, 7 and 32 (windows of masks: fewer),
    and compared with the trained one on validation images, from file to decision or mask. Unless every one answers
    alike nothing is written, and what was there stays.

    Args:
        source: run directory or bundle.
        data: images to prove a bare bundle on, or where a run's images lie now.
        out: a new folder, or a bundle that may be replaced; default in place, with ``keep`` beside the bundle.
        keep: another keep rate of a model that prunes its tokens. Its answers to all validation images must hold
            against those of the trained rate, as a quantised network's must.

    Raises:
        ExportError: X601, X602. GateError: X604 the answers at ``keep`` do not hold. ModelError: what ``medloom.load``
            raises. UsageError: U208 ``keep``, U210, U212 ``out`` is something else than a bundle, U244, U245 a bundle
            that is quantised. ResourceError: T404, T405.
    """
    from medloom.deployment.bundle import Bundle, load
    from medloom.deployment.bundle_folder import open_folder
    from medloom.deployment.bundle_rewrite import rewrite
    from medloom.deployment.export import restore_model
    from medloom.deployment.runtime_engines import import_openvino
    from medloom.workflows.bundle_images import images_of
    from medloom.workflows.keep_rate import described, golden_answers, held_answers, set_rate

    if openvino:
        import_openvino()  # missing: said before the work
    opened = open_folder(source)
    if "quantisation" in opened.document:
        told = "it is quantised, and its float network is another bundle"
        raise UsageError("U245", opened.root, told, "Export the bundle that it was made from")
    place = _place(opened, out, keep)
    bundle = load(source, runtime="onnx")
    model = restore_model(bundle)
    changes: dict[str, Any] = {}
    if keep is not None:
        set_rate(model, opened.root, keep)
        changes = described(opened, keep)
    images = images_of(source, bundle, data=data, accept=accept, quiet=quiet)
    part = images.split("val")
    limit = PARITY_CASES if bundle.document["task"] == "segmentation" else PARITY_IMAGES
    chosen = np.linspace(0, len(part) - 1, min(limit, len(part)), dtype=int)
    step = Progress("exporting", quiet=quiet)
    files, said = float_networks(model, bundle, openvino=openvino)
    if keep is not None:
        assert isinstance(bundle, Bundle)  # a segmenter has no keep rate, which set_rate says
        files["golden.npz"] = golden_answers(model, opened, bundle)
        changes["keep"] = held_answers(files["model.onnx"], opened, bundle, images, keep, quiet=quiet)
    with tempfile.TemporaryDirectory() as folder:
        # Parity is recorded in the bundle that is kept, so what is asked is its twin, without these figures.
        try:
            twin = rewrite(opened, Path(folder) / "bundle", files=files, changes={**changes, "runtimes": said})
        except ModelError as problem:
            # Golden images see a wrong network before the validation images do.
            raise ExportError("X602", opened.root, problem.problem, "Nothing was written. Report the model") from None
        for name in said:
            step.sometimes(f"asking {name} in a clean process")
            parity, milliseconds = _prove(model, bundle, twin, name, images.pictures(part, chosen))
            said[name] |= {"parity": parity, "milliseconds_per_image_at_batch": milliseconds}
    rewrite(opened, place, files=files, changes={**changes, **_changes(opened, bundle, said)})
    return _told(place, opened, said, changes.get("keep", {}).get("told", []))


def float_networks(
    model: Any, bundle: Bundle | SegmenterBundle, *, openvino: bool
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The files of a network in float32, and what ``runtimes`` of model.json says of them; an older IR is taken out.

    Raises:
        ExportError: X601.
    """
    from medloom.deployment.bundle_rewrite import without_ir
    from medloom.deployment.bundle_runtimes import FLOAT32, TOLERANCE
    from medloom.deployment.export import onnx_bytes
    from medloom.deployment.openvino_ir import ir_of

    runtime = bundle.pipeline.runtime
    onnx = onnx_bytes(model, in_chans=runtime.in_chans, size=runtime.size)
    files: dict[str, Any] = {**without_ir(), "model.onnx": onnx}
    names = ["onnx"]
    if openvino:
        files["model.xml"], files["model.bin"] = ir_of(onnx, bundle.root / "model.xml")
        names.append("openvino")
    return files, {name: {"precision": FLOAT32, "tolerance": TOLERANCE} for name in names}


def _place(opened: Opened, out: str | Path | None, keep: float | None) -> Path:
    """Where the bundle is written: what is there is replaced, so it must be a bundle."""
    own = opened.root if keep is None else opened.root.with_name(f"{opened.root.name}-keep{keep:g}")
    place = own if out is None else Path(out)
    if place.exists() and not (place / "model.json").is_file():
        raise UsageError("U212", place, "something is there that is no bundle", "Name a new folder with --out")
    return place


def _prove(
    model: Any, bundle: Bundle | SegmenterBundle, twin: Path, name: str, pictures: list[Any]
) -> tuple[dict[str, Any], dict[str, float]]:
    from medloom.deployment.bundle import Bundle
    from medloom.deployment.parity import check_clean, expected_answers

    if isinstance(bundle, Bundle):
        return check_clean(expected_answers(model, bundle.pipeline, pictures), twin, name, pictures)
    from medloom.deployment.parity_segmenter import check_masks_clean

    return check_masks_clean(model, bundle.pipeline, twin, name, pictures)


def _changes(opened: Opened, bundle: Bundle | SegmenterBundle, said: dict[str, dict[str, Any]]) -> dict[str, Any]:
    unit = "window" if opened.document["task"] == "segmentation" else "image"
    latency = {
        f"milliseconds_per_{unit}_at_batch": said["onnx"]["milliseconds_per_image_at_batch"],
        "threads": bundle.pipeline.runtime.threads,
        "machine": platform.machine(),
        "runtime": "ONNX Runtime, CPU, float32",
    }
    return {"runtimes": said, "parity": said["onnx"]["parity"], "latency": latency}


def _told(place: Path, opened: Opened, said: dict[str, dict[str, Any]], kept: Sequence[str]) -> Outcome:
    from medloom.deployment.runtime_engines import TITLES

    lines = list(kept)
    for name, values in said.items():
        parity, speed = values["parity"], values["milliseconds_per_image_at_batch"]
        what = f"{parity['images']} images" if "images" in parity else f"{parity['cases']} cases"
        lines.append(
            f"{TITLES[name]}: probabilities off by {parity['max_probability_difference']:.1e} at most on {what}, no "
            f"decision flipped; {speed['1']:.3g} ms alone"
        )
    values = {"bundle": place, "name": opened.document["name"], "runtimes": said}
    return Outcome(values, (*lines, f"open {place / 'CARD.md'}"))
