"""What is tested on where a recipe asks for cross-validation, or for one hospital against another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from medloom.config import DataConfig
from medloom.data.grouping import groups_of, strata
from medloom.data.records import Dataset, Record
from medloom.errors import UsageError


def divide(dataset: Dataset, config: DataConfig, notices: list[str]) -> Dataset:
    """The records with the test part that ``data.folds`` or ``data.test_sites`` asks for; as they are without either.

    Folds are cut from training and validation part of the source, patients whole, each with its share of every
    structure or class and of every site, by ``data.split_seed``; fold ``data.fold`` is tested on. A test part of the
    source is left out, so that it stays unseen.

    With ``test_sites`` the records of those sites are tested on, and the rest, or ``train_sites`` alone, train.
    Records of other sites are left out. Patients of several sites are left out too: they would stand on both sides.

    Raises:
        UsageError: U235, both at once, a fold that is none, more folds than patients, or a site that does not occur.
    """
    if config.folds is None and not (config.test_sites or config.train_sites):
        return dataset
    if config.folds is not None and (config.test_sites or config.train_sites):
        _refuse("data.folds", "folds and sites both say what is tested on", "Give one of them")
    return _folds(dataset, config, notices) if config.folds is not None else _sites(dataset, config, notices)


def _folds(dataset: Dataset, config: DataConfig, notices: list[str]) -> Dataset:
    assert config.folds is not None
    if not 0 <= config.fold < config.folds:
        _refuse("data.fold", f"there is no fold {config.fold} of {config.folds}", f"Give 0 to {config.folds - 1}")
    kept = [r for r in dataset.records if r.split != "test"]
    groups = groups_of(kept)
    if len(groups) < config.folds:
        _refuse("data.folds", f"{len(groups)} patients do not make {config.folds} folds", "Ask for fewer")
    # One row of all groups, stratum behind stratum: every fold gets its share of each, and sizes differ by one.
    row = [name for ordered in strata(groups, f"folds:{config.split_seed}") for name in ordered]
    tested = {r.id for name in row[config.fold :: config.folds] for r in groups[name]}
    left_out = len(dataset) - len(kept)
    notices.append(
        f"Fold {config.fold} of {config.folds} is tested on: {len(tested):,} images of {len(kept):,}, cut by patient, "
        f"seed {config.split_seed}."
        + (f" The {left_out:,} test images of the source are left out of cross-validation." if left_out else "")
    )
    return dataset.with_records(replace(r, split="test" if r.id in tested else None) for r in kept)


def _sites(dataset: Dataset, config: DataConfig, notices: list[str]) -> Dataset:
    known = sorted({r.site for r in dataset.records if r.site is not None})
    for key, sites in (("test_sites", config.test_sites), ("train_sites", config.train_sites)):
        odd = [site for site in sites if site not in known]
        if odd:
            told = f"no image is of site {odd[0]!r}; there are {', '.join(known) or 'none (set data.site)'}"
            _refuse(f"data.{key}", told, "Correct the name, or data.site")
    tested = set(config.test_sites) or set(known) - set(config.train_sites)
    trained = set(config.train_sites) or set(known) - tested
    if not tested or not trained or tested & trained:
        _refuse("data.test_sites", "one site at least must test and another train", "Name sites of both kinds")
    both = _patients(r for r in dataset.records if r.site in tested) & _patients(
        r for r in dataset.records if r.site in trained
    )
    kept = [r for r in dataset.records if r.site in tested | trained and r.patient not in both]
    notices.append(
        f"Tested on the site {', '.join(sorted(tested))}, trained on {', '.join(sorted(trained))}; "
        f"{len(dataset) - len(kept):,} images of other sites, or of patients of both, are left out."
    )
    return dataset.with_records(replace(r, split="test" if r.site in tested else None) for r in kept)


def _patients(records: Iterable[Record]) -> set[str]:
    return {r.patient for r in records if r.patient is not None}


def _refuse(place: str, problem: str, remedy: str) -> None:
    raise UsageError("U235", place, problem, remedy)
