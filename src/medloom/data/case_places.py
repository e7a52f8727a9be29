"""Which files of a tree are images and which are masks, by the folders that they stand in.

An image is a picture, a NIfTI file, or, where masks are NIfTI, a DICOM series: the folder of its slices, or one file of
many frames. Nothing is decoded here, and a series is one case whatever it will turn out to hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medloom.data.dicom import is_dicom_file
from medloom.data.folders import Walk
from medloom.data.formats import DICOM_SUFFIXES
from medloom.data.formats import SUFFIXES as IMAGE_SUFFIXES
from medloom.data.volumes import SUFFIXES as VOLUME_SUFFIXES
from medloom.data.volumes import is_volume

IMAGE_FOLDERS = {"images": "", "image": "", "imagestr": "tr", "imagests": "ts"}
MASK_FOLDERS = {
    **{"masks": "", "mask": "", "labels": "", "label": "", "segmentations": ""},
    **{"labelstr": "tr", "labelsts": "ts"},
}
_MASK_ENDING = re.compile(r"[ _-](masks?|seg|segmentation|labels?|gt)$", re.IGNORECASE)
_PICTURES = IMAGE_SUFFIXES - DICOM_SUFFIXES


@dataclass(frozen=True)
class Place:
    """Where an image or a mask stands.

    Attributes:
        path: of the file, or of the folder of a series.
        group: its folders without the one that says image or mask.
        volume: whether it is a volume and not a picture.
    """

    path: str
    group: tuple[str, ...]
    stem: str
    volume: bool


def find_places(root: Path, found: Walk, source: str) -> tuple[list[Place], list[Place]]:
    """Images and masks of a tree; a path's last folder that is named so decides.

    Args:
        source: ``masks`` pictures alone, ``nifti`` NIfTI files alone, ``dicom`` DICOM images alone, ``auto`` all.
    """
    files: list[str] = [] if source == "nifti" else list(found.images)
    if source != "masks":
        files += [path for path in found.others if is_volume(path)]
    masks = [_place(path, at, MASK_FOLDERS) for path in files if (at := _named(path, MASK_FOLDERS)) is not None]
    images = [path for path in files if _named(path, IMAGE_FOLDERS) is not None]
    series: list[Place] = []
    if source in ("auto", "dicom") and any(mask.volume for mask in masks):
        slices = [path for path in images if _may_be_slice(path)]
        slices += [p for p in found.others if _named(p, IMAGE_FOLDERS) is not None and _is_odd_slice(root, p)]
        series = _series(slices, masks)
        images = [path for path in images if not _may_be_slice(path) and source != "dicom"]
    return [*(_place(path, _at(path), IMAGE_FOLDERS) for path in images), *series], masks


def mask_stems(mask: Place) -> tuple[str, ...]:
    """What the image of a mask may be called: as the mask, or as it without ``_mask``, ``_seg`` ..."""
    return tuple(dict.fromkeys((mask.stem, _MASK_ENDING.sub("", mask.stem))))


def _series(slices: list[str], masks: list[Place]) -> list[Place]:
    """Cases of DICOM files: the nearest folder above them that a mask is named for; without one, their own."""
    drawn = {(mask.group, stem) for mask in masks for stem in mask_stems(mask)}
    cases: dict[str, Place] = {}
    for path in slices:
        at, parts = _at(path), path.split("/")
        # A file right below images/ is a case by itself, of many frames.
        ends = [len(parts)] if len(parts) == at + 2 else range(len(parts) - 1, at + 1, -1)
        homes = [_place("/".join(parts[:end]), at, IMAGE_FOLDERS, series=True) for end in ends]
        chosen = next((home for home in homes if (home.group, home.stem) in drawn), homes[0])
        cases[chosen.path] = chosen
    return list(cases.values())


def _place(path: str, at: int, words: dict[str, str], *, series: bool = False) -> Place:
    *folders, name = path.split("/")
    suffix = next((s for s in (".nii.gz", *VOLUME_SUFFIXES, *IMAGE_SUFFIXES) if name.lower().endswith(s)), "")
    part = words[folders[at].casefold()]
    group = (*folders[:at], *([part] if part else []), *folders[at + 1 :])
    return Place(path, group, name[: len(name) - len(suffix)], series or is_volume(path))


def _named(path: str, words: dict[str, str]) -> int | None:
    """Where in a path the folder stands that makes it one of ``words``; None where none does."""
    folders = [folder.casefold() for folder in path.split("/")[:-1]]
    at = next((k for k in reversed(range(len(folders))) if folders[k] in IMAGE_FOLDERS | MASK_FOLDERS), None)
    return at if at is not None and folders[at] in words else None


def _at(path: str) -> int:
    at = _named(path, IMAGE_FOLDERS)
    assert at is not None
    return at


def _may_be_slice(path: str) -> bool:
    """Of what a walk takes for images, whatever has no ending of pictures is DICOM, by its ending or its mark."""
    return not is_volume(path) and Path(path).suffix.lower() not in _PICTURES


def _is_odd_slice(root: Path, path: str) -> bool:
    """A DICOM file of another ending, such as ``.ima``."""
    return not is_volume(path) and path.casefold().rsplit("/", 1)[-1] != "dicomdir" and is_dicom_file(root / path)
