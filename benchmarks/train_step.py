"""Images per second of MedLoom's training loop against a bare loop on random tensors that are already in memory.

    python benchmarks/train_step.py

Both sides: same model, bf16 autocast, fused AdamW, batches of 32. The bare loop does forward, loss, backward and step,
and nothing else. Ours also reads uint8 images, augments them as the paper does, normalises, clips the gradient, seeds,
looks at the loss, counts and reports; its checkpoints are timed apart. The sides take turns, an epoch each, and the
ratio is taken inside a turn. CPU time of the process is given beside wall time, because other work on the machine does
not enter it. Peak memory is that of a process of its own that does nothing but train.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medloom.config import Recipe, load_recipe
from medloom.data.cache import DevicePixels
from medloom.data.preprocess import Preprocess
from medloom.files import RunDirectory, write_json
from medloom.models.registry import create_model
from medloom.training.batches import Examples
from medloom.training.classification import classifying
from medloom.training.journal import peak_memory
from medloom.training.loop import fit
from medloom.training.precision import MEMORY_FORMAT, autocast, choose_device
from medloom.workflows.environment import cpu_name

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=5, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=15, help="counted epochs of each side")
    parser.add_argument("--threads", type=int, default=1, help="more make the figures of a busy machine swing")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--peak-memory", action="store_true", help="only train two epochs and print the peak")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_memory:
        train(arguments, epochs=2)
        print(json.dumps(peak_memory()))
        return
    load = os.getloadavg()[0]
    turns = measure(arguments)
    device = choose_device(arguments.device)
    ratios = {kind: [turn["bare"][kind] / turn["ours"][kind] for turn in turns] for kind in ("wall", "cpu")}
    images = arguments.steps * BATCH
    result = {
        "benchmark": "train_step",
        "question": "images per second of the training loop over those of a bare loop on random tensors in memory",
        "model": arguments.model,
        "size": arguments.size,
        "batch": BATCH,
        "steps_per_epoch": arguments.steps,
        "repeats": len(turns),
        "images_per_second": {
            side: round(images / median(t[side]["wall"] for t in turns), 2) for side in ("ours", "bare")
        },
        "ratio": {kind: round(median(values), 4) for kind, values in ratios.items()},
        "ratios": {kind: [round(value, 4) for value in values] for kind, values in ratios.items()},
        "goal": 0.95,
        "checkpoint_seconds": round(median(t["saving"]["wall"] for t in turns), 3),
        "peak_memory": peak_of_training_alone(),
        "machine": {
            "processor": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "load_before": round(load, 2),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


def recipe_of(arguments: argparse.Namespace, epochs: int) -> Recipe:
    return load_recipe(
        {
            "train": {
                "epochs": epochs,
                "batch_size": BATCH,
                "optimizer": "adamw",
                "threads": arguments.threads,
                "device": arguments.device,
            }
        }
    )


def build(arguments: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(arguments.model, num_classes=2, in_chans=1, image_size=arguments.size)


def train(arguments: argparse.Namespace, epochs: int, told: Any = None) -> None:
    """``fit`` without validation on random images."""
    device = choose_device(arguments.device)
    n = arguments.steps * BATCH
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, arguments.size, arguments.size, 1), dtype=np.uint8)
    resident = torch.from_numpy(images).to(device) if device.type == "cuda" else None
    examples = Examples(
        DevicePixels(images, device, resident), np.arange(n), rng.integers(0, 2, n), tuple(map(str, range(n)))
    )
    model, recipe = build(arguments), recipe_of(arguments, epochs)
    preprocess = Preprocess((arguments.size,) * 2, channels="grey", mean=(0.5,), std=(0.25,))
    work = classifying(model, train=examples, val=None, recipe=recipe, preprocess=preprocess, device=device)
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDirectory(Path(scratch))
        fit(model, work=work, recipe=recipe, run=run, fingerprint={}, device=device, progress=told)


def bare_epochs(arguments: argparse.Namespace) -> Any:
    """A function that runs one epoch of the bare loop."""
    device = choose_device(arguments.device)
    model = build(arguments).to(device=device, memory_format=MEMORY_FORMAT).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = [
        (
            torch.randn(BATCH, 1, arguments.size, arguments.size, device=device).contiguous(
                memory_format=MEMORY_FORMAT
            ),
            torch.randint(0, 2, (BATCH,), device=device),
        )
        for _ in range(arguments.steps)
    ]

    def epoch() -> None:
        for x_BCHW, target_B in batches:
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, "bf16"):
                logits_BK = model(x_BCHW)
            torch.nn.functional.cross_entropy(logits_BK.float(), target_B).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return epoch


def measure(arguments: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """Turns of {"ours", "saving", "bare"}, each {"wall", "cpu"} seconds. The first turn warms up and is dropped."""
    bare = bare_epochs(arguments)
    turns: list[dict[str, dict[str, float]]] = []
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    def told(event: dict[str, Any]) -> None:
        # An epoch of ours lasts from the end of the bare one to its last step, which is where saving begins.
        if event["event"] == "step" and event["step"] == event["steps_per_epoch"]:
            mark()
        if event["event"] == "epoch":
            if len(marks) == 2:
                mark()
                bare()
                mark()
                spans = [{"wall": b[0] - a[0], "cpu": b[1] - a[1]} for a, b in itertools.pairwise(marks)]
                turns.append(dict(zip(("ours", "saving", "bare"), spans)))
            marks.clear()
            mark()

    bare()
    train(arguments, arguments.repeats + 2, told)
    return turns[-arguments.repeats :]


def median(values: Any) -> float:
    return float(np.median(list(values)))


def peak_of_training_alone() -> dict[str, int]:
    """In a process of its own, with the same arguments; beside it, what one that only imports torch takes."""
    trained = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--peak-memory"], capture_output=True, text=True, check=True
    )
    idle = "from medloom.training.journal import peak_memory; print(peak_memory()['peak_memory'])"
    imported = subprocess.run([sys.executable, "-c", idle], capture_output=True, text=True, check=True)
    peak: dict[str, int] = json.loads(trained.stdout)
    return {**peak, "of_importing_alone": int(imported.stdout)}


if __name__ == "__main__":
    main()
