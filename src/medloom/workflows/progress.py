"""Progress with the time left, on standard error: a live line on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int], None]
LOG_SECONDS = 20.0


class Progress:
    """``with Progress("reading", quiet=False) as step: step(done, total)``."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self.started = self.last = time.monotonic()
        self.live = sys.stderr.isatty()
        self.printed = 0

    def __enter__(self) -> Progress:
        if not self.live:
            self.line(self.title)  # in a log the first figures come late
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Tell that ``done`` of ``total`` units are finished."""
        if not self._due():
            return
        elapsed = self.last - self.started
        left = elapsed / done * (total - done) if done else None
        text = f"{self.title} {done}/{total}"
        if left is not None:
            text += f", {duration(left)} left"
        self.line(f"{text} {note}".rstrip())

    def sometimes(self, text: str) -> None:
        """Show a line, if the last one has stood for a while."""
        if self._due():
            self.line(text)

    def _due(self) -> bool:
        now = time.monotonic()
        if self.quiet or now - self.last < (0.2 if self.live else LOG_SECONDS):
            return False
        self.last = now
        return True

    def line(self, text: str) -> None:
        """Show a line: over the last one on a terminal, below it elsewhere."""
        if self.quiet:
            return
        if self.live:
            self.clear()
            sys.stderr.write(text[:160])
            self.printed = len(text[:160])
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def keep(self, text: str) -> None:
        """Print a line that stays."""
        if self.quiet:
            return
        self.clear()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if self.live and self.printed:
            sys.stderr.write("\r" + " " * self.printed + "\r")
            self.printed = 0


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(entry: dict[str, Any], digits: int = 3) -> str:
    """A metric entry as text: ``0.957 (0.941 to 0.971)``, or why there is none."""
    if entry.get("value") is None:
        return str(entry.get("note") or "not estimable")
    text = f"{entry['value']:.{digits}f}"
    if entry.get("low") is not None:
        text += f" ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"
    return text
