"""``medloom predict``: answers of a bundle for files and folders, without torch."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from medloom.data.dicom_archive import count_members, is_archive
from medloom.data.formats import SUFFIXES, is_candidate
from medloom.deployment.bundle import Bundle, load
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.deployment.runtime import MAX_BATCH, Prediction
from medloom.errors import DataError, UsageError
from medloom.files import write_bytes
from medloom.workflows.answer_all import Division, answer_all
from medloom.workflows.answering import Item
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Report
from medloom.workflows.segment import segment

NOTICE = "Research software, not a medical device."
EXCLUDE_LIMIT = 0.01  # as data.exclude_limit: the share of refused images above which the exit status is 3


def predict(
    bundle: str | Path | Bundle | SegmenterBundle,
    paths: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    fmt: Literal["csv", "json"] | None = None,
    threads: int | None = None,
    runtime: str | None = None,
    batch_size: int = 32,
    exclude_limit: float = EXCLUDE_LIMIT,
    shard: str | None = None,
    merge: bool = False,
    processes: int = 1,
    progress: Report | None = None,
    quiet: bool = True,
) -> Outcome:
    """Answer for image files, for all images below folders, and for studies in ZIP files that are named.

    Every image has a row, in the order given (below a folder: sorted by path); one that cannot be used has its code in
    place of an answer. The file, if any, is written whole or not at all; until then answers are kept beside it, and the
    same call goes on after a kill.

    A bundle that draws masks writes them into the folder ``out``; see ``workflows.segment``.

    Args:
        out: file to write; without it the table is the printed text. Of a bundle that draws masks, a folder.
        fmt: default, from the ending of ``out``.
        runtime: ``onnx`` or ``openvino``; default, the fastest that the bundle and this machine have.
        threads: of the runtime, in each process.
        exclude_limit: share of refused images above which ``exit_code`` is 3.
        shard: ``2/8``, the second of eight parts, e.g. of a scheduler's array job; its answers go beside ``out``.
        merge: make ``out`` of all parts, if every image has exactly one answer.
        processes: on this machine, each with the bundle opened for itself.

    Raises:
        UsageError: U214 a path that is not there, U215 an ending of ``out`` that is neither .csv nor .json, U210 and
            U243 of the runtime, U248 and U249 of the parts, T412 another process answers into ``out``.
        DataError: D114 a folder that cannot be read, D115 no image at all, M219 an archive that is not opened, D135
            parts that do not make a whole.
        ModelError: the bundle is refused (``medloom.load``).
        ResourceError: T404, T405 ``out`` cannot be written, T407 a process was ended.
    """
    division = Division(shard, merge, processes, threads)
    model = load(bundle, threads=threads, runtime=runtime) if isinstance(bundle, str | Path) else bundle
    if isinstance(model, SegmenterBundle):
        return segment(
            model,
            paths,
            out=out,
            walk=lambda folder: list(_below(folder)),
            notice=NOTICE,
            exclude_limit=exclude_limit,
            division=division,
            progress=progress,
            quiet=quiet,
        )
    kind = _format(out, fmt)
    files, passed_over = find_images(paths)
    answered = answer_all(
        model,
        list_items(files),
        table=None if out is None else Path(out),
        division=division,
        batch_size=max(1, min(batch_size, MAX_BATCH)),
        progress=progress,
        quiet=quiet,
    )
    answers = [Prediction(**row) for row in answered.rows]
    refused = [a for a in answers if a.error]
    values: dict[str, Any] = {
        "notice": NOTICE,
        "model": model.name,
        "model_hash": model.hash,
        "runtime": model.pipeline.runtime.name,
        "classes": list(model.classes),
        "images": len(answers),
        "refused": len(refused),
        "passed_over": passed_over,
        "predictions": [a.as_dict() for a in answers],
    }
    text = table(model.classes, answers) if kind == "csv" else json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    exit_code = 3 if len(refused) > exclude_limit * len(answers) else 0
    if out is None:
        return Outcome(values, (text.rstrip("\n"),), exit_code)
    if answered.file is None:
        # A file name need not be UTF-8: its bytes pass through unchanged.
        write_bytes(out, text.encode("utf-8", "surrogateescape"))
        answered.close()
    lines = [f"{len(answers) - len(refused)} of {len(answers)} images answered by {model.name}. {NOTICE}"]
    lines += answered.lines(shard, str(out))
    lines += [f"refused[{a.error}] {a.id}: {a.problem}" for a in refused[:20]]
    lines += [f"{sum(a.notice == told for a in answers)} images: {told}" for told in _notices(answers)]
    if passed_over:
        lines.append(f"{passed_over} files without an image's ending were passed over")
    if answered.file is not None:
        return Outcome({**values, "shard": shard, "file": str(answered.file)}, tuple(lines), exit_code)
    return Outcome({**values, "file": str(out)}, (*lines, f"open {out}"), exit_code)


def find_images(paths: Sequence[str | Path]) -> tuple[list[Path], int]:
    """Image files, in order, each once; and how many other files the folders hold.

    A file that is named is always taken; below a folder only those with an image's ending, or with none and DICOM by
    their first bytes. Links out of a folder and hidden files are left alone.

    Raises:
        UsageError: U214 a path that is not there.
        DataError: D114 a folder that cannot be read, D115 nothing found.
    """
    found: dict[Path, None] = {}
    others = 0
    for path in map(Path, paths):
        if path.is_dir():
            for entry in _below(path):
                if entry.suffix.lower() in SUFFIXES or (entry.is_file() and is_candidate(str(entry))):
                    found[entry] = None
                else:
                    others += 1
        elif path.exists():
            found[path] = None
        else:
            raise UsageError("U214", path, "there is no such file or folder", "Check the path")
    if not found:
        place = ", ".join(map(str, paths)) or "no path"
        raise DataError("D115", place, f"no image found ({others} other files)", f"Known endings: {_ENDINGS}")
    return list(found), others


def list_items(files: Sequence[Path]) -> list[Item]:
    """What is answered of these files: themselves, and of an archive each file in it.

    Raises:
        DataError: M219 an archive that is not opened.
    """
    items: list[Item] = []
    for file in files:
        if is_archive(file):
            items += [Item(f"{file}#{k}", (str(file),), k) for k in range(1, count_members(file) + 1)]
        else:
            items.append(Item(str(file), (str(file),)))
    return items


def table(classes: Sequence[str], answers: Sequence[Prediction]) -> str:
    """Answers as CSV: ``id, label, decision, threshold, probability:CLASS ..., logit:CLASS ..., error, problem,
    notice``.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    numbers = [("probability", "probabilities"), ("logit", "logits")]
    header = [f"{prefix}:{name}" for prefix, _ in numbers for name in classes]
    writer.writerow(["id", "label", "decision", "threshold", *header, "error", "problem", "notice"])
    for answer in answers:
        values = [getattr(answer, field).get(name, "") for _, field in numbers for name in classes]
        start = [answer.id, answer.label or "", answer.decision, _cell(answer.threshold)]
        writer.writerow([*start, *map(_cell, values), answer.error or "", answer.problem or "", answer.notice or ""])
    return out.getvalue()


def _notices(answers: Sequence[Prediction]) -> list[str]:
    return list(dict.fromkeys(answer.notice for answer in answers if answer.notice))


def _below(folder: Path) -> Iterator[Path]:
    def refuse(problem: OSError) -> None:
        place = problem.filename or folder
        raise DataError("D114", place, f"cannot be read ({problem.strerror})", "Correct its permissions") from None

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            entry = Path(root, name)
            if not name.startswith(".") and not (entry.is_symlink() and not _stays_in(entry, folder)):
                yield entry


def _stays_in(link: Path, folder: Path) -> bool:
    return link.resolve().is_relative_to(folder.resolve())


def _format(out: str | Path | None, fmt: str | None) -> str:
    if fmt is not None or out is None:
        return fmt or "csv"
    ending = Path(out).suffix.lower().removeprefix(".")
    if ending not in ("csv", "json"):
        raise UsageError("U215", out, "the ending says neither .csv nor .json", "Choose one of the two")
    return ending


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


_ENDINGS = " ".join(sorted(SUFFIXES))
