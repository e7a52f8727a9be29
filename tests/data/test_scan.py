"""The scan: exclusions with their codes, hashes, facts, and independence of the number of workers."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.images import read_image_bytes
from medloom.data.neighbours import LIKENESS, LIMIT, likeness, near_pairs, perceptual_hash
from medloom.data.scan import Scan, each, facts_of, pixel_hash, scan
from medloom.data.sources import open_dataset
from medloom.errors import DataError


def chest(seed: int, size: int = 96) -> np.ndarray:
    """A smooth random picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((size, size))
    for side in (3, 6, 12, 24):
        layer = PillowImage.fromarray(rng.normal(size=(side, side)).astype(np.float32))
        picture += np.asarray(layer.resize((size, size), PillowImage.Resampling.BICUBIC)) / side**0.5
    low, high = picture.min(), picture.max()
    return ((picture - low) / (high - low) * 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, form: str = "PNG", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels).save(path, form, **options)
    return path


def scanned(root: Path, **config: Any) -> Scan:
    return scan(open_dataset(root, DataConfig(**config)), DataConfig(**config), workers=1)


def hash_row(pixels: np.ndarray) -> np.ndarray:
    small = PillowImage.fromarray(pixels).resize((64, 64), PillowImage.Resampling.BOX)
    return np.array([perceptual_hash(small)], dtype=np.uint64)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    for k in range(6):
        save(tmp_path / f"a/{k}.png", chest(k))
        save(tmp_path / f"b/{k}.jpg", chest(10 + k), "JPEG")
    (tmp_path / "a/zero.png").write_bytes(b"")
    (tmp_path / "a/text.png").write_bytes(b"not an image")
    (tmp_path / "b/cut.jpg").write_bytes((tmp_path / "b/0.jpg").read_bytes()[:900])
    save(tmp_path / "b/black.png", np.zeros((32, 32), np.uint8))
    save(tmp_path / "b/thin.png", np.arange(8000, dtype=np.uint8).reshape(2, 4000))
    frames = [PillowImage.fromarray(chest(k)) for k in (20, 21)]
    frames[0].save(tmp_path / "b/movie.gif", save_all=True, append_images=frames[1:])
    return tmp_path


def test_D101_D102_D103_D109_D111_D112_are_excluded_with_their_codes(damaged: Path) -> None:
    result = scanned(damaged)
    assert {e.id: e.code for e in result.excluded} == {
        "a/zero.png": "D101",
        "a/text.png": "D102",
        "b/cut.jpg": "D103",
        "b/movie.gif": "D109",
        "b/black.png": "D111",
        "b/thin.png": "D112",
    }
    assert len(result.images) == len(result.dataset) == 12
    assert all(r.pixel_hash for r in result.dataset.records)


@pytest.mark.parametrize("workers", [0, 2, 5, None])
def test_the_number_of_workers_changes_nothing(damaged: Path, workers: int | None) -> None:
    dataset, config = open_dataset(damaged, DataConfig()), DataConfig()
    assert scan(dataset, config, workers=workers) == scan(dataset, config, workers=1)


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_rises_to_the_total(damaged: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    dataset = open_dataset(damaged, DataConfig())
    scan(dataset, DataConfig(), workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (18, 18)


def test_D115_nothing_usable(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="none of 2 images") as caught:
        scanned(tmp_path)
    assert caught.value.code == "D115"


def test_D127_a_drive_that_hangs_is_reported() -> None:
    release = threading.Event()

    def hang(item: int) -> int:
        if item == 20:
            release.wait(10)
        return item

    started = time.monotonic()
    with pytest.raises(DataError, match="of 24 images") as caught:
        each(hang, range(24), workers=2, stall_seconds=0.3)
    release.set()
    assert caught.value.code == "D127"
    assert time.monotonic() - started < 5


def test_an_error_in_a_thread_is_raised_in_the_caller() -> None:
    def fail(item: int) -> int:
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError):
        each(fail, range(40), workers=3)


@given(st.integers(0, 100), st.integers(0, 6))
@settings(deadline=None, max_examples=30)
def test_each_keeps_the_order(count: int, workers: int) -> None:
    assert each(lambda x: x * x, range(count), workers=workers) == [x * x for x in range(count)]


def test_D117_pixels_not_files_are_hashed(tmp_path: Path) -> None:
    picture = chest(1)
    hashes = set()
    for form in ("PNG", "BMP", "TIFF"):
        for pixels in (picture, np.stack([picture] * 3, axis=2)):
            hashes.add(pixel_hash(read_image_bytes(save(tmp_path / "x", pixels, form).read_bytes(), "x").pixels))
    assert len(hashes) == 1
    assert pixel_hash(picture.T) not in hashes
    assert pixel_hash(picture.reshape(48, 192)) not in hashes
    assert pixel_hash(picture.astype(np.uint16)) not in hashes


def test_D105_facts_of_a_deep_image() -> None:
    deep = chest(1).astype(np.uint16) * 16
    out = io.BytesIO()
    PillowImage.fromarray(deep).save(out, "PNG")
    facts = facts_of(read_image_bytes(out.getvalue(), "x"))
    assert (facts.bits, facts.used_bits, facts.height, facts.width) == (16, 12, 96, 96)
    assert facts.mean == pytest.approx(deep.mean() / 65535)
    assert facts.std == pytest.approx(deep.std() / 65535)


def test_brightness_on_the_scale_of_the_depth() -> None:
    out = io.BytesIO()
    PillowImage.fromarray(chest(3)).save(out, "PNG")
    facts = facts_of(read_image_bytes(out.getvalue(), "x"))
    assert facts.mean == pytest.approx(chest(3).mean() / 255)
    assert facts.std == pytest.approx(chest(3).std() / 255)


def changed(pixels: np.ndarray, how: str) -> np.ndarray:
    picture = PillowImage.fromarray(pixels)
    width, height = picture.size
    if how == "jpeg":
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=30)
        picture = PillowImage.open(out)
    elif how == "half":
        picture = picture.resize((width // 2, height // 2), PillowImage.Resampling.BILINEAR)
    elif how == "bright":
        picture = picture.point(lambda value: 20 + value * 0.85)
    elif how == "mirror":
        picture = picture.transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT)
    else:
        x, y = round(width * float(how)), round(height * float(how))
        picture = picture.crop((x, y, width - x, height - y)).resize((width, height), PillowImage.Resampling.BILINEAR)
    return np.asarray(picture)


@pytest.mark.parametrize("how", ["jpeg", "half", "bright", "mirror", "0.01", "0.03", "0.05"])
def test_D118_changed_copies_are_near_and_others_far(how: str) -> None:
    originals = np.concatenate([hash_row(chest(k, 224)) for k in range(12)])
    copies = np.concatenate([hash_row(changed(chest(k, 224), how)) for k in range(12)])
    found = near_pairs(originals, copies)
    assert [(p.a, p.b) for p in found] == [(k, k) for k in range(12)]
    assert all(p.mirrored == (how == "mirror") and p.distance <= LIMIT for p in found)


@given(arrays(np.uint8, (64, 64)))
@settings(deadline=None, max_examples=40)
def test_D118_an_image_is_at_no_distance_from_itself(pixels: np.ndarray) -> None:
    found = near_pairs(hash_row(pixels), hash_row(pixels))
    assert [(p.a, p.b, p.distance) for p in found] == [(0, 0, 0)]


def test_D118_blocks_find_what_the_whole_comparison_finds() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2**63, (50, 8), dtype=np.uint64)
    b = np.concatenate([rng.integers(0, 2**63, (9_000, 8), dtype=np.uint64), a[[3, 40]]])
    assert [(p.a, p.b) for p in near_pairs(a, b)] == [(3, 9_000), (40, 9_001)]


@pytest.mark.parametrize("how", ["jpeg", "half", "bright", "mirror", "0.01", "0.03", "0.05"])
def test_D118_likeness_parts_copies_from_strangers(how: str) -> None:
    def small(pixels: np.ndarray) -> PillowImage.Image:
        return PillowImage.fromarray(pixels).resize((64, 64), PillowImage.Resampling.BOX)

    originals = [chest(k, 224) for k in range(8)]
    for k, pixels in enumerate(originals):
        assert likeness(small(pixels), small(changed(pixels, how)), how == "mirror") >= LIKENESS
        assert likeness(small(pixels), small(changed(originals[k - 1], how)), how == "mirror") < LIKENESS


def test_real_copies_are_found_and_strangers_are_not(real_data: Path) -> None:
    paths = sorted((real_data / "chest_xray/test/NORMAL").iterdir())[:60]
    pictures = [read_image_bytes(p.read_bytes(), "x").pixels for p in paths]
    for how in ("jpeg", "mirror", "0.01", "0.04"):
        originals = np.concatenate([hash_row(p) for p in pictures])
        copies = np.concatenate([hash_row(changed(p, how)) for p in pictures])
        pairs = {(p.a, p.b) for p in near_pairs(originals, copies)}
        assert {(k, k) for k in range(60)} <= pairs
        assert len(pairs) <= 64
