"""PatchCamelyon's h5 files: everything that such a file can have wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from patch_files import STEM, refused, write
from source_files import opened

from medloom.config import DataConfig
from medloom.data.images import decode
from medloom.data.scan import scan
from medloom.errors import DataError


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"x": np.zeros((6, 24, 24), np.uint8)}, "D116"),
        ({"x": np.zeros((6, 24, 24, 1), np.uint8)}, "D116"),
        ({"x": np.zeros((6, 3, 24, 24), np.uint8)}, "D116"),
        ({"x": np.zeros((6, 24, 24, 3), np.float32)}, "D116"),
        ({"x": np.zeros((6, 0, 24, 3), np.uint8)}, "D116"),
        ({"x": np.zeros((0, 24, 24, 3), np.uint8), "y": np.zeros((0, 1, 1, 1), np.uint8)}, "D115"),
        ({"x": h5py.Empty("uint8")}, "D116"),
        ({"x": np.uint8(3)}, "D116"),
        ({"y": np.zeros((5, 1, 1, 1), np.uint8)}, "D116"),
        ({"y": np.zeros((6, 2), np.uint8)}, "D116"),
        ({"y": np.zeros((6, 1, 1, 1), np.float32)}, "D116"),
        ({"y": np.full((6, 1, 1, 1), 2, np.uint8)}, "D116"),
        ({"y": np.full((6, 1, 1, 1), -1, np.int64)}, "D116"),
        ({"y": np.array([b"0"] * 6)}, "D116"),
        ({"x": None}, "D116"),
        ({"y": None}, "D116"),
    ],
)
def test_D116_h5_of_another_form(tmp_path: Path, arrays: dict[str, Any], code: str) -> None:
    assert refused(write(tmp_path, **arrays)).code == code


def test_D116_another_key_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, x=None)
    with h5py.File(tmp_path / f"{STEM}_train_x.h5", "w") as file:
        file["images"] = np.zeros((6, 24, 24, 3), np.uint8)
    problem = refused(tmp_path)
    assert problem.code == "D116"
    assert "'images'" in problem.problem
    with h5py.File(tmp_path / f"{STEM}_train_x.h5", "w") as file:
        file.create_group("x")
    assert refused(tmp_path).code == "D116"


def test_D116_patches_of_mixed_size(tmp_path: Path) -> None:
    write(write(tmp_path), "test", size=32)
    problem = refused(tmp_path)
    assert problem.code == "D116"
    assert "24 x 24" in problem.problem
    assert "32 x 32" in problem.problem


def test_D116_a_table_of_another_length_and_two_sets_in_one_folder(tmp_path: Path) -> None:
    table = write(tmp_path) / f"{STEM}_train_meta.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:4]))
    assert refused(tmp_path).code == "D116"
    table.unlink()
    assert len(opened(tmp_path)) == 6
    for part in ("x", "y"):
        (tmp_path / f"other_split_test_{part}.h5").write_bytes((tmp_path / f"{STEM}_train_{part}.h5").read_bytes())
    assert refused(tmp_path).code == "D116"


def test_D116_a_single_file_or_no_file_of_this_layout(tmp_path: Path) -> None:
    write(tmp_path)
    assert refused(tmp_path / f"{STEM}_train_x.h5").code == "D116"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", source="h5").code == "D116"
    (tmp_path / f"{STEM}_train_y.h5").rename(tmp_path / f"{STEM}_train_y.h5.gz")
    problem = refused(tmp_path)
    assert "unpack .gz" in problem.remedy


def test_D103_an_h5_cut_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path) / f"{STEM}_train_x.h5"
    data = path.read_bytes()
    for cut in (0, 1, 8, 64, 500, 2048, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert refused(tmp_path).code in {"D103", "D116"}, cut
    assert refused(tmp_path).code == "D103"
    path.write_bytes(b"not an h5 file at all, but long enough to be asked " * 100)
    assert refused(tmp_path).code == "D116"


def test_D103_a_chunk_that_does_not_decode_is_the_row_not_the_run(tmp_path: Path) -> None:
    path = write(tmp_path, "train", 40, x=None) / f"{STEM}_train_x.h5"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("x", data=pixels, chunks=(4, 24, 24, 3), compression="gzip")
        place = stored.id.get_chunk_info(3)
    data = bytearray(path.read_bytes())
    data[place.byte_offset + 2 : place.byte_offset + 40] = bytes(38)
    path.write_bytes(data)
    found = scan(opened(tmp_path), DataConfig(), workers=1)
    assert {e.id: e.code for e in found.excluded} == {f"train/{k}": "D103" for k in range(12, 16)}
    assert len(found.dataset) == 36


def test_D113_nothing_is_read_from_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    pixels = np.full((6, 24, 24, 3), 7, np.uint8)
    with h5py.File(secret, "w") as file:
        file["x"] = pixels
    (tmp_path / "raw.bin").write_bytes(pixels.tobytes())
    root = tmp_path / "data"
    root.mkdir()
    path = write(root, x=None) / f"{STEM}_train_x.h5"

    def external_link(file: h5py.File) -> None:
        file["x"] = h5py.ExternalLink(str(secret), "x")

    def soft_link(file: h5py.File) -> None:
        file["x"] = h5py.SoftLink("/elsewhere")

    def external_storage(file: h5py.File) -> None:
        file.create_dataset("x", pixels.shape, np.uint8, external=[(str(tmp_path / "raw.bin"), 0, pixels.nbytes)])

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(pixels.shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(secret), "x", pixels.shape)
        file.create_virtual_dataset("x", layout)

    for spoil in (external_link, soft_link, external_storage, virtual):
        with h5py.File(path, "w") as file:
            spoil(file)
        problem = refused(root)
        assert problem.code == "D113", spoil.__name__
        assert "secret" not in str(problem)


def test_D110_a_file_that_declares_what_it_does_not_hold(tmp_path: Path) -> None:
    write(tmp_path, x=None)
    with h5py.File(tmp_path / f"{STEM}_train_x.h5", "w") as file:
        file.create_dataset("x", (6, 60_000, 60_000, 3), np.uint8, chunks=(1, 6000, 6000, 3), compression="gzip")
    assert refused(tmp_path).code == "D110"
    with h5py.File(tmp_path / f"{STEM}_train_x.h5", "w") as file:
        file.create_dataset("x", (10**12, 24, 24, 3), np.uint8, chunks=(8, 24, 24, 3))
    assert refused(tmp_path).code == "D110"


def test_D103_flipped_bytes_are_a_code_or_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, x=None, slides=False) / f"{STEM}_train_x.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        pixels = rng.integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)
        file.create_dataset("x", data=pixels, chunks=(2, 24, 24, 3), compression="gzip")
    whole, codes = path.read_bytes(), set()
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, 5000, 4):
            data[place] = int(rng.integers(0, 256))
        (tmp_path / "new").write_bytes(data)
        (tmp_path / "new").replace(path)
        try:
            dataset = opened(tmp_path)
            for record in dataset.records:
                decode(dataset, record, DataConfig())
        except DataError as problem:
            codes.add(problem.code)
    assert codes <= {"D103", "D110", "D111", "D115", "D116"}
    assert len(codes) > 1
