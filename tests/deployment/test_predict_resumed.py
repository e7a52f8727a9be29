"""``medloom predict`` again after a kill: what was answered counts, and the table is that of a run never disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ask_bundle import ask
from PIL import Image as PIL

from medloom.data.phantom import golden_images
from medloom.errors import ResourceError, UsageError
from medloom.workflows.answer_log import MARK, AnswerLog, read_log


def killed_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log takes so many batches, and then the process ends."""
    real, count = AnswerLog.add, iter(range(100))

    def add(self: AnswerLog, *what: Any) -> None:
        if next(count) == batches:
            raise KeyboardInterrupt
        real(self, *what)

    monkeypatch.setattr(AnswerLog, "add", add)


@pytest.mark.parametrize("tail", [b"", b'[[6, {"id": "hal', b"\xff\x00 no json\n"])
def test_the_same_command_goes_on_and_its_table_is_the_same(
    original: Path, many: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    out, log = tmp_path / "a.csv", tmp_path / "a.csv.part"
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            ask(original, many, out, batch_size=3)
    assert not out.exists()
    log.write_bytes(log.read_bytes() + tail)
    seen: list[int] = []
    done = ask(original, many, out, batch_size=3, progress=lambda now, _: seen.append(now))
    assert seen == [7, 8, 9, 10, 11, 12]
    assert any("6 of them were answered before" in line for line in done.lines)
    assert out.read_bytes() == whole
    assert not log.exists()


@pytest.mark.parametrize("change", ["image", "list", "model"])
def test_what_was_answered_of_something_else_does_not_count(
    bundle: Path, forge: Any, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out = tmp_path / "a.csv"
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            ask(bundle, many, out, batch_size=3)
    if change == "image":
        PIL.fromarray(golden_images(1, 40, 77)[0]).save(many / "0.png")
    elif change == "list":
        (many / "8.png").unlink()
    else:
        forge(bundle, name="another")
    done = ask(bundle, many, out, batch_size=3)
    assert not any("before" in line for line in done.lines)


def test_U212_a_file_of_another_kind_is_not_taken_for_a_log(original: Path, many: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv.part").write_text("a letter")
    with pytest.raises(UsageError, match="U212"):
        ask(original, many, tmp_path / "a.csv")
    assert (tmp_path / "a.csv.part").read_text() == "a letter"


def test_T412_two_processes_do_not_answer_into_one_file(original: Path, many: Path, tmp_path: Path) -> None:
    log = tmp_path / "a.csv.part"
    with AnswerLog(log, {"a": 1}), pytest.raises(UsageError, match="T412"):
        ask(original, many, tmp_path / "a.csv")
    assert not log.exists()  # nothing was answered


def test_T402_a_head_that_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(MARK[:9])
    with AnswerLog(tmp_path / "log", {"a": 1}) as log:
        log.add([4], [{"id": "x"}])
    assert read_log(tmp_path / "log") == ({"a": 1}, [(4, {"id": "x"})])


def test_T407_a_process_that_is_killed_is_told_and_its_like_go(
    original: Path, many: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloom.workflows import answer_pool

    started: list[int] = []
    real = answer_pool._Worker.ask

    def ask_and_kill(self: Any, batch: Any) -> None:
        started.append(self.process.pid)
        real(self, batch)
        if len(started) == 3:
            os.kill(self.process.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(answer_pool._Worker, "ask", ask_and_kill)
        with pytest.raises(ResourceError, match=r"T407.*signal 9.*goes on"):
            ask(original, many, tmp_path / "a.csv", batch_size=3, processes=2)
    for pid in set(started):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    done = ask(original, many, tmp_path / "a.csv", batch_size=3, processes=1)
    assert any("answered before" in line for line in done.lines)
    assert (tmp_path / "a.csv").read_bytes() == whole


def test_after_a_true_kill_the_command_goes_on(original: Path, many: Path, tmp_path: Path, whole: bytes) -> None:
    code = (
        "import os, signal, sys\n"
        "from medloom.workflows.answer_log import AnswerLog\n"
        "from medloom.workflows.predict import predict\n"
        "real = AnswerLog.add\n"
        "def add(self, *what):\n"
        "    real(self, *what)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "AnswerLog.add = add\n"
        "predict(sys.argv[1], sys.argv[3:], out=sys.argv[2], batch_size=3)\n"
    )
    out = tmp_path / "a.csv"
    arguments = [str(p) for p in (original, out, many, many / "study.zip")]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, (done.stderr, time.monotonic() - started)
    assert not out.exists()
    told = ask(original, many, out, batch_size=3)
    assert any("3 of them were answered before" in line for line in told.lines)
    assert out.read_bytes() == whole
