"""Decode every image once: what is in the files, which of them cannot be used, and hashes to compare them by.

Threads, not processes: Pillow, hashing and resizing release the interpreter's lock, threads start at once, share the
arrays of an npz, are safe beside torch, and ask nothing of the caller's script. Results do not depend on their number.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.images import Image, decode
from medloom.data.neighbours import perceptual_hash
from medloom.data.records import Dataset, Record
from medloom.errors import DataError

if TYPE_CHECKING:
    from medloom.data.mask_scan import CaseFacts

Progress = Callable[[int, int], object]
Item = TypeVar("Item")
Result = TypeVar("Result")

STALL_SECONDS = 120.0
_SMALL = 64
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the scan keeps of one image.

    Attributes:
        bits: as ``Image.bits``; ``used_bits`` is what the brightest pixel of an image of over 8 bits needs, else 8.
        mean, std: of the pixels, on the scale 0..1 of the bit depth; as stored for floats.
        phash: eight 64-bit numbers, see ``neighbours``.
        instance: as ``Image.instance``.
    """

    height: int
    width: int
    bits: int
    used_bits: int
    mode: str
    file_type: str
    size_bytes: int
    quality: int
    notes: tuple[str, ...]
    mean: float
    std: float
    phash: tuple[int, ...]
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An image that was set aside, and why."""

    id: str
    code: str
    problem: str


@dataclass(frozen=True)
class Scan:
    """``dataset`` holds the usable records with their pixel hashes; ``images``, and ``cases`` where there are masks to
    learn, are aligned with them."""

    dataset: Dataset
    images: tuple[ImageFacts, ...]
    excluded: tuple[Exclusion, ...]
    cases: tuple[CaseFacts, ...] = ()

    def without(self, split: str) -> Scan:
        """The same less the records of one split."""
        kept = [i for i, record in enumerate(self.dataset.records) if record.split != split]
        return replace(
            self,
            dataset=self.dataset.with_records(self.dataset.records[i] for i in kept),
            images=tuple(self.images[i] for i in kept),
            cases=tuple(self.cases[i] for i in kept) if self.cases else (),
        )


def scan(
    dataset: Dataset,
    config: DataConfig,
    *,
    prefer: str = "refuse",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Decode all images of a data set, and its masks where they are to be learnt (see ``mask_scan``).

    Args:
        prefer: of volumes, which place of a NIfTI file counts where its two differ.
        workers: threads; 0 and 1 work in the caller's, None takes one per core that this process may use.
        progress: called with images done and images in all.

    Raises:
        DataError: D115 when no image is usable, D127 when nothing comes back for two minutes (a hanging drive).
    """

    if dataset.label_values:
        from medloom.data.mask_scan import scan_masks

        return scan_masks(dataset, config, prefer=prefer, workers=workers, progress=progress)

    def look(record: Record) -> tuple[str, ImageFacts] | Exclusion:
        try:
            image = decode(dataset, record, config)
            return pixel_hash(image.pixels), facts_of(image)
        except DataError as problem:
            return Exclusion(record.id, problem.code, problem.problem)

    results = each(look, dataset.records, workers=workers, progress=progress)
    records, images, excluded = [], [], []
    for record, result in zip(dataset.records, results):
        if isinstance(result, Exclusion):
            excluded.append(result)
        else:
            records.append(replace(record, pixel_hash=result[0]))
            images.append(result[1])
    if not records:
        first = excluded[0] if excluded else Exclusion(dataset.name, "D115", "no images")
        raise DataError(
            "D115",
            dataset.name,
            f"none of {len(excluded)} images can be used; {first.id}: {first.problem} ({first.code})",
            "Look at the files",
        )
    return Scan(dataset.with_records(records), tuple(images), tuple(excluded))


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of shape, type and pixels: equal for a file and its loss-free copy in any other format."""
    little = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{little.shape} {little.dtype.str} ".encode())
    digest.update(little.data)
    return digest.hexdigest()


def facts_of(image: Image) -> ImageFacts:
    """Size, depth, brightness and perceptual hash of a decoded image."""
    pixels = image.pixels
    if pixels.dtype == np.uint8:
        grey = grey_picture(pixels)
        counts = np.array(grey.histogram(), dtype=np.float64)
        levels = np.arange(256) / 255
        mean = float(counts @ levels / counts.sum())
        std = float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))
        used_bits = 8
    else:
        values = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
        grey = grey_picture(pixels)
        scale = (1 << image.bits) - 1 if image.bits else 1
        mean, std = float(values.mean(dtype=np.float64) / scale), float(values.std(dtype=np.float64) / scale)
        used_bits = max(8, int(pixels.max()).bit_length()) if image.bits else 0
    return ImageFacts(
        height=pixels.shape[0],
        width=pixels.shape[1],
        bits=image.bits,
        used_bits=used_bits,
        mode=image.mode,
        file_type=image.file_type,
        size_bytes=image.size_bytes,
        quality=image.quality,
        notes=image.notes,
        mean=mean,
        std=std,
        phash=perceptual_hash(small_picture(grey)),
        instance=image.instance,
    )


def grey_picture(pixels: np.ndarray) -> PillowImage.Image:
    """A grey Pillow picture of decoded pixels; of more than 8 bits in floats, so that dark images keep their detail."""
    if pixels.dtype == np.uint8:
        picture = PillowImage.fromarray(pixels)
        return picture if pixels.ndim == 2 else picture.convert("L")
    return PillowImage.fromarray((pixels if pixels.ndim == 2 else pixels.mean(axis=2)).astype(np.float32))


def small_picture(grey: PillowImage.Image) -> PillowImage.Image:
    """64 x 64, what perceptual hashes and likeness are made from."""
    return grey.resize((_SMALL, _SMALL), PillowImage.Resampling.BOX)


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> list[Result]:
    """``[function(item) for item in items]`` by threads, in order, with progress and a limit on silence.

    The threads are daemons: one that hangs in a read that never returns does not keep the process alive.

    Raises:
        DataError: D127 when nothing was finished for ``stall_seconds``. Exceptions of ``function`` are raised here.
    """
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    total, done = len(items), 0
    if count <= 1 or total <= _CHUNK:
        results: list[Result] = []
        for item in items:
            results.append(function(item))
            if progress is not None:
                progress(len(results), total)
        return results
    found: dict[int, list[Result]] = {}
    finished: queue.Queue[tuple[int, list[Result] | BaseException]] = queue.Queue()
    starts = iter(range(0, total, _CHUNK))
    stop = threading.Event()

    def work() -> None:
        for start in starts:  # next() of a range iterator is atomic
            if stop.is_set():
                return
            try:
                finished.put((start, [function(item) for item in items[start : start + _CHUNK]]))
            except BaseException as problem:  # noqa: BLE001 - raised again in the caller's thread
                finished.put((start, problem))
                return

    for _ in range(min(count, -(-total // _CHUNK))):
        threading.Thread(target=work, name="medloom-scan", daemon=True).start()
    try:
        while done < total:
            try:
                start, result = finished.get(timeout=stall_seconds)
            except queue.Empty:
                raise DataError(
                    "D127",
                    f"after {done} of {total} images",
                    f"nothing was read for {stall_seconds:g} seconds",
                    "Look at the drive or the network",
                ) from None
            if isinstance(result, BaseException):
                raise result
            found[start] = result
            done += len(result)
            if progress is not None:
                progress(done, total)
    finally:
        stop.set()
    return [result for start in sorted(found) for result in found[start]]
