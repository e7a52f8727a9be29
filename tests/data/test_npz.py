"""npz files to records: one label or several, and every way in which such a file can be wrong."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_files import opened, refused

from medloom.config import DataConfig
from medloom.data.images import decode
from medloom.errors import DataError


def npz(path: Path, **arrays: Any) -> Path:
    grey = np.random.default_rng(0).integers(0, 255, (6, 28, 28), dtype=np.uint8)
    y = np.array([[0], [1], [0], [1], [1], [0]], dtype=np.uint8)
    full = {f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", grey), ("labels", y))}
    full |= arrays
    np.savez_compressed(path, **{k: v for k, v in full.items() if v is not None})
    return path


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 64), (12, 20, 1)])
def test_npz_of_one_label(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (6, *shape), dtype=np.uint8)
    path = npz(tmp_path / "x.npz", train_images=pixels)
    dataset = opened(path, classes=("normal", "sick"))
    assert Counter(r.split for r in dataset.records) == {"train": 6, "val": 6, "test": 6}
    assert (dataset.records[1].id, dataset.records[1].labels, dataset.records[1].index) == ("train/1", (1,), 1)
    image = decode(dataset, dataset.records[1], DataConfig())
    np.testing.assert_array_equal(image.pixels, pixels[1].squeeze())
    assert len(opened(tmp_path)) == 18  # the folder that holds it will do


def test_npz_of_several_labels(tmp_path: Path) -> None:
    y = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 1, 0]])
    dataset = opened(npz(tmp_path / "x.npz", **{f"{s}_labels": y for s in ("train", "val", "test")}))
    assert dataset.multi_label
    assert [r.labels for r in dataset.records[:3]] == [(1, 2), (), (0,)]


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"val_labels": None}, "D116"),
        ({"test_images": None}, "D116"),
        (
            {f"{s}_{k}": None for s in ("train", "val", "test") for k in ("images", "labels")} | {"x": np.zeros(3)},
            "D116",
        ),
        ({"train_images": np.zeros((6, 28), np.uint8)}, "D116"),
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, "D116"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "D116"),
        ({"train_images": np.array([None] * 6, dtype=object)}, "D116"),
        ({"train_images": np.zeros((0, 28, 28), np.uint8), "train_labels": np.zeros((0, 1), int)}, "D115"),
        ({"train_labels": np.zeros((5, 1), int)}, "D116"),
        ({"train_labels": np.array([[-1]] * 6)}, "D116"),
        ({"train_labels": np.zeros((6, 2), int)}, "D116"),
        ({"train_labels": np.array(["a"] * 6)}, "D116"),
    ],
)
def test_D116_npz_of_another_form(tmp_path: Path, arrays: dict[str, Any], code: str) -> None:
    assert refused(npz(tmp_path / "x.npz", **arrays)).code == code


def test_D116_npz_with_pickled_labels_runs_nothing(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "canary",))

    path = npz(tmp_path / "x.npz", train_labels=np.array([Canary()] * 6, dtype=object))
    problem = refused(path)
    assert "pickled" in problem.problem
    assert not (tmp_path / "canary").exists()


def test_D116_npz_label_outside_the_classes(tmp_path: Path) -> None:
    problem = refused(npz(tmp_path / "x.npz"), classes=("only",))
    assert "train_labels row 1" in problem.place


def test_D103_npz_cut_anywhere(tmp_path: Path) -> None:
    data = npz(tmp_path / "x.npz").read_bytes()
    for cut in range(0, len(data), len(data) // 20 + 1):
        (tmp_path / "cut.npz").write_bytes(data[:cut])
        assert refused(tmp_path / "cut.npz").code in {"D116", "D103", "D114"}


def test_D103_npz_with_flipped_bits(tmp_path: Path) -> None:
    data = bytearray(npz(tmp_path / "x.npz").read_bytes())
    config = DataConfig()
    for position in range(100, len(data), len(data) // 25):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            dataset = opened(tmp_path / "bad.npz")
            assert all(decode(dataset, r, config).pixels.shape == (28, 28) for r in dataset.records)
        except DataError:
            continue


def test_D110_npz_whose_header_lies_about_its_size(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 4000, 4000)})
    path = npz(tmp_path / "x.npz", train_images=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", out.getvalue() + bytes(100))
    problem = refused(path)
    assert problem.code == "D116"
    assert "size" in problem.problem
