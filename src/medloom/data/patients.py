"""Whose image is it? A rule, written in the recipe, from a file name or a table's column to a patient id.

Kermany's names: ``person12_bacteria_34.jpeg`` is ``person12_bacteria`` by number with kind and ``person12`` by number
alone; ``NORMAL2-IM-0123-0001.jpeg`` is ``NORMAL2-IM-0123`` and ``BACTERIA-1008087-0001.jpeg`` is ``BACTERIA-1008087``
either way. By number alone 170 persons of the public copy are in train and in test, by number with kind none: the
numbers of the two kinds were counted apart.

Reference: Kermany et al., Cell 172:1122, 2018 (the data set and its file names).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from medloom.data.records import Record
from medloom.errors import DataError, UsageError

Rule = Callable[[str, Mapping[str, str]], str | None]

PATIENT_COLUMNS = ("patient_id", "patient", "patientid", "subject_id", "subject", "subjectid", "person_id", "mrn")
SLIDE_COLUMNS = ("wsi", "slide_id", "slide")  # where nothing says more: patches of one slide are no two patients
SITE_COLUMNS = ("site", "site_id", "hospital", "institution", "center", "centre")
KERMANY_SHARE = 0.5

_PERSON = re.compile(r"(?P<number>person\d+)_(?P<kind>bacteria|virus)_\d+(?:_\d+)?$")
_SERIES = re.compile(r"(?P<id>(?:NORMAL2-)?IM-\d+|(?:NORMAL|BACTERIA|VIRUS)-\d+)-\d+(?:-\d+)?$")


def kermany(path: str, columns: Mapping[str, str] | None = None) -> str | None:
    """Number with kind, the default for these names; None for a name of another form."""
    stem = _stem(path)
    if person := _PERSON.match(stem):
        return f"{person['number']}_{person['kind']}"
    series = _SERIES.match(stem)
    return series["id"] if series else None


def kermany_number(path: str, columns: Mapping[str, str] | None = None) -> str | None:
    """Number alone, the stricter reading."""
    person = _PERSON.match(_stem(path))
    return person["number"] if person else kermany(path)


def assign_patients(records: Sequence[Record], rule: str) -> tuple[Record, ...]:
    """The records with ``patient`` filled by a rule of ``DataConfig.patient``.

    ``auto`` takes a table's patient column where there is one (already filled, or among the covariates), or slide, else
    Kermany's number with kind when more than half of the names have that form, else nothing.

    Raises:
        UsageError: U204 unknown rule or bad pattern.
        DataError: D116 column missing.
    """
    if rule == "auto":
        column = _first_column(records, (*PATIENT_COLUMNS, *SLIDE_COLUMNS))
        if column is not None:
            return _apply(records, "patient", column_rule(column), drop=column)
        matches = sum(kermany(r.path) is not None for r in records)
        return _apply(records, "patient", kermany) if matches > KERMANY_SHARE * len(records) else tuple(records)
    if rule == "none":
        return tuple(records)
    if rule in ("kermany", "kermany-number"):
        return _apply(records, "patient", kermany if rule == "kermany" else kermany_number)
    return _apply(records, "patient", _written_rule("data.patient", rule, records))


def assign_sites(records: Sequence[Record], rule: str | None) -> tuple[Record, ...]:
    """The records with ``site`` filled by ``DataConfig.site``; without a rule, by a column with the name of a site.

    Raises:
        UsageError: U204 unknown rule or bad pattern.
        DataError: D116 column missing.
    """
    if rule is None:
        column = _first_column(records, SITE_COLUMNS)
        return tuple(records) if column is None else _apply(records, "site", column_rule(column), drop=column)
    return _apply(records, "site", _written_rule("data.site", rule, records))


def column_rule(name: str) -> Rule:
    """The value of a column; an empty cell is nobody."""
    return lambda path, columns: columns.get(name) or None


def pattern_rule(place: str, pattern: str) -> Rule:
    """The first group (or the whole match) of a pattern searched in the path below the data set's root.

    A pattern that is not found there is tried on the file's name alone, so that ``^`` may stand for either's beginning.

    Raises:
        UsageError: U204 not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as problem:
        raise UsageError("U204", place, f"not a regular expression ({problem})", "Write pattern:^(p[0-9]+)_") from None

    def rule(path: str, columns: Mapping[str, str]) -> str | None:
        found = compiled.search(path) or compiled.search(path.rsplit("/", 1)[-1])
        if found is None:
            return None
        return (found.group(1) if compiled.groups else found.group()) or None

    return rule


def _written_rule(place: str, rule: str, records: Sequence[Record]) -> Rule:
    kind, _, value = rule.partition(":")
    if kind == "pattern" and value:
        return pattern_rule(place, value)
    if kind == "column" and value:
        known = Counter(key for r in records for key in r.covariates)
        for key in known:
            if key.casefold() == value.casefold():
                return column_rule(key)
        raise DataError("D116", place, f"there is no column {value!r}", f"Columns: {', '.join(known) or 'none'}")
    raise UsageError(
        "U204",
        place,
        f"unknown rule {rule!r}",
        "Write auto, kermany, kermany-number, dicom, column:NAME, pattern:REGEX or none",
    )


def _apply(
    records: Iterable[Record], field: Literal["patient", "site"], rule: Rule, drop: str | None = None
) -> tuple[Record, ...]:
    filled = []
    for r in records:
        found = rule(r.path, r.covariates)
        covariates = {k: v for k, v in r.covariates.items() if k != drop}
        if field == "patient":
            filled.append(replace(r, patient=found, covariates=covariates))
        else:
            filled.append(replace(r, site=found, covariates=covariates))
    return tuple(filled)


def _first_column(records: Sequence[Record], names: Sequence[str]) -> str | None:
    known = {key for r in records for key in r.covariates}
    spelled = {key.strip().casefold().replace(" ", "_").replace("-", "_"): key for key in sorted(known)}
    return next((spelled[name] for name in names if name in spelled), None)


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
