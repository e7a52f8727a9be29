"""The content of a leaderboard: what leaderboard.json holds, and what the page, the CSV and the Markdown show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medloom.errors import UsageError
from medloom.evaluation.intervals import wilson
from medloom.evaluation.leaderboard import METRICS, standings
from medloom.reporting.compared import Run, grouped, protocol, refuse_mixtures
from medloom.reporting.published import hanley
from medloom.reporting.published_tables import Row, Table, tables_for

FORMAT = "medloom leaderboard 1"
ALPHA = 0.05


@dataclass(frozen=True)
class Measured:
    """What was measured of each row beside its runs.

    Attributes:
        cost: row to ``parameters`` and ``macs``.
        speed: row to what ``workflows.measure.speed`` returned.
        failed: row to ``{seed, error}`` of runs that gave no result.
        waiting: row to seeds that were not run yet.
    """

    cost: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    speed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    waiting: Mapping[str, Sequence[int]] = field(default_factory=dict)


def build(
    runs: Sequence[Run],
    measured: Measured,
    *,
    baseline: str | None = None,
    against: str | None = None,
    resamples: int = 2000,
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a leaderboard says, as plain values.

    Args:
        runs: finished runs, at least one.
        baseline: a row; the first one by default.
        against: ``published`` adds published tables of the same data set.

    Raises:
        DataError: D133, the runs are not about the same images. UsageError: U232, no row is called ``baseline``.
    """
    refuse_mixtures(runs)
    rows = grouped(runs)
    chosen = baseline if baseline is not None else next(iter(rows))
    if chosen not in rows:
        known = ", ".join([*rows, *(f"{name} (no result yet)" for name in {**measured.failed, **measured.waiting})])
        raise UsageError("U232", "--baseline", f"no finished row is called '{chosen}'", f"Rows: {known}")
    first = runs[0]
    least = first.recipe.evaluation.min_positives
    tables = {label: {r.seed: r.test for r in each} for label, each in rows.items()}
    confidence = first.recipe.evaluation.confidence
    numbers = standings(tables, baseline=chosen, resamples=resamples, min_positives=least, confidence=confidence)
    agreed = protocol(runs)
    listed = [_row(label, each, numbers, agreed["departures"], measured) for label, each in rows.items()]
    listed.sort(key=lambda row: -(row["auc"]["mean"] if row["auc"]["mean"] is not None else -1.0))
    _mark_pareto(listed)
    for label in {**measured.failed, **measured.waiting}:
        if label not in rows:
            listed.append(_empty(label, measured))
    content: dict[str, Any] = {
        "format": FORMAT,
        "data": {
            "source": first.source,
            "classes": list(first.classes),
            "images": first.counts,
            "images_sha256": first.images,
            **{k: numbers[k] for k in ("patients", "unit", "counts", "multi_label", "left_out", "trivial")},
        },
        "protocol": [list(pair) for pair in agreed["shown"]],
        "baseline": chosen,
        "confidence": confidence,
        "resamples": resamples,
        "comparisons": sum(d["auc"]["p"] is not None for d in numbers["differences"].values()),
        "rows": listed,
        "runs": [_run(r, agreed["departures"]) for r in runs],
        "test_scorings": sum(int(r.metrics.get("test_scorings") or 0) for r in runs),
        "environment": dict(environment or {}),
        "published": [],
    }
    if against is not None:
        found = tables_for(first.source, first.classes, numbers["counts"], len(first.test))
        content["published"] = [_published(t, content) for t in found]
    return content


def _row(
    label: str,
    runs: Sequence[Run],
    numbers: Mapping[str, Any],
    departures: Mapping[str, Sequence[str]],
    measured: Measured,
) -> dict[str, Any]:
    own = numbers["rows"][label]
    apart = {line for r in runs for line in departures.get(r.directory.root.name, [])}
    speeds = [r.images_per_second for r in runs if r.images_per_second]
    whose = "device" if any(r.memory_of == "device" for r in runs) else "host"
    peaks = [r.peak_memory for r in runs if r.peak_memory and r.memory_of == whose]
    minutes = [r.minutes for r in runs if r.minutes is not None]
    difference = numbers["differences"].get(label)
    cost = measured.cost.get(label, {})
    return {
        "label": label,
        "model": runs[0].recipe.model.name,
        "options": runs[0].recipe.model.options,
        **{m: own[m] for m in METRICS},
        "seeds": own["seeds"],
        "difference": difference,
        "verdict": None if difference is None else {m: _verdict(difference[m]) for m in METRICS},
        "parameters": cost.get("parameters") or _parameters(runs[0]),
        "macs": cost.get("macs"),
        "training_images_per_second": sum(speeds) / len(speeds) if speeds else None,
        "training_minutes": sum(minutes) / len(minutes) if minutes else None,
        "peak_memory": max(peaks) if peaks else None,
        "memory_of": whose if peaks else None,
        "inference": dict(measured.speed[label]) if label in measured.speed else None,
        "departures": sorted(apart),
        "failed": [dict(f) for f in measured.failed.get(label, ())],
        "waiting": list(measured.waiting.get(label, ())),
        "pareto": False,
    }


def _empty(label: str, measured: Measured) -> dict[str, Any]:
    """A row of which no run gave a result."""
    none: dict[str, Any] = {"mean": None, "sd": None, "values": [], "entry": {"value": None, "note": "no result"}}
    cost = measured.cost.get(label, {})
    return {
        **{"label": label, "model": None, "options": {}, "seeds": [], "difference": None, "verdict": None},
        **dict.fromkeys(METRICS, none),
        **{"parameters": cost.get("parameters"), "macs": cost.get("macs"), "training_images_per_second": None},
        **{
            "training_minutes": None,
            "peak_memory": None,
            "memory_of": None,
            "inference": None,
            "departures": [],
            "pareto": False,
        },
        "failed": [dict(f) for f in measured.failed.get(label, ())],
        "waiting": list(measured.waiting.get(label, ())),
    }


def _run(run: Run, departures: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    test = run.metrics["splits"]["test"]
    points = [p for p in test.get("operating_points") or [] if p.get("metrics")]
    val = (run.metrics["splits"].get("val") or {}).get("metrics") or {}
    at = (
        {k: points[0]["metrics"][k]["value"] for k in ("accuracy", "sensitivity", "specificity")}
        if len(points) == 1
        else None
    )
    return {
        "label": run.label,
        "seed": run.seed,
        "directory": run.directory.root.name,
        "recipe_sha256": run.recipe.hash,
        "data_sha256": run.split,
        **{
            k: test["metrics"].get(k, {}).get("value")
            for k in ("auc", "accuracy", "exact_match", "f1", "average_precision")
        },
        "at_threshold": at,
        "validation_auc": val.get("auc", {}).get("value"),
        "steps": run.steps,
        "epochs": run.epochs,
        "minutes": run.minutes,
        "peak_memory": run.peak_memory,
        "memory_of": run.memory_of,
        "test_scorings": run.metrics.get("test_scorings"),
        "departures": list(departures.get(run.directory.root.name, [])),
    }


def _verdict(found: Mapping[str, Any]) -> str:
    """``better``, ``worse``, ``not told apart``, or ``not comparable``: two-sided, after Holm's correction."""
    if found["p_holm"] is None or found["difference"]["value"] is None:
        return "not comparable"
    if found["p_holm"] >= ALPHA:
        return "not told apart"
    return "better" if found["difference"]["value"] > 0 else "worse"


def _mark_pareto(rows: Sequence[dict[str, Any]]) -> None:
    """Rows that no other row beats in AUC and in latency at batch 1 together."""
    points = [(r, latency(r), r["auc"]["mean"]) for r in rows]
    known = [(r, ms, area) for r, ms, area in points if ms is not None and area is not None]
    for row, ms, area in known:
        row["pareto"] = not any(
            other <= ms and value >= area and (other < ms or value > area) for _, other, value in known
        )


def latency(row: Mapping[str, Any]) -> float | None:
    """Milliseconds for one image alone."""
    found = (row.get("inference") or {}).get("batch 1")
    return None if found is None else float(found["median_ms"])


def _parameters(run: Run) -> int | None:
    value = ((run.model or {}).get("provenance") or {}).get("parameters")
    return None if value is None else int(value)


def _published(table: Table, content: Mapping[str, Any]) -> dict[str, Any]:
    n = sum(content["data"]["counts"].values()) if not content["data"]["multi_label"] else 0
    rows = []
    for row in table.rows:
        ours = [r for r in content["rows"] if r["model"] in row.names and r["auc"]["mean"] is not None]
        rows.append(
            {
                "model": row.model,
                "auc": row.auc,
                "accuracy": row.accuracy,
                "millions": row.millions,
                **_intervals(row, content, n),
                "ours": [
                    {"label": r["label"], **{m: {**r[m]["entry"], "sd": r[m]["sd"]} for m in ("auc", "accuracy")}}
                    | {"parameters": r["parameters"], "stands": _stands(row.auc, r["auc"]["entry"])}
                    for r in ours
                ],
            }
        )
    return {"title": table.title, "size": table.size, "rows": rows, "notes": list(table.notes)}


def _intervals(row: Row, content: Mapping[str, Any], n: int) -> dict[str, Any]:
    """What the sample size alone says of published numbers of two classes; images taken as independent."""
    counts = content["data"]["counts"]
    if content["data"]["multi_label"] or len(counts) != 2:
        return {"auc_interval": None, "accuracy_interval": None}
    positives = list(counts.values())[-1]
    auc = accuracy = None
    if row.auc is not None:
        half = 1.959964 * hanley(row.auc, positives, n - positives)
        auc = [row.auc - half, min(1.0, row.auc + half)]
    if row.accuracy is not None:
        bounds = wilson(row.accuracy * n, n)
        accuracy = [bounds.low, bounds.high]
    return {"auc_interval": auc, "accuracy_interval": accuracy}


def _stands(published: float | None, entry: Mapping[str, Any]) -> str:
    if published is None or entry.get("low") is None:
        return ""
    if entry["high"] < published:
        return "ours is lower"
    return "ours is higher" if entry["low"] > published else "within our interval"
