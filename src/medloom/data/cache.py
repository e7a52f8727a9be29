"""Decode once: a memory-mapped array of ``Preprocess.to_uint8`` results, on the device when it fits.

A cache file is named by what decides its bytes (pixel hashes in order, the geometric part of the preprocessing, the
Pillow version), so a changed image, order or setting is another file, and a stale one is never read.

Shapes: N records, B batch, C stored channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from medloom.config import DataConfig
from medloom.data.build_lock import building
from medloom.data.images import decode
from medloom.data.preprocess import PSEUDOCOLOR, Preprocess
from medloom.data.records import Dataset, Record
from medloom.data.scan import pixel_hash
from medloom.errors import DataError, ResourceError
from medloom.files import atomic_path, sha256_json, sweep_orphans

BLOCK = 32
DEVICE_SHARE = 0.4
"""Part of the free device memory that images may take; the model and its activations need the rest."""


@dataclass
class PixelCache:
    """``pixels[i]`` is the ``(H, W, C)`` uint8 of ``dataset.records[i]``, read from disk when it is touched."""

    pixels: np.ndarray
    path: Path
    key: str

    def close(self) -> None:
        """Let go of the file; ``pixels`` is empty afterwards."""
        mapped = getattr(self.pixels, "_mmap", None)
        self.pixels = np.empty((0, *self.pixels.shape[1:]), dtype=np.uint8)
        if mapped is not None:
            with contextlib.suppress(BufferError):  # someone still holds a view; it keeps the map alive
                mapped.close()

    def __enter__(self) -> PixelCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_cache(
    dataset: Dataset,
    preprocess: Preprocess,
    config: DataConfig,
    directory: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PixelCache:
    """Decode every record, or open the file that holds them already.

    Two processes that ask for the same cache make it once: the second waits for the first. A process that is killed
    leaves a temporary file that the next call removes; the named file is whole or absent.

    Args:
        dataset: as split; the rows follow ``dataset.records``.
        preprocess: only its geometric part matters, the statistics may still be unset.
        directory: made when missing.
        workers: decoding threads (Pillow leaves the interpreter lock), all cores by default.
        progress: called with (images done, images in all).

    Raises:
        DataError: what decoding the first bad record raised, with the record's id; D125 when its pixels are not those
            that the scan saw; D115 without records.
        ResourceError: T404 disk full, T405 directory not writable.
    """
    if not len(dataset):
        raise DataError("D115", dataset.name, "no images", "Check the path and the excluded files")
    directory = Path(directory)
    key = cache_key(dataset, preprocess, config)
    path = directory / f"pixels-{key[:32]}.npy"
    shape = (len(dataset), *preprocess.size, preprocess.stored_channels)
    with building(directory):
        pixels = _open(path, shape)
        if pixels is None:
            sweep_orphans(directory)
            with atomic_path(path) as temp:
                _write(temp, shape, _images(dataset, preprocess, config, workers), progress)
            pixels = _open(path, shape)
    if pixels is None:
        raise ResourceError("T405", path, "the file just written does not read back", "Use another disk for the cache")
    return PixelCache(pixels, path, key)


def cache_key(dataset: Dataset, preprocess: Preprocess, config: DataConfig) -> str:
    """SHA-256 over what decides the cached bytes.

    A record that was not scanned has no pixel hash; its file's size and time of change stand in.
    """
    rows: list[Any] = []
    for record in dataset.records:
        if record.pixel_hash is not None:
            rows.append(record.pixel_hash)
            continue
        file = dataset.file(record)
        with contextlib.suppress(OSError):  # a missing file is reported by its decoding
            facts = file.stat()
            rows.append([str(file.resolve()), record.index, facts.st_size, facts.st_mtime_ns, config.frames])
    return sha256_json({"pillow": PIL.__version__, "preprocess": preprocess.geometric_part(), "rows": rows})


@dataclass(frozen=True)
class DevicePixels:
    """Cached pixels as a source of device batches; ``resident`` holds all of them when they fit."""

    pixels: np.ndarray
    device: torch.device
    resident: Tensor | None

    def gather(self, indices: np.ndarray | Tensor) -> Tensor:
        """uint8 ``(B, C, H, W)`` of the rows asked for, in their order."""
        if self.resident is not None:
            x_BHWC = self.resident[torch.as_tensor(indices, device=self.device)]
        else:
            rows = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
            x_BHWC = torch.from_numpy(self.pixels[rows])
            if self.device.type == "cuda":
                x_BHWC = x_BHWC.pin_memory().to(self.device, non_blocking=True)
        return x_BHWC.permute(0, 3, 1, 2)


def to_device(cache: PixelCache, device: torch.device | str) -> DevicePixels:
    """Serve batches of a cache on ``device``: from its own memory when all images fit into ``DEVICE_SHARE`` of what is
    free there, otherwise copied batch by batch. On the CPU the memory map is the residence."""
    device = torch.device(device)
    pixels = np.asarray(cache.pixels)
    if device.type != "cuda" or pixels.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return DevicePixels(pixels, device, None)
    resident = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), 1024):
        resident[start : start + 1024] = torch.from_numpy(np.array(pixels[start : start + 1024]))
    return DevicePixels(pixels, device, resident)


def finish(x_BCHW: Tensor, preprocess: Preprocess) -> Tensor:
    """Torch twin of ``Preprocess.normalise``: ``(B, stored_channels, H, W)`` in [0, 1] to ``(B, in_chans, H, W)``.

    Equal to it within 1e-6 on stored values; works on values between them too, after augmentation.
    """
    if not preprocess.mean:
        raise ValueError("the statistics of the training images are not set; use from_config(config, train_pixels)")

    def channels(values: Sequence[float]) -> Tensor:
        return torch.tensor(list(values), dtype=x_BCHW.dtype, device=x_BCHW.device).view(1, -1, 1, 1)

    if preprocess.channels == "pseudocolor":
        x_BCHW = (2 * x_BCHW - channels(PSEUDOCOLOR.tolist())).clamp_(0, 1)
    if x_BCHW.shape[1] == 1 and len(set(zip(preprocess.mean, preprocess.std))) == 1:
        # Grey three times: standardise once, then copy, instead of three times as much arithmetic and memory traffic.
        x_BCHW = (x_BCHW - preprocess.mean[0]).div_(preprocess.std[0])
        return x_BCHW.expand(-1, preprocess.in_chans, -1, -1).contiguous()
    return (x_BCHW - channels(preprocess.mean)).div_(channels(preprocess.std)).contiguous()


def restore(x_BCHW: Tensor, preprocess: Preprocess) -> Tensor:
    """What ``finish`` standardised, back on the scale of [0, 1]: ``(B, in_chans, H, W)``, within 1e-6."""
    mean, deviation = (
        torch.tensor(list(values), dtype=x_BCHW.dtype, device=x_BCHW.device).view(1, -1, 1, 1)
        for values in (preprocess.mean, preprocess.std)
    )
    return x_BCHW * deviation + mean


def _images(dataset: Dataset, preprocess: Preprocess, config: DataConfig, workers: int | None) -> Iterator[np.ndarray]:
    """Blocks ``(<=BLOCK, H, W, C)`` in order, a few ahead of the reader, so that memory stays bounded."""

    def one(record: Record) -> np.ndarray:
        image = decode(dataset, record, config)
        if record.pixel_hash is not None and pixel_hash(image.pixels) != record.pixel_hash:
            raise DataError(
                "D125",
                record.id,
                "its pixels are not those that were scanned",
                "Start a new run, so that the audit sees the images that are trained on",
            )
        try:
            return preprocess.to_uint8(image)
        except DataError as problem:  # it knows the image only as "image"
            raise DataError(problem.code, record.id, problem.problem, problem.remedy) from None

    def block(start: int) -> np.ndarray:
        return np.stack([one(r) for r in dataset.records[start : start + BLOCK]])

    count = workers or len(os.sched_getaffinity(0))
    starts = iter(range(0, len(dataset), BLOCK))
    ahead: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="medloom-cache") as pool:
        try:
            for start in starts:
                ahead.append(pool.submit(block, start))
                if len(ahead) > 2 * count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _write(
    temp: Path, shape: tuple[int, ...], blocks: Iterator[np.ndarray], progress: Callable[[int, int], None] | None
) -> None:
    """An .npy file by plain writes: on a full disk they fail with an error, while a memory map dies of SIGBUS."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    done = 0
    with temp.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for block in blocks:
            handle.write(block.tobytes())
            done += len(block)
            if progress is not None:
                progress(done, shape[0])


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The memory map, or None where there is no file or not the one that its name promises."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None
