"""The batches of ``medloom predict``, spread over processes, each with the bundle opened and proved for itself."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from medloom.errors import MedloomError, ResourceError, again
from medloom.workflows.answering import Item

Batch = tuple[Sequence[int], Sequence[Item]]


def spread(
    batches: Sequence[Batch],
    *,
    bundle: Path,
    runtime: str,
    folder: Path | None,
    processes: int,
    threads: int,
) -> Iterator[tuple[Sequence[int], list[dict[str, Any]]]]:
    """Positions and rows of each batch, in the order in which they are answered.

    Args:
        batches: positions in the whole list, and what lies there.
        threads: of each process.

    Raises:
        MedloomError: what a process refused. ResourceError: T407 one of them was ended from outside.
    """
    request = {"bundle": str(bundle), "runtime": runtime, "folder": folder and str(folder), "threads": threads}
    waiting = deque(batches)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as ready:
        for number in range(min(processes, len(batches))):
            worker = stack.enter_context(_Worker(number + 1, request))
            ready.register(worker.stdout, selectors.EVENT_READ, worker)
            worker.ask(waiting.popleft())
        while ready.get_map():
            for key, _ in ready.select():
                worker = key.data
                done = worker.hear()
                if waiting:
                    worker.ask(waiting.popleft())
                else:
                    ready.unregister(worker.stdout)
                yield done


class _Worker:
    """A process, and the one batch that it works on."""

    def __init__(self, number: int, request: dict[str, Any]) -> None:
        self.number = number
        self.positions: Sequence[int] = ()
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "medloom.workflows.answer_child", json.dumps(request)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, encoding="ascii"
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin: IO[str] = self.process.stdin
        self.stdout: IO[str] = self.process.stdout

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.stdin.close()
        if self.positions:  # its batch is not wanted any more
            self.process.kill()
        self.process.wait()
        self.stdout.close()
        self.said.close()

    def ask(self, batch: Batch) -> None:
        self.positions, items = batch
        try:
            self.stdin.write(json.dumps([asdict(item) for item in items]) + "\n")
            self.stdin.flush()
        except OSError:
            self._ended()

    def hear(self) -> tuple[Sequence[int], list[dict[str, Any]]]:
        line = self.stdout.readline()
        if not line.endswith("\n"):
            self._ended()
        told = json.loads(line)
        if "refused" in told:
            raise again(told["refused"])
        positions, self.positions = self.positions, ()
        return positions, list(told["rows"])

    def _ended(self) -> None:
        status = self.process.wait()
        self.said.seek(0)
        last = (self.said.read().decode(errors="replace").strip().splitlines() or [""])[-1][:200]
        place = f"process {self.number} of those that answer"
        if status > 0 and "MemoryError" not in last:
            raise MedloomError("X001", place, last or f"exit status {status}", "Run again with --processes 1 --debug")
        told = f"it was ended by signal {-status}, as when memory runs out" if status < 0 else "memory ran out"
        raise ResourceError("T407", place, told, "The same command goes on where this one was; lower --processes")
