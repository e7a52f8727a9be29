"""A study as one ZIP file, read in memory: nothing is unpacked onto a disk, and names in it are never paths.

Sizes, counts and ratios are those of the archive's own directory, and reading a member stops at the size it declared.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Container, Iterator
from pathlib import Path

from medloom.data.dicom import is_dicom
from medloom.errors import DataError

MOST_MEMBERS = 20_000
MOST_BYTES = 4 << 30
MOST_RATIO = 100
SMALL = 1 << 20
"""A member of less may be packed by any ratio: an empty page is no bomb."""

_UNPACK = "Unpack it where that is safe, and give the folder"


def is_archive(path: str | Path) -> bool:
    """Whether a file's name says ZIP."""
    return Path(path).suffix.lower() == ".zip"


def count_members(path: str | Path) -> int:
    """How many files the archive holds, after all checks of its directory.

    Raises:
        DataError: D114, M219.
    """
    with _opened(Path(path)) as archive:
        return len(_members(archive, str(path)))


def read_archive(path: str | Path, only: Container[int] | None = None) -> Iterator[tuple[str, bytes]]:
    """Each file of the archive as ``study.zip#3`` and its content, in the archive's order, one at a time.

    What is no DICOM by its first bytes is handed on too (it will be refused by what it is), but for archives in it.

    Args:
        only: the numbers, from 1, of the files to read.

    Raises:
        DataError: D114; M219 too many members, too large, packed too tightly, encrypted, damaged, or nested.
    """
    path = Path(path)
    with _opened(path) as archive:
        for number, member in enumerate(_members(archive, str(path)), 1):
            name = f"{path}#{number}"
            if only is not None and number not in only:
                continue
            try:
                data = archive.read(member)
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
                raise DataError("M219", name, "the archive is damaged, or packed by another method", _UNPACK) from None
            if data[:4] == b"PK\x03\x04" and not is_dicom(data[:132]):
                raise DataError("M219", name, "an archive inside the archive", _UNPACK)
            yield name, data


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as problem:
        raise DataError("D114", path, f"cannot be read ({problem.strerror})", "Correct its permissions") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise DataError("M219", path, "no ZIP archive, or a damaged one", _UNPACK) from None


def _members(archive: zipfile.ZipFile, place: str) -> list[zipfile.ZipInfo]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > MOST_MEMBERS:
        raise DataError("M219", place, f"{len(members):,} members, more than {MOST_MEMBERS:,}", _UNPACK)
    if any(member.flag_bits & 1 for member in members):
        raise DataError("M219", place, "the archive is encrypted", _UNPACK)
    total, packed = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    if total > MOST_BYTES:
        raise DataError("M219", place, f"unpacks to {total:,} bytes, more than {MOST_BYTES:,}", _UNPACK)
    tight = [m for m in members if m.file_size > max(SMALL, MOST_RATIO * m.compress_size)]
    if tight or total > max(SMALL, MOST_RATIO * packed):
        raise DataError("M219", place, f"{packed:,} bytes unpack to {total:,}, over {MOST_RATIO} to 1", _UNPACK)
    return members
