"""One bundle in one runtime, measured in a process of its own.

python -m medloom.workflows.benchmark_child JSON
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BATCHES = (1, 16)
WARM = 3


def measured(
    bundle: str, runtime: str, threads: int | None, images: list[str], seconds: float, most: int
) -> dict[str, Any]:
    """Times of the network alone and from image file to answer, batch by batch, after turns that are not counted."""
    import numpy as np

    from medloom.deployment.bundle import Bundle, load
    from medloom.errors import DataError
    from medloom.machine import peak_memory

    model = load(bundle, runtime=runtime, threads=threads)
    network = model.pipeline.runtime
    answers = _answers(model)
    problem = next((a.problem for a in answers([Path(p) for p in images]) if a.error), None)
    if problem:
        raise DataError("D115", images[0], f"images are refused: {problem}", "Name files that the bundle takes")
    found: dict[str, Any] = {"threads": network.threads, "load": round(os.getloadavg()[0], 2)}
    masks = not isinstance(model, Bundle)
    for batch in (1,) if masks and len(network.size) == 3 else BATCHES:
        x_BCS = np.random.default_rng(0).standard_normal((batch, network.in_chans, *network.size)).astype(np.float32)
        files = [Path(images[k % len(images)]) for k in range(batch)]
        found[f"batch {batch}"] = {
            "network": _timed(lambda x=x_BCS: network.logits(x), batch, seconds, most),
            "file to answer": _timed(lambda f=files: answers(f), batch, seconds, most),
        }
    peak = peak_memory()
    found["peak_memory_mib"] = round(peak / 2**20, 1) if peak else None
    return found


def _answers(model: Any) -> Any:
    from medloom.deployment.bundle import Bundle

    if isinstance(model, Bundle):
        return lambda files: model.predict(files, batch_size=len(files))
    return lambda files: model.segment(files)


def _timed(work: Any, batch: int, seconds: float, most: int) -> dict[str, Any]:
    import numpy as np

    for _ in range(WARM):
        work()
    taken: list[float] = []
    while len(taken) < 7 or (sum(taken) < seconds and len(taken) < most):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    middle, p95, p99 = (float(q) for q in np.quantile(taken, (0.5, 0.95, 0.99)))
    return {
        "median_ms": round(1000 * middle, 3),
        "p95_ms": round(1000 * p95, 3),
        "p99_ms": round(1000 * p99, 3),
        "images_per_second": round(batch / middle, 2),
        "turns": len(taken),
    }


if __name__ == "__main__":
    from medloom.errors import MedloomError

    try:
        _found = measured(**json.loads(sys.argv[1]))
    except MedloomError as _problem:
        sys.stderr.write(f"{_problem}\n")
        sys.exit(_problem.exit_code)
    sys.stdout.write(json.dumps(_found) + "\n")
