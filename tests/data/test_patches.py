"""PatchCamelyon's h5 files: rows read one by one, slides as patients, and everything such a file can have wrong."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from medloom.config import DataConfig
from medloom.data import patches
from medloom.data.audit import audit
from medloom.data.images import decode
from medloom.data.records import Dataset
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.errors import DataError, MedloomError, UsageError

STEM = "camelyonpatch_level_2_split"


def write(root: Path, split: str = "train", n: int = 6, *, size: int = 24, slides: bool = True, **arrays: Any) -> Path:
    """One split as the published set has it; ``x`` and ``y`` replace the arrays, None leaves the file out."""
    rng = np.random.default_rng(len(split))
    made = {"x": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)}
    made["y"] = (np.arange(n) % 2).astype(np.uint8).reshape(n, 1, 1, 1)
    for key, value in {**made, **arrays}.items():
        if value is not None:
            with h5py.File(root / f"{STEM}_{split}_{key}.h5", "w") as file:
                file.create_dataset(key, data=value)
    if slides:
        lines = [",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"]
        lines += [f"{k},{100 * k},7,{bool(k % 2)},{bool(k % 2)},camelyon16_{split}_{k // 2:03d}" for k in range(n)]
        (root / f"{STEM}_{split}_meta.csv").write_text("\n".join(lines) + "\n")
    return root


def opened(path: Path, **config: Any) -> Dataset:
    return open_dataset(path, DataConfig(**config))


def refused(path: Path, **config: Any) -> MedloomError:
    with pytest.raises(MedloomError) as caught:
        opened(path, **config)
    assert "\n" not in str(caught.value)
    return caught.value


def test_three_splits_with_slides_as_patients(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path, split)
    dataset = opened(tmp_path)
    assert dataset.classes == ("normal", "tumor")
    assert dataset.splits == ("train", "val", "test")
    first, last = dataset.records[0], dataset.records[-1]
    assert (first.id, first.split, first.labels, first.patient) == ("train/0", "train", (0,), "camelyon16_train_000")
    assert (last.id, last.split, last.labels, last.patient) == ("test/5", "test", (1,), "camelyon16_test_002")
    assert first.covariates == {}
    with h5py.File(tmp_path / f"{STEM}_valid_x.h5") as file:
        row = next(r for r in dataset.records if r.id == "val/3")
        image = decode(dataset, row, DataConfig())
        assert np.array_equal(image.pixels, file["x"][3])
    assert (image.bits, image.mode, image.file_type) == (8, "RGB", "h5")


def test_scan_and_audit_read_them_in_threads(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(tmp_path, split, 40)
    found = scan(opened(tmp_path), DataConfig(), workers=3)
    assert len(found.dataset) == 80
    assert not found.excluded
    assert not {f.code for f in audit(found, DataConfig()).findings} & {"D119", "D120"}


def test_D120_without_the_table_nobody_knows_the_slide(tmp_path: Path) -> None:
    write(tmp_path, slides=False)
    dataset = opened(tmp_path)
    assert {r.patient for r in dataset.records} == {None}
    assert "D120" in {f.code for f in audit(scan(dataset, DataConfig()), DataConfig()).findings}


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_labels_of_any_such_shape(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    write(tmp_path, y=np.array([0, 1, 1, 0, 1, 0], dtype=dtype).reshape(shape))
    assert [r.labels[0] for r in opened(tmp_path).records] == [0, 1, 1, 0, 1, 0]


def test_own_class_names(tmp_path: Path) -> None:
    write(tmp_path)
    assert opened(tmp_path, classes=("benign", "malignant")).classes == ("benign", "malignant")
    assert refused(tmp_path, classes=("a", "b", "c")).code == "D116"


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


def test_memory_holds_rows_and_not_the_array(tmp_path: Path) -> None:
    """1.6 GB are declared here; one row of them is 27 kB."""
    n = 60_000
    write(tmp_path, n=2, slides=False, x=None, y=(np.arange(n) % 2).astype(np.uint8).reshape(n, 1, 1, 1))
    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    with h5py.File(tmp_path / f"{STEM}_train_x.h5", "w") as file:
        stored = file.create_dataset("x", (n, 96, 96, 3), np.uint8, chunks=(8, 96, 96, 3), compression="gzip")
        stored[59_000:59_008] = block
    dataset = opened(tmp_path)
    assert len(dataset) == n
    tracemalloc.start()
    try:
        for k in range(8):
            row = patches.patch_row(dataset.file(dataset.records[59_000 + k]), dataset.records[59_000 + k])
            assert np.array_equal(row, block[k])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_chunks_that_a_row_shares_with_others_are_decoded_once(tmp_path: Path) -> None:
    """Chunks as the library itself guesses them are thin and long; the library's own memory of 1 MiB would not do."""
    write(tmp_path, n=2, slides=False)
    pixels = np.random.default_rng(0).integers(0, 256, (600, 96, 96, 3), dtype=np.uint8)
    path = tmp_path / f"{STEM}_train_x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=pixels, chunks=(600, 24, 24, 1), compression="gzip", compression_opts=1)
    with patches._array(path, "x") as stored:
        slots, memory, _ = stored.id.get_access_plist().get_chunk_cache()
    assert memory >= pixels.nbytes
    assert slots > 48


def test_a_file_that_changed_is_opened_anew(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path))
    record = dataset.records[5]
    assert decode(dataset, record, DataConfig()).pixels.shape == (24, 24, 3)
    other = tmp_path / "other"
    other.mkdir()
    (write(other, n=4) / f"{STEM}_train_x.h5").replace(tmp_path / f"{STEM}_train_x.h5")
    with pytest.raises(DataError) as caught:
        decode(dataset, record, DataConfig())
    assert caught.value.code == "D116"
    (tmp_path / f"{STEM}_train_x.h5").unlink()
    with pytest.raises(DataError) as caught:
        decode(dataset, record, DataConfig())
    assert caught.value.code == "D114"


def test_no_more_than_a_few_files_stay_open(tmp_path: Path) -> None:
    for k in range(5):
        root = tmp_path / str(k)
        root.mkdir()
        write(write(root), "test")
        assert len(opened(root)) == 12
    assert len(patches._opened) <= 6


def test_U210_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError) as caught:
        opened(tmp_path)
    assert caught.value.code == "U210"
    assert "medloom[slides]" in caught.value.remedy


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
