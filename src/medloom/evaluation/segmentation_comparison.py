"""Two segmenters on the same cases: the difference, its interval by patient, and whether it is more than luck.

Shapes: N cases, B resamples. References: Wilcoxon 1945, with zeros as Pratt 1959 counts them; Holm 1979.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from medloom.errors import DataError
from medloom.evaluation.case_table import CaseTable
from medloom.evaluation.comparison import bootstrap_p, holm
from medloom.evaluation.intervals import Interval, bootstrap, entry, not_estimable
from medloom.evaluation.questions import LEAST_PATIENTS

Array = np.ndarray

BEST = {"dice": 1.0, "nsd": 1.0, "lesion_f1": 1.0, "hd95": 0.0, "assd": 0.0}
"""Measures that two models can be compared in, and what a perfect answer has."""


def difference_of_cases(
    a: CaseTable,
    b: CaseTable,
    measure: str = "dice",
    *,
    structure: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """``a`` minus ``b`` in one measure over the same cases.

    Where the truth is empty, a rightly empty answer has no Dice; beside a model that invented something there it
    counts as perfect, else the case would drop out of the pair and the invention cost nothing.

    Args:
        a, b: tables of the same cases, in any order.
        measure: a key of ``BEST``.
        structure: one of the structures; None averages over those of each case.

    Returns:
        ``measure, structure, a, b`` (means over the pairs)``, difference`` (entry; baseline 0)``, p`` (bootstrap over
        patients)``, wilcoxon`` (p of the signed ranks of the patients' means, None below five patients)``, better``
        ({a, b, equal}: cases)``, resamples``.

    Raises:
        DataError: D116 when the two tables are not about the same cases and reference masks.
        ValueError: an unknown measure or structure.
    """
    if measure not in BEST:
        raise ValueError(f"unknown measure {measure!r}; known are {', '.join(BEST)}")
    if structure is not None and structure not in a.structures:
        raise ValueError(f"unknown structure {structure!r}")
    b = same_cases(a, b)
    pairs = _paired(a, b, measure, structure)
    there = np.isfinite(pairs).all(axis=1)
    gap, groups = (pairs[:, 0] - pairs[:, 1])[there], a.groups[there]
    n, patients = len(gap), len(set(groups))
    head = {"measure": measure, "structure": structure, "resamples": resamples}
    if n == 0:
        none = not_estimable("0 cases with this structure", n=0, patients=0)
        return head | {"a": None, "b": None, "difference": none, "p": None, "wilcoxon": None, "better": None}

    def statistic(weight: Array) -> dict[str, Array]:
        total = weight.sum(axis=1)
        return {"difference": np.divide(weight @ gap, total, out=np.full(len(total), np.nan), where=total > 0)}

    draws = bootstrap(statistic, groups, resamples=resamples, seed=seed)
    bounds = draws.interval("difference", confidence)
    few = patients < LEAST_PATIENTS
    if few:
        bounds = Interval(None, None, "none", f"fewer than {LEAST_PATIENTS} patients: no interval")
    means = pairs[there].mean(axis=0)
    return head | {
        "a": float(means[0]),
        "b": float(means[1]),
        "difference": entry(float(gap.mean()), bounds, n=n, patients=patients, baseline=0.0),
        "p": None if few else bootstrap_p(draws.samples["difference"]),
        "wilcoxon": None if few else signed_rank(_by_patient(gap, groups)),
        "better": {"a": int((gap > 0).sum()), "b": int((gap < 0).sum()), "equal": int((gap == 0).sum())}
        if BEST[measure] > 0
        else {"a": int((gap < 0).sum()), "b": int((gap > 0).sum()), "equal": int((gap == 0).sum())},
    }


def differences_of_cases(
    tables: Mapping[str, CaseTable],
    reference: str,
    measure: str = "dice",
    *,
    structure: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Each model minus the reference; p values also corrected for the number of comparisons (Holm).

    Returns:
        one of ``difference_of_cases`` per other model, with ``model, reference, p_holm, wilcoxon_holm``.
    """
    others = [name for name in tables if name != reference]
    rows = [
        {"model": name, "reference": reference}
        | difference_of_cases(
            tables[name],
            tables[reference],
            measure,
            structure=structure,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
        for name in others
    ]
    for key in ("p", "wilcoxon"):
        tested = [row for row in rows if row[key] is not None]
        corrected = iter(holm([row[key] for row in tested]))
        for row in rows:
            row[f"{key}_holm"] = next(corrected) if row[key] is not None else None
    return rows


def same_cases(a: CaseTable, b: CaseTable) -> CaseTable:
    """``b`` in the order of ``a``.

    Raises:
        DataError: D116 when the two are not about the same cases, structures, units and reference masks.
    """
    if a.structures != b.structures or (a.distance_unit, a.tolerance) != (b.distance_unit, b.tolerance):
        problem = "the two tables know different structures, units or tolerances"
        raise DataError("D116", "comparison", problem, "Compare runs on one data set")
    row = {name: i for i, name in enumerate(b.ids)}
    absent = sum(name not in row for name in a.ids)
    if absent or len(a) != len(b):
        problem = f"the two tables hold different cases ({len(a)} and {len(b)}, {absent} not shared)"
        raise DataError("D116", "comparison", problem, "Evaluate both models on the same split")
    b = b.select(np.array([row[name] for name in a.ids], dtype=np.int64))
    same = np.isclose(a.values["size_truth"], b.values["size_truth"], rtol=1e-9, atol=0).all(axis=1)
    if not same.all():
        odd = a.ids[int(np.argmin(same))]
        raise DataError(
            "D116", odd, "the two tables saw different masks of it", "Evaluate both models on the same data"
        )
    return b


def signed_rank(differences: Array) -> float:
    """Two-sided p value of Wilcoxon's signed ranks; 1 where nothing differs."""
    if not np.any(differences):
        return 1.0
    from scipy.stats import wilcoxon

    with warnings.catch_warnings():
        # Ties and zeros make scipy fall back from the exact distribution to the normal one, and say so.
        warnings.simplefilter("ignore")
        p = float(wilcoxon(differences, zero_method="pratt").pvalue)
    return p if math.isfinite(p) else 1.0


def _paired(a: CaseTable, b: CaseTable, measure: str, structure: str | None) -> Array:
    """``(N, 2)``: the measure of each case in either table, NaN in both where it is estimable in neither."""
    values = np.stack([t.values[measure] for t in (a, b)], axis=2)
    missing = np.isnan(values)
    values = np.where(missing & ~missing.all(axis=2, keepdims=True), BEST[measure], values)
    if structure is not None:
        chosen: Array = values[:, a.structures.index(structure)]
        return chosen
    there = np.isfinite(values).all(axis=2, keepdims=True)
    count = there.sum(axis=1)
    sums = np.where(there, values, 0.0).sum(axis=1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def _by_patient(gap: Array, groups: Array) -> Array:
    """Ranks want independent differences: one per patient, the mean of its cases."""
    _, codes = np.unique(groups.astype(str), return_inverse=True)
    means: Array = np.bincount(codes, weights=gap) / np.bincount(codes)
    return means
