"""How much faster one network is than another: in turns, in one process, so that other work falls on both."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from medloom.deployment.runtime import Runtime

BATCHES = (1, 16)
SECONDS, LEAST, MOST = 2.0, 7, 200


def speed_in_turns(
    before: bytes, after: bytes, *, threads: int | None = None, batches: tuple[int, ...] = BATCHES
) -> dict[str, Any]:
    """Latency of two ONNX files through ONNX Runtime, one run of each per turn, after two turns that are not counted.

    Returns:
        ``threads, runtime``, and per ``batch N``: ``faster`` (median over the turns of before / after), ``low`` and
        ``high`` (its quartiles), ``before_ms`` and ``after_ms`` (median, of the whole batch), ``turns``.
    """
    sides = (Runtime(before, threads=threads), Runtime(after, threads=threads))
    out: dict[str, Any] = {"threads": sides[0].threads, "runtime": "ONNX Runtime, CPU, float32"}
    for batch in batches:
        shape = (batch, sides[0].in_chans, *sides[0].size)
        x_BCHW = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        taken: list[tuple[float, float]] = []
        for turn in range(-2, MOST):
            pair = []
            for side in sides if turn % 2 else sides[::-1]:
                started = time.perf_counter()
                side.logits(x_BCHW)
                pair.append(time.perf_counter() - started)
            if turn >= 0:
                taken.append((pair[0], pair[1]) if turn % 2 else (pair[1], pair[0]))
            if len(taken) >= LEAST and sum(map(sum, taken)) > SECONDS:
                break
        times_T2 = np.array(taken)
        ratio_T = times_T2[:, 0] / times_T2[:, 1]
        low, middle, high = np.quantile(ratio_T, [0.25, 0.5, 0.75])
        milliseconds = 1000 * np.median(times_T2, axis=0)
        out[f"batch {batch}"] = {
            "faster": round(float(middle), 3),
            "low": round(float(low), 3),
            "high": round(float(high), 3),
            "before_ms": round(float(milliseconds[0]), 3),
            "after_ms": round(float(milliseconds[1]), 3),
            "turns": len(taken),
        }
    return out
