"""Records that may not be parted, and the order in which they are dealt out: by hash, never by a random generator.

So a division is the same on every platform and in any order of the files, and a new patient does not move the old ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable

from medloom.data.records import Record


def groups_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records joined by patient or by equal pixels, under a name that does not depend on their order."""
    records = tuple(records)
    leader = list(range(len(records)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, record in enumerate(records):
        for kind, value in (("patient", record.patient), ("pixels", record.pixel_hash)):
            if value is not None:
                leader[find(i)] = find(first.setdefault((kind, value), i))
    members: dict[int, list[Record]] = defaultdict(list)
    for i, record in enumerate(records):
        members[find(i)].append(record)
    return {min(owner(r) for r in rs): rs for rs in members.values()}


def strata(groups: dict[str, list[Record]], salt: str) -> list[list[str]]:
    """Per rarest label, the groups in the order in which they are taken: any first part has its share of each site.

    The share inside a site runs evenly over the order ((rank + start) / size), so taking a first part is sampling
    in proportion, and first parts of different length are nested.
    """
    frequency = Counter(k for rs in groups.values() for k in {k for r in rs for k in r.labels})
    cells: dict[int, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for name, rs in groups.items():
        labels = {k for r in rs for k in r.labels}
        rarest = min(labels, key=lambda k: (frequency[k], k), default=-1)
        site = min(r.site or "" for r in rs)
        cells[rarest][site].append((_draw(salt, name), name))
    ordered = []
    for rarest in sorted(cells):
        taken = []
        for site, drawn in cells[rarest].items():
            start = int(_draw(salt, f"site:{rarest}:{site}")[:12], 16) / 16**12
            taken += [((rank + start) / len(drawn), draw, name) for rank, (draw, name) in enumerate(sorted(drawn))]
        ordered.append([name for _, _, name in sorted(taken)])
    return ordered


def _draw(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}\x1f{name}".encode("utf-8", "surrogateescape")).hexdigest()


def owner(record: Record) -> str:
    """Whose a record is: its patient, or itself."""
    return f"patient:{record.patient}" if record.patient is not None else f"image:{record.id}"
