"""Synthetic volumes from several simulated scanners: an organ, lesions of known place and volume in it, and masks.

Nobody's body. The organ lies on the patient's right, so that a volume whose left and right were exchanged is found
out; outside of it lie spots that look like lesions, so that brightness alone does not find them. The anatomy is drawn
in mm and evaluated on the grid of the site, whose spacing and order of axes differ from those of the others, as do
contrast, shading and noise. Half of the patients have no lesion.

Axes: X to the right, Y anterior, Z superior, in mm from the middle of the field of view.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medloom.data.geometry import Orientation, stored_affine
from medloom.data.volumes import Volume, write_nifti, write_nifti_image
from medloom.errors import UsageError
from medloom.files import atomic_directory, write_json, write_text

CLASSES = ("background", "organ", "lesion")
SIZES = (16, 128)
MM = 2.0
"""Field of view per voxel asked for: a volume of size 48 shows 96 mm."""


@dataclass(frozen=True)
class Scanner:
    """How one site's volumes look.

    Attributes:
        spacing: mm along right, anterior, superior.
        orientation: how its files are ordered.
        gain, offset: stored value of a tissue of brightness 1, and of 0.
        contrast: exponent of the brightness, below 1 flattens what is bright.
        shading: strength of the slow brightness change across the field.
        noise: deviation, as a share of the brightest tissue.
    """

    spacing: tuple[float, float, float]
    orientation: Orientation
    gain: float
    offset: float
    contrast: float
    shading: float
    noise: float


SCANNERS = {
    "north": Scanner((2.0, 2.0, 2.0), Orientation(), 900.0, 0.0, 1.0, 0.10, 0.04),
    "east": Scanner((1.6, 1.6, 3.2), Orientation((0, 1, 2), (True, True, False)), 240.0, 20.0, 0.8, 0.20, 0.07),
    "south": Scanner((2.4, 2.0, 1.8), Orientation((2, 0, 1), (False, True, False)), 2600.0, -200.0, 1.25, 0.15, 0.05),
    "west": Scanner((1.8, 2.6, 2.2), Orientation((1, 2, 0), (True, False, True)), 500.0, 80.0, 0.9, 0.25, 0.09),
}


@dataclass(frozen=True)
class Lesion:
    """One lesion: its middle in mm (right, anterior, superior), its half axes in mm, and its volume in the mask."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    millilitres: float


@dataclass(frozen=True, eq=False)
class PhantomVolume:
    """One patient: int16 voxels and uint8 positions in ``CLASSES``, both in the order of the site's files."""

    image: Volume
    labels: np.ndarray
    lesions: tuple[Lesion, ...]
    patient: str
    site: str
    split: str


def phantom_volumes(
    n_patients: int,
    *,
    size: int = 48,
    seed: int = 0,
    sites: Sequence[str] = ("north", "east", "south"),
    fractions: tuple[float, float] = (0.15, 0.25),
) -> Iterator[PhantomVolume]:
    """Draw one volume per patient.

    Args:
        size: voxels of 2 mm that the field of view is wide, 16 to 128; the same seed gives the same anatomy.
        sites: names from ``SCANNERS`` (``west`` is kept out of the default, as an unseen hospital).
        fractions: shares of the patients for validation and test; every site has patients in each where they suffice.

    Raises:
        UsageError: U204 for a value that cannot be drawn.
    """
    _check(n_patients, size, seed, sites, fractions)
    per_site = -(-n_patients // len(sites))
    for number in range(n_patients):
        site, rank = sites[number % len(sites)], number // len(sites)
        split = _split(rank, per_site, fractions)
        # Of two patients of a site that follow each other one has lesions, so neither site nor split tells.
        ill = (rank + number % len(sites)) % 2 == 0
        rng = np.random.default_rng([seed, 3, number])
        volume, labels, lesions = _scan(rng, SCANNERS[site], size, ill)
        yield PhantomVolume(volume, labels, lesions, f"v{number + 1:04d}", site, split)


def write_phantom_volumes(
    directory: str | Path,
    *,
    n_patients: int = 60,
    size: int = 48,
    seed: int = 0,
    sites: Sequence[str] = ("north", "east", "south"),
) -> Path:
    """Write ``imagesTr/*.nii.gz``, ``labelsTr/*.nii.gz``, ``dataset.json``, ``lesions.json`` and ``table.csv``.

    The table has image, mask, patient, site, split. The folder appears only when it is complete.

    Returns:
        The path of ``table.csv``.

    Raises:
        UsageError: U204 for a value that cannot be drawn, U212 when the folder is there and not empty.
        ResourceError: T404 disk full, T405 not writable.
    """
    directory = Path(directory)
    require_free(directory)
    out = io.StringIO(newline="")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "mask", "patient", "site", "split"])
    lesions: dict[str, list[dict[str, object]]] = {}
    cases = phantom_volumes(n_patients, size=size, seed=seed, sites=sites)
    with atomic_directory(directory) as temp:
        for folder in ("imagesTr", "labelsTr"):
            (temp / folder).mkdir()
        for case in cases:
            image, mask = f"imagesTr/{case.patient}_0000.nii.gz", f"labelsTr/{case.patient}.nii.gz"
            write_nifti_image(temp / image, case.image)
            write_nifti(temp / mask, case.labels, case.image)
            table.writerow([image, mask, case.patient, case.site, case.split])
            lesions[image] = [
                {"centre": [round(c, 2) for c in lesion.centre], "millilitres": round(lesion.millilitres, 3)}
                for lesion in case.lesions
            ]
        write_text(temp / "table.csv", out.getvalue())
        write_json(temp / "lesions.json", {"unit": "mm: right, anterior, superior", "lesions": lesions})
        write_json(temp / "dataset.json", {"labels": {name: k for k, name in enumerate(CLASSES)}})
    return directory / "table.csv"


def require_free(directory: Path) -> None:
    """Refuse to write into a folder that holds something; UsageError U212."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError("U212", directory, "it is there and not empty", "Name a new folder, or remove this one")


def _check(n: int, size: int, seed: int, sites: Sequence[str], fractions: tuple[float, float]) -> None:
    problem = None
    if n < 1:
        problem = f"{n} patients asked for"
    elif not SIZES[0] <= size <= SIZES[1]:
        problem = f"size {size} is outside {SIZES[0]} to {SIZES[1]}"
    elif seed < 0:
        problem = f"seed {seed} is negative"
    elif not sites or any(site not in SCANNERS for site in sites):
        problem = f"sites {', '.join(sites) or 'none'}; known are {', '.join(SCANNERS)}"
    elif min(fractions) < 0 or sum(fractions) > 1:
        problem = f"fractions {fractions[0]} and {fractions[1]} for validation and test"
    if problem:
        raise UsageError("U204", "phantom", problem, "Correct the value; see docs/phantom.md")


def _split(rank: int, per_site: int, fractions: tuple[float, float]) -> str:
    """By rank within the site, in the same order for all: the last are tested, those before them validate."""
    val, test = (round(per_site * share) for share in fractions)
    if rank >= per_site - test:
        return "test"
    return "val" if rank >= per_site - test - val else "train"


def _scan(
    rng: np.random.Generator, scanner: Scanner, size: int, ill: bool
) -> tuple[Volume, np.ndarray, tuple[Lesion, ...]]:
    """One patient in one scanner. All random numbers of the anatomy come before those of the grid."""
    field = 1.0 * size * MM
    unit = field / 2
    centre = np.array([0.30, 0.05, 0.10]) * unit + rng.normal(0, 0.03 * unit, 3)
    radii = np.array([0.42, 0.52, 0.48]) * unit * rng.uniform(0.85, 1.1, 3)
    border = _Waves(rng, 3.0 / unit)
    placed = [_place_lesion(rng, centre, radii, unit) for _ in range(int(rng.integers(1, 4)))]
    spots = [_place_spot(rng, centre, radii, unit) for _ in range(6)]
    tissue, shade = _Waves(rng, 6.0 / unit), _Waves(rng, 0.8 / unit)
    shape = tuple(max(4, round(field / s)) for s in scanner.spacing)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, scanner.spacing)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    soft = max(scanner.spacing) / 2

    def inside(middle: np.ndarray, half: np.ndarray, wander: np.ndarray | float = 0.0) -> np.ndarray:
        """0..1, half at the surface, whose edge is about as soft as a voxel is wide."""
        squared = sum(((axis - m) / h) ** 2 for axis, m, h in zip((x, y, z), middle, half))
        distance = (np.sqrt(squared) - 1.0 + wander) * float(np.min(half))
        return np.asarray(0.5 - 0.5 * np.tanh(distance / soft))

    body = inside(np.zeros(3), np.array([0.95, 0.85, 1.6]) * unit)
    organ = inside(centre, radii, 0.10 * border(x, y, z)) * body
    brightness = 0.30 * body + 0.08 * tissue(x, y, z) * body
    for middle, half, level in spots:
        brightness += level * inside(middle, half) * body * (1 - organ)
    brightness += 0.30 * organ
    labels = np.where(organ > 0.5, 1, 0).astype(np.uint8)
    lesions = []
    for middle, half, level in placed if ill else ():
        lesion = inside(middle, half) * organ
        brightness += level * lesion
        here = lesion > 0.5
        labels[here] = 2
        volume = float(here.sum() * np.prod(scanner.spacing) / 1000)
        lesions.append(Lesion(_three(middle), _three(half), volume))
    seen = np.clip(brightness, 0, None) ** scanner.contrast * (1 + scanner.shading * shade(x, y, z))
    seen += rng.normal(0, scanner.noise, shape)
    stored = np.rint(scanner.gain * seen + scanner.offset).astype(np.int16)
    affine = np.diag([*scanner.spacing, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    turned = scanner.orientation
    order = tuple(int(a) for a in np.argsort(turned.axes))
    place = stored_affine(affine, tuple(shape[a] for a in order), turned)
    image = Volume(np.ascontiguousarray(turned.to_stored(stored)), place)
    return image, np.ascontiguousarray(turned.to_stored(labels)), tuple(lesions)


class _Waves:
    """A smooth random field in [-1, 1] or so: plane waves of random direction, the same on every grid."""

    def __init__(self, rng: np.random.Generator, frequency: float) -> None:
        self.waves = rng.normal(0, frequency, (12, 3))
        self.phases = rng.uniform(0, 2 * np.pi, 12)

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        total = sum(np.cos(a * x + b * y + c * z + phase) for (a, b, c), phase in zip(self.waves, self.phases))
        return np.asarray(total) / np.sqrt(2 * len(self.phases))


def _place_lesion(
    rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray, float]:
    direction = rng.normal(size=3)
    middle = centre + radii * direction / np.linalg.norm(direction) * 0.6 * rng.uniform() ** (1 / 3)
    return middle, unit * rng.uniform(0.09, 0.20, 3), float(rng.choice([-1, 1]) * rng.uniform(0.22, 0.40))


def _place_spot(
    rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """A vessel or a node: most of them on the other side, some beside the organ."""
    middle = np.array([-0.45, 0.0, 0.0]) * unit + rng.normal(0, 0.35 * unit, 3)
    return middle, unit * rng.uniform(0.06, 0.16, 3), float(rng.uniform(0.2, 0.5))


def _three(values: np.ndarray) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in values)
    return a, b, c
