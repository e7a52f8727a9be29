"""How fast a bundle answers, alone in its process, through the runtime that serves it; no torch."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np

BATCHES = (1, 16)
SECONDS, LEAST, MOST = 1.5, 7, 200


def speed(bundle: str, threads: int | None = None) -> dict[str, Any]:
    """Latency of the network at batch 1 and 16, after two runs that are not counted.

    Returns ``threads``, ``runtime``, ``load`` (one-minute load average before the measurement: above the number of
    cores the machine was busy), and per batch ``batch N``: ``median_ms`` and ``p95_ms`` of a whole batch,
    ``images_per_second``, ``repeats``.

    Raises:
        ModelError: C500 to C510, the bundle is refused.
    """
    from medloom.deployment.bundle import load
    from medloom.deployment.bundle_runtimes import stated
    from medloom.deployment.runtime_engines import TITLES

    busy = os.getloadavg()[0]
    model = load(bundle, threads=threads)
    runtime = model.pipeline.runtime
    told = f"{TITLES[runtime.name]}, CPU, {stated(model.document)[runtime.name]['precision']}"
    out: dict[str, Any] = {"threads": runtime.threads, "runtime": told, "load": round(busy, 2)}
    for batch in BATCHES:
        x_BCHW = np.random.default_rng(0).standard_normal((batch, runtime.in_chans, *runtime.size)).astype(np.float32)
        for _ in range(2):
            runtime.logits(x_BCHW)
        taken: list[float] = []
        while len(taken) < LEAST or (sum(taken) < SECONDS and len(taken) < MOST):
            started = time.perf_counter()
            runtime.logits(x_BCHW)
            taken.append(time.perf_counter() - started)
        middle = statistics.median(taken)
        out[f"batch {batch}"] = {
            "median_ms": round(1000 * middle, 3),
            "p95_ms": round(1000 * float(np.quantile(taken, 0.95)), 3),
            "images_per_second": round(batch / middle, 2),
            "repeats": len(taken),
        }
    return out
