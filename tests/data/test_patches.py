"""PatchCamelyon's h5 files: rows read one by one, slides as patients."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from patch_files import STEM, refused, write
from source_files import opened

from medloom.config import DataConfig
from medloom.data import patches
from medloom.data.audit import audit
from medloom.data.images import decode
from medloom.data.scan import scan
from medloom.errors import DataError, UsageError


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
