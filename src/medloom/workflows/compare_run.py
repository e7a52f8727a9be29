"""Runs of a comparison, one after another, each in a process of its own that may fail without the rest.

``estimates.json`` and ``runs.json`` in the comparison's folder remember what was measured and what failed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medloom.files import make_folder, write_json
from medloom.training.stopping import StopRequests
from medloom.workflows.compare_plan import Listed, Planned
from medloom.workflows.progress import Progress, duration

POLL_SECONDS = 0.2
LOCK_SECONDS = 60.0  # a run whose comparison was killed saves before it lets go
START_SECONDS = 20.0  # of a run beside its steps: start, audit, export, report
OVERHEAD = "audit, export and report taken as 20 s"


@dataclass(frozen=True)
class Ended:
    """How a process ended; ``error`` is its one line when it failed."""

    code: int
    output: str
    error: str | None


class Book:
    """A JSON file of the comparison's folder, rewritten whole at every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        if path.exists():
            try:
                self.values = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                self.values = {}  # what it held can be measured again

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value
        write_json(self.path, self.values)

    def drop(self, key: str) -> None:
        if self.values.pop(key, None) is not None:
            write_json(self.path, self.values)


def in_process(
    arguments: Sequence[str], log: Path, stop: StopRequests, tick: Callable[[], None] = lambda: None
) -> Ended:
    """Run ``workflows.child`` with what it says on standard error going to ``log``; a stop request is passed on."""
    make_folder(log.parent)
    with log.open("ab") as sink, log.with_suffix(".out").open("w+b") as output:
        before = sink.tell()
        command = [sys.executable, "-m", "medloom.workflows.child", *arguments]
        # A session of its own: Ctrl-C at the terminal reaches it once, through us.
        process = subprocess.Popen(command, stdout=output, stderr=sink, start_new_session=True)
        told = False
        while process.poll() is None:
            if stop.requested() and not told:
                process.send_signal(getattr(signal, str(stop.requested())))
                told = True
            tick()
            time.sleep(POLL_SECONDS)
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    log.with_suffix(".out").unlink(missing_ok=True)
    return Ended(process.returncode, text, _error(process.returncode, log, before))


def finished(one: Planned) -> bool:
    """Whether nothing is left to do for a run."""
    run = one.directory
    return one.given or (run.metrics.exists() and run.report.exists() and run.predictions("test").exists())


def estimate(one: Planned, listed: Listed, book: Book, folder: Path, stop: StopRequests) -> dict[str, Any]:
    """Seconds and memory of a run of this setting, from a few steps of it; remembered for its other seeds.

    An ``error`` in the answer says that not even a few steps were possible; ``exit`` is then the process's.
    """
    found = book.values.get(one.setting)
    if found is None or "error" in found:
        request = {
            "recipe": one.recipe.as_dict(),
            "num_classes": listed.num_classes,
            "multi_label": listed.multi_label,
        }
        done = in_process(["trial", json.dumps(request)], folder / "logs" / "trial.log", stop)
        if stop.requested():
            return {"error": "stopped"}
        found = {"error": done.error, "exit": done.code} if done.error else json.loads(done.output)
        book.put(one.setting, found)
    return found if "error" in found else {**found, "seconds": expected_seconds(one, listed, found)}


def expected_seconds(one: Planned, listed: Listed, found: dict[str, Any]) -> float:
    """Steps, a validation per epoch, the test, and ``START_SECONDS``."""
    train = one.recipe.train
    per_epoch = max(1, -(-listed.images["train"] // (train.batch_size * train.accumulate)))
    steps = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    scored = -(-steps // per_epoch) * listed.images["val"] + listed.images["val"] + listed.images["test"]
    return float(START_SECONDS + steps * found["seconds_per_step"] + scored * found["seconds_per_scored_image"])


def run_all(
    todo: Sequence[Planned],
    seconds: dict[str, float],
    *,
    folder: Path,
    book: Book,
    stop: StopRequests,
    deadline: float | None,
    quiet: bool,
) -> int:
    """Train what is left until it is done, time is up, or a stop is asked for; returns how many were not begun.

    Args:
        seconds: expected, by setting.
        deadline: of ``time.monotonic()``; no run starts after it.
    """
    if not todo:
        return 0
    spent = expected = 0.0
    with Progress("comparing", quiet=quiet) as progress:
        for k, one in enumerate(todo):
            if stop.requested() or (deadline is not None and time.monotonic() >= deadline):
                return len(todo) - k
            started, ratio = time.monotonic(), spent / expected if expected else 1.0
            after = sum(seconds[o.setting] for o in todo[k + 1 :])
            head = f"[{k + 1}/{len(todo)}] {one.name}"

            def tick(
                one: Planned = one,
                started: float = started,
                ratio: float = ratio,
                after: float = after,
                head: str = head,
            ) -> None:
                gone = time.monotonic() - started
                left = max(0.0, ratio * seconds[one.setting] - gone) + ratio * after
                progress.sometimes(f"{head}: {_epochs(one)}, {duration(gone)}; {duration(left)} left overall")

            ended = _train(one, folder, stop, tick)
            taken = time.monotonic() - started
            if stop.requested() and ended.code in (130, 143, -2, -15):
                progress.keep(f"{head}: stopped and saved after {duration(taken)}")
                return len(todo) - k
            _record(book, one, ended, taken)
            if ended.code == 0:
                spent, expected = spent + taken, expected + seconds[one.setting]
            ratio = spent / expected if expected else 1.0
            progress.keep(f"{head}: {_told(one, ended)} in {duration(taken)}; {duration(ratio * after)} left overall")
    return 0


def _train(one: Planned, folder: Path, stop: StopRequests, tick: Callable[[], None]) -> Ended:
    log = folder / "logs" / f"{one.directory.root.name}.log"
    until = time.monotonic() + LOCK_SECONDS
    while True:
        request = {
            "recipe": one.recipe.as_dict(),
            "out": str(one.directory.root),
            "resume": one.directory.recipe.exists(),
        }
        ended = in_process(["train", json.dumps(request)], log, stop, tick)
        if "error[T412]" not in (ended.error or "") or stop.requested() or time.monotonic() > until:
            return ended


def _record(book: Book, one: Planned, ended: Ended, taken: float) -> None:
    before = book.values.get(one.directory.root.name, {})
    entry = {"label": one.label, "seed": one.seed, "seconds": round(before.get("seconds", 0.0) + taken, 1)}
    book.put(one.directory.root.name, {**entry, "exit": ended.code, "error": ended.error})


def _told(one: Planned, ended: Ended) -> str:
    if ended.code:
        return f"FAILED, {ended.error}"
    try:
        area = json.loads(one.directory.metrics.read_text())["splits"]["test"]["metrics"]["auc"]["value"]
    except (OSError, ValueError, KeyError):
        return "done"
    return "done" if area is None else f"done, test AUC {area:.3f}"


def _epochs(one: Planned) -> str:
    try:
        done = one.directory.log.read_text(encoding="utf-8").count('"event": "epoch"')
    except OSError:
        done = 0
    return f"{done} of {one.recipe.train.epochs} epochs" if one.recipe.train.max_steps is None else f"{done} epochs"


def _error(code: int, log: Path, start: int) -> str | None:
    """The line that the process left, or what its end means."""
    if code == 0:
        return None
    with log.open("rb") as handle:
        said = _tail(handle, start)
    coded = [line for line in said if line.startswith("error[")]
    if coded:
        return coded[-1]
    if code == -signal.SIGKILL:
        return "error[T407] memory: killed from outside, most likely because the machine's memory ran out."
    if code < 0:
        return f"error[X001] process: ended by signal {-code}."
    return f"error[X001] process: ended with {code}; {said[-1] if said else 'it said nothing'}"


def _tail(handle: IO[bytes], start: int) -> list[str]:
    handle.seek(start)
    return [line for line in handle.read().decode("utf-8", "replace").splitlines() if line.strip()]
