"""Answers as they come: one line per batch, so that a ``predict`` that was killed goes on where it was.

The first line says of what these are the answers; a log of anything else is begun anew. A last line that is not whole,
as a kill leaves it, does not count.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from medloom.errors import DataError, UsageError
from medloom.files import resource_error, write_bytes

MARK = b'{"medloom predict": 1, '
Line = tuple[int, dict[str, Any]]


def read_log(path: Path) -> tuple[dict[str, Any] | None, list[Line]]:
    """What a log says of itself, and ``(position, row)`` of each answer; None when it is no log.

    Raises:
        DataError: D114 it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            head, lines, _ = _read(handle)
    except OSError as problem:
        raise DataError("D114", path, f"cannot be read ({problem.strerror})", "Correct its permissions") from None
    return head, lines


class AnswerLog:
    """``with AnswerLog(path, head) as log:`` holds a log for this process alone.

    Attributes:
        rows: every answer so far, by its position in the whole list.
        found: how many were there already.

    Args:
        path: where; None to keep answers in memory alone.
        head: of what these are the answers.
        holds: whether a row that was found still counts, e.g. because its mask is there.

    Raises:
        UsageError: T412 another process answers into it, U212 a file of another kind has its name.
        ResourceError: T404, T405 it cannot be written.
    """

    def __init__(
        self, path: Path | None, head: dict[str, Any], holds: Callable[[dict[str, Any]], bool] | None = None
    ) -> None:
        self.path, self.head, self.holds = path, head, holds
        self.rows: dict[int, dict[str, Any]] = {}
        self.found = 0
        self._handle: IO[bytes] | None = None

    def __enter__(self) -> AnswerLog:
        if self.path is None:
            return self
        try:
            self._handle = self.path.open("a+b")
        except OSError as problem:
            raise resource_error(self.path, problem) from problem
        try:
            self._lock()
            self._take_up()
        except BaseException:
            self._handle.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is None:
            return
        self._handle.close()
        if not self.rows and self.path is not None:
            self.path.unlink(missing_ok=True)  # nothing was answered: nothing stays

    def add(self, positions: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
        """Keep the answers of one batch."""
        self.rows.update(zip(positions, rows, strict=True))
        self._write(json.dumps([*zip(positions, rows)]).encode() + b"\n")

    def become(self, target: Path) -> None:
        """All is answered: ``target`` gets each answer once, whole or not at all, and the log goes."""
        assert self.path is not None
        lines = [json.dumps([line]).encode() + b"\n" for line in sorted(self.rows.items())]
        write_bytes(target, _first_line(self.head) + b"".join(lines))
        self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno in (errno.EAGAIN, errno.EACCES):
                told = "another process is answering into this file"
                raise UsageError("T412", self.path, told, "Wait for it, or choose another --out") from None
            # Some file systems of clusters have no locks: two array jobs of one number are then the user's to avoid.

    def _take_up(self) -> None:
        assert self._handle is not None
        self._handle.seek(0)
        start = self._handle.read(len(MARK))
        if not MARK.startswith(start[: len(MARK)]):
            told = "it would be written over, and holds no answers of medloom"
            raise UsageError("U212", self.path, told, "Choose another --out, or move it")
        self._handle.seek(0)
        head, lines, end = _read(self._handle)
        if head is None or head != json.loads(json.dumps(self.head)):
            self._handle.truncate(0)
            self._write(_first_line(self.head))
            return
        self._handle.truncate(end)
        self.rows = {position: row for position, row in lines if self.holds is None or self.holds(row)}
        self.found = len(self.rows)

    def _write(self, line: bytes) -> None:
        if self._handle is None or self.path is None:
            return
        try:
            self._handle.write(line)
            self._handle.flush()
        except OSError as problem:
            with contextlib.suppress(OSError):
                self._handle.close()
            raise resource_error(self.path, problem) from problem


def _first_line(head: dict[str, Any]) -> bytes:
    return MARK + json.dumps(head).encode()[1:] + b"\n"


def _read(handle: IO[bytes]) -> tuple[dict[str, Any] | None, list[Line], int]:
    """Head, answers, and where the last whole line ends."""
    first = handle.readline()
    try:
        head = json.loads(first) if first.startswith(MARK) and first.endswith(b"\n") else None
    except ValueError:
        head = None
    if head is None:
        return None, [], 0
    head.pop("medloom predict")
    lines: list[Line] = []
    end = len(first)
    for batch in _whole_lines(handle):
        try:
            lines += [(int(position), dict(row)) for position, row in json.loads(batch)]
        except (ValueError, TypeError):
            break
        end += len(batch)
    return head, lines, end


def _whole_lines(handle: IO[bytes]) -> Iterator[bytes]:
    while (line := handle.readline()).endswith(b"\n"):
        yield line
