"""One builder at a time in a folder of decoded data."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from medloom.errors import ResourceError


@contextlib.contextmanager
def building(directory: Path) -> Iterator[None]:
    """Hold ``directory``, made when missing, until the block ends. The lock is the kernel's and goes with its holder.

    Raises:
        ResourceError: T405, it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / ".lock").open("a")
    except OSError as problem:
        raise ResourceError(
            "T405", directory, f"not writable: {problem.strerror}", "Choose a directory that is"
        ) from problem
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
