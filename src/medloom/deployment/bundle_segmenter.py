"""The bundle of a model that draws masks: what its model.json says, and how it proves itself when it is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medloom.data.case_answer import Windows
from medloom.data.case_restore import Grid
from medloom.data.mask_geometry import require_restorable
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume
from medloom.deployment.bundle_document import DECODING, EDITED, SEGMENTATION, closing, opening
from medloom.deployment.bundle_folder import (
    Opened,
    decoding_of,
    open_folder,
    write_new,
)
from medloom.deployment.bundle_golden import check_golden
from medloom.deployment.bundle_runtimes import check_network, choose, golden_key, network, stated
from medloom.deployment.card_segmenter import render_segmenter_card
from medloom.deployment.segmenter import Segmentation, SegmentPipeline, Source, Steps
from medloom.errors import ModelError, UsageError

SETTINGS = {"patch": None, "overlap": 0.5, "mirror": False, "keep_largest": False}
"""How cases are answered where nothing else is said."""


@dataclass(frozen=True)
class SegmenterBundle:
    """A verified model that draws masks.

    Attributes:
        root: its folder.
        document: what model.json says.
        pipeline: preprocessing, windows, network and the way back.
    """

    root: Path
    document: Mapping[str, Any]
    pipeline: SegmentPipeline

    @property
    def name(self) -> str:
        return str(self.document["name"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The background first."""
        return self.pipeline.classes

    @property
    def label_values(self) -> tuple[int, ...]:
        """The number in a mask that stands for each class."""
        return self.pipeline.label_values

    @property
    def preprocess(self) -> Grid:
        return self.pipeline.preprocess

    @property
    def hash(self) -> str:
        """One name for everything that decides an answer."""
        return str(self.document["hashes"]["document"])

    def segment(
        self, sources: Iterable[Source] | Source, *, probabilities: bool = False, progress: Steps | None = None
    ) -> list[Segmentation]:
        """Masks, in order, for paths; images also as file contents (bytes) or arrays, volumes as ``Volume``.

        A file that cannot be used gives a ``Segmentation`` with an error code, never an exception.

        Args:
            probabilities: also ``(K, *S)`` probabilities on the grid of each file; of a long volume they are large.
            progress: called with the case's place in the list, its windows done and its windows in all.
        """
        return list(self.stream(sources, probabilities=probabilities, progress=progress))

    def stream(
        self, sources: Iterable[Source] | Source, *, probabilities: bool = False, progress: Steps | None = None
    ) -> Iterator[Segmentation]:
        """As ``segment``, one by one, in bounded memory."""
        if isinstance(sources, str | Path | bytes | Volume) or (isinstance(sources, np.ndarray) and sources.ndim == 2):
            sources = [sources]
        return self.pipeline.stream(sources, probabilities=probabilities, progress=progress)  # type: ignore[arg-type]


def load_segmenter(path: str | Path, *, threads: int | None = None, runtime: str | None = None) -> SegmenterBundle:
    """Open and verify a bundle where masks are wanted.

    Raises:
        ModelError: C515 a bundle that answers with classes; what ``medloom.load`` raises.
    """
    opened = open_folder(path)
    if opened.document["task"] != SEGMENTATION:
        told = "it answers with classes, and a model that draws masks is wanted here"
        raise ModelError("C515", opened.root, told, "Give the bundle of a segmenter")
    return segmenter_of(opened, threads, runtime)


def write_segmenter(
    directory: str | Path,
    *,
    name: str,
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    label_values: Sequence[int],
    preprocess: Grid,
    segmentation: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    onnx: bytes,
    golden: Mapping[str, np.ndarray],
    expected_input: Mapping[str, Any],
    licences: Mapping[str, str],
    provenance: Mapping[str, Any],
    decoding: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    intended_use: str | None = None,
) -> Path:
    """Write the bundle of a segmenter, load it as a user would, and only then put it in place (X607).

    Args:
        architecture: ``{"name": ..., **kwargs}`` as ``create_model`` takes them.
        classes: the background first; ``label_values`` are the numbers that stand for them in masks.
        segmentation: ``patch`` (None of images), ``overlap``, ``mirror``, ``keep_largest``.
        golden: what ``bundle_golden.golden_arrays`` gives.
        metrics: content of metrics.json, for the card.

    Raises:
        ModelError: what ``medloom.load`` raises, when the parts do not fit each other.
        ResourceError: T404, T405 when it cannot be written; an older bundle is then untouched.
    """
    kind = "image" if isinstance(preprocess, Preprocess) else "volume"
    document = {
        **opening(name, architecture, SEGMENTATION, classes),
        "label_values": [int(v) for v in label_values],
        "preprocess": {"kind": kind, **preprocess.as_dict()},
        "segmentation": {**SETTINGS, **segmentation},
        "decoding": {**DECODING, **(decoding or {})},
        **closing(expected_input, licences, provenance, latency, parity),
    }
    return write_new(
        directory,
        document,
        weights=weights,
        onnx=onnx,
        golden=golden,
        card=lambda said: render_segmenter_card(said, metrics, intended_use),
        check=load_segmenter,
    )


def segmenter_of(opened: Opened, threads: int | None, runtime: str | None = None) -> SegmenterBundle:
    """The model of a folder whose files are whole, in the runtime that was asked for, else in the fastest.

    Raises:
        ModelError: C505 parts that do not fit each other, C507 golden answers, C508 answers that are no numbers.
        UsageError: U210, U243 that runtime.
    """
    name = choose(opened.document, runtime, opened.root)
    pipeline = _pipeline(opened, name, threads)
    own = golden_key(opened.document, name, "")
    tolerance = float(stated(opened.document)[name]["tolerance"])
    check_golden(opened.root / "golden.npz", opened.content["golden.npz"], pipeline, own=own, tolerance=tolerance)
    return SegmenterBundle(opened.root, opened.document, pipeline)


def _pipeline(opened: Opened, name: str, threads: int | None) -> SegmentPipeline:
    root, document = opened.root, opened.document
    place = root / "model.json"
    try:
        grid = _grid(document["preprocess"])
        settings = dict(document["segmentation"])
        patch = None if settings["patch"] is None else tuple(int(n) for n in settings["patch"])
        windows = Windows(patch, float(settings["overlap"]), _truth(settings["mirror"]))
        keep = _truth(settings["keep_largest"])
        classes, values = tuple(map(str, document["classes"])), tuple(int(v) for v in document["label_values"])
        decoding = decoding_of(document)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as problem:
        raise ModelError("C505", place, f"values that make no sense ({problem})", EDITED) from None
    different = len(set(classes)) == len(classes) == len(set(values)) == len(values) >= 2
    if not different or not all(0 <= v <= 65535 for v in values) or len(values) > 256:
        raise ModelError("C505", place, f"classes {list(classes)[:9]} are stored as {list(values)[:9]}", EDITED)
    if not 0 <= windows.overlap < 1 or (patch is None) != isinstance(grid, Preprocess):
        raise ModelError("C505", place, f"a window of {patch} that overlaps by {windows.overlap}", EDITED)
    runtime = network(root, document, opened.content, name, threads)
    wanted = (len(classes), grid.in_chans, tuple(grid.size) if isinstance(grid, Preprocess) else patch)
    check_network(root, runtime, wanted, masks=True)
    return SegmentPipeline(classes, values, grid, windows, keep, runtime, **decoding)


def _grid(values: Mapping[str, Any]) -> Grid:
    given = dict(values)
    kind = given.pop("kind", None)
    if kind == "volume":
        grid = VolumePreprocess.from_dict(given)
        if not grid.mean:
            raise ValueError("no statistics")
        return grid
    if kind != "image":
        raise ValueError(f"preprocessing of {kind!r}")
    flat = Preprocess.from_dict(given)
    require_restorable(flat)
    return flat


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value
