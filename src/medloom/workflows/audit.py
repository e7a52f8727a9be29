"""``medloom data audit``: what is in the data, and what would make a result worthless."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.config import DataConfig, load_recipe
from medloom.files import make_folder, write_json
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress

if TYPE_CHECKING:
    from medloom.data.audit import Audit
    from medloom.data.records import Dataset
    from medloom.data.scan import Scan

SAMPLES_PER_CLASS = 6


def audit(
    path: str | Path,
    *,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    strict: bool = False,
    quiet: bool = True,
) -> Outcome:
    """Audit a data set; with ``out``, write ``audit.json`` and ``audit.html`` there.

    Args:
        recipe: takes its data section; ``overrides`` may leave out the leading ``data.``.
        strict: exit code 3 when anything is refused that the recipe does not accept, or near duplicates stand in
            several splits (D118).
    """
    keys = tuple(o if o.startswith("data.") else f"data.{o}" for o in overrides)
    asked = load_recipe(recipe if recipe is not None else {}, keys)
    config = asked.data
    scan, found = examine(path, config, prefer=asked.volume.prefer, quiet=quiet)
    values: dict[str, Any] = found.as_dict()
    refused = found.refusals(config.accept)
    lines = _text(found, [f.code for f in refused])
    if out is not None:
        page = write_audit(scan, found, config, Path(out), asked.volume.prefer)
        values["page"] = page
        lines.append(f"open {page}")
    near = any(f.code == "D118" and f.severity == "warn" for f in found.findings) and "D118" not in config.accept
    return Outcome(values, tuple(lines), 3 if strict and (refused or near) else 0)


def examine(path: str | Path, config: DataConfig, *, prefer: str = "refuse", quiet: bool = True) -> tuple[Scan, Audit]:
    """Open, decode once, and audit; ``prefer`` as in ``VolumeConfig``."""
    from medloom.data.audit import audit as audit_scan
    from medloom.data.scan import scan
    from medloom.data.sources import open_dataset

    dataset = open_dataset(path, config)
    with Progress("reading images", quiet=quiet) as step:
        scanned = scan(dataset, config, prefer=prefer, progress=step)
    return scanned, audit_scan(scanned, config, prefer=prefer)


def pass_gate(found: Audit, accept: Collection[str], *, quiet: bool) -> None:
    """Stop at what is refused; what is passed on purpose is said once more, with its figures.

    Raises:
        DataError: with the code of the first refusal that is not accepted.
    """
    from medloom.data.audit import gate

    gate(found, accept)
    passed = [f for f in found.refusals() if f.code in accept]
    if passed:
        said = "\n".join(f"accepted [{f.code}] {f.title}" for f in passed)
        Progress("auditing", quiet=quiet).keep(said)


def write_audit(scan: Scan, found: Audit, config: DataConfig, out: Path, prefer: str = "refuse") -> Path:
    """Write audit.json and audit.html into ``out``; returns the page."""
    from medloom.reporting.audit_page import write_audit_page

    make_folder(out)
    write_json(out / "audit.json", found.as_dict())
    page = out / "audit.html"
    drawn = outlined_samples(scan, config, prefer) if scan.cases else samples(scan, config)
    write_audit_page(found.as_dict(), drawn, page)
    return page


def audit_split(
    scan: Scan, found: Audit, split: Dataset, config: DataConfig, out: Path, prefer: str = "refuse"
) -> None:
    """Write the audit into ``out`` once more where the parts that were made here show copies the source could not."""
    from medloom.data.audit import after_split

    judged = after_split(found, scan, split, config, prefer=prefer)
    if judged.findings != found.findings:
        write_audit(scan, judged, config, out, prefer)


def samples(scan: Scan, config: DataConfig) -> list[tuple[str, np.ndarray]]:
    """A few images of every class, spread evenly over the data set, as 8-bit pictures with captions."""
    from medloom.data.images import decode
    from medloom.data.preprocess import Preprocess

    dataset = scan.dataset
    picture = Preprocess(
        size=(160, 160),
        resize="pad",
        channels="grey",
        intensity="none",
        percentiles=(0.0, 100.0),
        mean=(0.0,),
        std=(1.0,),
    )
    chosen = []
    for position, name in enumerate(dataset.classes):
        of_class = [r for r in dataset.records if position in r.labels]
        for k in np.linspace(0, len(of_class) - 1, min(SAMPLES_PER_CLASS, len(of_class))).astype(int):
            pixels = picture.to_uint8(decode(dataset, of_class[k], config))
            chosen.append((f"{name}: {of_class[k].id}", pixels[:, :, 0]))
    return chosen


def outlined_samples(scan: Scan, config: DataConfig, prefer: str = "refuse") -> list[tuple[str, np.ndarray]]:
    """Some images with the outlines of their masks, evenly over each site; of volumes the axial slice through most of
    the structures."""
    from medloom.data.label_maps import picture_labels, volume_labels
    from medloom.data.mask_scan import middle_slice, read_case, to_grey
    from medloom.data.scan import grey_picture
    from medloom.data.volumes import Volume, canonical
    from medloom.reporting.contours import outlined

    dataset, drawn = scan.dataset, []
    facts = {record.id: case for record, case in zip(dataset.records, scan.cases)}
    for site in sorted({r.site or "" for r in dataset.records}):
        own = [r for r in dataset.records if (r.site or "") == site]
        for k in np.linspace(0, len(own) - 1, min(2 * SAMPLES_PER_CLASS, len(own))).astype(int):
            record = own[k]
            case = read_case(dataset, record, config, prefer)
            if isinstance(case, Volume):
                positions = canonical(volume_labels(dataset, record, case, prefer)).array
                best = int((positions > 0).sum(axis=(0, 1)).argmax()) if positions.any() else None
                low, _, high, _, _ = facts[record.id].whole
                grey = to_grey(middle_slice(canonical(case).array, best), low, high)
                mask = middle_slice(positions, best)
            else:
                picture = grey_picture(case.pixels)
                mask = picture_labels(dataset, record, (picture.height, picture.width), config.max_megapixels)
                low, _, high, _, _ = facts[record.id].whole
                grey = np.asarray(picture) if picture.mode == "L" else to_grey(np.asarray(picture), low, high)
            drawn.append((f"{site or 'all'}: {record.id}", outlined(grey, mask)))
    return drawn


def _text(found: Audit, refused: list[str]) -> list[str]:
    lines = []
    for split, classes in found.counts.items():
        lines.append(f"{split or 'no split'}: " + ", ".join(f"{n} {name}" for name, n in classes.items()))
    for finding in found.findings:
        lines.append(f"{finding.severity}[{finding.code}] {finding.title}")
        if finding.examples:
            lines.append("    e.g. " + "; ".join(str(e) for e in finding.examples[:3]))
    lines.append(
        f"training would refuse: {', '.join(refused)} (pass with --accept CODE)" if refused else "nothing refused"
    )
    return lines
