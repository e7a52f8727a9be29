"""Record and Dataset: the one shape that everything downstream of a source sees."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from medloom.errors import DataError, ModelError
from medloom.files import sha256_json, write_text

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One image and what is known of it.

    Attributes:
        id: unique in its dataset and stable between machines: the path below the root, or ``train/17`` in an array.
        path: file, relative to the dataset's root, with forward slashes.
        index: row, where the file holds an array of images; frame, where it holds frames.
        labels: positions in ``Dataset.classes``; exactly one unless the dataset is multi-label.
        split: ``train``, ``val``, ``test``, or None where the source does not say.
        pixel_hash: SHA-256 of shape, type and decoded pixels, filled by the scan.
        mask: file of the mask, relative as ``path``; structures of it stand in ``labels`` once it has been read.
        spacing: millimetres per pixel, row then column; of volumes along right, anterior, superior.
        mask_hash: the same of the mask's positions, where masks are what is learnt.
        covariates: further columns (age, sex, view, device ...) as text.
    """

    id: str
    path: str
    index: int | None = None
    labels: tuple[int, ...] = ()
    mask: str | None = None
    split: str | None = None
    patient: str | None = None
    site: str | None = None
    spacing: tuple[float, ...] | None = None
    pixel_hash: str | None = None
    mask_hash: str | None = None
    covariates: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Records of one data set.

    Attributes:
        root: the folder or the array file that the paths of the records are relative to.
        label_values: of data with masks to learn: structure ``classes[k]`` is stored as ``label_values[k]``, the
            background at position 0. Empty for data whose images have labels.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    multi_label: bool = False
    notices: tuple[str, ...] = ()
    label_values: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def select(self, split: str | None) -> Dataset:
        """The records of one split, in their order."""
        return self.with_records(r for r in self.records if r.split == split)

    def with_records(self, records: Iterable[Record]) -> Dataset:
        """The same data set with other records."""
        return replace(self, records=tuple(records))

    def file(self, record: Record) -> Path:
        """Where the record's image lies on this machine."""
        return self.root if self.root.is_file() else self.root / record.path

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, in the usual order."""
        present = {r.split for r in self.records}
        return tuple(s for s in SPLITS if s in present)

    def targets(self) -> np.ndarray:
        """``(N,)`` int64 class positions, or ``(N, K)`` float32 zeros and ones where labels are many."""
        if not self.multi_label:
            return np.array([r.labels[0] for r in self.records], dtype=np.int64)
        y_NK = np.zeros((len(self.records), len(self.classes)), dtype=np.float32)
        for row, record in enumerate(self.records):
            y_NK[row, list(record.labels)] = 1.0
        return y_NK

    def groups(self) -> np.ndarray:
        """``(N,)`` patient of each record; a record without one is its own group."""
        return np.array([r.patient if r.patient is not None else f"image:{r.id}" for r in self.records], dtype=object)

    def label_names(self, record: Record) -> str:
        """``|``-joined class names, as tables write them."""
        return "|".join(self.classes[k] for k in record.labels)

    def hash(self) -> str:
        """SHA-256 over what decides a result: ids, pixels, labels or masks, splits, patients, sites."""
        masked = bool(self.label_values)
        rows = (
            [r.id, r.pixel_hash or "", list(r.labels), r.split or "", r.patient or "", r.site or ""]
            + ([r.mask_hash or ""] if masked else [])
            for r in self.records
        )
        values = {"classes": self.classes, "multi_label": self.multi_label, "records": sorted(rows)}
        return sha256_json({**values, "label_values": self.label_values} if masked else values)

    def write_csv(self, path: str | Path) -> None:
        """Write the table so that ``read_csv`` gives an equal data set (root and notices apart)."""
        covariates = sorted({key for r in self.records for key in r.covariates})
        out = io.StringIO(newline="")
        # The writer quotes the characters of its own line end only, and a file name may hold a bare carriage return.
        writer = csv.writer(out, lineterminator="\r\n")
        masked = bool(self.label_values)
        writer.writerow([*_FIXED, *(["mask_hash"] if masked else []), *(f"covariate:{c}" for c in covariates)])
        for r in self.records:
            writer.writerow(
                [
                    r.id,
                    r.path,
                    "" if r.index is None else r.index,
                    self.label_names(r),
                    r.mask or "",
                    r.split or "",
                    r.patient or "",
                    r.site or "",
                    "" if r.spacing is None else "|".join(repr(s) for s in r.spacing),
                    r.pixel_hash or "",
                    *([r.mask_hash or ""] if masked else []),
                    *(r.covariates.get(c, "") for c in covariates),
                ]
            )
        header: dict[str, object] = {"name": self.name, "classes": self.classes, "multi_label": self.multi_label}
        if masked:
            header["label_values"] = self.label_values
        write_text(path, f"# medloom records 1 {json.dumps(header)}\n{out.getvalue()}")


def read_csv(path: str | Path, root: str | Path) -> Dataset:
    """Read a table that ``Dataset.write_csv`` wrote.

    Raises:
        DataError: D116 when it is not such a table. ModelError: C502 when it is not there.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as problem:
        raise ModelError(
            "C502", path, f"not readable ({problem.strerror})", "Restore the run from a backup, or train anew"
        ) from None
    except UnicodeDecodeError:
        raise DataError("D116", path, "not UTF-8 text", "Point at the records.csv of a run") from None
    first, _, body = text.partition("\n")
    mark = "# medloom records 1 "
    if not first.startswith(mark):
        raise DataError("D116", path, "not a MedLoom record table", "Point at the records.csv of a run")
    head = json.loads(first.removeprefix(mark))
    position = {name: k for k, name in enumerate(head["classes"])}
    records = []
    for row in csv.DictReader(io.StringIO(body, newline="")):
        records.append(
            Record(
                id=row["id"],
                path=row["path"],
                index=int(row["index"]) if row["index"] else None,
                labels=tuple(position[name] for name in row["labels"].split("|") if name),
                mask=row["mask"] or None,
                split=row["split"] or None,
                patient=row["patient"] or None,
                site=row["site"] or None,
                spacing=tuple(float(s) for s in row["spacing"].split("|")) if row["spacing"] else None,
                pixel_hash=row["pixel_hash"] or None,
                mask_hash=row.get("mask_hash") or None,
                covariates={
                    key.removeprefix("covariate:"): value
                    for key, value in row.items()
                    if key.startswith("covariate:") and value
                },
            )
        )
    values = tuple(head.get("label_values", ()))
    return Dataset(head["name"], Path(root), tuple(head["classes"]), tuple(records), head["multi_label"], (), values)


_FIXED = tuple(f.name for f in fields(Record) if f.name not in ("mask_hash", "covariates"))
