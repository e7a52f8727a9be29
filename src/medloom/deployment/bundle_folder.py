"""The folder of a bundle, whatever the model answers: found, verified and written in one way."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.data.dicom_header import EXPECTABLE
from medloom.deployment.bundle_document import (
    EDITED,
    IR_FILES,
    check_hashes,
    complete,
    read_document,
    read_listed,
    render,
)
from medloom.deployment.bundle_files import check_weights, read_weights, refuse_external_data, refuse_pickle
from medloom.deployment.bundle_runtimes import TOLERANCE, check_stated, refuse_foreign_ir
from medloom.errors import ModelError
from medloom.files import atomic_directory, write_bytes, write_text

FRAMES = ("refuse", "first")  # of a file of several frames, one answer or none
LABELS = {"classes": "classes", "label_values": "values"}  # what the weights are bound to, and its name in messages


@dataclass(frozen=True)
class Opened:
    """A bundle whose files are the ones that were written; what they say is not yet judged."""

    root: Path
    document: Mapping[str, Any]
    content: Mapping[str, bytes]


def open_folder(path: str | Path) -> Opened:
    """Find a bundle, or the bundle of a run directory, and verify its files.

    Raises:
        ModelError: C500 no bundle there, C501 pickle, C502 truncated, C503 changed bytes, C504 compressed archive,
            C506 class names or order, C507 preprocessing, C508 weights that are no numbers, C509 another format
            version, C510 operating point, X606 external data.
    """
    root = _find(Path(path))
    document, written = read_document(root / "model.json")
    _refuse_pickles(root)
    content = {name: read_listed(root / name, document["files"][name]) for name in document["files"]}
    check_hashes(root / "model.json", document, written)
    _check_tensors(root / "model.safetensors", content["model.safetensors"], document)
    refuse_external_data(root / "model.onnx", content["model.onnx"])
    if IR_FILES[0] in content:
        refuse_foreign_ir(root / IR_FILES[0], content[IR_FILES[0]], len(content[IR_FILES[1]]))
    check_stated(root / "model.json", document)
    return Opened(root, document, content)


def write_new(
    directory: str | Path,
    document: Mapping[str, Any],
    *,
    weights: Mapping[str, np.ndarray],
    onnx: bytes,
    golden: Mapping[str, np.ndarray],
    card: Callable[[Mapping[str, Any]], str],
    check: Callable[[Path], object],
) -> Path:
    """Put the files of a new bundle together, and write it with ``write_folder``.

    Args:
        document: all of model.json but files and hashes.
        card: CARD.md, from the document as the file will hold it.

    Raises:
        ModelError: C508 weights that are no numbers; what ``check`` raises. ResourceError: T404, T405.
    """
    directory = Path(directory)
    check_weights(directory.name, weights)
    document = plain(document)
    files = {
        "model.safetensors": _weights_bytes(weights, document),
        "model.onnx": onnx,
        "golden.npz": golden_bytes(**golden),
        "CARD.md": card(document).encode("utf-8"),
    }
    return write_folder(directory, document, files, check)


def write_folder(
    directory: str | Path,
    document: Mapping[str, Any],
    files: Mapping[str, bytes],
    check: Callable[[Path], object],
) -> Path:
    """Write a bundle, open it with ``check`` as a user would, and only then put it in place (X607).

    Raises:
        ModelError: what ``check`` raises. ResourceError: T404, T405; an older bundle is then untouched.
    """
    directory = Path(directory)
    with atomic_directory(directory) as stage:
        for file_name, data in files.items():
            write_bytes(stage / file_name, data)
        write_text(stage / "model.json", render(complete(document, files)))
        check(stage)
    return directory


def plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as the file will hold it: tuples become lists now."""
    read: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return read


def golden_bytes(**arrays: np.ndarray) -> bytes:
    """Content of golden.npz, nothing compressed."""
    out = io.BytesIO()
    np.savez(out, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    return out.getvalue()


def decoding_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """How images are decoded: ``frames``, ``max_megapixels`` and ``expect``.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: they make no sense.
    """
    said = document["decoding"]
    frames, megapixels = said["frames"], float(said["max_megapixels"])
    expect = {str(k): tuple(map(str, v)) for k, v in said.get("expect", {}).items()}
    if frames not in FRAMES or not megapixels > 0 or expect.keys() - EXPECTABLE:
        raise ValueError(f"decoding {frames!r}, {megapixels}, {sorted(expect)}")
    return {"frames": frames, "max_megapixels": megapixels, "expect": expect}


def check_answers(
    place: Path,
    found: np.ndarray,
    expected: np.ndarray,
    scale: np.ndarray | float,
    count: int,
    tolerance: float = TOLERANCE,
    runtime: str = "onnx",
) -> None:
    """The logits of the golden inputs against those that were recorded.

    Args:
        scale: how large logits are; ``tolerance`` is relative to it above 1, as a confident network has logits of tens,
            and float32 rounds those on another CPU.
        count, runtime: golden inputs, and what answered them, for the message.

    Raises:
        ModelError: C507 further off than ``tolerance``, C508 no numbers.
    """
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise ModelError("C508", place, "the network's golden answers are no numbers", "Train again")
    off = float((np.abs(found - expected) / np.maximum(1.0, scale)).max())
    if off > tolerance:
        problem = f"{count} golden images give answers that are {off:.1e} off in {runtime} (allowed {tolerance:.0e})"
        remedy = "Preprocessing or network changed: export again, or update medloom"
        if tolerance > TOLERANCE:
            # Without the instructions of the CPU that it was made on (AVX-512 VNNI, AMX) coarse steps round otherwise.
            remedy = "This CPU may round otherwise: try another --runtime or the float bundle, or quantise here"
        raise ModelError("C507", place, problem, remedy)


def _weights_bytes(weights: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> bytes:
    """The class names travel inside the weights' own file: one hash covers both (C506)."""
    from safetensors.numpy import save

    tensors = {name: np.array(tensor, order="C") for name, tensor in weights.items()}
    return bytes(save(tensors, metadata={key: json.dumps(document[key]) for key in LABELS if key in document}))


def _check_tensors(place: Path, data: bytes, document: Mapping[str, Any]) -> None:
    tensors, metadata = read_weights(place, data)
    check_weights(place, tensors)
    for key, what in LABELS.items():
        if key in document and metadata.get(key) != json.dumps(document[key]):
            problem = f"the weights are of the {what} {metadata.get(key)}, model.json says {document[key]}"
            raise ModelError("C506", place, problem, EDITED)


def _find(path: Path) -> Path:
    if path.is_file() and path.name == "model.json":
        path = path.parent
    if path.is_file():
        refuse_pickle(path)
        raise ModelError("C500", path, "this is a file, and a bundle is a folder", "Give the folder with model.json")
    for root in (path, path / "bundle"):
        if (root / "model.json").is_file():
            return root
    if path.is_dir():
        _refuse_pickles(path)
    raise ModelError("C500", path, "there is no bundle (no model.json)", "Give a bundle, or a run that has one")


def _refuse_pickles(root: Path) -> None:
    for entry in sorted(root.iterdir()):
        if entry.is_file():
            refuse_pickle(entry)
