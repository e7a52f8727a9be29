"""Killed, stopped, changed, resumed: the run is the same run, or says why not."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import torch
from kill_runs import outcome
from small_runs import Noisy, Plain, build, deliver, recipe, run, splits
from torch import Tensor

from medloom import files
from medloom.data.cache import DevicePixels
from medloom.errors import ModelError, ResourceError, UsageError
from medloom.training import checkpoint
from medloom.training import state as states
from medloom.training.batches import Examples

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


@dataclass(frozen=True)
class Troubled(DevicePixels):
    """Has signals come, or fails, when the n-th batch is read."""

    at: int = 0
    signals: tuple[signal.Signals, ...] = ()
    error: Exception | None = None
    count: list[int] = None  # type: ignore[assignment]
    send: Callable[[signal.Signals], None] = deliver

    def gather(self, indices: np.ndarray | Tensor) -> Tensor:
        self.count[0] += 1
        if self.count[0] == self.at:
            for number in self.signals:
                self.send(number)
            if self.error is not None:
                raise self.error
        return super().gather(indices)


def send_real(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def troubled(
    at: int,
    *signals: signal.Signals,
    error: Exception | None = None,
    send: Callable[[signal.Signals], None] = deliver,
) -> tuple[Examples, Examples]:
    train, val = splits()
    source = train.pixels
    assert isinstance(source, DevicePixels)
    bad = Troubled(source.pixels, source.device, source.resident, at, signals, error, [0], send)
    return replace(train, pixels=bad), replace(val, pixels=bad)


def final(directory: Path) -> tuple[bytes, bytes, object]:
    """Last state, best weights, log; a stop leaves another checkpoint before the last, and may."""
    last = max((directory / "checkpoint").glob("[0-9]*.safetensors"))
    best, _ = checkpoint.best_weights(directory / "checkpoint")
    return last.read_bytes(), best.read_bytes(), outcome(directory)[1]


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


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_T409_a_real_signal_while_a_batch_is_read_saves(tmp_path: Path, name: str, code: int) -> None:
    script = (
        "import signal, sys; from pathlib import Path; from small_runs import recipe, run;"
        "from test_interruptions import send_real, troubled;"
        f"sys.exit(run(Path(sys.argv[1]), recipe(), data=troubled(1, signal.{name}, send=send_real)).exit_code)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == code, done.stderr
    assert checkpoint.newest(tmp_path / "checkpoint")[0] is not None


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_T410_signals_during_a_save_let_it_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: signal.Signals
) -> None:
    real, sent = files.write_bytes, []

    def impatient(path: str | Path, data: bytes) -> None:
        if str(path).endswith(".safetensors"):
            for number in (signal.SIGTERM, second, second):
                send_real(number)
            sent.append(path)
        real(path, data)

    monkeypatch.setattr(files, "write_bytes", impatient)
    result = run(tmp_path, recipe(save_steps=2))
    assert result.exit_code == 143
    assert sent
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


def test_T411_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    changed = recipe(learning_rate=0.02)
    with pytest.raises(UsageError, match=r"T411.*recipe.train.learning_rate: 0.01 -> 0.02") as caught:
        run(tmp_path, changed, resume=True)
    assert caught.value.exit_code == 2
    result = run(tmp_path, changed, resume=True, accept=("T411",))
    assert any("learning_rate" in notice for notice in result.notices)
    found, _ = checkpoint.newest(tmp_path / "checkpoint")
    assert found is not None
    assert found.values["changes"] == ["recipe.train.learning_rate: 0.01 -> 0.02"]
    accepted = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(a["event"], a["code"], a["what"]) for a in accepted] == [("accepted", "T411", found.values["changes"])]
    run(tmp_path, changed, resume=True)
    sessions = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    assert [s["over"] for s in sessions if s["event"] == "resume"] == [False, True]


@pytest.mark.parametrize(
    ("part", "key"), [("environment", "torch"), ("environment", "threads"), ("environment", "code"), ("data", "hash")]
)
def test_T411_changed_data_torch_threads_or_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, key: str
) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    real = small_runs.fingerprint

    def other(*arguments: Any, **options: Any) -> dict[str, Any]:
        marks = real(*arguments, **options)
        return {**marks, part: {**marks[part], key: "other"}}

    monkeypatch.setattr(small_runs, "fingerprint", other)
    with pytest.raises(UsageError, match=f"T411.*{part}.{key}: .* -> 'other'"):
        run(tmp_path, recipe(), resume=True)
    if part == "data":
        with pytest.raises(UsageError, match=r"T411.*the data are not those"):
            run(tmp_path, recipe(), resume=True, accept=("T411",))
    else:
        assert run(tmp_path, recipe(), resume=True, accept=("T411",)).stopped == "epochs"


def test_T411_names_notes_and_evaluation_may_change(tmp_path: Path) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    other = recipe().model_copy(update={"name": "other", "notes": "later"})
    assert run(tmp_path, other, resume=True).stopped == "epochs"


def test_T413_durations_do_not_follow_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    run(tmp_path, recipe())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert all(0 < line["seconds"] < 60 and line["val_seconds"] >= 0 for line in epochs)


def test_T414_resume_after_the_last_epoch_does_nothing_and_says_so(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    before, model = outcome(tmp_path), build(Noisy, seed=5)
    result = run(tmp_path, recipe(), resume=True, model=model)
    assert outcome(tmp_path) == before
    assert any("nothing left to do" in notice for notice in result.notices)
    assert result.weights is not None
    saved = checkpoint.read_tensors(result.weights)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_T414_more_epochs_go_on_from_the_end_when_accepted(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=2))
    assert run(tmp_path, recipe(epochs=4), resume=True, accept=("T411",)).epochs == 4


def test_T414_a_damaged_checkpoint_falls_back_and_ends_at_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "whole", recipe(save_steps=2))
    run(tmp_path, recipe(save_steps=2), data=troubled(12, signal.SIGTERM))
    newest = max((tmp_path / "checkpoint").glob("[0-9]*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    result = run(tmp_path, recipe(save_steps=2), resume=True)
    assert any("C503" in notice and newest.name in notice for notice in result.notices)
    assert outcome(tmp_path) == outcome(tmp_path / "whole")


def test_T414_all_checkpoints_damaged_or_gone_is_exit_4(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    for path in (tmp_path / "checkpoint").glob("[0-9]*.json"):
        path.write_text("{}")
    with pytest.raises(ModelError, match="T414"):
        run(tmp_path, recipe(), resume=True)
    for path in (tmp_path / "checkpoint").iterdir():
        path.unlink()
    with pytest.raises(ModelError, match="T414"):
        run(tmp_path, recipe(), resume=True)


def test_T414_nothing_saved_yet_starts_from_the_beginning_and_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, recipe(epochs=1), resume=True)
    assert any("from the beginning" in notice for notice in result.notices)


def test_T414_a_saved_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=1))
    with pytest.raises(UsageError, match=r"T414.*--resume"):
        run(tmp_path, recipe(epochs=1))


def test_C505_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    with pytest.raises(ModelError, match="C505"):
        run(tmp_path, recipe(), resume=True, model=build(Plain))


def test_T401_adam_moments_come_back_in_the_layout_of_their_parameters(tmp_path: Path) -> None:
    model = build(Noisy).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = []
    for _ in range(2):
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        made.append(states.State(model, optimizer, None, {}))
    model(torch.zeros(2, 1, 12, 12)).sum().backward()
    made[0].optimizer.step()
    path = states.save(made[0], tmp_path)
    states.load(made[1], checkpoint.read_checkpoint(path))
    for parameter in model.parameters():
        first, second = (m.optimizer.state[parameter] for m in made)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(first[key], second[key])
            assert first[key].stride() == second[key].stride()
            assert second[key].data_ptr() % 16 == 0


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
