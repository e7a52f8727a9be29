"""What makes a test set know the answers: one image, or one patient, on both sides of a split.

Where a source's validation part is so small that ``make_splits`` will merge it into training, the two count as one
part here: what they share is no leak then.

Patient-level splitting: Yagis et al., Scientific Reports 11:22544, 2021.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.findings import MOST_EXAMPLES, Finding
from medloom.data.mask_scan import grey_view
from medloom.data.neighbours import LIKENESS, MOST_PAIRS, likeness, near_pairs
from medloom.data.patients import kermany, kermany_number
from medloom.data.records import SPLITS, Dataset, Record
from medloom.data.scan import ImageFacts, small_picture
from medloom.errors import DataError

MOST_LOOKED_AT = 2000
_OWN_SPLIT = (
    "Keep each in one split, or drop the split folders and let data.val_fraction and data.test_fraction make them"
)


def leakage_parts(dataset: Dataset, config: DataConfig) -> list[str | None]:
    """The part that each record will be in: its split, but ``train`` for a validation part that will be merged."""
    merged = merges_validation(dataset, config)
    return ["train" if merged and r.split == "val" else r.split for r in dataset.records]


def merges_validation(dataset: Dataset, config: DataConfig) -> bool:
    """Whether the source's validation part is too small, and carving a new one would give more (see ``splits``)."""
    if not {"train", "val"} <= set(dataset.splits):
        return False
    smallest = smallest_class(dataset, ("val",))
    pool = smallest_class(dataset, ("train", "val"))
    return smallest < least_validation(dataset, config) and int(config.val_fraction * pool) > smallest


def least_validation(dataset: Dataset, config: DataConfig) -> int:
    """Images of a class below which a validation part is merged; each mask has thousands of pixels to judge."""
    return 1 if dataset.label_values else config.min_val_per_class


def smallest_class(dataset: Dataset, splits: Sequence[str]) -> int:
    """Images of the rarest class in some splits; of several labels, positives of the commonest one.

    One rare finding is no reason to dissolve a validation part on which the others can be judged.
    """
    counts = Counter(k for r in dataset.records if r.split in splits for k in r.labels)
    chosen = max if dataset.multi_label else min
    return chosen(counts[k] for k in range(len(dataset.classes)))


def shared_instances(dataset: Dataset, images: Sequence[ImageFacts]) -> list[Finding]:
    """M218 different pixels under one SOP instance UID: one of the DICOM files was changed, or its UID was."""
    files: dict[str, dict[str, list[str | None]]] = defaultdict(lambda: defaultdict(list))
    for record, facts in zip(dataset.records, images):
        if facts.instance:
            files[facts.instance][record.path].append(record.pixel_hash)
    torn = [own for own in files.values() if len({tuple(hashes) for hashes in own.values()}) > 1]
    if not torn:
        return []
    examples = tuple(" and ".join(sorted(own)[:3]) for own in torn[:MOST_EXAMPLES])
    title = f"{len(torn)} SOP instance UIDs stand in files with different pixels"
    return [Finding("M218", "refuse", title, len(torn), examples, "Export them again, or keep the right one of each")]


def exact_copies(dataset: Dataset, parts: Sequence[str | None]) -> list[Finding]:
    """D117 equal pixels in several parts (refuse) or within one (note); D121 equal pixels, different labels."""
    groups = defaultdict(list)
    for row, record in enumerate(dataset.records):
        groups[record.pixel_hash].append(row)
    copies = [rows for rows in groups.values() if len(rows) > 1]
    findings = []
    across = [rows for rows in copies if len({parts[k] for k in rows}) > 1]
    if across:
        kinds = Counter(" and ".join(_in_order({parts[k] for k in rows})) for rows in across)
        told = ", ".join(f"{n} in {kind}" for kind, n in kinds.most_common())
        findings.append(
            Finding("D117", "refuse", f"images with equal pixels in several splits: {told}", len(across),
                    _examples(dataset, across), _OWN_SPLIT)
        )  # fmt: skip
    for part in _in_order(set(parts)):
        within = [own for rows in copies if len(own := [k for k in rows if (parts[k] or "no split") == part]) > 1]
        extra = sum(len(rows) - 1 for rows in within)
        if extra:
            findings.append(
                Finding("D117", "note", f"{extra} extra copies of {len(within)} images within {part}", extra,
                        _examples(dataset, within), "They count as more than one image; remove them if that matters")
            )  # fmt: skip
    torn = [
        rows for rows in copies if len({(dataset.records[k].labels, dataset.records[k].mask_hash) for k in rows}) > 1
    ]
    if torn:
        examples = tuple(
            " = ".join(
                f"{dataset.records[k].id} ({dataset.label_names(dataset.records[k]) or 'no label'})" for k in rows
            )
            for rows in torn[:MOST_EXAMPLES]
        )
        findings.append(
            Finding("D121", "refuse", f"{len(torn)} images occur with different labels", len(torn), examples,
                    "Settle the label, and list the wrong copy in data.exclude")
        )  # fmt: skip
    return findings


def near_copies(
    dataset: Dataset,
    images: Sequence[ImageFacts],
    parts: Sequence[str | None],
    config: DataConfig,
    prefer: str = "refuse",
) -> list[Finding]:
    """D118: images of two parts that differ by re-encoding, brightness, mirror or a small crop.

    Of volumes the middle slices are compared: no two of 260 hippocampi come near one another in theirs.

    Args:
        prefer: as in ``VolumeConfig``.
    """
    rows = {part: [k for k, p in enumerate(parts) if p == part] for part in SPLITS if part in parts}
    hashes = {part: np.array([images[k].phash for k in own], dtype=np.uint64) for part, own in rows.items()}
    findings, candidates = [], []
    for left, right in combinations(rows, 2):
        if len(rows[left]) * len(rows[right]) > MOST_PAIRS:
            title = f"near duplicates between {left} and {right} were not looked for: {MOST_PAIRS:,} pairs is the limit"
            findings.append(Finding("D118", "note", title, 0, (), "Audit a part of the data set"))
            continue
        for pair in near_pairs(hashes[left], hashes[right]):
            a, b = dataset.records[rows[left][pair.a]], dataset.records[rows[right][pair.b]]
            if a.pixel_hash != b.pixel_hash:
                candidates.append((pair.distance, a, b, pair.mirrored))
    candidates.sort(key=lambda c: (c[0], c[1].id, c[2].id))
    # Each is decoded once, however many it resembles: a volume takes seconds.
    of_id = {record.id: record for record in dataset.records}
    small = functools.cache(lambda name: small_picture(grey_view(dataset, of_id[name], config, prefer)))
    found = [
        f"{a.id} ~ {b.id}" + (" (mirrored)" if mirrored else "")
        for k, (_, a, b, mirrored) in enumerate(candidates)
        if k >= MOST_LOOKED_AT or _look_alike(small, a.id, b.id, mirrored)
    ]
    if found:
        findings.append(
            Finding("D118", "warn", f"{len(found)} pairs of images in different splits look alike", len(found),
                    tuple(found[:MOST_EXAMPLES]), "Look at them; if they are copies, keep one")
        )  # fmt: skip
    return findings


def _look_alike(small: Callable[[str], PillowImage.Image], a: str, b: str, mirrored: bool) -> bool:
    try:
        left, right = small(a), small(b)
    except DataError:  # gone since the scan: the hashes alone must do
        return True
    return likeness(left, right, mirrored) >= LIKENESS


def shared_patients(dataset: Dataset, parts: Sequence[str | None]) -> list[Finding]:
    """D119 patients in several parts, also by Kermany's stricter number alone (warn); D120 no patient ids."""
    records = dataset.records
    unknown = sum(r.patient is None for r in records)
    findings = []
    if unknown == len(records):
        findings.append(
            Finding("D120", "refuse", "no patient ids: images of one patient may stand in several splits", unknown, (),
                    "Name a column or a pattern in data.patient; accept only if there is one image per patient")
        )  # fmt: skip
    elif unknown:
        examples = tuple(r.id for r in records if r.patient is None)[:MOST_EXAMPLES]
        findings.append(
            Finding("D120", "warn", f"{unknown} of {len(records)} images have no patient id; each counts as its own",
                    unknown, examples, "Complete data.patient")
        )  # fmt: skip
    across = _across(records, parts, lambda r: r.patient)
    if across:
        findings.append(
            Finding("D119", "refuse", f"{len(across)} patients have images in several splits", len(across),
                    across[:MOST_EXAMPLES], _OWN_SPLIT)
        )  # fmt: skip
    if all(r.patient == kermany(r.path) for r in records) and unknown < len(records):
        numbers = _across(records, parts, lambda r: kermany_number(r.path))
        stricter = tuple(text for text in numbers if text not in across)
        if stricter:
            findings.append(
                Finding("D119", "warn", f"by number alone {len(stricter)} patients would have images in several splits "
                        "(the kinds bacteria and virus are counted apart by default)", len(stricter),
                        stricter[:MOST_EXAMPLES], "Set data.patient=kermany-number for the stricter reading")
            )  # fmt: skip
    return findings


def _across(
    records: Sequence[Record], parts: Sequence[str | None], owner: Callable[[Record], str | None]
) -> tuple[str, ...]:
    """``person12 (train, test)`` for every owner of images in several parts."""
    found: dict[str, set[str | None]] = defaultdict(set)
    for record, part in zip(records, parts):
        name = owner(record)
        if name is not None:
            found[name].add(part)
    return tuple(f"{name} ({', '.join(_in_order(own))})" for name, own in sorted(found.items()) if len(own) > 1)


def _in_order(parts: set[str | None]) -> list[str]:
    return [part for part in SPLITS if part in parts] + (["no split"] if None in parts else [])


def _examples(dataset: Dataset, groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
    return tuple(" = ".join(dataset.records[k].id for k in rows) for rows in groups[:MOST_EXAMPLES])
