"""``medloom data fetch``: sets by name, what is told of them, what stands beside the file."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from file_server import Server

from medloom.config import DataConfig
from medloom.data.medmnist_sets import SETS, SIZES, set_of_file
from medloom.data.sources import open_dataset
from medloom.errors import UsageError
from medloom.workflows.fetch import fetch as fetch_set


def chest(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ChestMNIST of six images a split, whose sum is taken for the published one."""
    rng, out = np.random.default_rng(1), io.BytesIO()
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 255, (6, 64, 64), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.eye(14, dtype=np.uint8)[:6] * (np.arange(6) != 5)[:, None].astype(np.uint8)
    np.savez(out, **arrays)  # type: ignore[arg-type]
    server.content = out.getvalue()
    monkeypatch.setitem(SETS["chestmnist"].md5, 64, hashlib.md5(server.content).hexdigest())


def test_what_was_fetched_opens_with_its_label_names(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chest(server, monkeypatch)
    monkeypatch.setenv("MEDLOOM_MEDMNIST_URL", server.address)
    done = fetch_set("ChestMNIST", size=64, out=tmp_path / "d")
    assert "fetched" in done.text()
    facts = json.loads((tmp_path / "d/chestmnist_64.npz.json").read_text())
    assert facts["sha256"] == hashlib.sha256(server.content).hexdigest()
    assert facts["licence"] == "CC BY 4.0"
    for path in (tmp_path / "d/chestmnist_64.npz", tmp_path / "d"):
        dataset = open_dataset(path, DataConfig())
        assert dataset.multi_label
        assert dataset.classes == SETS["chestmnist"].labels
        assert dataset.records[1].labels == (1,)
        assert dataset.records[5].labels == ()
    assert "is there already" in fetch_set("chestmnist", size=64, out=tmp_path / "d", url=server.address).text()


def test_the_facts_beside_a_file_are_written_where_they_are_missing_and_else_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chest(server, monkeypatch)
    beside = tmp_path / "chestmnist_64.npz.json"
    fetch_set("chestmnist", size=64, out=tmp_path, url=server.address)
    first = beside.read_bytes()
    beside.unlink()
    fetch_set("chestmnist", size=64, out=tmp_path, url=server.address)
    assert beside.read_bytes() == first
    fetch_set("chestmnist", size=64, out=tmp_path, url="http://127.0.0.1:9")
    assert beside.read_bytes() == first  # where it came from stays said


def test_U224_no_such_set_or_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean chestmnist"):
        fetch_set("chestmnst", out=tmp_path)
    with pytest.raises(UsageError, match="U224"):
        fetch_set("chestmnist", size=32, out=tmp_path)


def test_the_twelve_sets_are_listed() -> None:
    done = fetch_set(None)
    assert len(done.values["sets"]) == 12
    assert all(sorted(s.md5) == list(SIZES) and all(len(v) == 32 for v in s.md5.values()) for s in SETS.values())
    assert len({v for s in SETS.values() for v in s.md5.values()}) == 48
    assert [len(s.labels) for s in SETS.values()] == [9, 14, 7, 4, 2, 5, 2, 8, 8, 11, 11, 11]
    assert set_of_file("chestmnist_224") is SETS["chestmnist"]
    assert set_of_file("chestmnist_32") is None
    assert set_of_file("mine") is None
