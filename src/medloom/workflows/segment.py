"""``medloom predict`` with a bundle that draws masks: files and folders in, a folder of masks out, without torch."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medloom.data.formats import SUFFIXES
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.errors import UsageError
from medloom.files import make_folder, write_bytes
from medloom.workflows.answer_all import Division, answer_all
from medloom.workflows.answering import Item
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Report
from medloom.workflows.segment_cases import find_cases, mask_names, spare_inputs

TABLE = "volumes.csv"
_FILE_ENDINGS = frozenset({".csv", ".json", ".nii", ".gz", ".zip", ".npz", *SUFFIXES})


def segment(
    model: SegmenterBundle,
    paths: Sequence[str | Path],
    *,
    out: str | Path | None,
    walk: Callable[[Path], Sequence[Path]],
    notice: str,
    exclude_limit: float,
    division: Division,
    progress: Report | None = None,
    quiet: bool = True,
) -> Outcome:
    """Write a mask per case and ``volumes.csv`` into a folder.

    Of an image ``STEM_mask.png`` whose values are the bundle's ``label_values``, on the pixels of the file; of a NIfTI
    volume or a DICOM series ``STEM_mask.nii.gz`` on its voxels and at its place. Below a folder that was named the
    masks keep its structure. Masks that are there are replaced, each whole or not at all; no input is ever written to.

    Args:
        walk: the files below a folder, in order.
        exclude_limit: share of refused cases above which ``exit_code`` is 3.
        division: how the work is divided.

    Raises:
        UsageError: U214 a path that is not there, U215 no folder to write to, U234 a mask that would take the place of
            an input; what ``answer_all`` raises.
        DataError: D114 a folder that cannot be read, D115 nothing to answer.
        ResourceError: T404, T405 a mask cannot be written.
    """
    folder = _folder(out)
    cases, passed_over = find_cases(paths, folder, walk, volumes=model.pipeline.volumes)
    places = mask_names(cases, ".nii.gz" if model.pipeline.volumes else ".png")
    spare_inputs(cases, [*(folder / place for place in places), folder / TABLE])
    make_folder(folder)
    items = [
        Item(case.name, tuple(map(str, case.files)), series=isinstance(case.source, tuple), mask=str(place))
        for case, place in zip(cases, places)
    ]
    answered = answer_all(
        model,
        items,
        table=folder / TABLE,
        folder=folder,
        division=division,
        batch_size=1,
        progress=progress,
        quiet=quiet,
    )
    rows = answered.rows
    if answered.file is None:
        write_bytes(folder / TABLE, table(model, rows).encode("utf-8", "surrogateescape"))
        answered.close()
    refused = [row for row in rows if row["error"]]
    values: dict[str, Any] = {
        "notice": notice,
        "model": model.name,
        "model_hash": model.hash,
        "runtime": model.pipeline.runtime.name,
        "classes": list(model.classes),
        "label_values": list(model.label_values),
        "images": len(rows),
        "refused": len(refused),
        "passed_over": passed_over,
        "predictions": rows,
        "folder": str(folder),
    }
    lines = [f"{len(rows) - len(refused)} of {len(rows)} cases answered by {model.name}. {notice}"]
    lines += answered.lines(division.shard, str(folder / TABLE))
    lines += [f"refused[{row['error']}] {row['id']}: {row['problem']}" for row in refused[:20]]
    told = Counter(row["notice"] for row in rows if row["notice"])
    lines += [f"{count} images: {text}" for text, count in told.items()]
    if passed_over:
        lines.append(f"{passed_over} files of other kinds were passed over")
    exit_code = 3 if len(refused) > exclude_limit * len(rows) else 0
    if answered.file is not None:
        return Outcome({**values, "shard": division.shard, "file": str(answered.file)}, tuple(lines), exit_code)
    return Outcome(values, (*lines, f"open {folder / TABLE}"), exit_code)


def table(model: SegmenterBundle, rows: Sequence[dict[str, Any]]) -> str:
    """Sizes as CSV: ``id, mask, unit, STRUCTURE ..., error, problem, notice``."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    structures = model.classes[1:]
    writer.writerow(["id", "mask", "unit", *(f"size:{name}" for name in structures), "error", "problem", "notice"])
    for row in rows:
        sizes = [repr(row["structures"][name]) if name in row["structures"] else "" for name in structures]
        unit = "" if row["error"] else row["unit"]
        told = [row[key] or "" for key in ("error", "problem", "notice")]
        writer.writerow([row["id"], row["mask"] or "", unit, *sizes, *told])
    return out.getvalue()


def _folder(out: str | Path | None) -> Path:
    if out is None:
        raise UsageError("U215", "option out", "this bundle draws masks, which need a folder", "Give --out FOLDER")
    folder = Path(out)
    if folder.suffix.lower() in _FILE_ENDINGS and not folder.is_dir():
        raise UsageError("U215", folder, "masks go into a folder, and this names a file", "Name a folder")
    return folder
