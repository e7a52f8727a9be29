"""The runtimes that a bundle can answer with: what model.json says of them, which one is taken, and the check of an IR.

``runtimes`` in model.json, absent in bundles that hold float32 ONNX alone: per runtime ``precision`` (float32, int8 or
bfloat16), ``tolerance`` (how far golden logits may be off, relative to their size above 1) and
``milliseconds_per_image_at_batch`` where it was exported. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.parsers import expat

from medloom.deployment.bundle_document import EDITED, IR_FILES, SEGMENTATION
from medloom.deployment.card import exactness, section
from medloom.deployment.runtime import Runtime
from medloom.deployment.runtime_engines import ONNX, OPENVINO, TITLES, installed
from medloom.errors import ModelError, UsageError

FLOAT32, INT8, BFLOAT16 = "float32", "int8", "bfloat16"
TOLERANCE = 1e-4
"""How far golden logits may be off in float32."""

LOOSEST = 0.25
"""A golden check that allows more than this proves nothing."""

_SECTION = "## Runtimes"


def stated(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the bundle says of each runtime that it has files for."""
    said = document.get("runtimes") or {ONNX: {"precision": FLOAT32, "tolerance": TOLERANCE}}
    return {str(name): dict(values) for name, values in said.items()}


def check_stated(place: Path, document: Mapping[str, Any]) -> None:
    """Refuse what makes no sense.

    Raises:
        ModelError: C505.
    """
    has_ir = IR_FILES[0] in document["files"]
    try:
        said = stated(document)
        fits = set(said) == {ONNX, OPENVINO} if has_ir else set(said) == {ONNX}
        for values in said.values():
            fits &= values["precision"] in (FLOAT32, INT8, BFLOAT16) and 0 < float(values["tolerance"]) <= LOOSEST
            fits &= values["precision"] != FLOAT32 or float(values["tolerance"]) <= TOLERANCE
            speed = dict(values.get("milliseconds_per_image_at_batch") or {})
            fits &= all(int(batch) > 0 and float(each) >= 0 for batch, each in speed.items())
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits:
        told = f"runtimes {str(document.get('runtimes'))[:200]} do not fit the files"
        raise ModelError("C505", place, told, EDITED)


def choose(document: Mapping[str, Any], asked: str | None, place: object) -> str:
    """The runtime to answer with: the one that was asked for, else the fastest that is installed here.

    Raises:
        UsageError: U243 the bundle has no files for the one that was asked for, U210 it is not installed.
    """
    said = stated(document)
    if asked is not None:
        if asked not in said:
            told = f"it has no files for the runtime '{asked}'"
            remedy = f"It has: {', '.join(said)}; medloom export writes OpenVINO's beside ONNX"
            raise UsageError("U243", place, told, remedy)
        if not installed(asked):
            package = {ONNX: "onnxruntime", OPENVINO: "openvino"}[asked]
            remedy = "Install the extra: pip install 'medloom[deploy]', or choose --runtime onnx"
            raise UsageError("U210", "environment", f"the package {package} is not installed", remedy)
        return asked
    here = [name for name in said if installed(name)] or [ONNX]
    times = {name: _alone(said[name]) for name in here}
    if all(time is not None for time in times.values()):
        return min(here, key=lambda name: times[name] or 0.0)
    return OPENVINO if OPENVINO in here else here[0]


def network(
    root: Path, document: Mapping[str, Any], content: Mapping[str, bytes], name: str, threads: int | None
) -> Runtime:
    """The bundle's network in one runtime.

    Raises:
        ModelError: C505. UsageError: U210.
    """
    if name == ONNX:
        return Runtime(content["model.onnx"], threads=threads, place=str(root / "model.onnx"))
    xml, weights = IR_FILES
    precision = "bf16" if stated(document)[name]["precision"] == BFLOAT16 else "f32"
    place = str(root / xml)
    return Runtime(content[xml], threads=threads, place=place, weights=content[weights], precision=precision)


def check_network(root: Path, runtime: Runtime, wanted: tuple[object, ...], masks: bool) -> None:
    """The network must be the one that model.json describes.

    Args:
        wanted: number of classes, channels and size.
        masks: whether it must draw them, or must not.

    Raises:
        ModelError: C505.
    """
    given = (runtime.num_classes, runtime.in_chans, runtime.size)
    if wanted != given or runtime.masks is not masks:
        text = f"model.json says (classes, channels, size) {wanted}, the network has {given}"
        raise ModelError("C505", root, text, EDITED)


def golden_key(document: Mapping[str, Any], name: str, what: str) -> str:
    """Under which name golden.npz holds the answers of a runtime; float32 ones share theirs."""
    own = stated(document)[name]["precision"] != FLOAT32
    return f"{what}_{name}" if own else what


def refuse_foreign_ir(place: object, xml: bytes, weights: int) -> None:
    """Refuse an IR that is not self-contained: entities, or constants outside of its own .bin (X606).

    Read by a parser, as the runtime does: quotes, spaces and order of attributes are free in XML.

    Args:
        weights: length of the .bin.

    Raises:
        ModelError: X606, C502 an .xml that is not whole.
    """
    if b"<!" in xml.replace(b"<!--", b""):
        raise ModelError("X606", place, "it declares entities, which can name other files", "Export again")
    if b"\0" in xml:  # as in UTF-16, where the line above would find nothing
        raise ModelError("C502", place, "the IR is no text", "Copy the bundle again, or export it again")

    def started(tag: str, attributes: dict[str, str]) -> None:
        if tag != "data" or not {"offset", "size"} <= set(attributes):
            return  # one of them alone is an operation's own: LRN has a size, PriorBox an offset
        offset, size = attributes["offset"], attributes["size"]
        digits = all(re.fullmatch("[0-9]{1,18}", each) for each in (offset, size))
        if not digits or int(offset) + int(size) > weights:
            told = f"a constant at {offset[:20]!r} of length {size[:20]!r} lies outside of model.bin"
            raise ModelError("X606", place, told, "Export again")

    parser = expat.ParserCreate("utf-8")  # whatever its first line says: bytes mean the same to every reader
    parser.StartElementHandler = started
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as problem:
        told = f"the IR is not whole: {problem}"
        raise ModelError("C502", place, told, "Copy the bundle again, or export it again") from None


def card_with_runtimes(card: str, document: Mapping[str, Any]) -> str:
    """The card with its last section, on runtimes, written anew."""
    head = card.split(f"\n{_SECTION}\n")[0].rstrip("\n")
    masks = document["task"] == SEGMENTATION
    unit = "window" if masks else "image"
    measured = exactness(document, *(("file to mask", unit) if masks else ()))
    # The section on exactness speaks of the network that was replaced.
    head = re.sub(
        r"(?s)## Exactness and speed\n.*?(?=\n## |$)", lambda _: section("Exactness and speed", measured) + "\n", head
    )
    lines = [f"| runtime | precision | ms per {unit} at batch | golden tolerance |", "|---|---|---|---|"]
    for name, values in stated(document).items():
        speed = values.get("milliseconds_per_image_at_batch") or {}
        times = ", ".join(f"{batch}: {each:.4g}" for batch, each in speed.items()) or "not measured"
        lines.append(f"| {TITLES[name]} | {values['precision']} | {times} | {values['tolerance']:.2g} |")
    told = [line for part in ("keep", "quantisation") for line in (document.get(part) or {}).get("told") or []]
    return "\n".join([head, "", _SECTION, "", *lines, *([""] if told else []), *told]) + "\n"


def _alone(values: Mapping[str, Any]) -> float | None:
    """Milliseconds of an image alone, where they were measured."""
    speed = values.get("milliseconds_per_image_at_batch") or {}
    return float(speed["1"]) if "1" in speed else None
