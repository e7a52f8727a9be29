"""Read every image with its mask once: what can be used, what each mask holds, and hashes to compare both by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medloom.config import DataConfig
from medloom.data.geometry import axis_codes
from medloom.data.images import Image, decode
from medloom.data.label_maps import picture_labels, volume_labels
from medloom.data.records import Dataset, Record
from medloom.data.scan import Exclusion, ImageFacts, Progress, Scan, each, facts_of, pixel_hash
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
        spacing: mm along the same axes; None for pictures.
        codes: where the axes of the file run to, ``"LPS"``; empty for pictures.
        counts: pixels or voxels per position in ``Dataset.classes``.
        inside: of the values within structures the ``QUANTILES``, mean and deviation; empty where nothing is inside.
        whole: the same of all values.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    codes: str
    counts: tuple[int, ...]
    inside: tuple[float, ...]
    whole: tuple[float, ...]


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
    return Scan(dataset.with_records(records), tuple(images), excluded, tuple(cases))


def read_case(dataset: Dataset, record: Record, config: DataConfig, prefer: str = "refuse") -> Image | Volume:
    """The image of a record of masks: a picture, or a volume in the order of its file.

    Raises:
        DataError: the codes of ``decode`` and ``read_volume``.
    """
    if is_volume_case(record):
        return read_case_volume(dataset, record, config, prefer)  # type: ignore[arg-type]
    return decode(dataset, record, config)


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
    facts = _facts(grey, positions, size, None, "", len(dataset.classes))
    return _filled(record, pixel_hash(image.pixels), positions, facts), facts_of(image), facts


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
    shown = to_grey(middle_slice(upright.array), facts.whole[0], facts.whole[2])
    slice_image = Image(shown, 8, "L", volume.kind, size_bytes)
    seen = replace(facts_of(slice_image), mode=str(volume.array.dtype))
    return _filled(record, pixel_hash(upright.array), positions, facts), seen, facts


def _filled(record: Record, pixels: str, positions: np.ndarray, facts: CaseFacts) -> Record:
    present = tuple(k for k, count in enumerate(facts.counts) if k and count)
    spacing = facts.spacing or record.spacing
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
