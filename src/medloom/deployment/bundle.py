"""The bundle: a folder that is the model, and proves it whenever it is opened.

``model.safetensors`` the weights, ``model.onnx`` what answers, ``model.json`` everything else, ``golden.npz`` synthetic
images with their right answers, ``CARD.md`` for people.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.data.dicom_header import EXPECTABLE
from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle_document import (
    EDITED,
    FILES,
    FORMAT,
    check_hashes,
    complete,
    read_document,
    read_listed,
    render,
)
from medloom.deployment.bundle_files import (
    check_weights,
    read_arrays,
    read_weights,
    refuse_external_data,
    refuse_pickle,
)
from medloom.deployment.card import render_card
from medloom.deployment.runtime import TASKS, Picture, Pipeline, Prediction, Runtime
from medloom.errors import ModelError
from medloom.evaluation.operating_point import check_hash, thresholds
from medloom.files import atomic_directory, write_bytes, write_text

TOLERANCE = 1e-4
FRAMES = ("refuse", "first")  # of a file of several frames, one answer or none


@dataclass(frozen=True)
class Bundle:
    """A verified model that answers.

    Attributes:
        root: its folder.
        document: what model.json says.
        pipeline: preprocessing, network, calibration and threshold.
    """

    root: Path
    document: Mapping[str, Any]
    pipeline: Pipeline

    @property
    def name(self) -> str:
        return str(self.document["name"])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pipeline.classes

    @property
    def preprocess(self) -> Preprocess:
        return self.pipeline.preprocess

    @property
    def hash(self) -> str:
        """One name for everything that decides an answer."""
        return str(self.document["hashes"]["document"])

    def predict(self, images: Iterable[Picture] | Picture, *, batch_size: int = 32) -> list[Prediction]:
        """Answers, in order, for paths, file contents (bytes) or arrays (``(H, W)`` or ``(H, W, 3)``, uint8 or uint16).

        A bad image gives a ``Prediction`` with an error code, never an exception.
        """
        return list(self.stream(images, batch_size=batch_size))

    def stream(self, images: Iterable[Picture] | Picture, *, batch_size: int = 32) -> Iterator[Prediction]:
        """As ``predict``, one by one, in bounded memory."""
        if isinstance(images, str | Path | bytes) or (isinstance(images, np.ndarray) and images.ndim == 2):
            images = [images]
        return self.pipeline.stream(images, batch_size=batch_size)  # type: ignore[arg-type]


def write_bundle(
    directory: str | Path,
    *,
    name: str,
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    task: str,
    preprocess: Preprocess,
    temperature: float,
    operating_point: Mapping[str, Any] | None,
    weights: Mapping[str, np.ndarray],
    onnx: bytes,
    golden_images: Sequence[np.ndarray],
    golden_logits: np.ndarray,
    expected_input: Mapping[str, Any],
    licences: Mapping[str, str],
    provenance: Mapping[str, Any],
    flip_average: bool = False,
    decoding: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    intended_use: str | None = None,
) -> Path:
    """Write a bundle, load it as a user would, and only then put it in place (X607).

    Args:
        architecture: ``{"name": ..., **kwargs}`` as ``create_model`` takes them.
        task: ``binary`` (the last class is positive), ``multi_class`` or ``multi_label``.
        operating_point: content of operating_point.json; None where none was chosen.
        onnx: the exported file; ``golden_logits`` ``(N, K)`` are the network's own answers to ``golden_images``.
        decoding: ``frames`` (refuse or first), ``max_megapixels`` and ``expect`` (what DICOM files must be of), as the
            data configuration had them.
        provenance: data hash, recipe hash and whatever else says where it comes from.
        metrics: content of metrics.json, for the card.

    Raises:
        ModelError: what ``load`` raises, when the parts do not fit each other.
        ResourceError: T404, T405 when it cannot be written; an older bundle is then untouched.
    """
    import medloom

    directory = Path(directory)
    if task not in TASKS or (task == "binary" and len(classes) != 2):
        raise ValueError(f"task {task!r} with {len(classes)} classes")
    check_weights(directory.name, weights)
    document: dict[str, Any] = {
        "format": FORMAT,
        "medloom": medloom.__version__,
        "notice": "Research software, not a medical device.",
        "name": name,
        "architecture": dict(architecture),
        "task": task,
        "classes": list(classes),
        "preprocess": preprocess.as_dict(),
        "flip_average": flip_average,
        "decoding": {"frames": "refuse", "max_megapixels": 64.0, **(decoding or {})},
        "temperature": float(temperature),
        "operating_point": None if operating_point is None else dict(operating_point),
        "expected_input": dict(expected_input),
        "licences": dict(licences),
        "provenance": dict(provenance),
        "latency": dict(latency or {}),
        "parity": dict(parity or {}),
    }
    document = json.loads(json.dumps(document, allow_nan=False))  # tuples become lists now, as they would in the file
    files = {
        "model.safetensors": _weights_bytes(weights, classes),
        "model.onnx": onnx,
        "golden.npz": _golden_bytes(golden_images, golden_logits),
        "CARD.md": render_card(document, metrics, intended_use).encode("utf-8"),
    }
    with atomic_directory(directory) as stage:
        for file_name, data in files.items():
            write_bytes(stage / file_name, data)
        write_text(stage / "model.json", render(complete(document, files)))
        load(stage)
    return directory


def load(path: str | Path, *, threads: int | None = None) -> Bundle:
    """Open a bundle, or the bundle of a run directory, and verify it.

    Args:
        threads: of the runtime; default, the cores that this process may use.

    Raises:
        ModelError: C500 no bundle there, C501 pickle, C502 truncated, C503 changed bytes, C504 compressed archive,
            C505 parts that do not fit each other, C506 class names or order, C507 preprocessing or golden answers,
            C508 weights that are no numbers, C509 another format version, C510 operating point, X606 external data.
    """
    root = _find(Path(path))
    document, written = read_document(root / "model.json")
    _refuse_pickles(root)
    content = {name: read_listed(root / name, document["files"][name]) for name in FILES}
    check_hashes(root / "model.json", document, written)
    _check_tensors(root / "model.safetensors", content["model.safetensors"], document)
    refuse_external_data(root / "model.onnx", content["model.onnx"])
    pipeline = _pipeline(root, document, content["model.onnx"], threads)
    _check_golden(root / "golden.npz", content["golden.npz"], pipeline)
    return Bundle(root, document, pipeline)


def _check_tensors(place: Path, data: bytes, document: Mapping[str, Any]) -> None:
    tensors, metadata = read_weights(place, data)
    check_weights(place, tensors)
    if metadata.get("classes") != json.dumps(document["classes"]):
        problem = f"the weights are of the classes {metadata.get('classes')}, model.json says {document['classes']}"
        raise ModelError("C506", place, problem, EDITED)


def _pipeline(root: Path, document: Mapping[str, Any], onnx: bytes, threads: int | None) -> Pipeline:
    place, point = root / "model.json", document["operating_point"]
    try:
        preprocess = Preprocess.from_dict(document["preprocess"])
        frames, megapixels = document["decoding"]["frames"], float(document["decoding"]["max_megapixels"])
        expect = {str(k): tuple(map(str, v)) for k, v in document["decoding"].get("expect", {}).items()}
        temperature, classes = float(document["temperature"]), tuple(map(str, document["classes"]))
        if point is not None:
            check_hash(point, place)
        cuts = {str(name): float(cut) for name, cut in thresholds(point).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ModelError("C505", place, f"values that make no sense ({problem})", EDITED) from None
    task = document["task"]
    if not (0 < temperature < 1e6) or task not in TASKS or (task == "binary" and len(classes) != 2):
        raise ModelError("C505", place, f"task {task!r}, {len(classes)} classes, temperature {temperature}", EDITED)
    if not set(cuts) <= set(classes) or (point is not None and point.get("temperature") != temperature):
        text = f"thresholds for {sorted(cuts)} at another temperature, or of other classes than {list(classes)}"
        raise ModelError("C510", place, text, EDITED)
    if frames not in FRAMES or not megapixels > 0 or len(set(classes)) != len(classes) or expect.keys() - EXPECTABLE:
        raise ModelError("C505", place, f"decoding {frames!r}, {megapixels}, classes {list(classes)}", EDITED)
    runtime = Runtime(onnx, threads=threads, place=str(root / "model.onnx"))
    wanted = (len(classes), preprocess.in_chans, tuple(preprocess.size))
    given = (runtime.num_classes, runtime.in_chans, runtime.size)
    if wanted != given:
        text = f"model.json says (classes, channels, size) {wanted}, the network has {given}"
        raise ModelError("C505", root, text, EDITED)
    flip = bool(document["flip_average"])
    return Pipeline(classes, task, preprocess, temperature, cuts, runtime, flip, frames, megapixels, expect)


def _check_golden(place: Path, data: bytes, pipeline: Pipeline) -> None:
    """The recorded images, through the whole path, must give the recorded answers (C507)."""
    arrays = read_arrays(place, data)
    images, expected_NK = arrays.get("images"), arrays.get("logits")
    if images is None or expected_NK is None or expected_NK.shape != (len(images), len(pipeline.classes)):
        raise ModelError("C505", place, "golden images and answers do not fit the classes", EDITED)
    answers = list(pipeline.stream(images))
    refused = next((a.problem for a in answers if a.error), None if answers else "there is none")
    if refused:
        raise ModelError("C507", place, f"golden images are refused: {refused}", EDITED)
    found_NK = np.array([list(a.logits.values()) for a in answers])
    if not (np.isfinite(expected_NK).all() and np.isfinite(found_NK).all()):
        raise ModelError("C508", place, "the network's golden answers are no numbers", "Train again")
    # Relative above 1: a confident network has logits of tens, and float32 rounds those on another CPU.
    off = float((np.abs(found_NK - expected_NK) / np.maximum(1.0, np.abs(expected_NK))).max())
    if off > TOLERANCE:
        problem = f"{len(answers)} golden images give answers that are {off:.1e} off (allowed {TOLERANCE:.0e})"
        raise ModelError("C507", place, problem, "Preprocessing or network changed: export again, or update medloom")


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


def _weights_bytes(weights: Mapping[str, np.ndarray], classes: Sequence[str]) -> bytes:
    """The class names travel inside the weights' own file: one hash covers both (C506)."""
    from safetensors.numpy import save

    tensors = {name: np.array(tensor, order="C") for name, tensor in weights.items()}
    return bytes(save(tensors, metadata={"classes": json.dumps(list(classes))}))


def _golden_bytes(images: Sequence[np.ndarray], logits_NK: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, images=np.stack(images), logits=np.asarray(logits_NK, dtype=np.float32))
    return out.getvalue()
