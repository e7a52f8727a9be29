"""One file from an address to a folder: resumable, checked, and under its name only when it is whole.

What has come lies in ``NAME.part`` until its sum is right; ``NAME.part.json`` says which version of which address it
is a part of. The one place of the package that opens a connection on its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from medloom.data.transfer import BLOCK, Transfer, facts_of
from medloom.errors import DataError, ResourceError, UsageError
from medloom.files import make_folder


@dataclass(frozen=True)
class Fetched:
    """A file that is whole.

    Attributes:
        path: where it lies.
        bytes: its size.
        sha256, md5: of its content.
        checked: whether a published sum was there to hold it against.
        came: bytes that this call transferred; 0 when the file was there already.
    """

    path: Path
    bytes: int
    sha256: str
    md5: str
    checked: bool
    came: int


def fetch(
    url: str,
    target: Path,
    *,
    md5: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Bring ``url`` to ``target``, or find it there.

    Args:
        md5: published sum; without one nothing but the announced length is checked.
        progress: is given bytes that came and bytes that were to come, in this call.
        pause: waits between attempts.

    Raises:
        UsageError: U224 not an http address; T412 another process fetches this file.
        ResourceError: D130 no connection, or cut off five times without getting further (what came is kept); D131 the
            server has no such file, fails, or sends elsewhere than to a web address; T404, T405 no room, not writable.
        DataError: D132 the sum is not the published one: nothing is kept, and a file that was there is not replaced.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UsageError("U224", url, "not a web address", "Begin it with https:// or http://")
    if target.exists():
        return _already(target, md5)
    made = not target.parent.exists()
    make_folder(target.parent)
    try:
        return _fetch(url, target, md5, progress, pause)
    finally:
        with contextlib.suppress(OSError):
            if made:
                target.parent.rmdir()  # only where nothing came


def _fetch(
    url: str,
    target: Path,
    md5: str | None,
    progress: Callable[[int, int], None] | None,
    pause: Callable[[float], None],
) -> Fetched:
    part = target.with_name(f"{target.name}.part")
    with _writable(target), part.open("ab") as sink:
        _lock(sink, target)
        try:
            came = Transfer(url, part, sink, progress, pause).run()
        finally:
            if not part.stat().st_size:
                part.unlink()
                facts_of(part).unlink(missing_ok=True)
        sink.flush()
        os.fsync(sink.fileno())
        sums = _sums(part)
        if md5 is not None and sums[0] != md5:
            part.unlink()
            facts_of(part).unlink(missing_ok=True)
            raise DataError(
                "D132",
                url,
                f"its MD5 sum is {sums[0]}, the published one {md5}",
                "Nothing was kept; try again, or another mirror",
            )
        part.replace(target)
        facts_of(part).unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return Fetched(target, target.stat().st_size, sums[1], sums[0], md5 is not None, came)


def _already(target: Path, md5: str | None) -> Fetched:
    with _writable(target):
        sums = _sums(target)
    if md5 is not None and sums[0] != md5:
        remedy = "Move it away, or name another folder with --out"
        raise DataError("D132", target, f"it is there already, with MD5 sum {sums[0]} instead of {md5}", remedy)
    return Fetched(target, target.stat().st_size, sums[1], sums[0], md5 is not None, 0)


def _sums(path: Path) -> tuple[str, str]:
    """MD5 and SHA-256 of a file, in one reading."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def _lock(sink: IO[bytes], target: Path) -> None:
    try:
        fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError("T412", target, "another process is fetching this file", "Wait for it") from None


@contextlib.contextmanager
def _writable(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free space there, then run it again" if full else "Make the folder writable, or choose another"
        raise ResourceError(
            "T404" if full else "T405", target, f"not written: {problem.strerror or problem}", remedy
        ) from problem
