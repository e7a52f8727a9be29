"""Which cases ``medloom predict`` answers with masks, and where each mask goes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medloom.data.dicom import is_dicom_file
from medloom.data.dicom_series import group_series
from medloom.data.formats import is_candidate
from medloom.data.volumes import is_volume
from medloom.errors import DataError, UsageError


@dataclass(frozen=True)
class Asked:
    """One case to answer.

    Attributes:
        source: a file, a folder with one DICOM series, or the files of a series.
        name: how the table and messages call it.
        place: where its mask goes below the folder of answers, without what is added to the name.
    """

    source: Path | tuple[Path, ...]
    name: str
    place: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read."""
        return self.source if isinstance(self.source, tuple) else (self.source,)

    @property
    def key(self) -> str:
        """The first of them, by which two mentions of one case are known."""
        return str(self.files[0].resolve())


def find_cases(
    paths: Sequence[str | Path], folder: Path, walk: Callable[[Path], Sequence[Path]], *, volumes: bool
) -> tuple[list[Asked], int]:
    """What to answer, in order, each once; and how many other files the folders hold.

    A file that is named is always taken. Below a folder: images, or NIfTI files and DICOM series. What lies in the
    folder of answers is left alone.

    Args:
        folder: where answers go.
        walk: the files below a folder, in order.
        volumes: whether volumes are wanted and not images.

    Raises:
        UsageError: U214 a path that is not there, U215 answers among what is read. DataError: D114, D115.
    """
    found: dict[str, Asked] = {}
    others = 0
    for path in map(Path, paths):
        if path.is_dir():
            if folder.resolve() == path.resolve():
                told = "the masks would lie among the images that are read"
                raise UsageError("U215", folder, told, "Name another folder for --out")
            files = [file for file in walk(path) if not file.resolve().is_relative_to(folder.resolve())]
            cases = _volumes(path, files) if volumes else _images(path, files)
            others += len(set(files) - {file for case in cases for file in case.files})
        elif path.exists():
            cases = [Asked(path, str(path), Path(_stem(path.name)))]
        else:
            raise UsageError("U214", path, "there is no such file or folder", "Check the path")
        for case in cases:
            found.setdefault(case.key, case)
    if not found:
        wanted = "NIfTI file or DICOM series" if volumes else "image"
        place = ", ".join(map(str, paths)) or "no path"
        raise DataError("D115", place, f"no {wanted} found ({others} other files)", "Name the files or their folder")
    return list(found.values()), others


def mask_names(cases: Sequence[Asked], ending: str) -> list[Path]:
    """Where each mask goes: after its input's stem; where two would meet, after its whole name, then with a hash."""
    names = [case.place.with_name(f"{case.place.name}_mask{ending}") for case in cases]
    whole = [case.place.with_name(f"{Path(case.name).name}_mask{ending}") for case in cases]
    marked = [case.place.with_name(f"{Path(case.name).name}_{_mark(case.key)}_mask{ending}") for case in cases]
    for longer in (whole, marked):
        # Compared without case: many disks hold a.png and A.png as one.
        count = Counter(str(name).casefold() for name in names)
        names = [new if count[str(name).casefold()] > 1 else name for name, new in zip(names, longer)]
    return names


def spare_inputs(cases: Sequence[Asked], targets: Sequence[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        UsageError: U234 with the file.
    """
    inputs = {str(file.resolve()) for case in cases for file in case.files}
    for target in targets:
        if str(target.resolve()) in inputs:
            told = "this input would be replaced by a mask or the table"
            raise UsageError("U234", target, told, "Name another folder for --out")


def _images(root: Path, files: Sequence[Path]) -> list[Asked]:
    return [Asked(f, str(f), _place(f, root)) for f in files if is_candidate(str(f))]


def _volumes(root: Path, files: Sequence[Path]) -> list[Asked]:
    cases = [Asked(f, str(f), _place(f, root)) for f in files if is_volume(f.name)]
    slices = {f.resolve() for f in files if not is_volume(f.name) and is_dicom_file(f)}
    if not slices:
        return cases
    series, damaged = group_series(root)
    for home in dict.fromkeys(file.parent for file in damaged if file.resolve() in slices):
        # Read first, the damaged file refuses the case by its own code; its folder's series may lack just that slice.
        touched = [key for key, members in series.items() if any(m.parent == home for m in members)]
        files = [*(f for f in damaged if f.parent == home), *(m for key in touched for m in series.pop(key))]
        cases.append(Asked(tuple(f for f in files if f.resolve() in slices), str(home), _inner(home, root)))
    homes = Counter(home for members in series.values() for home in {m.parent for m in members})
    for key, members in series.items():
        kept = tuple(member for member in members if member.resolve() in slices)
        if not kept:
            continue
        home = kept[0].parent
        inner = _inner(home, root)
        # Several series in one folder are told apart by the hash of their UID.
        cases.append(
            Asked(kept, str(home), inner) if homes[home] == 1 else Asked(kept, f"{home}/{key[:8]}", inner / key[:8])
        )
    return cases


def _inner(home: Path, root: Path) -> Path:
    return Path(root.resolve().name) if home == root else home.relative_to(root)


def _place(file: Path, root: Path) -> Path:
    return file.relative_to(root).with_name(_stem(file.name))


def _stem(name: str) -> str:
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)] or name
    return Path(name).stem


def _mark(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
