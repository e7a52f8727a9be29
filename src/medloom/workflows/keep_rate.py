"""A bundle's weights at another keep rate: what changes in it, whether its answers hold, and whether pruning pays.

For ``medloom export --keep`` and for the twin with all tokens of ``medloom benchmark``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medloom.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from medloom.deployment.bundle import Bundle
    from medloom.deployment.bundle_folder import Opened
    from medloom.workflows.bundle_images import BundleImages

PAYS = 1.05
"""A model with fewer tokens that is less than this times as fast as with all of them does not pay."""


def own_rate(document: Mapping[str, Any]) -> float | None:
    """The keep rate that a bundle was exported at; None of a model that keeps all its tokens."""
    rate = document["architecture"].get("keep_rate")
    return None if rate is None else float(rate)


def set_rate(model: nn.Module, place: object, keep: float) -> None:
    """Give a network another keep rate.

    Args:
        place: how an error names the model.

    Raises:
        UsageError: U208 a rate outside (0, 1], or a model that keeps all its tokens.
    """
    from medloom.blocks.selection import check_keep

    check_keep(keep)
    if not hasattr(model, "set_keep"):
        raise UsageError("U208", place, "it keeps all its tokens, so there is no keep rate to set", "Leave --keep out")
    model.set_keep(keep)  # type: ignore[operator]


def described(opened: Opened, keep: float) -> dict[str, Any]:
    """What model.json says of name and architecture at another rate."""
    name = f"{opened.document['name']}, keep {keep:g}"
    return {"name": name, "architecture": {**opened.document["architecture"], "keep_rate": keep}}


def golden_answers(model: nn.Module, opened: Opened, bundle: Bundle) -> bytes:
    """golden.npz with this network's own answers to the same images."""
    from medloom.deployment.bundle_files import read_arrays
    from medloom.deployment.bundle_folder import golden_bytes
    from medloom.deployment.parity import reference_logits
    from medloom.deployment.runtime import open_image

    images = read_arrays(opened.root / "golden.npz", opened.content["golden.npz"])["images"]
    pixels = [bundle.preprocess.to_uint8(open_image(image, "golden")) for image in images]
    return golden_bytes(images=images, logits=reference_logits(model, bundle.pipeline, pixels))


def held_answers(
    onnx: bytes, opened: Opened, bundle: Bundle, images: BundleImages, keep: float, *, quiet: bool
) -> dict[str, Any]:
    """What model.json says of the new rate: its answers to all validation images against those of the old one.

    Threshold and temperature were chosen at the old rate, so the answers have to hold as those of a quantised network.

    Raises:
        GateError: X604.
    """
    from medloom.deployment.quality_gate import require
    from medloom.deployment.runtime import Runtime
    from medloom.workflows.quantize_steps import judged, part_of

    validation = part_of(bundle, images.split("val"), images.config, "val", quiet=quiet)
    runtime = Runtime(onnx, threads=bundle.pipeline.runtime.threads)
    report = judged(bundle, runtime, validation, seed=0)
    require(report, opened.root, "Name a rate nearer to the trained one, or train with model.options.keep_rate")
    before = own_rate(opened.document)
    told = (
        f"Keep rate {keep:g} in place of {before:g}: options and results above are those of {before:g}. On "
        f"{report['n']} validation images AUC falls by {report['auc']['loss']:.4f}, probabilities move by "
        f"{report['shift']['mean']:.4f} on average, {report['flips']['count']} decisions turn over."
    )
    flips = {key: value for key, value in report["flips"].items() if key != "listed"}  # ids stay out of a bundle
    return {
        "rate": keep,
        "before": before,
        "made_from": bundle.hash,
        "validation": {"n": report["n"], "auc": report["auc"], "shift": report["shift"]["mean"], "flips": flips},
        "told": [told],
    }


def write_twin(opened: Opened, bundle: Bundle, place: Path) -> Path:
    """The same weights with all tokens, as a bundle to be timed; in the float runtimes that the bundle has.

    Raises:
        ExportError: X601. ModelError: what loading raises.
    """
    from medloom.deployment.bundle_rewrite import rewrite
    from medloom.deployment.bundle_runtimes import stated
    from medloom.deployment.export import restore_model
    from medloom.deployment.runtime_engines import OPENVINO, installed
    from medloom.workflows.export import float_networks

    model = restore_model(bundle)
    set_rate(model, opened.root, 1.0)
    openvino = OPENVINO in stated(opened.document) and installed(OPENVINO)
    files, said = float_networks(model, bundle, openvino=openvino)
    files["golden.npz"] = golden_answers(model, opened, bundle)
    return rewrite(opened, place, files=files, changes={**described(opened, 1.0), "runtimes": said})


def compared(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each measured row with fewer tokens against its twin in the same runtime: times as fast, and the sentence."""
    from medloom.deployment.runtime_engines import TITLES

    found = []
    for row in rows:
        twin = next((t for t in rows if t.get("twin_of") == row["bundle"] and t["runtime"] == row["runtime"]), None)
        if twin is None or "missing" in row or row["precision"] != twin["precision"]:
            continue
        faster = {
            batch: round(twin[batch]["network"]["median_ms"] / row[batch]["network"]["median_ms"], 2)
            for batch in ("batch 1", "batch 16")
        }
        losing = [batch for batch, times in faster.items() if times < PAYS]
        times = f"{faster['batch 1']:.2f} times as fast as all tokens at batch 1, {faster['batch 16']:.2f} at batch 16"
        told = f"{row['bundle']} in {TITLES[row['runtime']]}: keep {row['keep_rate']:g} is {times}"
        if losing:
            told += f"; pruning does not pay at {' and '.join(losing)}"
        kept = {"bundle": row["bundle"], "runtime": row["runtime"], "keep_rate": row["keep_rate"]}
        found.append({**kept, "faster": faster, "pays": not losing, "told": told})
    return found
