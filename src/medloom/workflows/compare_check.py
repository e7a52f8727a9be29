"""Whether the runs of a comparison will be about the same images: told from listings, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medloom.config import DataConfig
from medloom.data.records import Dataset, Record, read_csv
from medloom.data.splits import make_splits
from medloom.errors import DataError
from medloom.reporting.wording import plural
from medloom.workflows.compare_plan import Listed, Planned, listing

_REMEDY = "Compare runs on one data set and one test split"


@dataclass(frozen=True, eq=False)
class Side:
    """What a run has seen, or what its listing promises.

    Attributes:
        name: for messages.
        config: ``data`` part of its recipe.
        given: the run is finished: its records are those that were read, with hashes of their pixels.
        unread: ids that a finished run set aside as unreadable; None where it does not say.
    """

    name: str
    dataset: Dataset
    config: DataConfig
    given: bool = False
    unread: frozenset[str] | None = frozenset()

    @property
    def records(self) -> dict[str, Record]:
        return {r.id: r for r in self.dataset.records}


def refuse_other_data(planned: Sequence[Planned], listings: dict[str, Listed]) -> None:
    """Hold what each recipe lists against the first given run, or else against what the first recipe lists.

    Images that a finished run could not read are expected to be unreadable still. What only decoding tells (equal
    pixels, files that broke since) is judged when the runs are read, by ``reporting.compared.refuse_mixtures``.

    Args:
        listings: what was listed already, as ``compare_plan.listing`` keeps it.

    Raises:
        DataError: D133, other classes, images, labels, patients or test images, or no test images at all.
    """
    first = next((_given(p) for p in planned if p.given), None)
    seen: set[int] = set()
    for one in (p for p in planned if not p.given):
        listed = listing(one.recipe, listings)
        if id(listed) in seen:
            continue
        seen.add(id(listed))
        side = Side(one.label, listed.dataset, one.recipe.data)
        if not side.config.test_fraction and "test" not in listed.dataset.splits:
            remedy = "Give the data a test split, or set data.test_fraction"
            raise DataError("D133", side.name, "its data have no test images", remedy)
        if first is None:
            first = side
        elif problem := difference_between(first, side):
            raise DataError("D133", side.name, problem, _REMEDY)


def difference_between(first: Side, other: Side) -> str | None:
    """What keeps ``other``, which is a listing, out of one table with ``first``; None where nothing does."""
    if (other.dataset.classes, other.dataset.multi_label) != (first.dataset.classes, first.dataset.multi_label):
        return f"its classes are {', '.join(other.dataset.classes)}, those of {first.name} are " + ", ".join(
            first.dataset.classes
        )
    theirs, ours = first.records, other.records
    shared = theirs.keys() & ours.keys()
    whole = not first.given or first.config.label_fraction == 1
    known = first.unread is not None and whole
    if len(shared) < len(theirs) or (known and ours.keys() - shared - (first.unread or frozenset())):
        return (
            f"it lists {plural(len(ours), 'image')}, {first.name} has {len(theirs)}; {len(shared)} are the same"
        )  # fmt: skip
    if any(_known_of(theirs[i]) != _known_of(ours[i]) for i in shared):
        return f"its labels, patients or sites are not those of {first.name}"
    tested, wanted = _test(first, theirs, whole=whole), _test(other, theirs, whole=whole)
    if tested is None or wanted is None or tested == wanted:
        return None
    return (
        f"it will be tested on {plural(len(wanted), 'image')}, {first.name} on {len(tested)}; "
        f"{len(tested & wanted)} are the same"
    )


def _test(side: Side, read: Mapping[str, Record], *, whole: bool) -> frozenset[str] | None:
    """Ids of the test images among ``read``; None where they cannot be told without all of the images."""
    if side.given or "test" in side.dataset.splits:
        return frozenset(r.id for r in side.dataset.records if r.split == "test" and r.id in read)
    if not whole:
        return None
    kept = [replace(r, pixel_hash=read[r.id].pixel_hash) for r in side.dataset.records if r.id in read]
    try:
        drawn = make_splits(side.dataset.with_records(kept), side.config, 0)
    except DataError:
        return None  # the run will say it in its own words
    return frozenset(r.id for r in drawn.dataset.records if r.split == "test")


def _known_of(record: Record) -> tuple[tuple[int, ...], str, str]:
    return record.labels, record.patient or "", record.site or ""


def _given(one: Planned) -> Side:
    """A finished run.

    Raises:
        DataError: D116. ModelError: C502, its table cannot be read.
    """
    run = one.directory
    try:
        excluded = json.loads(run.audit.read_text(encoding="utf-8"))["excluded"]
        unread = frozenset(str(entry["id"]) for entry in excluded)
    except (OSError, ValueError, KeyError, TypeError):
        unread = None
    return Side(run.root.name, read_csv(run.records, run.root), one.recipe.data, given=True, unread=unread)
