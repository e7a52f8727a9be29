"""Read every image with its mask once: what can be used, what each mask holds, and hashes to compare both by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.geometry import axis_codes
from medloom.data.images import Image, decode
from medloom.data.label_maps import picture_labels, volume_labels
from medloom.data.pixel_spacing import in_one_unit, picture_spacing
from medloom.data.records import Dataset, Record
from medloom.data.scan import Exclusion, ImageFacts, Progress, Scan, each, facts_of, grey_picture, pixel_hash
from medloom.data.volume_source import is_volume_case, read_case_volume, sizes_below
from medloom.data.volumes import Volume, canonical
from medloom.errors import DataError

QUANTILES = (0.5, 50.0, 99.5)
_SAMPLED = 200_000


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """What the scan keeps of one image with its mask.

    Attributes:
        shape: pixels (height, width), or voxels along right, anterior, superior.
        spacing: mm along the same axes; None for pictures, whose spacing the record has.
        codes: where the axes of the file run to, ``"LPS"``; empty for pictures.
        counts: pixels or voxels per position in ``Dataset.classes``.
        inside: of the values within structures the ``QUANTILES``, mean and deviation; empty where nothing is inside.
        whole: the same of all values.
        spacing_from: what says how large the pixels of a picture are, see ``pixel_spacing``; empty where nothing does.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    codes: str
    counts: tuple[int, ...]
    inside: tuple[float, ...]
    whole: tuple[float, ...]
    spacing_from: str = ""


def scan_masks(
    dataset: Dataset,
    config: DataConfig,
    *,
    prefer: str = "refuse",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Read all cases; ``labels``, ``spacing`` and both hashes of the records are filled.

    Args:
        prefer: which place of a NIfTI file counts where its two differ.

    Raises:
        DataError: D115 when no case is usable, D127 when nothing comes back for two minutes.
    """

    def look(record: Record) -> tuple[Record, ImageFacts, CaseFacts] | Exclusion:
        try:
            if is_volume_case(record):
                return _look_at_volume(dataset, record, config, prefer)
            return _look_at_picture(dataset, record, config)
        except DataError as problem:
            at = "" if problem.place in (record.id, "volume") else f" ({problem.place})"
            return Exclusion(record.id, problem.code, problem.problem + at)

    results = each(look, dataset.records, workers=workers, progress=progress)
    excluded = tuple(result for result in results if isinstance(result, Exclusion))
    usable = [result for result in results if not isinstance(result, Exclusion)]
    if not usable:
        first = excluded[0] if excluded else Exclusion(dataset.name, "D115", "no images")
        told = f"none of {len(excluded)} images can be used; {first.id}: {first.problem} ({first.code})"
        raise DataError(first.code if first.code[0] == "N" else "D115", dataset.name, told, "Look at the files")
    records, images, cases = zip(*usable)
    return Scan(dataset.with_records(in_one_unit(records)), tuple(images), excluded, tuple(cases))


def read_case(dataset: Dataset, record: Record, config: DataConfig, prefer: str = "refuse") -> Image | Volume:
    """The image of a record of masks: a picture, or a volume in the order of its file.

    Raises:
        DataError: the codes of ``decode`` and ``read_volume``.
    """
    if is_volume_case(record):
        return read_case_volume(dataset, record, config, prefer)  # type: ignore[arg-type]
    return decode(dataset, record, config)


def grey_view(dataset: Dataset, record: Record, config: DataConfig, prefer: str = "refuse") -> PillowImage.Image:
    """What the perceptual hash of a record was made of: its picture in grey, or the middle slice of its volume.

    Raises:
        DataError: as ``read_case``.
    """
    case = read_case(dataset, record, config, prefer)
    if isinstance(case, Image):
        return grey_picture(case.pixels)
    upright = canonical(case).array
    return PillowImage.fromarray(_shown(upright, _spread(upright.reshape(-1))))


def middle_slice(values_XYZ: np.ndarray, at: int | None = None) -> np.ndarray:
    """An axial slice of a canonical volume as it is hung on the wall: anterior up, the patient's left at the right.

    Args:
        at: its index along the last axis; the middle one when left out.
    """
    index = values_XYZ.shape[2] // 2 if at is None else at
    return np.ascontiguousarray(values_XYZ[::-1, ::-1, index].T)


def to_grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 of the same shape: ``low`` black, ``high`` white."""
    share = (values.astype(np.float32) - low) / max(high - low, 1e-12)
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _look_at_picture(dataset: Dataset, record: Record, config: DataConfig) -> tuple[Record, ImageFacts, CaseFacts]:
    image = decode(dataset, record, config)
    size = image.pixels.shape[:2]
    positions = picture_labels(dataset, record, (size[0], size[1]), config.max_megapixels)
    grey = image.pixels if image.pixels.ndim == 2 else image.pixels.mean(axis=2)
    spacing, stated = picture_spacing(image, config)
    facts = replace(_facts(grey, positions, size, None, "", len(dataset.classes)), spacing_from=stated)
    return _filled(record, pixel_hash(image.pixels), positions, facts, spacing), facts_of(image), facts


def _look_at_volume(
    dataset: Dataset, record: Record, config: DataConfig, prefer: str
) -> tuple[Record, ImageFacts, CaseFacts]:
    volume = read_case_volume(dataset, record, config, prefer)  # type: ignore[arg-type]
    mask = volume_labels(dataset, record, volume, prefer)
    upright, positions = canonical(volume), canonical(mask).array
    codes = axis_codes(volume.affine)
    facts = _facts(upright.array, positions, upright.shape, upright.spacing, codes, len(dataset.classes))
    if not facts.whole[4] > 0:
        raise DataError("D111", record.id, f"every voxel is {facts.whole[1]:g}", "Leave it out")
    size_bytes = sum(size for _, size in sizes_below(dataset.file(record)))
    slice_image = Image(_shown(upright.array, facts.whole), 8, "L", volume.kind, size_bytes)
    seen = replace(facts_of(slice_image), mode=str(volume.array.dtype))
    return _filled(record, pixel_hash(upright.array), positions, facts, upright.spacing), seen, facts


def _shown(upright: np.ndarray, whole: tuple[float, ...]) -> np.ndarray:
    return to_grey(middle_slice(upright), whole[0], whole[2])


def _filled(
    record: Record, pixels: str, positions: np.ndarray, facts: CaseFacts, spacing: tuple[float, ...] | None
) -> Record:
    present = tuple(k for k, count in enumerate(facts.counts) if k and count)
    return replace(record, pixel_hash=pixels, mask_hash=pixel_hash(positions), labels=present, spacing=spacing)


def _facts(
    values: np.ndarray,
    positions: np.ndarray,
    shape: tuple[int, ...],
    spacing: tuple[float, ...] | None,
    codes: str,
    structures: int,
) -> CaseFacts:
    counts = np.bincount(positions.reshape(-1), minlength=structures)
    inside = values[positions > 0]
    told = tuple(int(n) for n in counts)
    return CaseFacts(tuple(shape), spacing, codes, told, _spread(inside), _spread(values.reshape(-1)))


def _spread(values: np.ndarray) -> tuple[float, ...]:
    """Quantiles, mean and deviation, from an even sample of large images."""
    if not values.size:
        return ()
    sample = values[:: max(1, values.size // _SAMPLED)].astype(np.float64)
    quantiles = (float(q) for q in np.percentile(sample, QUANTILES))
    return (*quantiles, float(sample.mean()), float(sample.std()))
