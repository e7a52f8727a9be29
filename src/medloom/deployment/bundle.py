"""The bundle: a folder that is the model, and proves it whenever it is opened.

``model.safetensors`` the weights, ``model.onnx`` what answers, ``model.json`` everything else, ``golden.npz`` synthetic
images with their right answers, ``CARD.md`` for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle_document import DECODING, EDITED, SEGMENTATION, closing, opening
from medloom.deployment.bundle_files import read_arrays
from medloom.deployment.bundle_folder import (
    Opened,
    check_answers,
    decoding_of,
    open_folder,
    write_new,
)
from medloom.deployment.bundle_runtimes import check_network, choose, golden_key, network, stated
from medloom.deployment.bundle_segmenter import SegmenterBundle, segmenter_of
from medloom.deployment.card import render_card
from medloom.deployment.runtime import TASKS, Picture, Pipeline, Prediction, Runtime
from medloom.errors import ModelError
from medloom.evaluation.operating_point import check_hash, thresholds


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
    if task not in TASKS or (task == "binary" and len(classes) != 2):
        raise ValueError(f"task {task!r} with {len(classes)} classes")
    document = {
        **opening(name, architecture, task, classes),
        "preprocess": preprocess.as_dict(),
        "flip_average": flip_average,
        "decoding": {**DECODING, **(decoding or {})},
        "temperature": float(temperature),
        "operating_point": None if operating_point is None else dict(operating_point),
        **closing(expected_input, licences, provenance, latency, parity),
    }
    return write_new(
        directory,
        document,
        weights=weights,
        onnx=onnx,
        golden={"images": np.stack(golden_images), "logits": np.asarray(golden_logits, dtype=np.float32)},
        card=lambda said: render_card(said, metrics, intended_use),
        check=load,
    )


def load(path: str | Path, *, threads: int | None = None, runtime: str | None = None) -> Bundle | SegmenterBundle:
    """Open a bundle, or the bundle of a run directory, and verify it.

    Args:
        threads: of the runtime; default, the cores that this process may use.
        runtime: ``onnx`` or ``openvino``; default, the fastest that the bundle has files for and this machine has.

    Returns:
        A ``Bundle``, which predicts classes, or a ``SegmenterBundle``, which draws masks.

    Raises:
        ModelError: C500 no bundle there, C501 pickle, C502 truncated, C503 changed bytes, C504 compressed archive,
            C505 parts that do not fit each other, C506 class names or order, C507 preprocessing or golden answers,
            C508 weights that are no numbers, C509 another format version, C510 operating point, X606 external data.
        UsageError: U210, U243 the runtime that was asked for.
    """
    opened = open_folder(path)
    if opened.document["task"] == SEGMENTATION:
        return segmenter_of(opened, threads, runtime)
    return _classifier(opened, threads, runtime)


def load_classifier(path: str | Path, *, threads: int | None = None, runtime: str | None = None) -> Bundle:
    """The same where classes are wanted.

    Raises:
        ModelError: C515 a bundle that draws masks; what ``load`` raises.
    """
    bundle = load(path, threads=threads, runtime=runtime)
    if isinstance(bundle, SegmenterBundle):
        told = "it draws masks, and a model that answers with classes is wanted here"
        raise ModelError("C515", bundle.root, told, "Give the bundle of a classifier, or use medloom predict")
    return bundle


def _classifier(opened: Opened, threads: int | None, runtime: str | None) -> Bundle:
    root, document = opened.root, opened.document
    name = choose(document, runtime, root)
    pipeline = _pipeline(root, document, network(root, document, opened.content, name, threads))
    tolerance = float(stated(document)[name]["tolerance"])
    answers = golden_key(document, name, "logits")
    _check_golden(root / "golden.npz", opened.content["golden.npz"], pipeline, answers, tolerance)
    return Bundle(root, document, pipeline)


def _pipeline(root: Path, document: Mapping[str, Any], runtime: Runtime) -> Pipeline:
    place, point = root / "model.json", document["operating_point"]
    try:
        preprocess = Preprocess.from_dict(document["preprocess"])
        decoding = decoding_of(document)
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
    if len(set(classes)) != len(classes):
        raise ModelError("C505", place, f"classes {list(classes)}", EDITED)
    wanted = (len(classes), preprocess.in_chans, tuple(preprocess.size))
    check_network(root, runtime, wanted, masks=False)
    flip = bool(document["flip_average"])
    return Pipeline(classes, task, preprocess, temperature, cuts, runtime, flip, **decoding)


def _check_golden(place: Path, data: bytes, pipeline: Pipeline, key: str, tolerance: float) -> None:
    """The recorded images, through the whole path, must give the recorded answers (C507)."""
    arrays = read_arrays(place, data)
    images, expected_NK = arrays.get("images"), arrays.get(key)
    if images is None or expected_NK is None or expected_NK.shape != (len(images), len(pipeline.classes)):
        raise ModelError("C505", place, "golden images and answers do not fit the classes", EDITED)
    # One by one: that is how most are asked, and a runtime that prepares itself per batch does it but once.
    answers = list(pipeline.stream(images, batch_size=1))
    refused = next((a.problem for a in answers if a.error), None if answers else "there is none")
    if refused:
        raise ModelError("C507", place, f"golden images are refused: {refused}", EDITED)
    found_NK = np.array([list(a.logits.values()) for a in answers])
    check_answers(place, found_NK, expected_NK, np.abs(expected_NK), len(answers), tolerance, pipeline.runtime.name)
