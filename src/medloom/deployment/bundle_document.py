"""model.json: what it must say, and how each part of it is bound to the model it was written for.

The hashes are bindings, not signatures: they find damage, mixing and editing; they do not prove who made the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medloom.errors import ModelError
from medloom.files import sha256_bytes, sha256_json

FORMAT = 1
FILES = ("model.safetensors", "model.onnx", "golden.npz", "CARD.md")
IR_FILES = ("model.xml", "model.bin")
"""The same network for OpenVINO: both or none."""
AGAIN = "Copy the bundle again, or export it again"
EDITED = "Take the bundle as it was written; to change it, export again"
LARGEST = 2**24  # bytes; a model.json has some kilobytes
SEGMENTATION = "segmentation"
"""The task of bundles that draw masks."""

DECODING = {"frames": "refuse", "max_megapixels": 64.0}
"""How files are decoded where nothing else is said."""

_KEYS = (
    "format", "medloom", "notice", "name", "architecture", "task", "classes", "preprocess", "decoding",
    "expected_input", "licences", "provenance", "latency", "parity", "files", "hashes",
)  # fmt: skip
_OPTIONAL = ("runtimes", "quantisation", "keep")
_OF_CLASSIFIERS = ("flip_average", "temperature", "operating_point")
_OF_SEGMENTERS = ("label_values", "segmentation")


def opening(name: str, architecture: Mapping[str, Any], task: str, classes: Sequence[str]) -> dict[str, Any]:
    """How a new model.json begins, whatever the model answers; the order of keys is part of what is hashed."""
    import medloom

    return {
        "format": FORMAT,
        "medloom": medloom.__version__,
        "notice": "Research software, not a medical device.",
        "name": name,
        "architecture": dict(architecture),
        "task": task,
        "classes": list(classes),
    }


def closing(
    expected_input: Mapping[str, Any],
    licences: Mapping[str, str],
    provenance: Mapping[str, Any],
    latency: Mapping[str, Any] | None,
    parity: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """How it ends, but for the files and hashes that ``complete`` adds."""
    return {
        "expected_input": dict(expected_input),
        "licences": dict(licences),
        "provenance": dict(provenance),
        "latency": dict(latency or {}),
        "parity": dict(parity or {}),
    }


def render(document: Mapping[str, Any]) -> str:
    """The one spelling of model.json."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def complete(document: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """The document with the hashes of the files and of its own parts."""
    listed = {name: {"bytes": len(files[name]), "sha256": sha256_bytes(files[name])} for name in _listed(files)}
    whole = {**document, "files": listed}
    return {**whole, "hashes": _hashes(whole)}


def read_document(path: Path) -> tuple[dict[str, Any], bytes]:
    """model.json and its bytes; its version is looked at before anything else in it.

    Raises:
        ModelError: C502 not readable, C503 keys that do not belong, C509 another format version.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        document = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ModelError("C502", path, "it is not whole JSON", AGAIN) from None
    except OSError as problem:
        raise ModelError("C502", path, f"not readable ({problem.strerror})", AGAIN) from None
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT or isinstance(version, bool):
        newer = isinstance(version, int) and version > FORMAT
        remedy = "Update medloom" if newer else "Export again with this version"
        raise ModelError("C509", path, f"format version {version!r}, and this medloom reads {FORMAT}", remedy)
    keys = (*_KEYS, *(_OF_SEGMENTERS if document.get("task") == SEGMENTATION else _OF_CLASSIFIERS))
    missing = [key for key in keys if key not in document]
    odd = [key for key in document if key not in (*keys, *_OPTIONAL)]
    if missing or odd:
        raise ModelError("C503", path, f"missing keys {missing[:5]}, unknown keys {odd[:5]}", EDITED)
    files = document["files"]
    if not isinstance(files, dict) or set(files) != set(_listed(files)) or not isinstance(document["hashes"], dict):
        raise ModelError("C503", path, f"it does not list exactly {', '.join(FILES)}, and of an IR both files", EDITED)
    return document, data


def read_listed(path: Path, listed: Any) -> bytes:
    """A file's bytes, equal to what model.json recorded of it.

    Raises:
        ModelError: C502 missing or too short, C503 other content.
    """
    try:
        data = path.read_bytes() if path.is_file() else None
    except OSError as problem:
        raise ModelError("C502", path, f"not readable ({problem.strerror})", AGAIN) from None
    size = listed.get("bytes") if isinstance(listed, dict) else None
    if data is None:
        raise ModelError("C502", path, "the file is missing", AGAIN)
    if isinstance(size, int) and len(data) < size:
        raise ModelError("C502", path, f"it ends after {len(data):,} of {size:,} bytes", AGAIN)
    if size is None or len(data) != size or sha256_bytes(data) != listed.get("sha256"):
        raise ModelError("C503", path, "its content is not what model.json recorded (SHA-256)", AGAIN)
    return data


def check_hashes(place: Path, document: Mapping[str, Any], written: bytes) -> None:
    """Each part of the document must be the one that was written with this model.

    Raises:
        ModelError: C506 classes or label values, C507 preprocessing or windows, C510 operating point or temperature,
            C503 anything else.
    """
    recorded, computed = document["hashes"], _hashes(document)
    refusals = {
        "labels": ("C506", "class names or their order were changed after training"),
        "preprocess": ("C507", "the preprocessing was changed after training"),
        "operating_point": ("C510", "the operating point or the temperature was changed, or is another model's"),
        "document": ("C503", "it was changed"),
    }
    for part, digest in computed.items():
        if recorded.get(part) != digest:
            code, problem = refusals[part]
            raise ModelError(code, place, problem, EDITED)
    if render(document).encode() != written:
        raise ModelError("C503", place, "its spelling was changed", EDITED)


def _hashes(document: Mapping[str, Any]) -> dict[str, str]:
    """Each part hashed with the model that it belongs to; the last one over everything."""
    files = document["files"]
    model = [
        files[name].get("sha256")
        for name in (*FILES[:2], *_listed(files)[len(FILES) :])
        if isinstance(files[name], dict)
    ]
    body = {key: value for key, value in document.items() if key != "hashes"}
    if document["task"] == SEGMENTATION:
        parts = {
            "labels": [model, document["task"], document["classes"], document["label_values"]],
            "preprocess": [model, document["preprocess"], document["segmentation"], document["decoding"]],
        }
    else:
        parts = {
            "labels": [model, document["task"], document["classes"]],
            "preprocess": [model, document["preprocess"], document["flip_average"], document["decoding"]],
            "operating_point": [model, document["temperature"], document["operating_point"]],
        }
    return {**{name: sha256_json(part) for name, part in parts.items()}, "document": sha256_json(body)}


def _listed(files: Collection[str]) -> tuple[str, ...]:
    """The files that model.json lists, in order."""
    return (*FILES, *IR_FILES) if any(name in files for name in IR_FILES) else FILES


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
