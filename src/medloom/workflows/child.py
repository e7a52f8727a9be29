"""A step of a longer verb in a process of its own: what it breaks, or the memory it takes, stays its own.

    python -m medloom.workflows.child TASK JSON

``train`` runs a recipe; ``trial``, ``count`` and ``speed`` print what they found as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> NoReturn:
    """Do one task; an error is one line on standard error and an exit code, as from the command line."""
    end_with_the_parent()
    task, text = arguments
    from medloom.errors import MedloomError

    try:
        request = json.loads(text)
        if task == "train":
            from medloom.workflows.train import train

            sys.exit(train(**request, quiet=False).exit_code)
        if task == "speed":
            from medloom.workflows.measure import speed

            found = speed(**request)
        else:
            from medloom.workflows import trial

            found = getattr(trial, task)(**request)
    except MedloomError as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(problem.exit_code)
    except MemoryError:
        sys.stderr.write("error[T407] memory: this machine's memory ran out. Lower train.batch_size.\n")
        sys.exit(7)
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")
    sys.exit(0)


def end_with_the_parent() -> None:
    """When the parent is killed outright this process is asked to save and stop (Linux; elsewhere it goes on)."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(143)


if __name__ == "__main__":
    main(sys.argv[1:])
