"""The page of ``medloom benchmark``: one table of speed, one of cost, and bars to compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloom.files import write_text
from medloom.reporting.page import render
from medloom.reporting.wording import NOT_A_DEVICE, plural

_RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def write_benchmark_page(measured: Mapping[str, Any], path: str | Path) -> Path:
    """Write one self-contained HTML page, atomically; returns its path.

    Args:
        measured: ``machine``, ``images``, ``rows`` and ``fewer_tokens``, as ``medloom benchmark --json`` prints them.

    Raises:
        ResourceError: T404, T405 when it cannot be written.
    """
    path = Path(path)
    write_text(path, benchmark_html(measured))
    return path


def benchmark_html(measured: Mapping[str, Any]) -> str:
    """The page as text."""
    rows = [row for row in measured["rows"] if "missing" not in row]
    machine = measured["machine"]
    slowest = max((row["batch 1"]["file to answer"]["median_ms"] for row in rows), default=1.0)
    fastest = min(rows, key=lambda row: row["batch 1"]["file to answer"]["median_ms"]) if rows else None
    busy = max((row["load"] for row in rows), default=0.0)
    flags = [{"text": f"machine busy: load {busy:.1f} on {machine['cores']} cores", "tone": "amber"}]
    sentence = f"{plural(len({row['bundle'] for row in rows}), 'bundle')} measured, each runtime in its own process. "
    if fastest is not None:
        took = fastest["batch 1"]["file to answer"]["median_ms"]
        sentence += f"Fastest from image file to answer: {fastest['name']} in {_RUNTIMES[fastest['runtime']]}, "
        sentence += f"{took:.1f} ms ({fastest['precision']})."
    return render(
        "benchmark.html",
        title="MedLoom benchmark",
        made_by="MedLoom benchmark",
        name="Speed of bundles",
        flags=[*(flags if busy > machine["cores"] else []), {"text": NOT_A_DEVICE, "tone": ""}],
        sentence=sentence,
        rows=[_row(row, slowest) for row in rows],
        missing=[row for row in measured["rows"] if "missing" in row],
        fewer_tokens=[each["told"] for each in measured["fewer_tokens"]],
        machine=machine,
        packages=", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        synthetic=measured["images"] == "synthetic",
    )


def _row(row: Mapping[str, Any], slowest: float) -> dict[str, Any]:
    one, many = row["batch 1"], row.get("batch 16")
    alone, whole = one["network"], one["file to answer"]
    cold = row.get("cold_start")
    return {
        "bundle": row["bundle"],
        "name": row["name"],
        "runtime": _RUNTIMES[row["runtime"]],
        "precision": row["precision"],
        "network": [f"{alone[key]:.2f}" for key in ("median_ms", "p95_ms", "p99_ms")],
        "answer": [f"{whole[key]:.2f}" for key in ("median_ms", "p95_ms", "p99_ms")],
        "ratio": f"{whole['median_ms'] / alone['median_ms']:.2f}",
        "many": [f"{many[k]['median_ms'] / 16:.2f}" for k in ("network", "file to answer")] if many else ["–", "–"],
        "throughput": f"{many['file to answer']['images_per_second']:.1f}" if many else "–",
        "memory": f"{row['peak_memory_mib']:.0f}" if row["peak_memory_mib"] is not None else "–",
        "size": f"{row['size_mib']:.1f}",
        "cold": f"{cold['median_s']:.2f}" if cold else "–",
        "torch": "yes" if cold and cold["torch"] else "no",
        "bars": [
            round(260 * t / slowest, 1) for t in (alone["median_ms"], max(whole["median_ms"], alone["median_ms"]))
        ],
    }
