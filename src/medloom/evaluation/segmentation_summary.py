"""The content of metrics.json of a run whose answers are masks: all of it follows from the tables of cases.

Shapes: N cases, K structures, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import bdtr

from medloom.config import EvaluationConfig
from medloom.errors import DataError
from medloom.evaluation.case_table import OUTCOMES, CaseTable
from medloom.evaluation.intervals import Interval, bootstrap, entry, not_estimable
from medloom.evaluation.questions import LEAST_PATIENTS
from medloom.evaluation.summary import FORMAT

Array = np.ndarray

SHOWN = ("dice", "hd95", "nsd", "assd")
"""Measures that also get a median, and a column per site."""

ALL = (*SHOWN, "size_bias", "size_error_relative", "lesion_f1")
_FEW_CASES = 2


def summarise_segmentation(
    test: CaseTable | None,
    *,
    validation: CaseTable | None = None,
    config: EvaluationConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every number of one run, as plain values fit for strict JSON (no NaN anywhere).

    Args:
        test: cases of the test split; None where the data have none.
        validation: cases of the split by which the epoch was chosen.
        config: rules; the recipe's ``evaluation``.
        seed: of the resamples.

    An *entry* is ``{"value", "low", "high", "n", "patients", "baseline", "method", "note"}`` as in
    ``summary.summarise``. The result::

        format, task ("segmentation"), classes (the structures), unit ("patient" | "image"), confidence, resamples,
        seed, segmentation: {structures, tolerance, distance_unit, size_unit, trivial},
        splits: {"val": SPLIT, "test": SPLIT}

        SPLIT: name, n, patients, counts {structure: cases that have it}, cases_sha256,
          outcomes: {both, missed, invented, empty} over all structures,
          metrics: entries of the means over cases, each case first averaged over its structures: dice (baseline: the
            trivial answer), hd95, nsd, assd, size_bias (answer minus truth),
            size_error_relative (absolute, a share of the truth),
            lesion_f1 (over all lesions of all cases); medians: entries dice, hd95, nsd, assd
          structures: {name: {outcomes, lesions {truth, found, missed, invented}, size_truth (mean), metrics, medians}}
          sites: [{site, n, patients, structure ("all" | name), outcomes, dice, hd95, nsd, assd}]
          cases: {"worst" | "median" | "best": ids}, by the Dice of the case

    Means have intervals over resampled patients. A median has the interval of its order statistics, where every
    patient has one case (bootstrap intervals of a median miss it too often), else none.

    Raises:
        DataError: D115 for a split without cases.
    """
    config = config or EvaluationConfig()
    splits = {name: table for name, table in (("val", validation), ("test", test)) if table is not None}
    for name, table in splits.items():
        if len(table) == 0:
            raise DataError("D115", f"split {name}", "it has no images", "Give it some, or evaluate another split")
    first = next(iter(splits.values()))
    trivial = any(np.isfinite(t.values["trivial_dice"]).any() for t in splits.values())
    return {
        "format": FORMAT,
        "task": "segmentation",
        "classes": list(first.structures),
        "unit": "patient" if all(t.patients_known for t in splits.values()) else "image",
        "confidence": config.confidence,
        "resamples": config.resamples,
        "seed": seed,
        "segmentation": {
            "structures": list(first.structures),
            "tolerance": first.tolerance,
            "distance_unit": first.distance_unit,
            "size_unit": first.size_unit,
            "trivial": "mean shape of the training masks" if trivial else None,
        },
        "splits": {name: _split(table, config, seed) for name, table in splits.items()},
    }


def notable_cases(table: CaseTable, count: int = _FEW_CASES) -> dict[str, list[str]]:
    """Ids of the worst, the middle and the best cases by Dice, worst first; none is listed twice.

    ``count`` of the middle and of the best, and twice as many of the worst, from which most is learnt. Cases that hold
    none of the structures, in truth and in answer, are left out.
    """
    score = table.per_case("dice")
    order = [int(i) for i in np.argsort(score, kind="stable") if np.isfinite(score[i])]
    count = min(count, len(order) // 6)
    if not count:
        return {"worst": [table.ids[i] for i in order], "median": [], "best": []}
    start = (len(order) - count) // 2
    parts = {"worst": order[: 2 * count], "median": order[start : start + count], "best": order[-count:]}
    return {name: [table.ids[i] for i in part] for name, part in parts.items()}


def _split(table: CaseTable, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    columns = {"": _columns(table, None)} | {f"{k}": _columns(table, k) for k in range(len(table.structures))}
    means = _means(table, columns, config, seed)
    outcomes = table.outcomes
    structures = {}
    for k, name in enumerate(table.structures):
        lesions = {w: int(table.values[f"lesions_{w}"][:, k].sum()) for w in ("found", "missed", "invented")}
        structures[name] = {
            "outcomes": _counts(outcomes[:, k]),
            "lesions": {"truth": lesions["found"] + lesions["missed"], **lesions},
            "size_truth": float(table.values["size_truth"][:, k].mean()),
            "metrics": means[f"{k}"],
            "medians": {m: _median(table, columns[f"{k}"][m], config.confidence) for m in SHOWN},
        }
    return {
        "name": table.split,
        "n": len(table),
        "patients": len(set(table.groups)),
        "counts": {s: int((table.values["size_truth"][:, k] > 0).sum()) for k, s in enumerate(table.structures)},
        "cases_sha256": table.hash,
        "outcomes": _counts(outcomes),
        "metrics": means[""],
        "medians": {m: _median(table, columns[""][m], config.confidence) for m in SHOWN},
        "structures": structures,
        "sites": _sites(table, config, seed),
        "cases": notable_cases(table),
    }


def _columns(table: CaseTable, k: int | None) -> dict[str, Array]:
    """Measure to ``(N,)`` of one structure, or of each case averaged over its structures."""

    def take(measure: str) -> Array:
        column: Array = table.per_case(measure) if k is None else table.values[measure][:, k]
        return column

    relative = np.abs(table.values["size_error_relative"])
    there = np.isfinite(relative)
    if k is None:
        total = np.where(there, relative, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        error = np.where(there.any(axis=1), total, np.nan)
    else:
        error = relative[:, k]
    lesions = {
        f"lesions_{w}": table.values[f"lesions_{w}"].sum(axis=1) if k is None else take(f"lesions_{w}")
        for w in ("found", "missed", "invented")
    }
    return {m: take(m) for m in (*SHOWN, "trivial_dice")} | lesions | {
        "size_bias": take("size_error"), "size_error_relative": error
    }  # fmt: skip


def _means(
    table: CaseTable, columns: Mapping[str, Mapping[str, Array]], config: EvaluationConfig, seed: int
) -> dict[str, dict[str, Any]]:
    """Entries of every mean of every part, all from the same resamples of patients."""
    names = [(part, m) for part, c in columns.items() for m in c]
    stacked = np.stack([columns[part][m] for part, m in names], axis=1)
    there = np.isfinite(stacked)
    filled, weight_NM = np.where(there, stacked, 0.0), there.astype(np.float64)

    def statistic(weight: Array) -> dict[str, Array]:
        sums, n = weight @ filled, weight @ weight_NM
        mean = np.divide(sums, n, out=np.full_like(sums, np.nan), where=n > 0)
        at = {name: j for j, name in enumerate(names)}
        out = {f"{part}/{m}": mean[:, j] for (part, m), j in at.items()}
        for part in columns:
            found, missed, invented = (sums[:, at[part, f"lesions_{w}"]] for w in ("found", "missed", "invented"))
            total = 2 * found + missed + invented
            out[f"{part}/lesion_f1"] = np.divide(2 * found, total, out=np.full_like(total, np.nan), where=total > 0)
        return out

    groups = table.groups
    draws = bootstrap(statistic, groups, resamples=config.resamples, seed=seed)
    result: dict[str, dict[str, Any]] = {}
    for part, column in columns.items():
        result[part] = {}
        trivial = float(draws.value[f"{part}/trivial_dice"])
        for m in ALL:
            rows = np.isfinite(column["size_bias" if m == "lesion_f1" else m])
            patients = len(set(groups[rows]))
            value = float(draws.value[f"{part}/{m}"])
            if not np.isfinite(value):
                why = "0 lesions" if m == "lesion_f1" else "0 cases with this structure"
                result[part][m] = not_estimable(why, n=int(rows.sum()), patients=patients)
                continue
            bounds = draws.interval(f"{part}/{m}", config.confidence)
            if patients < LEAST_PATIENTS:
                bounds = Interval(None, None, "none", f"fewer than {LEAST_PATIENTS} patients: no interval")
            base = trivial if m == "dice" else None
            result[part][m] = entry(value, bounds, n=int(rows.sum()), patients=patients, baseline=base)
    return result


def _median(table: CaseTable, column: Array, confidence: float) -> dict[str, Any]:
    rows = np.isfinite(column)
    values, owners = np.sort(column[rows]), table.groups[rows]
    n, patients = len(values), len(set(owners))
    if n == 0:
        return not_estimable("0 cases with this structure", n=0, patients=0)
    bounds = Interval(None, None, "none", "patients have several cases: no interval of the median")
    if patients == n:
        bounds = order_interval(values, confidence)
    return entry(float(np.median(values)), bounds, n=n, patients=patients)


def order_interval(sorted_N: Array, confidence: float = 0.95) -> Interval:
    """Bounds of the median that hold for any distribution: two of the sorted values themselves.

    The number of values below the median is binomial, so the l-th from either end encloses it with a probability of
    one less twice the chance of fewer than l.
    """
    n = len(sorted_N)
    inside = [at for at in range(1, n // 2 + 1) if bdtr(at - 1, n, 0.5) <= (1 - confidence) / 2]
    if not inside:
        return Interval(None, None, "none", "too few cases for an interval of the median")
    return Interval(float(sorted_N[inside[-1] - 1]), float(sorted_N[n - inside[-1]]), "order statistics")


def _sites(table: CaseTable, config: EvaluationConfig, seed: int) -> list[dict[str, Any]]:
    known = sorted({s for s in table.sites if s is not None})
    if len(known) < 1:
        return []
    rows = []
    for site in known:
        part = table.select(np.array([s == site for s in table.sites]))
        patients = len(set(part.groups))
        columns = {"": _columns(part, None)} | {f"{k}": _columns(part, k) for k in range(len(part.structures))}
        means = _means(part, columns, config, seed)
        for k, name in enumerate(("all", *part.structures)):
            chosen = part.outcomes if k == 0 else part.outcomes[:, k - 1]
            shown = {m: means["" if k == 0 else f"{k - 1}"][m] for m in SHOWN}
            if patients < LEAST_PATIENTS:
                shown = {m: not_estimable("too few to judge", n=len(part), patients=patients) for m in SHOWN}
            head = {"site": site, "n": len(part), "patients": patients, "structure": name}
            rows.append(head | {"outcomes": _counts(chosen)} | shown)
    return rows


def _counts(outcomes: Array) -> dict[str, int]:
    return {name: int((outcomes == name).sum()) for name in OUTCOMES}
