"""Every answer that ``medloom predict`` owes: what was answered before is taken up, the rest is done here or spread."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medloom.deployment.bundle import Bundle
from medloom.deployment.bundle_runtimes import stated
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.deployment.runtime_engines import usable_cores
from medloom.errors import DataError, UsageError
from medloom.workflows.answer_log import AnswerLog, read_log
from medloom.workflows.answer_pool import Batch, spread
from medloom.workflows.answering import Item, answer
from medloom.workflows.progress import Progress, Report
from medloom.workflows.shards import Shard, merge_shards, parse_shard


@dataclass(frozen=True)
class Division:
    """How the work is divided.

    Attributes:
        shard: ``I/N``, to answer that part alone.
        merge: make one table of the parts that were answered.
        processes: on this machine.
        threads: of each process; default, this machine's cores shared among them.
    """

    shard: str | None = None
    merge: bool = False
    processes: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Answered:
    """Rows in order, of the whole list or of a part.

    Attributes:
        found: how many were answered before.
        file: of a part, where it lies.
        parts: of a merge, the files that became one table.
        log: where the answers are kept until the table is written.
    """

    rows: list[dict[str, Any]]
    found: int = 0
    file: Path | None = None
    parts: tuple[Path, ...] = ()
    log: Path | None = None

    def close(self) -> None:
        """The table is written: the log may go."""
        if self.log is not None:
            self.log.unlink(missing_ok=True)

    def lines(self, shard: str | None, place: str) -> list[str]:
        """What a person is told of the way the answers were come by."""
        told = [f"{self.found} of them were answered before"] if self.found else []
        if self.file is not None:
            told.append(f"part {shard} lies in {self.file}; when all do, the same command with --merge writes {place}")
        if self.parts:
            told.append(f"{len(self.parts)} parts, each image once; they are not needed any more")
        return told


def answer_all(
    model: Bundle | SegmenterBundle,
    items: Sequence[Item],
    *,
    table: Path | None,
    folder: Path | None = None,
    division: Division,
    batch_size: int,
    progress: Report | None = None,
    quiet: bool = True,
) -> Answered:
    """Answer ``items``, or the part of them that was asked for, or put the parts together.

    Answers are kept beside ``table`` batch by batch until it is written, so the same command goes on after a kill. They
    count only for the same bundle, runtime and files (names, sizes and times of change).

    Args:
        table: the file that answers go into; None to print them.
        folder: where masks go.
        batch_size: of images at once. The batches do not depend on the number of processes, nor on a kill.

    Raises:
        UsageError: U248 a division that cannot be, U249 nothing to merge, T412, U212.
        DataError: D135 parts that do not make a whole. ResourceError: T404, T405, T407.
    """
    if table is None and (division.shard or division.merge):
        raise UsageError("U248", "option shard", "parts need a place beside the table", "Name the table with --out")
    if division.shard and division.merge:
        raise UsageError("U248", "option shard", "a part is answered or all are merged, not both", "Leave one away")
    names = [item.name for item in items]
    head = _head(model, items)
    if division.merge:
        assert table is not None
        rows, parts = merge_shards(table, head, names)
        if lost := [str(row["mask"]) for row in rows if not _holds(row, folder)]:
            told = f"{len(lost)} masks are not there, the first {lost[0]}"
            raise DataError("D135", table, told, "Answer again with --shard: what is missing is drawn anew")
        return Answered(rows, parts=tuple(parts))
    shard = parse_shard(division.shard) if division.shard else Shard(1, 1)
    positions = shard.positions(len(items))
    head |= {"shard": [shard.index, shard.count], "files": _digest(items, positions, times=True)}
    target = shard.file(table) if table is not None and division.shard else None
    if target is not None and target.is_file():
        theirs, lines = read_log(target)
        if theirs == head and sorted(position for position, _ in lines) == [*positions]:
            by_position = dict(lines)
            if all(_holds(row, folder) for row in by_position.values()):
                return Answered([by_position[k] for k in positions], len(positions), target)
    place = None if table is None else (target or table).with_name(f"{(target or table).name}.part")
    with AnswerLog(place, head, lambda row: _holds(row, folder)) as log:
        _answer_rest(model, items, positions, log, folder, division, batch_size, progress, quiet)
        if target is not None:
            log.become(target)
    return Answered([log.rows[k] for k in positions], log.found, target, log=place if target is None else None)


def _answer_rest(
    model: Bundle | SegmenterBundle,
    items: Sequence[Item],
    positions: range,
    log: AnswerLog,
    folder: Path | None,
    division: Division,
    batch_size: int,
    progress: Report | None,
    quiet: bool,
) -> None:
    size = batch_size if isinstance(model, Bundle) else 1
    cut = [positions[k : k + size] for k in range(0, len(positions), size)]
    batches: list[Batch] = [(p, [items[k] for k in p]) for p in cut if not all(k in log.rows for k in p)]
    total = len(positions)
    done = total - sum(len(p) for p, _ in batches)
    with Progress("answering", quiet=quiet) as shown:
        if division.processes > 1 and len(batches) > 1:
            processes = min(division.processes, len(batches))
            work = spread(
                batches,
                bundle=model.root,
                runtime=model.pipeline.runtime.name,
                folder=folder,
                processes=processes,
                threads=division.threads or max(1, usable_cores() // processes),
            )
            for where, rows in work:
                log.add(where, rows)
                done += len(rows)
                (progress or shown)(done, total)
            return
        for where, wanted in batches:
            at = done + 1

            def windows(now: int, of: int, at: int = at) -> None:
                shown.sometimes(f"answering {at}/{total}: window {now} of {of}")

            rows = []
            for row in answer(model, wanted, folder=folder, batch_size=size, windows=windows):
                rows.append(row)
                done += 1
                (progress or shown)(done, total)
            log.add(where, rows)


def _head(model: Bundle | SegmenterBundle, items: Sequence[Item]) -> dict[str, Any]:
    """Of what the answers are: equal on all machines that answer the same files by the same network."""
    runtime = model.pipeline.runtime.name
    return {
        "model": model.name,
        "model_hash": model.hash,
        "runtime": f"{runtime} {stated(model.document)[runtime]['precision']}",
        "images": len(items),
        "list": _digest(items, range(len(items)), times=False),
    }


def _digest(items: Sequence[Item], positions: range, *, times: bool) -> str:
    """Names and sizes of what is to be answered; times of change differ between copies, so only one place has them."""
    known: dict[str, str] = {}
    digest = hashlib.sha256()
    for position in positions:
        item = items[position]
        digest.update(repr((item.name, item.member, item.mask)).encode("utf-8", "backslashreplace"))
        for file in item.files:
            if file not in known:
                known[file] = _stamp(Path(file), times)
            digest.update(known[file].encode())
    return digest.hexdigest()


def _stamp(file: Path, times: bool) -> str:
    try:
        found = file.stat()
    except OSError:
        return "unreadable;"
    return f"{found.st_size}@{found.st_mtime_ns};" if times else f"{found.st_size};"


def _holds(row: dict[str, Any], folder: Path | None) -> bool:
    """Whether what a row says was written is there."""
    mask = row.get("mask")
    return mask is None or (folder is not None and (folder / mask).is_file())
