"""Class folders, with or without split folders: ``ROOT/[train|val|test]/CLASS/**/image``.

Symbolic links are not followed, so that no image is seen twice and none from outside is pulled in; what was passed
over is counted in the notices, never skipped in silence.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medloom.config import DataConfig
from medloom.data.formats import SINGLE_SUFFIXES, is_candidate
from medloom.data.images import count_frames
from medloom.data.labels import SPLIT_NAMES, class_notices, settle
from medloom.data.records import Dataset, Record
from medloom.errors import DataError

_REMEDY = "Arrange ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg, or give a CSV table"


@dataclass
class Walk:
    """What lies below a folder, as paths relative to it, in the order of their names."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def notices(self) -> tuple[str, ...]:
        """One sentence per kind of thing that was passed over."""
        return tuple(
            f"[{code}] {what}: {listed(paths)}"
            for code, what, paths in (
                ("D113", f"{len(self.links)} symbolic links were not followed", self.links),
                ("D102", f"{len(self.others)} files are not images by their name and were left out", self.others),
            )
            if paths
        )


def walk(root: Path) -> Walk:
    """List a tree, every folder once.

    Raises:
        DataError: D114 a folder cannot be read; D126 a name is not UTF-8.
    """
    found = Walk()
    visited: set[tuple[int, int]] = set()
    pending = [("", root)]
    while pending:
        prefix, folder = pending.pop()
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in visited:
                continue
            visited.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                listing = sorted(entries, key=lambda entry: entry.name)
        except OSError as problem:
            raise DataError(
                "D114", prefix or folder, f"folder cannot be read ({problem.strerror})", "Correct its permissions"
            ) from None
        for entry in listing:
            if entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
                continue
            relative = prefix + entry.name
            _refuse_bytes(relative)
            if entry.is_symlink():
                found.links.append(relative)
            elif entry.is_dir(follow_symlinks=False):
                found.folders.append(relative)
                pending.append((f"{relative}/", Path(entry.path)))
            elif entry.is_file(follow_symlinks=False) and is_candidate(entry.path):
                found.images.append(relative)
            else:  # pipes and devices too: opening one may never return
                found.others.append(relative)
    for names in (found.images, found.folders, found.links, found.others):
        names.sort()
    return found


def open_folder(root: Path, config: DataConfig, found: Walk | None = None) -> Dataset:
    """Records of a tree of class folders.

    Raises:
        DataError: D114, D115 nothing there, a split or class folder empty, one class only; D116 a folder outside
            ``config.classes``; D126 names that cannot be told apart.
    """
    found = walk(root) if found is None else found
    if not found.images:
        reason = f"; {len(found.links)} links were not followed" if found.links else ""
        raise DataError("D115", root, f"no images in the folder{reason}", _REMEDY)
    base = _base(found)
    below = [path.removeprefix(base) for path in found.images if path.startswith(base)]
    folders = [path.removeprefix(base) for path in found.folders if path.startswith(base)]
    top = [path for path in folders if "/" not in path]
    has_splits = any(name.casefold() in SPLIT_NAMES for name in top)
    if has_splits:
        top = [name for name in top if name.casefold() in SPLIT_NAMES]
    depth = 2 if has_splits else 1
    _refuse_empty(root, base, top, folders, below, has_splits)
    places, loose = [], []
    for path in below:
        parts = path.split("/")
        if len(parts) > depth and (not has_splits or parts[0] in top):
            places.append((path, SPLIT_NAMES[parts[0].casefold()] if has_splits else None, parts[depth - 1]))
        else:
            loose.append(path)
    if not places:
        raise DataError("D115", root, f"{len(loose)} images, but none in a class folder", _REMEDY)
    rows = [(f"{base}{path}", (name,)) for path, _, name in places]
    classes, positions = settle(rows, config, several=False)
    notices = [*found.notices(), *class_notices(classes, False)]
    if loose:
        notices.append(f"[D115] {len(loose)} images lie outside the class folders and were left out: {listed(loose)}")
    records = []
    for (path, split, _), labels in zip(places, positions):
        if labels is not None:
            records.extend(frames_of(root, Record(base + path, base + path, labels=labels, split=split), config))
    return Dataset(root.name, root, classes, tuple(records), False, tuple(notices))


def frames_of(root: Path, record: Record, config: DataConfig) -> list[Record]:
    """The record itself, or one per frame (``scan.tif#3``) where the recipe reads all frames."""
    if config.frames != "all" or Path(record.path).suffix.lower() in SINGLE_SUFFIXES:
        return [record]
    count = count_frames(root / record.path)
    if count == 1:
        return [record]
    return [
        Record(f"{record.id}#{k}", record.path, k, record.labels, split=record.split, covariates=record.covariates)
        for k in range(count)
    ]


def left_out_by(config: DataConfig) -> Callable[[str], bool]:
    """Whether an id stands in ``data.exclude``, as it is or under a shell pattern."""
    exact, patterns = frozenset(config.exclude), [p for p in config.exclude if set(p) & set("*?[")]
    return lambda identity: identity in exact or any(fnmatch.fnmatchcase(identity, p) for p in patterns)


def listed(paths: Sequence[str], most: int = 3) -> str:
    """The first few of many."""
    return ", ".join(paths[:most]) + (" ..." if len(paths) > most else "")


def _base(found: Walk) -> str:
    """Where an archive was unpacked into a folder of its own name, that folder (``chest_xray/``), else nothing."""
    top = {path.split("/")[0] for path in found.images}
    if len(top) == 1 and all("/" in path for path in found.images):
        only = top.pop()
        inner = {path.split("/")[1].casefold() for path in found.folders if path.startswith(f"{only}/")}
        if only.casefold() not in SPLIT_NAMES and inner & SPLIT_NAMES.keys():
            return f"{only}/"
    return ""


def _refuse_empty(
    root: Path, base: str, top: list[str], folders: list[str], images: list[str], has_splits: bool
) -> None:
    filled = {"/".join(path.split("/")[:n]) for path in images for n in (1, 2)}
    wanted = list(top)
    if has_splits:
        wanted += [path for path in folders if path.count("/") == 1 and path.split("/")[0] in top]
    for folder in wanted:
        if folder not in filled:
            kind = "split" if has_splits and "/" not in folder else "class"
            raise DataError("D115", f"{root.name}/{base}{folder}", f"the {kind} folder is empty", "Fill or remove it")


def _refuse_bytes(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise DataError("D126", shown, "the name is not UTF-8", "Rename it (convmv -f cp1251 -t utf8 ...)") from None
