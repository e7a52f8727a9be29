"""Saving on a bad disk: killed at any step, powered off, full, read-only, gone."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_runs import newest_step
from small_runs import Noisy, build, recipe, run

from medloom import files
from medloom.errors import ModelError, ResourceError
from medloom.training import checkpoint


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
