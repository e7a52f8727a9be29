"""Which images a machine answers (``--shard I/N``), and how the answers of all become one table (``--merge``)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medloom.errors import DataError, UsageError
from medloom.workflows.answer_log import read_log

_SAME = ("model_hash", "runtime", "list")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 1: every ``count``-th image, so that all parts take about as long."""

    index: int
    count: int

    def positions(self, total: int) -> range:
        """Places in the whole list that this part answers."""
        return range(self.index - 1, total, self.count)

    def file(self, table: Path) -> Path:
        """Where its answers lie, beside the table that they will go into."""
        return table.with_name(f"{table.name}.{self.index}-of-{self.count}.jsonl")


def parse_shard(text: str) -> Shard:
    """``2/8`` as the second part of eight.

    Raises:
        UsageError: U248.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise UsageError("U248", "option shard", f"'{text}' is no part of a whole", "Write it as 1/8, 2/8, ... 8/8")
    return Shard(index, count)


def merge_shards(table: Path, head: dict[str, Any], names: Sequence[str]) -> tuple[list[dict[str, Any]], list[Path]]:
    """The answers of all parts, in the order of the whole list, and the files they came from.

    Every image of the list must have exactly one answer, all by one model in one runtime.

    Args:
        head: what a part that was answered here and now would say of itself.
        names: of the images, as they are listed now.

    Raises:
        UsageError: U249 no parts, or of several divisions. DataError: D135 a part is missing, unfinished or another's;
            an image has no answer, or two; the images are no longer those that were listed.
    """
    pattern = re.compile(re.escape(table.name) + r"\.([0-9]+)-of-([0-9]+)\.jsonl(\.part)?")
    seen = [m for p in (table.parent.iterdir() if table.parent.is_dir() else ()) if (m := pattern.fullmatch(p.name))]
    counts = sorted({int(m[2]) for m in seen})
    if len(counts) != 1:
        told = f"parts of {' and of '.join(map(str, counts))}" if counts else "no parts"
        remedy = "Remove those of another division" if counts else "Answer with --shard 1/N to N/N and this --out first"
        raise UsageError("U249", table, f"{told} lie beside it", remedy)
    shards = [Shard(index, counts[0]) for index in range(1, counts[0] + 1)]
    missing = [str(shard.index) for shard in shards if not shard.file(table).is_file()]
    if missing:
        told = f"part {', '.join(missing[:20])} of {counts[0]} is missing or not finished"
        raise DataError("D135", table, told, f"Answer again with --shard {missing[0]}/{counts[0]}: it goes on")
    answers: dict[int, dict[str, Any]] = {}
    files = [shard.file(table) for shard in shards]
    for shard, file in zip(shards, files):
        again = f"Remove it, and answer with --shard {shard.index}/{shard.count}"
        theirs, lines = read_log(file)
        if theirs is None or theirs.get("shard") != [shard.index, shard.count]:
            raise DataError("D135", file, f"it is not part {shard.index} of {shard.count}", again)
        _refuse_another(file, theirs, head, again)
        for position, row in lines:
            if position not in shard.positions(len(names)) or row.get("id") != names[position]:
                raise DataError("D135", file, f"an answer that is not of this part: {row.get('id')}", again)
            if position in answers:
                raise DataError("D135", file, f"two answers for {row.get('id')}", again)
            answers[position] = row
        gone = [names[k] for k in shard.positions(len(names)) if k not in answers]
        if gone:
            raise DataError("D135", file, f"no answer for {len(gone)} images, the first {gone[0]}", again)
    return [answers[position] for position in range(len(names))], files


def _refuse_another(file: Path, theirs: dict[str, Any], head: dict[str, Any], again: str) -> None:
    told = {
        "model_hash": "another model answered it",
        "runtime": f"{theirs.get('runtime')} answered it, and {head['runtime']} would here",
        "list": f"it is of a list of {theirs.get('images')} images, and now there are {head['images']}, or others",
    }
    for key in _SAME:
        if json.dumps(theirs.get(key)) != json.dumps(head[key]):
            remedy = f"Choose one with --runtime for all parts and for --merge; {again[0].lower()}{again[1:]}"
            raise DataError("D135", file, told[key], remedy if key == "runtime" else again)
