"""``medloom data fetch``: a public data set from its archive to a folder; the one verb that is there to use the net."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from medloom.data.medmnist_sets import BASE, SETS, SIZES
from medloom.errors import UsageError
from medloom.files import write_json
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress

if TYPE_CHECKING:
    from medloom.data.medmnist_sets import MedMnistSet

MIRROR = "MEDLOOM_MEDMNIST_URL"


def fetch(
    name: str | None, *, size: int = 28, out: str | Path = ".", url: str | None = None, quiet: bool = True
) -> Outcome:
    """Bring one MedMNIST set to ``out``, with ``NAME.npz.json`` that says what it is; without a name, list the sets.

    Args:
        size: 28, 64, 128 or 224 pixels.
        url: folder of a mirror; else MEDLOOM_MEDMNIST_URL, else the archive itself.

    Raises:
        UsageError: U224 no such set or size, or an address that is none; T412.
        ResourceError: D130, D131, T404, T405. DataError: D132 (see ``data.fetch``).
    """
    if name is None:
        return _listing()
    if name.lower() not in SETS:
        near = difflib.get_close_matches(name.lower(), SETS, n=1)
        remedy = f"Did you mean {near[0]}?" if near else f"Sets: {', '.join(SETS)}"
        raise UsageError("U224", name, "no such data set", remedy)
    if size not in SIZES:
        raise UsageError("U224", "--size", f"there is no size {size}", f"Sizes: {', '.join(map(str, SIZES))}")
    from medloom.data.fetch import fetch as fetch_file

    wanted, folder = SETS[name.lower()], Path(out)
    file = wanted.file(size)
    base = url or os.environ.get(MIRROR) or BASE
    address = f"{base.rstrip('/')}/{file}"
    with Progress(f"fetching {file}", quiet=quiet) as step:
        found = fetch_file(
            address,
            folder / file,
            md5=wanted.md5[size],
            # In megabytes, for people; the first of them is there before any time left can be told.
            progress=lambda came, total: step(max(came >> 20, 1), max(total >> 20, 1), "MB"),
        )
    facts = {
        "name": wanted.name,
        "about": wanted.about,
        "size": size,
        "task": wanted.task,
        "labels": list(wanted.labels),
        "images": dict(zip(("train", "val", "test"), wanted.counts)),
        "licence": wanted.licence,
        "url": address,
        "bytes": found.bytes,
        "md5": found.md5,
        "sha256": found.sha256,
        "reference": "Yang et al., MedMNIST v2, Scientific Data 10:41, 2023",
    }
    beside = folder / f"{file}.json"
    if found.came or not beside.exists():  # also where a fetch was cut off between the two, or brought by hand
        write_json(beside, facts)
    lines = (
        f"{found.path}: {'fetched' if found.came else 'is there already'}, {found.bytes / 1e6:,.1f} MB, "
        f"its MD5 sum is the published one",
        f"sha256 {found.sha256}",
        f"{wanted.about}; {_images(wanted)}; {wanted.task}, {len(wanted.labels)} labels; licence of the images: "
        f"{wanted.licence}",
        f"next: medloom data audit {found.path} --out {folder / wanted.name}-audit",
    )
    return Outcome({**facts, "path": found.path}, lines)


def _listing() -> Outcome:
    rows = [
        {"name": s.name, "about": s.about, "task": s.task, "labels": list(s.labels), "images": list(s.counts),
         "channels": s.channels, "licence": s.licence, "sizes": list(SIZES)}
        for s in SETS.values()
    ]  # fmt: skip
    lines = [f"{'name':15} {'train':>7} {'val':>6} {'test':>6}  labels  licence       what"]
    for s in SETS.values():
        train, val, test = s.counts
        lines.append(
            f"{s.name:15} {train:>7,} {val:>6,} {test:>6,}  {len(s.labels):>6}  {s.licence:12}  {s.about}, {s.task}"
        )
    return Outcome({"sets": rows}, (*lines, "fetch one: medloom data fetch NAME --size 64 --out FOLDER"))


def _images(wanted: MedMnistSet) -> str:
    return " / ".join(f"{n:,}" for n in wanted.counts) + " images in train / val / test"
