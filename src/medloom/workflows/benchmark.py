"""``medloom benchmark``: what an answer of each bundle costs here, in every runtime, each in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medloom.errors import DataError, UsageError
from medloom.files import write_json
from medloom.machine import instructions
from medloom.workflows.cold_start import cold_start
from medloom.workflows.environment import cpu_name
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress

PHANTOMS = 16


def benchmark(
    bundles: Sequence[str | Path],
    *,
    images: str | Path | None = None,
    out: str | Path | None = None,
    threads: int | None = None,
    seconds: float = 2.0,
    most: int = 400,
    quiet: bool = True,
) -> Outcome:
    """Measure bundles on this machine; what is compared was measured in one go, one process after another.

    Per bundle and runtime: median, 95th and 99th per cent of the time at batch 1 and 16, of the network alone and from
    image file to answer; images per second; peak memory of the process; seconds of the command ``medloom predict`` on
    one image, from its start to its end (cold start). Volumes are measured at batch 1, from file to mask. A bundle that
    prunes its tokens, in float32, is joined by its twin with all of them where torch is installed, and what that gains
    is told.

    Args:
        images: files to answer; default, synthetic JPEG files of the size of the model's input (volumes: NIfTI).
        out: page to write; beside it, with the ending .json, the numbers.
        threads: of the runtimes; default, the cores that this process may use.
        seconds, most: how long, and how often at most, each time is taken.

    Raises:
        ModelError: a bundle is refused. UsageError: U214, U215 an ending of ``out`` that is not .html, U247 a
            measurement that failed. DataError: D115.
    """
    from medloom.deployment.bundle import load
    from medloom.deployment.bundle_runtimes import stated
    from medloom.deployment.runtime_engines import TITLES, installed, usable_cores
    from medloom.workflows.keep_rate import compared, own_rate

    if out is not None and Path(out).suffix.lower() != ".html":
        raise UsageError("U215", out, "the ending is not .html", "Name a page")
    threads = threads or usable_cores()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Progress("measuring", quiet=quiet) as step:
        opened = [(str(path), load(path, runtime="onnx"), False) for path in bundles]
        opened += _twins(opened, Path(folder))
        plan = [(p, m, n, twin) for p, m, twin in opened for n in stated(m.document)]
        for number, (path, model, name, twin) in enumerate(plan):
            step(number, len(plan), f"{path} in {TITLES[name]}")
            row: dict[str, Any] = {
                "bundle": f"{path}, all tokens" if twin else path,
                "name": model.name,
                "hash": model.hash,
                "runtime": name,
                "precision": stated(model.document)[name]["precision"],
                "task": model.document["task"],
                "size_mib": round(_size(model.root, name) / 2**20, 2),
            }
            if (rate := own_rate(model.document)) is not None:
                row |= {"keep_rate": rate, **({"twin_of": path} if twin else {})}
            if not installed(name):
                rows.append({**row, "missing": f"{TITLES[name]} is not installed"})
                continue
            files = _images(images, model, Path(folder) / str(number))
            request = {"bundle": str(model.root), "runtime": name, "threads": threads}
            row |= _child({**request, "images": files, "seconds": seconds, "most": most})
            masks = row["task"] == "segmentation"
            row["cold_start"] = cold_start(model.root, name, threads, files[0], masks=masks)
            rows.append(row)
    whole: dict[str, Any] = {
        "machine": _machine(threads),
        "images": "own" if images is not None else "synthetic",
        "rows": rows,
        "fewer_tokens": compared(rows),
    }
    lines = [*table(rows), *(each["told"] for each in whole["fewer_tokens"])]
    if out is None:
        return Outcome(whole, tuple(lines))
    from medloom.reporting.benchmark_page import write_benchmark_page

    write_json(Path(out).with_suffix(".json"), whole)
    write_benchmark_page(whole, out)
    return Outcome({**whole, "page": str(out)}, (*lines, f"open {out}"))


def _twins(opened: list[tuple[str, Any, bool]], folder: Path) -> list[tuple[str, Any, bool]]:
    """Bundles of the same weights with all tokens, for those that prune and are not quantised."""
    from importlib.util import find_spec

    from medloom.deployment.bundle import load
    from medloom.deployment.bundle_folder import open_folder
    from medloom.workflows.keep_rate import own_rate, write_twin

    twins: list[tuple[str, Any, bool]] = []
    for path, model, _ in opened:
        pruned = (own_rate(model.document) or 1.0) < 1.0 and "quantisation" not in model.document
        if pruned and find_spec("torch") is not None:
            place = write_twin(open_folder(path), model, folder / f"twin{len(twins)}" / "bundle")
            twins.append((path, load(place, runtime="onnx"), True))
    return twins


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per bundle and runtime; milliseconds of a whole batch, and how many times the network a file costs."""
    head = ("bundle", "runtime", "precision", "B1 ms", "p95", "p99", "B16 ms", "file B1", "ratio", "img/s B16", "MiB")
    cells = [(*head, "cold s")]
    for row in rows:
        start = (row["bundle"], row["runtime"], row["precision"])
        if "missing" in row:
            cells.append((*start, row["missing"], *[""] * 8))
            continue
        one, many = row["batch 1"], row.get("batch 16")
        alone, whole = one["network"], one["file to answer"]
        cold = row.get("cold_start")
        cells.append(
            (
                *start,
                *(f"{alone[key]:.2f}" for key in ("median_ms", "p95_ms", "p99_ms")),
                f"{many['network']['median_ms']:.1f}" if many else "-",
                f"{whole['median_ms']:.2f}",
                f"{whole['median_ms'] / alone['median_ms']:.2f}",
                f"{many['file to answer']['images_per_second']:.1f}" if many else "-",
                "-" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}",
                f"{cold['median_s']:.2f}" if cold else "-",
            )
        )
    wide = [max(len(str(row[k])) for row in cells) for k in range(len(cells[0]))]
    lines = []
    for row_of_cells in cells:
        padded = [str(c).ljust(w) if k < 3 else str(c).rjust(w) for k, (c, w) in enumerate(zip(row_of_cells, wide))]
        lines.append("  ".join(padded))
    busy = max((row["load"] for row in rows if "load" in row), default=0.0)
    if busy > (os.cpu_count() or 1):
        lines.append(
            f"the machine was busy (load {busy:.1f} on {os.cpu_count()} cores): compare rows, not milliseconds"
        )
    return [line.rstrip() for line in lines]


def _child(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "medloom.workflows.benchmark_child", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UsageError("U247", request["bundle"], f"not measured in {request['runtime']}: {last[:200]}", "See above")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _images(given: str | Path | None, model: Any, folder: Path) -> list[str]:
    """Files to answer: those that were named, or phantoms of the model's own size."""
    from PIL import Image

    from medloom.data.phantom import golden_images
    from medloom.data.preprocess import Preprocess
    from medloom.workflows.predict import find_images

    volumes = not isinstance(model.preprocess, Preprocess)
    if given is not None:
        if volumes:
            place = Path(given)
            found = sorted(p for p in place.rglob("*.nii*") if p.is_file()) if place.is_dir() else [place]
        else:
            found = find_images([given])[0]
        if not found:
            raise DataError("D115", given, "no image found", "Name files that the bundle takes")
        return [str(p.resolve()) for p in found[:64]]
    folder.mkdir(parents=True, exist_ok=True)
    if volumes:
        from medloom.data.volumes import Volume, write_nifti

        draw = np.random.default_rng(0)
        array = draw.integers(0, 1000, size=model.pipeline.runtime.size, dtype=np.int16)
        spacing = model.preprocess.spacing or (1.0, 1.0, 1.0)
        write_nifti(folder / "volume.nii.gz", array, Volume(array, np.diag([*spacing, 1.0])))
        return [str(folder / "volume.nii.gz")]
    height, width = model.preprocess.size
    names = []
    for k, pixels in enumerate(golden_images(PHANTOMS, max(height, width, 64), 0)):
        names.append(str(folder / f"phantom{k}.jpg"))
        Image.fromarray(pixels[: max(height, 64), : max(width, 64)]).save(names[-1], quality=90)
    return names


def _size(root: Path, runtime: str) -> int:
    names = ("model.xml", "model.bin") if runtime == "openvino" else ("model.onnx",)
    return sum((root / name).stat().st_size for name in names)


def _machine(threads: int) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("onnxruntime", "openvino"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": cpu_name(),
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "packages": packages,
    }
