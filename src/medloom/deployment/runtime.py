"""From image to answer, without torch: the one path that parity at export, the golden check and every user go through.

Shapes: B images, C channels, H x W pixels, K classes, S the spatial axes of images or volumes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from medloom.data.images import MAX_ASPECT, MIN_SIDE, Image, decode_file, read_image_bytes
from medloom.data.modes import BURNED_IN
from medloom.data.preprocess import Preprocess
from medloom.deployment.runtime_engines import OnnxEngine, OpenVinoEngine, usable_cores
from medloom.errors import DataError, ModelError
from medloom.evaluation.predictions import probabilities

MAX_BATCH = 64  # bounds memory whatever the caller passes at once
TASKS = ("binary", "multi_class", "multi_label")  # as evaluation.questions names them
TEXT_NOTICE = "M216: text may be burned into the pixels; answered, but neither store the image nor train on it"
Picture = str | Path | bytes | np.ndarray | Image


class Runtime:
    """A network on the CPU: float32 images ``(B, C, H, W)`` or volumes ``(B, C, X, Y, Z)`` to logits, any B.

    Logits are ``(B, K)`` of a classifier, ``(B, K, *S)`` of a segmenter, S being the axes of its input.

    Args:
        model: the bytes of the ONNX file, or, with ``weights``, those of an OpenVINO .xml (their hash was taken of
            these very bytes, so nothing can change in between).
        threads: default, the cores that this process may use.
        place: what to call the model in errors.
        weights: the .bin of an OpenVINO IR.
        precision: of an OpenVINO IR, of what is not quantised: ``f32`` or ``bf16``.

    Raises:
        ModelError: C505 when the library cannot run it, or it is no such network with a free batch size.
        UsageError: U210 OpenVINO is wanted and not installed.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int | None = None,
        place: str = "model.onnx",
        weights: bytes | None = None,
        precision: str = "f32",
    ) -> None:
        self.threads: int = threads or usable_cores()
        self._engine: OnnxEngine | OpenVinoEngine
        if weights is None:
            self._engine = OnnxEngine(model, threads=self.threads, place=place)
        else:
            self._engine = OpenVinoEngine(model, weights, threads=self.threads, place=place, precision=precision)
        self.name = self._engine.name
        ports = [*self._engine.inputs, *self._engine.outputs]
        single = len(self._engine.inputs) == len(self._engine.outputs) == 1
        taken: tuple[Any, ...] = ports[0][0] if single else ()
        given: tuple[Any, ...] = ports[-1][0] if single else ()
        fits = (
            single and (len(taken), len(given)) in ((4, 2), (4, 4), (5, 5)) and all(is_float for _, is_float in ports)
        )
        fits = fits and all(isinstance(n, int) for n in (*taken[1:], *given[1:]))
        fits = fits and given[2:] in ((), taken[2:])
        if not fits or isinstance(taken[0], int):
            raise ModelError(
                "C505",
                place,
                f"inputs and outputs are {[shape for shape, _ in ports]}, not images or volumes with a free batch to "
                "logits, all float32",
                "Export again",
            )
        self.in_chans, *size = taken[1:]
        self.size: tuple[int, ...] = tuple(size)
        self.num_classes: int = given[1]
        self.masks = len(given) > 2
        self._place = place

    def logits(self, x_BCS: np.ndarray) -> np.ndarray:
        """``(B, K)`` or ``(B, K, *S)`` float32 logits, computed at most ``MAX_BATCH`` inputs at a time.

        Raises:
            DataError: X603 for another number of channels or another size than the model was exported for.
        """
        expected = (self.in_chans, *self.size)
        if x_BCS.shape[1:] != expected:
            text = f"input is {x_BCS.shape}, the model takes (batch, {', '.join(map(str, expected))})"
            raise DataError("X603", self._place, text, "Preprocess the image first")
        axes = self.size if self.masks else ()
        out_BK = np.empty((len(x_BCS), self.num_classes, *axes), dtype=np.float32)
        for start in range(0, len(x_BCS), MAX_BATCH):
            part = np.ascontiguousarray(x_BCS[start : start + MAX_BATCH], dtype=np.float32)
            answer = self._engine.run(part)
            if answer.shape != (len(part), self.num_classes, *axes):
                text = f"it gives {answer.shape} for {len(part)} inputs, not what it declares"
                raise ModelError("C505", self._place, text, "Export again")
            out_BK[start : start + len(part)] = answer
        return out_BK

    def latency(self, *, batches: Sequence[int] = (1, 8), repeats: int = 5) -> dict[str, float]:
        """Median milliseconds per image at each batch size, after one warm-up."""
        measured = {}
        for batch in batches:
            x_BCS = np.zeros((batch, self.in_chans, *self.size), dtype=np.float32)
            self.logits(x_BCS)
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                self.logits(x_BCS)
                times.append(time.perf_counter() - started)
            measured[str(batch)] = round(statistics.median(times) / batch * 1000, 3)
        return measured


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or why there is none.

    Attributes:
        id: path as given, or ``image 3`` for the fourth of a list of arrays.
        label: the class answered; ``|``-joined where labels are many; None when refused or without operating point.
        probabilities: per class, after calibration.
        decision: how ``label`` came about: ``positive`` or ``negative`` (two classes, against ``threshold``),
            ``most probable``, ``labels`` (each against its own threshold), ``no operating point``, ``refused``.
        threshold: smallest probability of the last of two classes that counts as positive.
        logits: per class, as the network gave them.
        error: code of the refusal, with ``problem`` in words.
        notice: what a reader must know of the image beside the answer.
    """

    id: str
    label: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    decision: str = "refused"
    threshold: float | None = None
    logits: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    problem: str | None = None
    notice: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Pipeline:
    """Preprocessing, network, calibration and threshold in one value.

    Attributes:
        task: ``binary`` (two exclusive classes, the last is positive), ``multi_class`` or ``multi_label``.
        thresholds: per class, on the calibrated probability, classes without an operating point left out; used by
            ``binary`` (last class) and ``multi_label``.
        flip_average: mean of the logits of an image and its mirror, where the recipe was evaluated so.
        frames, max_megapixels, expect: how files are decoded, as in training (D109, D110, M215).
    """

    classes: tuple[str, ...]
    task: str
    preprocess: Preprocess
    temperature: float
    thresholds: Mapping[str, float]
    runtime: Runtime
    flip_average: bool = False
    frames: str = "refuse"
    max_megapixels: float = 64.0
    expect: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def logits(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """``(B, K)`` logits of images that went through ``preprocess.to_uint8``."""
        x_BCHW = self.preprocess.normalise(pixels_BHWC)
        logits_BK = self.runtime.logits(x_BCHW)
        return (logits_BK + self.runtime.logits(x_BCHW[..., ::-1])) / 2 if self.flip_average else logits_BK

    def open(self, picture: Picture, name: str) -> Image:
        """Decode as training did; raises what :func:`open_image` raises."""
        return open_image(picture, name, frames=self.frames, max_megapixels=self.max_megapixels, expect=self.expect)

    def answer(self, ids: Sequence[str], logits_BK: np.ndarray) -> list[Prediction]:
        """Probabilities and decisions of logits."""
        scores_BK = probabilities(logits_BK, self.task == "multi_label", self.temperature)
        return [self._decide(id_, z_K, p_K) for id_, z_K, p_K in zip(ids, logits_BK, scores_BK)]

    def stream(self, images: Iterable[Picture], *, batch_size: int = 32, start: int = 0) -> Iterator[Prediction]:
        """Answers in the order of ``images``; a bad image gives a refusal, not an exception."""
        remaining = enumerate(images, start)
        with ThreadPoolExecutor(min(4, usable_cores())) as pool:
            while chunk := list(islice(remaining, max(1, min(batch_size, MAX_BATCH)))):
                rows = list(pool.map(self._prepare, chunk))
                good = [(id_, row) for id_, row, _ in rows if isinstance(row, np.ndarray)]
                logits_BK = self.logits(np.stack([row for _, row in good])) if good else np.empty((0, 0))
                answers = iter(self.answer([id_ for id_, _ in good], logits_BK))
                for id_, row, notice in rows:
                    if isinstance(row, DataError):
                        yield Prediction(id_, error=row.code, problem=row.problem)
                    else:
                        yield replace(next(answers), notice=notice)

    def _prepare(self, numbered: tuple[int, Picture]) -> tuple[str, np.ndarray | DataError, str | None]:
        """Name and ``(H, W, C)`` uint8 of one image, or its refusal, and a notice; full-size pixels are let go."""
        position, picture = numbered
        name = str(picture) if isinstance(picture, str | Path) else f"image {position}"
        try:
            image = self.open(picture, name)
            return name, self.preprocess.to_uint8(image), TEXT_NOTICE if BURNED_IN in image.notes else None
        except DataError as refusal:
            return name, refusal, None

    def _decide(self, id_: str, z_K: np.ndarray, p_K: np.ndarray) -> Prediction:
        scores = {name: float(p) for name, p in zip(self.classes, p_K)}
        logits = {name: float(z) for name, z in zip(self.classes, z_K)}
        if self.task == "multi_class":
            return Prediction(id_, self.classes[int(p_K.argmax())], scores, "most probable", None, logits)
        if self.task == "multi_label":
            found = [n for n, p in scores.items() if n in self.thresholds and p >= self.thresholds[n]]
            return Prediction(id_, "|".join(found), scores, "labels", None, logits)
        negative, positive = self.classes
        threshold = self.thresholds.get(positive)
        if threshold is None:
            return Prediction(id_, None, scores, "no operating point", None, logits)
        is_positive = scores[positive] >= threshold
        label, decision = (positive, "positive") if is_positive else (negative, "negative")
        return Prediction(id_, label, scores, decision, threshold, logits)


def open_image(
    picture: Picture,
    name: str,
    *,
    frames: str = "refuse",
    max_megapixels: float = 64.0,
    expect: Mapping[str, Sequence[str]] | None = None,
) -> Image:
    """Decode a path or file content, or take an array ``(H, W)`` or ``(H, W, 3)`` of uint8 or uint16 as it is.

    Raises:
        DataError: the D-codes of decoding; for an array D107 (shape or type), D110, D111, D112.
    """
    if isinstance(picture, Image):
        return picture
    if isinstance(picture, bytes):
        return read_image_bytes(picture, name, frames=frames, max_megapixels=max_megapixels, expect=expect)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, name, max_megapixels)
    return decode_file(picture, frames=frames, max_megapixels=max_megapixels, expect=expect)


def _from_array(pixels: np.ndarray, name: str, max_megapixels: float) -> Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype not in (np.uint8, np.uint16) or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        problem = f"array of type {pixels.dtype} and shape {pixels.shape}"
        raise DataError("D107", name, problem, "Give uint8 or uint16, (height, width) or (height, width, 3)")
    height, width = pixels.shape[:2]
    if height * width > max_megapixels * 1e6:
        raise DataError("D110", name, f"{height} x {width} pixels", "Reduce it first")
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise DataError("D112", name, f"{height} x {width} pixels are no picture", "Leave it out")
    if pixels.min() == pixels.max():
        raise DataError("D111", name, "all pixels are equal", "Leave it out")
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]  # as decoding does it: grey that was stored as colour is grey
    mode = "L" if pixels.ndim == 2 else "RGB"
    return Image(pixels, 8 * pixels.dtype.itemsize, mode, "array", pixels.nbytes)
