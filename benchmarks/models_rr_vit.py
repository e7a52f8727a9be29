"""Hybrid RR-ViT at 128 px (1,025 tokens) against itself with the softmax of the attention written out.

    python benchmarks/models_rr_vit.py

Three cases: an answer for one image, for 16, and a training step (joint loss, AdamW) of 4. The sides have
equal weights, data and threads and take turns; the ratio is taken inside a turn, and its median is the result, because
other work on the machine then falls on both. CPU time of the process is given beside wall time, because other work does
not enter it. Both compute in float32.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.blocks.attention import Attention
from medloom.files import write_json
from medloom.models.registry import create_model
from medloom.workflows.environment import cpu_name

CASES = {"batch_1": 1.4, "batch_16": 2.0, "training": 2.0}
"""What is asked of each: how many times as fast the fused form must be."""
_TRAINING_BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "models_rr_vit.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    result = {
        "benchmark": "models_rr_vit",
        "question": "how many times as fast is Hybrid RR-ViT with the fused kernel as with an explicit softmax",
        "model": "hybrid_rr_vit",
        "size": arguments.size,
        "repeats": arguments.repeats,
        "cases": {case: compare(case, size=arguments.size, repeats=arguments.repeats) for case in arguments.cases},
        "machine": machine(load),
    }
    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


def compare(case: str, *, size: int = 128, repeats: int = 15) -> dict[str, Any]:
    """Seconds of both sides of a case, by the wall and of the processor, and the medians of their ratios, turn by turn.

    Ratios are explicit over fused; ``goal`` is what the one by the wall must reach on a quiet machine.
    """
    sides = {name: work(case, build(explicit=name == "explicit", size=size), size) for name in ("fused", "explicit")}
    for step in sides.values():
        step()
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in sides} for clock in clocks}
    for turn in range(repeats):
        for name in list(sides) if turn % 2 else reversed(sides):
            started = {clock: read() for clock, read in clocks.items()}
            sides[name]()
            for clock, read in clocks.items():
                seconds[clock][name].append(read() - started[clock])
    ratios = {clock: [b / a for a, b in zip(found["fused"], found["explicit"])] for clock, found in seconds.items()}
    return {
        "ratio": {clock: round(float(np.median(values)), 3) for clock, values in ratios.items()},
        "goal": CASES[case],
        "batch": batch_of(case),
        "seconds": {
            clock: {name: round(float(np.median(values)), 4) for name, values in found.items()}
            for clock, found in seconds.items()
        },
        "ratios": {clock: [round(ratio, 3) for ratio in values] for clock, values in ratios.items()},
    }


def build(*, explicit: bool, size: int, **options: Any) -> nn.Module:
    """The model from a seed; with ``explicit`` its attention goes the way that it goes when taps are asked for."""
    torch.manual_seed(0)
    model = create_model("hybrid_rr_vit", num_classes=14, in_chans=1, image_size=size, **options)
    if explicit:
        for layer in model.modules():
            if isinstance(layer, Attention):
                layer.forward = functools.partial(written_out, layer)  # type: ignore[method-assign]
    return model


def written_out(layer: Attention, x_BND: torch.Tensor) -> torch.Tensor:
    """Attention through the explicit softmax."""
    return layer.forward_with_weights(x_BND)[0]


def work(case: str, model: nn.Module, size: int) -> Callable[[], None]:
    """What is timed."""
    torch.manual_seed(1)
    x_BCHW = torch.randn(batch_of(case), 1, size, size)
    return trainer(model, x_BCHW) if case == "training" else answerer(model, x_BCHW)


def answerer(model: nn.Module, x_BCHW: torch.Tensor) -> Callable[[], None]:
    """A function that answers the images once."""
    model.eval()

    def answer() -> None:
        with torch.inference_mode():
            model(x_BCHW)

    return answer


def trainer(model: nn.Module, x_BCHW: torch.Tensor) -> Callable[[], None]:
    """A function that takes one training step: binary cross-entropy and a tenth of the reconstruction error."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    target_BK, image_BCHW = torch.zeros(len(x_BCHW), 14), x_BCHW.sigmoid()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = model.train_outputs(x_BCHW)  # type: ignore[operator]
        loss = nn.functional.binary_cross_entropy_with_logits(outputs["logits"], target_BK)
        (loss + 0.1 * nn.functional.mse_loss(outputs["reconstruction"], image_BCHW)).backward()
        optimizer.step()

    return step


def batch_of(case: str) -> int:
    """Images of a case."""
    return {"batch_1": 1, "batch_16": 16, "training": _TRAINING_BATCH}[case]


def machine(load: float) -> dict[str, Any]:
    """Where it was measured, and how busy that was before."""
    return {
        "processor": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(load, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
