"""What a run writes while it trains: checkpoints, ``log.jsonl``, ``sessions.jsonl``; and what it tells its caller.

``log.jsonl`` tells the run: it is a function of recipe, data and machine but for its clock fields (``CLOCK_FIELDS``),
however often the run was interrupted. ``sessions.jsonl`` tells its history: starts, resumes, ends, faults, memory.
What a resume was made to accept also goes into ``ledger.jsonl``. Only the main process of several writes.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medloom import files, machine
from medloom.errors import ModelError, ResourceError, UsageError
from medloom.files import RunDirectory
from medloom.training import checkpoint
from medloom.training import state as states
from medloom.training.distributed import World
from medloom.training.fingerprint import check_same
from medloom.training.state import State

CLOCK_FIELDS = ("time", "seconds", "val_seconds", "images_per_second")


class Journal:
    """The writer of one session."""

    def __init__(self, run: RunDirectory, world: World, progress: Callable[[dict[str, Any]], None] | None) -> None:
        self.notices: list[str] = []
        self._run, self._world, self._progress = run, world, progress
        self._written = 0
        self._last_event = -1.0
        self._step_seconds: float | None = None
        self._val_seconds = 0.0

    def open(self, state: State, total_steps: int, *, resume: bool, accept: tuple[str, ...]) -> None:
        """Begin a run of ``total_steps``, or bring ``state`` to its newest good checkpoint.

        Raises:
            UsageError: T411, T414. ModelError: T414, C505. ResourceError: T405.
        """
        directory = self._run.checkpoint
        if self._world.is_main:
            _make(directory)
            files.sweep_orphans(directory)
        self._world.barrier()
        if not resume and any(directory.glob("*.json")):
            raise UsageError("T414", directory, "a run is saved here already", "Add --resume, or choose another --out")
        found, refused = checkpoint.newest(directory)
        for problem in refused:
            self.notice(f"passed over: {problem}")
        # Nobody may write before all have read.
        self._world.barrier()
        if found is None:
            if resume and _has_epochs(self._run.log):
                raise ModelError(
                    "T414", directory, "epochs were logged and no checkpoint is here", "Restore it, or start anew"
                )
            if resume:
                self.notice("nothing was saved yet: the run starts from the beginning")
            start = {"event": "start", "fingerprint": files.sha256_json(state.fingerprint)[:16], "time": _now()}
            state.history.append(start)
        else:
            changes = check_same(found.values["fingerprint"], state.fingerprint, accept, self._run.root)
            states.load(state, found)
            state.changes += changes
            if changes:
                self.notice(f"goes on with accepted changes: {'; '.join(changes)}")
                self._note_accepted(state, changes)
                if state.total < total_steps:
                    state.done = None  # more epochs or more patience than the run that had ended
            if state.done:
                self.notice(f"the run is over already ({state.done}, {state.epoch - 1} epochs): nothing left to do")
            if self._world.is_main:
                checkpoint.discard_after(directory, found)
                checkpoint.tidy(directory)
        if self._world.is_main:
            states.rewrite_log(self._run.log, state.history)
        self._written = len(state.history)
        event = "resume" if found else "start"
        # A resume of a run that is over interrupted nothing: who counts interruptions must be able to tell.
        self.session(
            event,
            epoch=state.epoch,
            step=state.step,
            over=bool(state.done),
            changes=state.changes,
            notices=self.notices,
        )

    def step(self, state: State, rate: float, numbers: torch.Tensor, weight: float, per_epoch: int, total: int) -> None:
        """Tell the caller, at most ten times a second and at an epoch's end: a GPU waits while its loss is read."""
        now = time.monotonic()
        if self._step_seconds is None:
            self._step_seconds = state.seconds / state.step
        self._step_seconds += 0.1 * (state.seconds / state.step - self._step_seconds)
        if self._progress is None or (now - self._last_event < 0.1 and state.step < per_epoch):
            return
        self._last_event = now
        left = total - state.total
        self._progress(
            {
                "event": "step",
                "epoch": state.epoch,
                "step": state.step,
                "steps_per_epoch": per_epoch,
                "total": state.total,
                "total_steps": total,
                "train_loss": float(numbers[0]) / max(weight, 1e-12),
                "learning_rate": rate,
                "images_per_second": state.images / max(state.seconds, 1e-9),
                "seconds_left": left * self._step_seconds + -(-left // per_epoch) * self._val_seconds,
            }
        )

    def epoch_line(
        self, state: State, scores: dict[str, float | None], rate: float, val_seconds: float, hit: str
    ) -> dict[str, Any]:
        """The log line of an epoch that was validated; ``hit`` names what the steps counted beside the loss."""
        loss, hits, *errors = state.sums.tolist()
        added = {name: error / state.images for name, error in zip(state.added, errors, strict=True)}
        self._val_seconds = val_seconds
        return {
            "event": "epoch",
            "epoch": state.epoch,
            "step": state.total,
            "train_loss": loss / max(state.weight, 1e-12),
            hit: hits / state.images,
            **added,
            **scores,
            "learning_rate": rate,
            "seconds": state.seconds,
            "val_seconds": val_seconds,
            "images_per_second": state.images / max(state.seconds, 1e-9),
            "time": _now(),
        }

    def keep_best(self, state: State, monitor: str, line: dict[str, Any]) -> None:
        """Write the weights of the best epoch so far and remember what they scored."""
        entry = {}
        if self._world.is_main:
            entry = checkpoint.write_weights(self._run.checkpoint, state.epoch, state.judged.state_dict())
        score = line.get(monitor)
        state.best = {
            "epoch": state.epoch,
            "monitor": monitor,
            "score": score,
            "val_loss": line.get("val_loss"),
            **entry,
        }

    def end_epoch(self, state: State, line: dict[str, Any]) -> None:
        """Log an epoch and save. The checkpoint comes first: the log is restored from it, never the reverse."""
        state.history.append(line)
        if state.best and state.best["epoch"] == line["epoch"]:
            kept = {key: state.best[key] for key in ("epoch", "monitor", "score")}
            state.history.append({"event": "best", **kept, "time": _now()})
        if state.done:
            state.history.append(
                {"event": "stop", "reason": state.done, "epochs": line["epoch"], "step": state.total, "time": _now()}
            )
        self.save(state)
        self._tell(line)

    def save(self, state: State) -> None:
        """Write a checkpoint, then the log lines that it holds. "Saved" is said only after both."""
        if self._world.is_main:
            path = states.save(state, self._run.checkpoint)
            for entry in state.history[self._written :]:
                files.append_line(self._run.log, json.dumps(entry, allow_nan=False))
            self._tell({"event": "saved", "epoch": state.epoch, "step": state.step, "path": str(path)})
        self._written = len(state.history)

    def close(self, state: State, stopped: str) -> Path | None:
        """Record the end of the session; when the run is over, give the model its best weights."""
        self.session("end", stopped=stopped, epoch=state.epoch, step=state.step, **peak_memory())
        self._world.barrier()
        if state.best is None:
            return None
        path, best = checkpoint.best_weights(self._run.checkpoint)
        if state.done:
            tensors = checkpoint.read_tensors(path, best)
            checkpoint.fill(state.model.state_dict(), tensors, path)
        return path

    def _note_accepted(self, state: State, changes: list[str]) -> None:
        """Enter in the ledger that a person let the run go on as another one (T411): the report shows it in red."""
        if self._world.is_main:
            entry = {"event": "accepted", "code": "T411", "what": changes, "epoch": state.epoch, "time": _now()}
            files.append_line(self._run.ledger, json.dumps(entry, ensure_ascii=False))

    def session(self, event: str, **values: Any) -> None:
        """Append to ``sessions.jsonl``."""
        if self._world.is_main:
            line = json.dumps({"event": event, **values, "processes": self._world.size, "time": _now()})
            files.append_line(self._run.sessions, line)

    def notice(self, text: str) -> None:
        """Something that a person should know."""
        self.notices.append(text)
        self._tell({"event": "notice", "text": text})

    def _tell(self, event: dict[str, Any]) -> None:
        if self._progress is not None:
            self._progress(event)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ResourceError(
            "T405", directory, f"not writable: {problem.strerror}", "Make the directory writable, or choose --out"
        ) from None


def _has_epochs(log: Path) -> bool:
    try:
        return '"event": "epoch"' in log.read_text(encoding="utf-8")
    except OSError:
        return False


def peak_memory() -> dict[str, int]:
    """Most memory that this process has held, in bytes: ``peak_memory``, and ``peak_device_memory`` on a GPU."""
    peak = {"peak_memory": machine.peak_memory()}
    if torch.cuda.is_available():
        peak["peak_device_memory"] = torch.cuda.max_memory_allocated()
    return peak


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
