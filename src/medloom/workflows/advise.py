"""``medloom advise``: what to train, and how to compress it, backed by figures of this machine where there are any."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from medloom.deployment.advise import CANDIDATES, Asked, advise, committed_figures, summary
from medloom.errors import UsageError
from medloom.files import make_folder, write_json
from medloom.workflows.environment import cpu_name, gpu_memory_gib, memory_gib
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress

TASKS = ("classification", "segmentation")


def advise_here(
    *,
    task: str | None = None,
    volume: bool = False,
    data: str | Path | None = None,
    cores: int | None = None,
    memory: float | None = None,
    gpu_memory: float | None = None,
    latency: float = 50.0,
    labels: int | None = None,
    size: int = 224,
    measure: bool = False,
    cache: str | Path = "runs/advise_figures.json",
    models: tuple[str, ...] = CANDIDATES,
    quiet: bool = True,
) -> Outcome:
    """Walk the decision tree for this machine, or for one that is described.

    Args:
        task, labels: found from ``data`` where that is given.
        cores, memory, gpu_memory: of the machine that will answer; what this one has where they are left out (of a
            GPU, what torch tells). Figures from elsewhere are of one thread whatever ``cores`` says; a model that is
            estimated to need more than ``memory`` is not proposed. For masks only ``gpu_memory`` counts.
        latency, size: milliseconds per image and pixels per side that the network is to see, of a classifier.
        measure: time the candidates that ``cache`` does not know yet, each in a process of its own.

    Raises:
        UsageError: U237, an unknown task, or numbers that are none. What listing ``data`` raises.
    """
    if task not in (None, *TASKS):
        raise UsageError("U237", "--task", f"'{task}' is not known", f"Choose {' or '.join(TASKS)}")
    positive = {"--cores": cores, "--memory": memory, "--latency": latency, "--labels": labels, "--size": size}
    wrong = [f"{key} {value}" for key, value in positive.items() if value is not None and not value > 0]
    if wrong or (gpu_memory is not None and gpu_memory < 0):
        raise UsageError("U237", wrong[0] if wrong else "--gpu-memory", "not a positive number", "Correct it")
    found = _of_data(data) if data is not None else {}
    own_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own_gpu = gpu_memory_gib() if gpu_memory is None else None
    asked = Asked(
        task=task or found.get("task") or TASKS[0],
        volume=volume or bool(found.get("volume")),
        cores=cores or own_cores,
        memory=memory if memory is not None else memory_gib(),
        gpu_memory=gpu_memory if gpu_memory is not None else own_gpu or 0.0,
        latency=latency,
        labels=labels if labels is not None else found.get("labels"),
        size=size,
    )
    own = _measured(Path(cache), asked.cores, models, quiet) if measure else _cached(Path(cache), asked.cores)
    advice = advise(asked, committed_figures(), own)
    gpu = f"a GPU of {asked.gpu_memory:g} GB" if asked.gpu_memory else "no GPU"
    if gpu_memory is None and own_gpu is None:
        gpu += " (torch, which would see one, is not installed)"
    described = (
        f"asked: {asked.task}{' of volumes' if asked.volume else ''}, {asked.cores} cores, {asked.memory:g} GB of "
        f"memory, {gpu}, {asked.latency:g} ms an image"
    )
    lines = [described, *summary(advice, advice.figures)]
    if own is None:
        lines.append("no figure was measured on this machine: medloom advise --measure takes some minutes")
    elif advice.figures and advice.model not in own["rows"]:
        lines.append(f"{advice.model} was not measured on this machine: medloom advise --measure goes on")
    if own is not None and asked.cores > own_cores:
        lines.append(
            f"this machine has {own_cores} cores: its figures with {asked.cores} threads are not those of more"
        )
    return Outcome({"asked": vars(asked), **advice.as_dict(), "measured_here": own is not None}, tuple(lines))


def _of_data(data: str | Path) -> dict[str, Any]:
    """Task and labelled images of a data set, by its listing."""
    from medloom.config import load_recipe
    from medloom.data.sources import open_dataset

    listed = open_dataset(data, load_recipe({}).data)
    masks = any(r.mask for r in listed.records) and bool(listed.label_values)
    volume = any(str(r.path).endswith((".nii", ".nii.gz")) for r in listed.records[:1])
    return {"task": TASKS[masks], "labels": len(listed.records), "volume": volume}


def _key(cores: int) -> str:
    return f"{cpu_name()}, {cores} threads"


def _cached(path: Path, cores: int) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))[_key(cores)]
        return entry if entry["rows"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measured(path: Path, cores: int, models: tuple[str, ...], quiet: bool) -> dict[str, Any]:
    """Latency of the candidates, each exported and timed in a process of its own, remembered beside."""
    from medloom.training.stopping import StopRequests
    from medloom.workflows.compare_run import in_process

    entry = _cached(path, cores) or {"machine": _key(cores), "runtime": "ONNX Runtime, CPU, float32", "rows": {}}
    make_folder(path.parent)
    with StopRequests() as stop, Progress("measuring", quiet=quiet) as progress:
        for k, name in enumerate(models):
            if name in entry["rows"] or stop.requested():
                continue
            progress.line(f"{name} ({k + 1} of {len(models)})")
            started = time.monotonic()
            request = {
                "architecture": {"name": name, "num_classes": 2, "in_chans": 1, "image_size": 224},
                "threads": cores,
            }
            done = in_process(["bare_speed", json.dumps(request)], path.with_suffix(".log"), stop)
            if done.error:
                progress.keep(f"{name}: {done.error}")
                continue
            entry["rows"][name] = json.loads(done.output)
            progress.keep(f"{name}: {entry['rows'][name]['batch 1']:.1f} ms, in {time.monotonic() - started:.0f} s")
            everything = _all(path) | {_key(cores): entry}
            write_json(path, everything)
    if not entry["rows"]:
        raise UsageError(
            "U237", path, "no candidate could be measured", "See the log beside it, or leave --measure out"
        )
    return entry


def _all(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
