"""What is in the data, and what would make a result worthless: counts, findings, and the gate before training.

Everything here is arrays and values from a ``Scan``; pages and text are made of them elsewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from medloom.config import DataConfig
from medloom.data.findings import MOST_EXAMPLES, SEVERITIES, Finding, Severity
from medloom.data.leakage import (
    exact_copies,
    leakage_parts,
    least_validation,
    merges_validation,
    near_copies,
    shared_instances,
    shared_patients,
    smallest_class,
)
from medloom.data.mask_audit import mask_findings
from medloom.data.modes import CMYK, UPPER_BYTE
from medloom.data.records import Dataset
from medloom.data.scan import Exclusion, Scan
from medloom.data.shortcuts import shortcuts
from medloom.data.summary import NO_SPLIT, counts_of, summary_of
from medloom.errors import DataError

MIN_TEST_POSITIVES, MIN_TEST_PATIENTS = 10, 30
_LIMIT = ", or raise data.exclude_limit"
_NOTICE_CODE = re.compile(r"\[(\w+)\] (.*)", re.DOTALL)


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        findings: refusals first, then warnings, then notes.
        counts: images per split and class; of several labels, positives per class.
        summary: sizes, depths, file types, patients, sites, brightness (see ``medloom.data.summary``).
        excluded: every image that was set aside.
    """

    name: str
    findings: tuple[Finding, ...]
    counts: dict[str, dict[str, int]]
    summary: dict[str, Any]
    excluded: tuple[Exclusion, ...]

    def refusals(self, accept: Collection[str] = ()) -> tuple[Finding, ...]:
        """The findings that stop training, but for those whose code is accepted."""
        return tuple(f for f in self.findings if f.severity == "refuse" and f.code not in accept)

    def as_dict(self) -> dict[str, Any]:
        """Content of ``audit.json``."""
        return {
            "name": self.name,
            "counts": self.counts,
            "findings": [f.as_dict() for f in self.findings],
            "summary": self.summary,
            "excluded": [{"id": e.id, "code": e.code, "problem": e.problem} for e in self.excluded],
        }


def audit(scan: Scan, config: DataConfig, *, prefer: str = "refuse") -> Audit:
    """Judge a scanned data set. Only pairs that seem to be near copies are decoded again.

    Args:
        prefer: as in ``VolumeConfig``.
    """
    dataset = scan.dataset
    parts = leakage_parts(dataset, config)
    findings = [
        *_exclusions(scan, config),
        *(mask_findings(scan) if scan.cases else _classes(dataset)),
        *_few_patients(dataset),
        *_splits(dataset, config),
        *exact_copies(dataset, parts),
        *near_copies(dataset, scan.images, parts, config, prefer),
        *shared_patients(dataset, parts),
        *shared_instances(dataset, scan.images),
        *shortcuts(dataset, scan.images),
        *_conversions(scan),
        *_notices(dataset),
    ]
    return Audit(dataset.name, _gravest_first(findings), counts_of(dataset), summary_of(scan), scan.excluded)


def after_split(found: Audit, scan: Scan, split: Dataset, config: DataConfig, *, prefer: str = "refuse") -> Audit:
    """The same audit, with near duplicates (D118) between the parts that will be trained and judged on.

    An audit sees the parts of the source; which images are set aside where there are none, it cannot know.

    Args:
        split: of ``make_splits``, of the data set that was scanned.
        prefer: as in ``VolumeConfig``.
    """
    placed = {record.id: record.split for record in split.records}
    parts = [placed.get(record.id) for record in scan.dataset.records]
    if parts == leakage_parts(scan.dataset, config):
        return found
    near = near_copies(scan.dataset, scan.images, parts, config, prefer)
    return replace(found, findings=_gravest_first([*(f for f in found.findings if f.code != "D118"), *near]))


def gate(found: Audit, accept: Collection[str] = ()) -> None:
    """Let training pass only where every refusal is accepted.

    Raises:
        DataError: with the code of the first refusal that is not.
    """
    refusals = found.refusals(accept)
    if not refusals:
        return
    first = refusals[0]
    others = sorted({f.code for f in refusals[1:]} - {first.code})
    more = f"; refused too: {', '.join(others)}" if others else ""
    example = f", e.g. {first.examples[0]}" if first.examples else ""
    raise DataError(
        first.code,
        found.name,
        f"{first.title}{example}{more}",
        f"{first.remedy}. To go on all the same: --accept {first.code}",
    )


def _gravest_first(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _exclusions(scan: Scan, config: DataConfig) -> list[Finding]:
    """D101-D112: one finding per code; all refuse once their share passes the limit, D114, M220 and the N-codes always
    do: a mask that does not fit its image, or two series for one, is a mistake in the data, and not a broken file."""
    total = len(scan.dataset) + len(scan.excluded)
    share = len(scan.excluded) / total
    over = share > config.exclude_limit
    limit = f"{100 * share:.2g} percent of {total} images are excluded, the limit is {100 * config.exclude_limit:g}"
    findings = []
    for code, count in sorted(Counter(e.code for e in scan.excluded).items()):
        own = [e for e in scan.excluded if e.code == code]
        severity: Severity = "refuse" if over or code in ("D114", "M220") or code[0] == "N" else "warn"
        title = f"{count} images excluded: {own[0].problem}" + (f" ({limit})" if over else "")
        findings.append(
            Finding(code, severity, title, count, tuple(f"{e.id}: {e.problem}" for e in own[:MOST_EXAMPLES]),
                    "Repair the files or list them in data.exclude" + ("" if code[0] == "N" else _LIMIT))
        )  # fmt: skip
    return findings


def _classes(dataset: Dataset) -> list[Finding]:
    """D115 nothing to learn a class from (refuse); D122 a class that a split cannot judge (warn)."""
    counts = counts_of(dataset)
    learn = next((split for split in counts if split not in ("val", "test")), None)
    findings = []
    if learn is not None:
        size = sum((r.split or NO_SPLIT) == learn for r in dataset.records)
        for name, count in counts[learn].items():
            only = ", ".join(split for split in counts if counts[split][name])
            title = f"class {name} has no image in {learn}" + (f", but in {only}" if only else "")
            if count == size:
                title = f"every image in {learn} is of class {name}"
            if count in (0, size):
                findings.append(Finding("D115", "refuse", title, size, (), "Correct the folders or data.classes"))
    for split, least in (("val", 1), ("test", MIN_TEST_POSITIVES)):
        few = {name: count for name, count in counts.get(split, {}).items() if count < least}
        if few:
            title = f"too few images in {split} to judge: " + ", ".join(f"{n} of {name}" for name, n in few.items())
            remedy = "Their metrics will be loose, or not estimable where there is none; add images"
            findings.append(Finding("D122", "warn", title, len(few), (), remedy))
    return findings


def _few_patients(dataset: Dataset) -> list[Finding]:
    """D122: many test images of a handful of patients, whom intervals count and not the images."""
    tested = [r for r in dataset.records if r.split == "test"]
    patients = {r.patient for r in tested}
    if None in patients or not 0 < len(patients) < MIN_TEST_PATIENTS:
        return []
    title = f"the {len(tested)} test images are of {len(patients)} patients: intervals will be wide, or not estimable"
    remedy = "Draw the splits anew (data.split_column=none with data.test_fraction), or bring more patients"
    return [Finding("D122", "warn", title, len(patients), (), remedy)]


def _splits(dataset: Dataset, config: DataConfig) -> list[Finding]:
    """D124: what will be carved or merged, and a test part that is missing."""
    splits = dataset.splits
    percent = f"{100 * config.val_fraction:g} percent of the training patients"
    loose = sum(r.split is None for r in dataset.records)
    findings = []
    if "val" not in splits and config.val_fraction > 0 and splits != ("test",):
        title = f"no validation split: {percent} will be set aside for it"
        findings.append(Finding("D124", "note", title, 0, (), "Nothing to do; data.val_fraction is the share"))
    if "val" in splits and "train" in splits:
        smallest, size = smallest_class(dataset, ("val",)), sum(r.split == "val" for r in dataset.records)
        if smallest < least_validation(dataset, config):
            which = "commonest label" if dataset.multi_label else "rarest class"
            what = (
                f"it will be merged into train, and {percent} set aside instead"
                if merges_validation(dataset, config)
                else "it stays, as carving would not give more"
            )
            title = f"the validation split is too small ({size} images, {smallest} of the {which}): {what}"
            findings.append(Finding("D124", "note", title, size, (), "data.min_val_per_class is the limit"))
    if "test" not in splits and config.test_fraction == 0:
        title = "no test split: nothing will be left to report on"
        findings.append(Finding("D115", "warn", title, 0, (), "Bring one, or set data.test_fraction"))
    if loose and splits:
        title = f"{loose} images have no split and will join train"
        findings.append(Finding("D115", "note", title, loose, (), "Put them into a split"))
    return findings


def _conversions(scan: Scan) -> list[Finding]:
    findings = []
    for note, count in Counter(note for image in scan.images for note in image.notes).items():
        examples = tuple(r.id for r, i in zip(scan.dataset.records, scan.images) if note in i.notes)[:MOST_EXAMPLES]
        severity: Severity = "warn" if note in (CMYK, UPPER_BYTE) else "note"
        findings.append(
            Finding("D107", severity, f"{count} images: {note}", count, examples, "Nothing, if that is right")
        )
    return findings


def _notices(dataset: Dataset) -> list[Finding]:
    """What the source said while listing: with a code a warning, without one a note."""
    findings = []
    for notice in dataset.notices:
        coded = _NOTICE_CODE.match(notice)
        code, title = coded.groups() if coded else ("D100", notice)
        findings.append(Finding(code, "warn" if coded else "note", title, 0, (), "See docs/data.md"))
    return findings
