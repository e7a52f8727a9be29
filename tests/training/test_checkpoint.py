"""Checkpoints read back: cut, flipped, foreign, not finite, of another format."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from kill_runs import newest_step
from small_runs import Plain, build

from medloom import files
from medloom.errors import ModelError
from medloom.training import checkpoint


def steps(directory: Path) -> list[int]:
    return sorted(int(path.stem) for path in directory.glob("[0-9]*.json"))


def test_what_was_saved_is_read_back(saved: Path) -> None:
    found, refused = checkpoint.newest(saved)
    assert found is not None
    assert refused == []
    assert found.values["n"] == 2
    assert torch.equal(found.tensors["a"], torch.arange(4.0) * 2)
    path, best = checkpoint.best_weights(saved)
    assert torch.equal(checkpoint.read_tensors(path, best)["w"], torch.full((3,), 2.0))


def test_the_last_two_and_their_best_weights_are_kept(saved: Path) -> None:
    best = checkpoint.write_weights(saved, 3, {"w": torch.zeros(3)})
    for step in (3, 4, 5):
        checkpoint.write_checkpoint(saved, step, {"best": best}, {"a": torch.zeros(1)})
    assert steps(saved) == [4, 5]
    assert [path.name for path in saved.glob("best-*")] == [best["file"]]
    assert len(list(saved.iterdir())) == 5


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_C502_checkpoint_cut_at_every_percent_is_passed_over(saved: Path, suffix: str) -> None:
    path = saved / f"00000002{suffix}"
    whole = path.read_bytes()
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        found, refused = checkpoint.newest(saved)
        assert found is not None
        assert found.values["n"] == 1
        assert [p.code for p in refused] == ["C502"]
        assert "\n" not in str(refused[0])


def test_C502_weights_without_a_record_cut_at_every_percent_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    whole = safetensors.torch.save({"a": torch.randn(50), "b": torch.ones(3, 3)})
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(ModelError, match="C502"):
            checkpoint.read_tensors(path)


def test_C503_every_flipped_bit_is_found(saved: Path) -> None:
    found = 0
    for path in (saved / "00000002.json", saved / "00000002.safetensors"):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 7):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(flipped)
            assert newest_step(saved) == 1, (path, bit)
            found += 1
        path.write_bytes(whole)
    assert found > 300
    assert newest_step(saved) == 2


def test_C503_damaged_best_weights_make_their_checkpoint_bad(saved: Path) -> None:
    path, _ = checkpoint.best_weights(saved)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert newest_step(saved) == 1


def test_T414_no_good_checkpoint_is_an_error_in_one_line(saved: Path) -> None:
    for path in saved.glob("*.safetensors"):
        path.write_bytes(b"x")
    with pytest.raises(ModelError, match="T414") as caught:
        checkpoint.newest(saved)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_T414_nothing_saved_is_nothing(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    with pytest.raises(ModelError, match="T414"):
        checkpoint.best_weights(tmp_path)


@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.safetensors"])
def test_C501_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / name

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(canary),))

    torch.save({"a": Evil()}, path)
    with pytest.raises(ModelError, match="C501"):
        checkpoint.read_tensors(path)
    assert not canary.exists()


def test_C504_compressed_archive_is_never_inflated(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 10_000_000)
    with pytest.raises(ModelError, match="C501"):
        checkpoint.read_tensors(path)


def test_C504_header_that_claims_a_gigabyte_is_refused_by_the_real_size(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="C502"):
        checkpoint.read_tensors(path)


def test_C505_other_names_shapes_and_types_are_listed_and_nothing_is_changed() -> None:
    model = build(Plain)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    source["head.weight"] = torch.zeros(3, 4)
    source["conv.bias"] = source["conv.bias"].double()
    source["extra"] = source.pop("head.bias")
    with pytest.raises(ModelError, match="C505") as caught:
        checkpoint.fill(model.state_dict(), source, "w.safetensors")
    assert all(word in str(caught.value) for word in ("missing head.bias", "unknown extra", "(3, 4)", "float64"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_C505_at_most_five_names() -> None:
    with pytest.raises(ModelError, match="and 15 more") as caught:
        checkpoint.fill({f"a{k}": torch.zeros(1) for k in range(20)}, {}, "w")
    assert str(caught.value).count("missing") == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_C508_not_finite_is_neither_written_nor_read(saved: Path, value: float) -> None:
    with pytest.raises(ModelError, match="C508"):
        checkpoint.write_checkpoint(saved, 3, {}, {"a": torch.tensor([1.0, value])})
    assert steps(saved) == [1, 2]
    path = saved / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.tensor([1.0, value])}))
    with pytest.raises(ModelError, match="C508"):
        checkpoint.read_tensors(path)


def test_C509_another_format_is_refused_with_both_numbers(saved: Path) -> None:
    path = saved / "00000002.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    body["format"] = 9
    files.write_json(path, {**body, "sha256": files.sha256_json(body)})
    with pytest.raises(ModelError, match=r"C509.*format 9.*reads 1"):
        checkpoint.read_checkpoint(path)
