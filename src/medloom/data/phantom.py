"""Synthetic chest radiographs from several simulated sites, with opacities whose place is known.

For the demonstration, for tests, and as truth for explanations: nobody's picture, and every lesion's mask is exact.
Neither the site nor the brightness says anything about the label: patients come in pairs of one normal and one
with opacities, of the same site and with the same number of images; exposure is drawn without regard to the label; and
normal chests carry the usual distractors (nipples, vessels end on, bands of atelectasis, breasts, leads, clutter).
What the pictures can and cannot stand for is in docs/phantom.md.
"""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medloom.data.phantom_anatomy import Patient, Pose, attenuation, draw_patient, draw_pose
from medloom.data.phantom_film import SITES, develop
from medloom.data.phantom_lesions import LESION_CONTRAST, LESION_RADII, Opacity, distractors, draw_opacities, place
from medloom.errors import ResourceError, UsageError
from medloom.files import write_json

CLASSES = ("normal", "opacity")
SIZES = (32, 1024)


@dataclass(frozen=True)
class Phantom:
    """Images in the order of their patients, and all that is known of them.

    Attributes:
        images: ``(N, H, W)`` uint8.
        labels: ``(N,)`` int64, 0 normal, 1 opacity; one label per patient.
        patients, sites, splits: ``(N,)`` text.
        lesions: per image ``(row, column, radius)`` in pixels: centroid and radius of the disc of equal area.
        masks: ``(N, H, W)`` bool, the opacities where they stand at more than half of their strength.
        ages, sexes, views: ``(N,)`` covariates, drawn without regard to the label.
        lungs: ``(N, H, W)`` bool, where at least half of what lies behind the chest wall is aerated lung.
    """

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    sites: np.ndarray
    splits: np.ndarray
    lesions: list[list[tuple[float, float, float]]]
    masks: np.ndarray
    ages: np.ndarray
    sexes: np.ndarray
    views: np.ndarray
    lungs: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def phantom_images(
    n_patients: int,
    *,
    size: int = 128,
    seed: int = 0,
    sites: Sequence[str] = ("north", "east", "south"),
    images_per_patient: tuple[int, int] = (1, 3),
    lesion_contrast: tuple[float, float] = LESION_CONTRAST,
    lesion_radii: tuple[float, float] = LESION_RADII,
    fractions: tuple[float, float] = (0.15, 0.25),
) -> Phantom:
    """Draw ``n_patients`` chests, half of them with opacities, spread evenly over ``sites``.

    Args:
        size: pixels per side, 32 to 1024; the same seed gives the same anatomy at any size.
        sites: names from ``phantom_film.SITES`` (``west`` is kept out of the default, as an unseen hospital).
        images_per_patient: fewest and most.
        lesion_contrast: weakest and strongest opacity, as a share of the step from lung to soft tissue.
        lesion_radii: smallest and largest half axis, as a share of half the image's side.
        fractions: shares of the patients for validation and test.

    Raises:
        UsageError: U204 for a value that cannot be drawn.
    """
    _check(n_patients, size, seed, sites, images_per_patient, lesion_contrast, lesion_radii, fractions)
    plan = _plan(n_patients, seed, sites, images_per_patient, fractions)
    total = sum(count for *_, count in plan)
    images = np.empty((total, size, size), dtype=np.uint8)
    masks = np.zeros((total, size, size), dtype=bool)
    lungs = np.zeros((total, size, size), dtype=bool)
    lesions: list[list[tuple[float, float, float]]] = []
    rows: list[tuple[str, str, str, int, int, str, str]] = []
    for number, (site, label, split, count) in enumerate(plan):
        rng = np.random.default_rng([seed, 1, number])
        patient = draw_patient(rng)
        opacities = draw_opacities(rng, patient, lesion_contrast, lesion_radii)[: None if label else 0]
        for take in range(count):
            shot = np.random.default_rng([seed, 2, number, take])
            pose = draw_pose(shot, SITES[site].supine)
            k = len(rows)
            images[k], found = _expose(shot, patient, pose, opacities, site, size, masks[k], lungs[k])
            lesions.append(found)
            rows.append((f"p{number + 1:04d}", site, split, label, patient.age, patient.sex, pose.view))
    names, places, splits, labels, ages, sexes, views = (np.array(column) for column in zip(*rows))
    numbers, years = labels.astype(np.int64), ages.astype(np.int64)
    return Phantom(images, numbers, names, places, splits, lesions, masks, years, sexes, views, lungs)


def golden_images(n: int, size: int, seed: int) -> list[np.ndarray]:
    """``n`` phantoms ``(size, size)`` uint8, both classes and all default sites in turn: nobody's data in a bundle.

    Raises:
        UsageError: U204 for a value that cannot be drawn.
    """
    return list(phantom_images(n, size=size, seed=seed, images_per_patient=(1, 1)).images)


def write_phantom(
    directory: str | Path,
    *,
    size: int = 128,
    n_patients: int = 400,
    seed: int = 0,
    sites: Sequence[str] = ("north", "east", "south"),
    lesion_contrast: tuple[float, float] = LESION_CONTRAST,
    lesion_radii: tuple[float, float] = LESION_RADII,
) -> Path:
    """Write ``images/*.png``, ``masks/*.png`` (of the opacities), ``lesions.json`` and ``table.csv``.

    The table has path, label, patient, site, split, age, sex, view, mask; splits keep patients together. The folder
    appears only when it is complete.

    Returns:
        The path of ``table.csv``.

    Raises:
        UsageError: U204 for a value that cannot be drawn, U212 when the folder is there and not empty.
        ResourceError: T404 disk full, T405 not writable.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError("U212", directory, "it is there and not empty", "Name a new folder, or remove this one")
    phantom = phantom_images(
        n_patients, size=size, seed=seed, sites=sites, lesion_contrast=lesion_contrast, lesion_radii=lesion_radii
    )
    building = directory.with_name(f".medloom-tmp-{os.getpid()}-{directory.name}")
    try:
        building.mkdir(parents=True)
        _write(phantom, building)
        if directory.exists():
            directory.rmdir()
        building.rename(directory)
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free space there and try again" if full else "Choose a folder that can be written to"
        raise ResourceError("T404" if full else "T405", directory, f"not written: {problem}", remedy) from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory / "table.csv"


def _write(phantom: Phantom, directory: Path) -> None:
    (directory / "images").mkdir()
    (directory / "masks").mkdir()
    lesions: dict[str, list[list[float]]] = {}
    takes: dict[str, int] = {}
    with (directory / "table.csv").open("w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(["path", "label", "patient", "site", "split", "age", "sex", "view", "mask"])
        for k in range(len(phantom)):
            patient = str(phantom.patients[k])
            takes[patient] = takes.get(patient, 0) + 1
            name = f"{patient}_{takes[patient]}.png"
            Image.fromarray(phantom.images[k]).save(directory / "images" / name)
            if phantom.labels[k]:
                Image.fromarray(phantom.masks[k]).save(directory / "masks" / name)
                lesions[f"images/{name}"] = [[round(x, 2) for x in lesion] for lesion in phantom.lesions[k]]
            label, site, split = CLASSES[phantom.labels[k]], phantom.sites[k], phantom.splits[k]
            covariates = phantom.ages[k], phantom.sexes[k], phantom.views[k]
            mask = f"masks/{name}" if phantom.labels[k] else ""
            table.writerow([f"images/{name}", label, patient, site, split, *covariates, mask])
    write_json(directory / "lesions.json", {"unit": "pixel: row, column, radius", "lesions": lesions})


def _check(
    n_patients: int,
    size: int,
    seed: int,
    sites: Sequence[str],
    images_per_patient: tuple[int, int],
    lesion_contrast: tuple[float, float],
    lesion_radii: tuple[float, float],
    fractions: tuple[float, float],
) -> None:
    smallest, largest = SIZES
    problem = None
    if n_patients < 1:
        problem = f"{n_patients} patients asked for"
    elif not smallest <= size <= largest:
        problem = f"size {size} is outside {smallest} to {largest}"
    elif seed < 0:
        problem = f"seed {seed} is negative"
    elif not sites or any(site not in SITES for site in sites):
        problem = f"sites {', '.join(sites) or 'none'}; known are {', '.join(SITES)}"
    elif not 1 <= images_per_patient[0] <= images_per_patient[1]:
        problem = f"images per patient from {images_per_patient[0]} to {images_per_patient[1]}"
    elif not 0 < lesion_contrast[0] <= lesion_contrast[1] <= 2:
        problem = f"lesion contrast from {lesion_contrast[0]} to {lesion_contrast[1]}"
    elif not 0.01 <= lesion_radii[0] <= lesion_radii[1] <= 1:
        problem = f"lesion radii from {lesion_radii[0]} to {lesion_radii[1]}, outside 0.01 to 1"
    elif min(fractions) < 0 or sum(fractions) > 1:
        problem = f"fractions {fractions[0]} and {fractions[1]} for validation and test"
    if problem:
        raise UsageError("U204", "phantom", problem, "Correct the value; see docs/phantom.md")


def _plan(
    n_patients: int,
    seed: int,
    sites: Sequence[str],
    images_per_patient: tuple[int, int],
    fractions: tuple[float, float],
) -> list[tuple[str, int, str, int]]:
    """Site, label, split and image count of each patient.

    Pairs of one normal and one diseased patient share all but the label, so no site, split or number of images
    predicts it; which of the two comes first is drawn, so that the patient's number does not either.
    """
    rng = np.random.default_rng([seed, 0])
    pairs = -(-n_patients // 2)
    val, test = (round(pairs * share) for share in fractions)
    order = np.array(["test"] * test + ["val"] * val + ["train"] * (pairs - test - val))
    # Sites run round within each split; the shuffle then mixes the pairs.
    plan = []
    for pair in rng.permutation(pairs):
        site, split = sites[pair % len(sites)], str(order[pair])
        count = int(rng.integers(images_per_patient[0], images_per_patient[1] + 1))
        first = int(rng.integers(2))
        plan += [(site, first, split, count), (site, 1 - first, split, count)]
    return plan[:n_patients]


def _expose(
    rng: np.random.Generator,
    patient: Patient,
    pose: Pose,
    opacities: Sequence[Opacity],
    site: str,
    size: int,
    mask: np.ndarray,
    lung: np.ndarray,
) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
    """One picture; adds its opacities to ``mask`` and its lungs to ``lung``."""
    u, v = pose.grid(size)
    total, aerated, body = attenuation(patient, pose, size)
    lung |= aerated > 0.5
    total += distractors(rng, u, v, aerated, body, pose)
    found = []
    for opacity in opacities:
        added, inside = place(rng, opacity, u, v, aerated)
        total += added
        mask |= inside
        rows, columns = np.nonzero(inside)
        if len(rows):
            found.append((float(rows.mean()), float(columns.mean()), float(np.sqrt(len(rows) / np.pi))))
    return develop(total, body, SITES[site], rng), found
