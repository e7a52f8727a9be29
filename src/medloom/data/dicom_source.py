"""A tree of DICOM files as a data set: which files they are, and whose, without a name leaving them.

The patient of a record is a hash of issuer and id, so that images of one person stay on one side of a split; no tag is
copied into records, covariates or notices.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from medloom.config import DataConfig
from medloom.data.dicom import is_dicom_file, read_patient
from medloom.data.dicom_series import series_files
from medloom.data.folders import listed
from medloom.data.formats import DICOM_SUFFIXES, SUFFIXES
from medloom.data.records import Dataset, Record
from medloom.errors import DataError, UsageError

RULE = "dicom"
LEAST_KEY = 16
MANY = 10
"""From so many files on, one patient id for all of them is what somebody put in place of the ids."""


def only_dicom(dataset: Dataset) -> Dataset:
    """The records whose files are DICOM; how many are not is told."""
    kept: list[Record] = []
    others: list[Record] = []
    for record in dataset.records:
        (kept if _is_dicom(dataset.root / record.path) else others).append(record)
    if not others:
        return dataset
    notice = f"[D102] {len(others)} files are not DICOM and were left out: {listed([r.path for r in others])}"
    return replace(dataset, records=tuple(kept), notices=(*dataset.notices, notice))


def all_dicom(dataset: Dataset) -> bool:
    """Whether every file is DICOM; no file is opened where the endings already say no."""
    if dataset.root.is_file() or not dataset.records:
        return False
    pictures = SUFFIXES - DICOM_SUFFIXES
    paths = list(dict.fromkeys(record.path for record in dataset.records))
    if any(os.path.splitext(path)[1].lower() in pictures for path in paths):  # noqa: PTH122
        return False
    return all(_is_dicom(dataset.root / path) for path in paths)


def assign_dicom_patients(dataset: Dataset, config: DataConfig) -> Dataset:
    """The records with ``patient`` filled from their files' tags; a file that cannot be read, or has no id, has none.

    Raises:
        UsageError: U204, ``data.patient_key`` is no file of a secret.
    """
    key = None if config.patient_key is None else _read_key(config.patient_key)
    found: dict[str, str | None] = {}
    for path in dict.fromkeys(record.path for record in dataset.records):
        found[path] = None
        with contextlib.suppress(DataError):  # the scan will say why
            found[path] = _patient_of(dataset.root / path, path, key)
    known = {patient for patient in found.values() if patient is not None}
    notices = [f"patients are {len(known)} hashes of the ids in the DICOM files"]
    if config.patient == "auto" and len(known) == 1 and len(found) >= MANY:
        notices = [f"all {len(found)} DICOM files carry one patient id, as some archives leave it: taken as none"]
        return replace(dataset, notices=(*dataset.notices, *notices))
    if known and key is None:
        notices.append("they are hashed without a key, and ids can be guessed: name a secret in data.patient_key")
    if not known:
        notices = []
    records = tuple(replace(record, patient=found[record.path]) for record in dataset.records)
    return replace(dataset, records=records, notices=(*dataset.notices, *notices))


def _is_dicom(path: Path) -> bool:
    """Of a file by its first bytes; of the folder of a series by what lies in it."""
    return bool(series_files(path)) if path.is_dir() else is_dicom_file(path)


def _patient_of(path: Path, place: str, key: bytes | None) -> str | None:
    """Of a series the first patient that a file of it names: slices of one series are of one."""
    files = series_files(path) if path.is_dir() else [path]
    return next((patient for file in files if (patient := read_patient(file, place, key)) is not None), None)


def _read_key(path: str) -> bytes:
    try:
        key = Path(path).read_bytes().strip()
    except OSError as problem:
        told = f"the file of the secret cannot be read ({problem.strerror})"
        raise UsageError("U204", "data.patient_key", told, "Name a file that holds it") from None
    if len(key) < LEAST_KEY:
        told = f"a secret of {len(key)} bytes can be guessed"
        raise UsageError("U204", "data.patient_key", told, f"Write at least {LEAST_KEY} random bytes into the file")
    return key
