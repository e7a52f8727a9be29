"""Files that are either whole or absent: atomic writes, hashes, the run directory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medloom.errors import ResourceError

_TEMP_MARK = ".medloom-tmp-"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; on success it replaces ``path``, on failure it is removed.

    The file and its directory are synced before the block ends, so what was announced as written survives a
    power loss.

    Raises:
        ResourceError: T404 disk full or file-size limit, T405 directory read-only or gone.
    """
    path = Path(path)
    temp = path.with_name(f"{_TEMP_MARK}{os.getpid()}-{path.name}"[:255])
    try:
        yield temp
        with temp.open("rb+") as handle:
            os.fsync(handle.fileno())
        temp.replace(path)
        _sync_directory(path.parent)
    except OSError as problem:
        raise resource_error(path, problem) from problem
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary directory beside ``path``; on success it takes the name ``path``, else it goes.

    A directory that is already there is exchanged in one step where the kernel can (Linux); elsewhere it is set aside
    first, and put back when the second step fails.

    Raises:
        ResourceError: T404 disk full or file-size limit, T405 directory read-only or gone.
    """
    path = Path(path)
    temp = path.with_name(f"{_TEMP_MARK}{os.getpid()}-{path.name}"[:255])
    if path.parent.is_dir():
        # What a process that was killed here left of the same folder; those of other names are not ours to judge.
        for orphan in path.parent.glob(f"{_TEMP_MARK}[0-9]*-*"):
            if orphan.name.removeprefix(_TEMP_MARK).partition("-")[2] == path.name:
                _swept(orphan)
    try:
        shutil.rmtree(temp, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.mkdir()
        yield temp
        _sync_directory(temp)
        if not path.exists():
            temp.rename(path)
        elif not _exchange(temp, path):
            aside = path.with_name(f"{path.name}.previous")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            try:
                temp.rename(path)
            except OSError:
                aside.rename(path)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        _sync_directory(path.parent)
    except OSError as problem:
        raise resource_error(path, problem) from problem
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def make_folder(path: str | Path) -> Path:
    """Make a folder and all above it, or find it there; ResourceError T404 or T405 where that cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise resource_error(path, problem) from problem
    return path


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old content or all of the new one."""
    with atomic_path(path) as temp:
        temp.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in their own order. NaN and infinity are refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: str | Path, line: str) -> None:
    """Append one line to a log and sync it."""
    path = Path(path)
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as problem:
        raise resource_error(path, problem) from problem


def canonical_json(value: Any) -> str:
    """One spelling per value, so that hashes of it can be compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_bytes(data: bytes) -> str:
    """Hex digest of a byte string."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of the canonical JSON of ``value``."""
    return sha256_bytes(canonical_json(value).encode())


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file, read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sweep_orphans(directory: str | Path) -> list[Path]:
    """Remove temporary files that a killed process left in ``directory`` (T402). Returns what was removed."""
    return [path for path in list(Path(directory).glob(f"**/{_TEMP_MARK}*")) if _swept(path)]


def _swept(path: Path) -> bool:
    """Remove a temporary file or folder, unless a living process owns it; whether it is gone."""
    owner = path.name.removeprefix(_TEMP_MARK).split("-")[0]
    if owner.isdigit() and int(owner) != os.getpid() and _is_alive(int(owner)):
        return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return True


@dataclass(frozen=True)
class RunDirectory:
    """Where each thing of one run lives (docs/architecture.md, contract 4)."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def records(self) -> Path:
        return self.root / "records.csv"

    @property
    def split(self) -> Path:
        return self.root / "split.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit.json"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def sessions(self) -> Path:
        return self.root / "sessions.jsonl"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def operating_point(self) -> Path:
        return self.root / "operating_point.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    def predictions(self, split: str) -> Path:
        return self.root / f"predictions_{split}.csv"

    def cases(self, split: str) -> Path:
        """One row per case and structure, where masks are answered."""
        return self.root / f"cases_{split}.csv"


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux renameat2); False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def resource_error(path: Path, problem: OSError) -> ResourceError:
    """What a failed write becomes: T404 where space or a size limit ended, else T405."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError("T404", path, f"not written: {problem.strerror}", "Free space there, then run it again")
    remedies = dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "Something else has that name: choose another path, or move it"
    )
    remedies[errno.ENOENT] = "Create the folder that it goes into"
    remedy = remedies.get(problem.errno or 0, "Make the directory writable, or choose another")
    return ResourceError("T405", path, f"not written: {problem.strerror or problem}", remedy)
