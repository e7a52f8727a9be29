"""A run directory belongs to one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from medloom.errors import UsageError
from medloom.files import RunDirectory, make_folder, resource_error


@contextlib.contextmanager
def exclusive(run: RunDirectory) -> Iterator[None]:
    """Hold a run directory for this process alone (T412).

    The lock is the kernel's, so it vanishes with its holder, whatever killed it: a lock file that is left behind
    after a crash or a reboot blocks nobody.

    A directory that was made here and holds nothing else at the end, as after a refusal, goes again.

    Raises:
        UsageError: T412, another process holds it.
        ResourceError: T405, the directory cannot be made or written.
    """
    made = not run.root.exists()
    make_folder(run.root)
    path = run.root / ".lock"
    try:
        handle = path.open("a+")
    except OSError as problem:
        raise resource_error(path, problem) from problem
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno not in (errno.EAGAIN, errno.EACCES):
                raise resource_error(path, problem) from problem
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UsageError(
                "T412", run.root, f"process {holder} is working in this run directory", "Wait for it, or choose --out"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if made and list(run.root.iterdir()) == [path]:
                    path.unlink()
                    run.root.rmdir()
