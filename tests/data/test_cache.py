"""The cache: what serving computes, byte for byte; whole or absent, never stale. The torch twin of its last step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from medloom.config import DataConfig, PreprocessConfig
from medloom.data import cache as module
from medloom.data.cache import DevicePixels, build_cache, cache_key, finish, to_device
from medloom.data.images import decode
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, Record
from medloom.data.scan import scan
from medloom.errors import DataError, ResourceError

CONFIG = DataConfig()
SMALL = Preprocess.from_config(PreprocessConfig(size=(24, 20), channels="grey", intensity="equalize"))


@pytest.fixture
def images(tmp_path: Path) -> Dataset:
    """70 pictures (more than two blocks) of several sizes, depths and colours."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for i in range(70):
        shape = (30 + i % 7, 40, *((3,) if i % 3 == 0 else ()))
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        if i % 5 == 1:
            pixels = rng.integers(0, 65536, shape[:2]).astype(np.uint16)
        Picture.fromarray(pixels).save(folder / f"{i:02d}.png")
        records.append(Record(f"{i:02d}.png", f"{i:02d}.png", labels=(i % 2,)))
    return Dataset("made", folder, ("a", "b"), tuple(records))


@pytest.mark.parametrize("channels", ["grey", "rgb"])
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_are_what_serving_computes(images: Dataset, tmp_path: Path, channels: str, workers: int) -> None:
    preprocess = Preprocess.from_config(PreprocessConfig(size=24, channels=channels, intensity="percentile"))  # type: ignore[arg-type]
    seen: list[tuple[int, int]] = []
    with build_cache(
        images, preprocess, CONFIG, tmp_path / "cache", workers=workers, progress=lambda *step: seen.append(step)
    ) as cache:
        assert cache.pixels.shape == (70, 24, 24, preprocess.stored_channels)
        assert not cache.pixels.flags.writeable
        for row, record in enumerate(images.records):
            assert np.array_equal(cache.pixels[row], preprocess.to_uint8(decode(images, record, CONFIG)))
    assert seen == [(32, 70), (64, 70), (70, 70)]
    assert len(cache.pixels) == 0


def test_a_second_call_decodes_nothing(images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = scan(images, CONFIG).dataset
    first = build_cache(scanned, SMALL, CONFIG, tmp_path / "cache")
    expected = np.array(first.pixels)
    first.close()
    monkeypatch.setattr(module, "decode", lambda *_: pytest.fail("decoded again"))
    shutil.rmtree(images.root)
    with build_cache(scanned, replace(SMALL, mean=(0.1,)), CONFIG, tmp_path / "cache") as again:
        assert np.array_equal(again.pixels, expected)


def test_the_key_changes_with_whatever_changes_the_bytes(images: Dataset) -> None:
    scanned = scan(images, CONFIG).dataset
    keys = {
        cache_key(scanned, SMALL, CONFIG),
        cache_key(scanned, replace(SMALL, size=(20, 24)), CONFIG),
        cache_key(scanned, replace(SMALL, resize="pad"), CONFIG),
        cache_key(scanned, replace(SMALL, intensity="none"), CONFIG),
        cache_key(scanned.with_records(scanned.records[::-1]), SMALL, CONFIG),
        cache_key(scanned.with_records(scanned.records[:-1]), SMALL, CONFIG),
    }
    assert len(keys) == 6
    assert cache_key(scanned, replace(SMALL, std=(0.3,)), CONFIG) in keys


def test_an_unscanned_file_that_changes_is_read_again(images: Dataset, tmp_path: Path) -> None:
    before = np.array(build_cache(images, SMALL, CONFIG, tmp_path / "cache").pixels)
    path = images.root / "07.png"
    Picture.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)).save(path)
    os.utime(path, ns=(1, 1))
    after = build_cache(images, SMALL, CONFIG, tmp_path / "cache").pixels
    differ = [i for i in range(70) if not np.array_equal(before[i], after[i])]
    assert differ == [7]


def test_D125_a_file_that_changed_after_the_scan_is_refused(images: Dataset, tmp_path: Path) -> None:
    scanned = scan(images, CONFIG).dataset
    shutil.copy(images.root / "08.png", images.root / "07.png")
    with pytest.raises(DataError, match=r"D125\] 07\.png"):
        build_cache(scanned, SMALL, CONFIG, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.npy")) == []


@pytest.mark.parametrize("workers", [1, 4])
def test_D103_a_file_that_does_not_decode_leaves_nothing_behind(images: Dataset, tmp_path: Path, workers: int) -> None:
    path = images.root / "50.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"50\.png"):
        build_cache(images, SMALL, CONFIG, tmp_path / "cache", workers=workers)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]
    assert not any(t.name.startswith("medloom-cache") for t in threading.enumerate())


def test_D107_names_the_record(images: Dataset, tmp_path: Path) -> None:
    Picture.fromarray(np.linspace(-5, 5, 900, dtype=np.float32).reshape(30, 30)).save(images.root / "x.tif")
    data = images.with_records([Record("x.tif", "x.tif", labels=(0,))])
    with pytest.raises(DataError, match=r"D107\] x\.tif"):
        build_cache(data, replace(SMALL, intensity="none"), CONFIG, tmp_path / "cache")


def test_D115_no_images(images: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="D115"):
        build_cache(images.with_records([]), SMALL, CONFIG, tmp_path / "cache")


@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_cache_file_is_made_anew(images: Dataset, tmp_path: Path, damage: bytes | None) -> None:
    cache = build_cache(images, SMALL, CONFIG, tmp_path / "cache")
    expected = np.array(cache.pixels)
    content = cache.path.read_bytes()
    cache.close()
    cache.path.write_bytes(content[:-1] if damage is None else damage)
    assert np.array_equal(build_cache(images, SMALL, CONFIG, tmp_path / "cache").pixels, expected)


def test_T404_a_full_disk_is_one_error_and_no_file(images: Dataset, tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk; a memory map would die of SIGBUS here."""
    code = f"""
import resource, signal
from pathlib import Path
from medloom.config import DataConfig
from medloom.data.cache import build_cache
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, Record
from medloom.errors import ResourceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
data = Dataset("made", Path({str(images.root)!r}), ("a",), tuple(Record(f"{{i:02d}}.png", f"{{i:02d}}.png", labels=(0,)) for i in range(70)))
try:
    build_cache(data, Preprocess((24, 20)), DataConfig(), {str(tmp_path / "cache")!r})
except ResourceError as problem:
    print(problem.code)
"""  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "T404", done.stderr
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_T405_a_directory_that_cannot_be_made(images: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="T405"):
        build_cache(images, SMALL, CONFIG, tmp_path / "file" / "cache")


def test_T402_a_killed_builder_leaves_a_temporary_file_that_the_next_one_removes(
    images: Dataset, tmp_path: Path
) -> None:
    code = f"""
import os, signal
from pathlib import Path
from medloom.config import DataConfig
from medloom.data.cache import build_cache
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset, Record
data = Dataset("made", Path({str(images.root)!r}), ("a",), tuple(Record(f"{{i:02d}}.png", f"{{i:02d}}.png", labels=(0,)) for i in range(70)))
build_cache(data, Preprocess((24, 20)), DataConfig(), {str(tmp_path / "cache")!r}, progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""  # noqa: E501
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left = {p.name for p in (tmp_path / "cache").iterdir()} - {".lock"}
    assert len(left) == 1
    assert not left.pop().endswith("pixels.npy")
    cache = build_cache(images, SMALL, CONFIG, tmp_path / "cache")
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {".lock", cache.path.name}


def test_two_who_ask_at_once_decode_once(images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    monkeypatch.setattr(module, "decode", lambda *a: count.append(1) or decode(*a))
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.append(build_cache(images, SMALL, CONFIG, tmp_path / "c").pixels))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 70
    assert len(found) == 3
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("channels", ["grey", "replicate", "pseudocolor", "rgb"])
@pytest.mark.parametrize("statistics", ["paper", "imagenet", "half"])
def test_finish_is_the_twin_of_normalise(channels: str, statistics: str) -> None:
    preprocess = Preprocess.from_config(PreprocessConfig(size=8, channels=channels, statistics=statistics))  # type: ignore[arg-type]
    stored = np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 8, 8, 3)[..., : preprocess.stored_channels]
    x = torch.from_numpy(np.ascontiguousarray(stored)).permute(0, 3, 1, 2).float() / 255
    before = x.clone()
    finished = finish(x, preprocess)
    assert finished.is_contiguous()
    assert np.abs(finished.numpy() - preprocess.normalise(stored)).max() <= 1e-6
    assert torch.equal(x, before)


def test_finish_refuses_unset_statistics() -> None:
    unset = Preprocess.from_config(PreprocessConfig(statistics="train"))
    with pytest.raises(ValueError, match="not set"):
        finish(torch.zeros(1, 1, 4, 4), unset)


def test_gather_gives_the_rows_in_the_order_asked_for(images: Dataset, tmp_path: Path) -> None:
    with build_cache(images, SMALL, CONFIG, tmp_path / "cache") as cache:
        source = to_device(cache, "cpu")
        rows = np.array([5, 3, 69, 3])
        x = source.gather(rows)
        assert x.shape == (4, 1, 24, 20)
        assert x.dtype == torch.uint8
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), cache.pixels[rows])
        assert torch.equal(x, source.gather(torch.from_numpy(rows)))
        resident = DevicePixels(source.pixels, source.device, torch.from_numpy(np.array(source.pixels)))
        assert torch.equal(x, resident.gather(rows))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_live_on_the_gpu_when_they_fit(images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with build_cache(images, SMALL, CONFIG, tmp_path / "cache") as cache:
        fits = to_device(cache, "cuda")
        monkeypatch.setattr(module, "DEVICE_SHARE", 0.0)
        copied = to_device(cache, "cuda")
        assert fits.resident is not None
        assert copied.resident is None
        rows = np.array([1, 60, 2])
        assert torch.equal(fits.gather(rows), copied.gather(rows))
