"""SIGTERM and Ctrl-C become a request that the loop honours after the step in hand (T409, T410)."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130}


class StopRequests:
    """Catches both signals while it is entered. The first decides the exit code; further ones change nothing, so a
    checkpoint that is being written is finished, however impatient the sender.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        # Python allows handlers in the main thread only; elsewhere (a notebook's worker) signals are left alone.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> str | None:
        """The first signal so far: asked anew each time, for it may come at any moment."""
        return self.received

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
