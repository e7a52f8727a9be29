"""Kill training with SIGKILL at random moments, resume, and compare with a run that nobody disturbed.

    python kill_runs.py DIRECTORY KILLS SEED

torch is imported once; each run is a forked child, so that a kill costs a fraction of a second. Prints JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import small_runs

from medloom.training import checkpoint
from medloom.training.journal import CLOCK_FIELDS


def outcome(directory: Path) -> tuple[object, ...]:
    """All that must be equal: bytes of every tensor file, the log without clocks, what is kept."""
    files = sorted((directory / "checkpoint").glob("*.safetensors"))
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in CLOCK_FIELDS} for line in lines]
    return [(file.name, file.read_bytes()) for file in files], log


def final(directory: Path) -> tuple[bytes, bytes, object]:
    """Last state, best weights, log; a stop leaves another checkpoint before the last, and may."""
    last = max((directory / "checkpoint").glob("[0-9]*.safetensors"))
    best, _ = checkpoint.best_weights(directory / "checkpoint")
    return last.read_bytes(), best.read_bytes(), outcome(directory)[1]


def newest_step(directory: Path) -> int | None:
    found, _ = checkpoint.newest(directory)
    return None if found is None else int(found.path.stem)


def start(directory: Path) -> int:
    """Train or go on in a child; its exit code tells whether it finished."""
    pid = os.fork()
    if pid:
        return pid
    try:
        small_runs.run(directory, small_runs.recipe(epochs=4, ema_decay=0.9, save_steps=2), resume=True)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(directory: Path) -> float:
    """Let a run come to its end; seconds."""
    started = time.monotonic()
    _, status = os.waitpid(start(directory), 0)
    if status:
        sys.exit(f"the run in {directory} failed with status {status}")
    return time.monotonic() - started


def main(root: Path, kills: int, seed: int) -> None:
    for slow in ("torch._dynamo", "cv2"):  # imported by the first step; in the parent it is paid once
        with contextlib.suppress(ImportError):
            importlib.import_module(slow)
    chance = random.Random(seed)
    whole = finish(root / "reference")
    expected = outcome(root / "reference")
    killed = runs = in_save = equal = 0
    while killed < kills or runs == 0:
        directory = root / f"run{runs}"
        while killed < kills:
            pid = start(directory)
            time.sleep(chance.uniform(0.0, 0.6 * whole))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if not os.WIFSIGNALED(status):
                if status:
                    sys.exit(f"the run in {directory} failed with status {status}")
                break  # it had finished before the blow
            killed += 1
            in_save += any((directory / "checkpoint").glob(".medloom-tmp-*"))
        finish(directory)
        equal += outcome(directory) == expected
        runs += 1
    counts = {"killed": killed, "killed_while_saving": in_save, "runs": runs, "equal": equal}
    print(json.dumps({**counts, "seconds": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
