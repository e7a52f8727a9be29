"""Killed, stopped, out of disk, under a clock that jumps: the run goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kill_runs import final, outcome
from small_runs import Noisy, build, recipe, run, troubled

from medloom.errors import ResourceError
from medloom.training import checkpoint

HERE = Path(__file__).parent


def kill_many(tmp_path: Path, kills: int, seed: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "kill_runs.py"), str(tmp_path), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def test_T401_20_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    counts = kill_many(tmp_path, 20, seed=20)
    assert counts["killed"] == 20
    assert counts["equal"] == counts["runs"] >= 1


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_T401_200_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    counts = kill_many(tmp_path, 200, seed=200)
    assert counts["killed"] == 200
    assert counts["killed_while_saving"] > 0
    assert counts["equal"] == counts["runs"] > 5


WANTED = {"epochs": 3, "ema_decay": 0.9, "schedule": "cosine", "optimizer": "sgd"}


@pytest.mark.parametrize("at", [1, 4, 6, 7, 9, 15, 18, 19])
def test_T409_sigterm_saves_the_step_and_the_resumed_run_is_the_whole_run(tmp_path: Path, at: int) -> None:
    run(tmp_path / "whole", recipe(**WANTED))
    expected = final(tmp_path / "whole")
    stopped = run(tmp_path / "cut", recipe(**WANTED), data=troubled(at, signal.SIGTERM))
    if stopped.stopped != "epochs":  # the last batches are read ahead of a run that ends by itself
        assert (stopped.stopped, stopped.exit_code) == ("SIGTERM", 143)
        assert checkpoint.newest(tmp_path / "cut" / "checkpoint")[0] is not None
    assert at == 19 or stopped.stopped == "SIGTERM"
    result = run(tmp_path / "cut", recipe(**WANTED), resume=True, model=build(Noisy, seed=9))
    assert result.stopped == "epochs"
    assert final(tmp_path / "cut") == expected


def test_T409_sigint_exits_130_and_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run(tmp_path, recipe(), data=troubled(3, signal.SIGINT)).exit_code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def apart(script: str, root: Path) -> subprocess.CompletedProcess[str]:
    """The script with ``root`` as its argument, in a process of its own: real signals go to nobody else."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", script, str(root)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_T409_a_real_signal_while_a_batch_is_read_saves(tmp_path: Path, name: str, code: int) -> None:
    script = (
        "import signal, sys; from pathlib import Path; from small_runs import recipe, run;"
        "from small_runs import send_real, troubled;"
        f"sys.exit(run(Path(sys.argv[1]), recipe(), data=troubled(1, signal.{name}, send=send_real)).exit_code)"
    )
    done = apart(script, tmp_path)
    assert done.returncode == code, done.stderr
    assert checkpoint.newest(tmp_path / "checkpoint")[0] is not None


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_T410_signals_during_a_save_let_it_finish(tmp_path: Path, second: str) -> None:
    script = f"""
import signal, sys
from pathlib import Path
from medloom import files
from small_runs import recipe, run, send_real

real, sent = files.write_bytes, []

def impatient(path, data):
    if str(path).endswith(".safetensors"):
        for number in (signal.SIGTERM, signal.{second}, signal.{second}):
            send_real(number)
        sent.append(path)
    real(path, data)

files.write_bytes = impatient
code = run(Path(sys.argv[1]), recipe(save_steps=2)).exit_code
sys.exit(code if sent else 1)
"""
    done = apart(script, tmp_path)
    assert done.returncode == 143, done.stderr
    found, refused = checkpoint.newest(tmp_path / "checkpoint")
    assert found is not None
    assert refused == []
    assert found.values["total"] in (2, 3)


def test_T408_a_reader_that_dies_stops_the_run_at_once_and_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"T408\] epoch 1 step 4.*reader died"):
        run(tmp_path, recipe(save_steps=1), data=troubled(4, error=OSError("reader died")))
    result = run(tmp_path, recipe(save_steps=1), resume=True)
    assert result.epochs == 3
    run(tmp_path / "whole", recipe(save_steps=1))
    assert outcome(tmp_path)[1] == outcome(tmp_path / "whole")[1]


def test_T413_durations_do_not_follow_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    run(tmp_path, recipe())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert all(0 < line["seconds"] < 60 and line["val_seconds"] >= 0 for line in epochs)


def test_T404_file_size_limit_stops_with_exit_7_and_the_old_checkpoint(tmp_path: Path) -> None:
    """As a full disk does, by the kernel, in a process of its own."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from small_runs import recipe, run
from medloom.errors import MedloomError
def told(event):
    if event["event"] == "saved":
        print("saved", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    run(Path({str(tmp_path)!r}), recipe(), progress=told)
except MedloomError as problem:
    print(problem)
    sys.exit(problem.exit_code)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 7, done.stderr
    assert done.stdout.count("saved") == 1
    assert "error[T404]" in done.stdout
    assert "Traceback" not in done.stderr
    found, refused = checkpoint.newest(tmp_path / "checkpoint")
    assert found is not None
    assert (found.values["epoch"], refused) == (2, [])
    assert not list((tmp_path / "checkpoint").glob(".medloom-tmp-*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, 2**63 - 1)
