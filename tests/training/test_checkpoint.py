"""Checkpoints on a bad disk: cut, flipped, foreign, full, gone, powered off."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_runs import Noisy, Plain, build, recipe, run

from medloom import files
from medloom.errors import ModelError, ResourceError
from medloom.training import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint directory with two checkpoints and best weights."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for step in (1, 2):
        best = checkpoint.write_weights(directory, step, {"w": torch.full((3,), float(step))})
        checkpoint.write_checkpoint(directory, step, {"best": best, "n": step}, {"a": torch.arange(4.0) * step})
    return directory


def steps(directory: Path) -> list[int]:
    return sorted(int(path.stem) for path in directory.glob("[0-9]*.json"))


def newest_step(directory: Path) -> int | None:
    found, _ = checkpoint.newest(directory)
    return None if found is None else int(found.path.stem)


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


def each_call(monkeypatch: pytest.MonkeyPatch, then: Callable[[int, str], None]) -> list[int]:
    """Call ``then(count, name)`` before each fsync and each rename."""
    count = [0]
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def wrapped(*arguments: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            count[0] += 1
            then(count[0], _name)
            return _real(*arguments, **options)

        monkeypatch.setattr(os, name, wrapped)
    return count


def test_T402_kill_at_every_step_of_a_save_leaves_the_one_before(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    for at in range(1, 20):
        directory = tmp_path / f"k{at}"
        shutil.copytree(saved, directory)
        with monkeypatch.context() as patched:
            # A killed process cleans up nothing: neither does this one.
            patched.setattr(Path, "unlink", lambda *_, **__: None)

            def kill(count: int, _name: str, at: int = at) -> None:
                if count == at:
                    raise Killed

            each_call(patched, kill)
            try:
                best = checkpoint.write_weights(directory, 3, {"w": torch.zeros(3)})
                checkpoint.write_checkpoint(directory, 3, {"best": best, "n": 3}, {"a": torch.zeros(4)})
                finished = True
            except Killed:
                finished = False
        assert newest_step(directory) in ((3,) if finished else (2, 3))
        files.sweep_orphans(directory)
        assert not list(directory.glob(".medloom-tmp-*"))
        if finished:
            break
    assert finished
    assert at == 10  # three files, each: sync, rename, sync of the directory


class Disk:
    """What a disk holds after a power loss: bytes that were synced under names whose directory was."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[int, bytes] = {}
        self.names: dict[str, int] = {}

    def synced(self, descriptor: int) -> None:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            if os.path.samestat(facts, self.root.stat()):
                self.names = {path.name: path.stat().st_ino for path in self.root.iterdir()}
        else:
            self.content[facts.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def after_power_loss(self, directory: Path) -> Path:
        directory.mkdir()
        for name, number in self.names.items():
            (directory / name).write_bytes(self.content.get(number, b""))
        return directory


def power_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop: str | None) -> list[tuple[int, int | None]]:
    """(newest announced step, newest step found) for a power loss after every sync and rename of five saves."""
    root = tmp_path / f"disk-{drop}"
    root.mkdir()
    disk, announced = Disk(root), 0
    outcomes = []
    views = [0]

    def look() -> None:
        views[0] += 1
        view = disk.after_power_loss(tmp_path / f"view-{drop}-{views[0]}")
        try:
            outcomes.append((announced, newest_step(view)))
        except ModelError:
            outcomes.append((announced, None))

    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if drop != ("directory" if directory else "file"):
            disk.synced(descriptor)
        look()

    def rename(*arguments: Any) -> None:
        real_replace(*arguments)
        look()

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", sync)
        patched.setattr(os, "replace", rename)
        for step in range(1, 6):
            best = checkpoint.write_weights(root, step, {"w": torch.full((3,), float(step))})
            checkpoint.write_checkpoint(root, step, {"best": best}, {"a": torch.zeros(4) + step})
            announced = step
            look()
    assert real_sync is os.fsync
    return outcomes


def test_T403_power_loss_at_any_moment_keeps_what_was_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = power_losses(tmp_path, monkeypatch, None)
    assert len(outcomes) > 40
    assert all(found is not None and found >= announced for announced, found in outcomes if announced)


@pytest.mark.parametrize("drop", ["file", "directory"])
def test_T403_the_simulated_disk_punishes_a_missing_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop: str
) -> None:
    outcomes = power_losses(tmp_path, monkeypatch, drop)
    assert any(found is None or found < announced for announced, found in outcomes if announced)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "T404"), (errno.EDQUOT, "T404"), (errno.EROFS, "T405")])
def test_T404_T405_a_disk_that_refuses_at_any_call_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    run(tmp_path, recipe(epochs=1), model=build(Noisy))
    for at in (1, 2, 4, 5, 7):
        directory = tmp_path / f"copy{at}"
        shutil.copytree(tmp_path / "checkpoint", directory / "checkpoint")
        with monkeypatch.context() as patched:
            events = run_on_a_disk_that_refuses(directory, patched, at, number, code)
        assert not [e for e in events if e["event"] == "saved"]
        assert newest_step(directory / "checkpoint") in (5, 10)
        assert not list((directory / "checkpoint").glob(".medloom-tmp-*"))
        result = run(directory, recipe(epochs=2), model=build(Noisy), resume=True, accept=("T411",))
        assert result.epochs == 2


def run_on_a_disk_that_refuses(
    directory: Path, patched: pytest.MonkeyPatch, at: int, number: int, code: str
) -> list[dict[str, Any]]:
    """Resume for a second epoch; the ``at``-th call after its first step fails. Returns what the caller was told."""
    events: list[dict[str, Any]] = []
    first: list[int] = []

    def refuse(count: int, _name: str) -> None:
        if first and count - first[0] == at:
            raise OSError(number, os.strerror(number))

    def told(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step" and not first:
            first.append(calls[0])

    calls = each_call(patched, refuse)
    with pytest.raises(ResourceError, match=code) as caught:
        run(directory, recipe(epochs=2), model=build(Noisy), resume=True, accept=("T411",), progress=told)
    assert caught.value.exit_code == 7
    return events


def test_T405_a_directory_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    def told(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            shutil.rmtree(tmp_path / "checkpoint")

    with pytest.raises(ResourceError, match="T405"):
        run(tmp_path, recipe(), progress=told)
    assert not (tmp_path / "checkpoint").exists()
