"""Peak memory and time of training steps of a segmenter of volumes: MaxViT-UNet-3D tiny, unless another is named.

    python benchmarks/segmenter_memory.py --device cuda --side 96 --batch 2
    python benchmarks/segmenter_memory.py --device cpu --side 48 --batch 2

A step is that of the training loop: patches of phantom volumes, turned and toned; Dice and cross-entropy with deep
supervision; clipped gradients; AdamW; bfloat16 where the device computes in it, else float32. Reading is not timed,
because the loop reads ahead. Each call measures one row, in this process, which does nothing else, and puts it in the
place of an older row of the same model, device, side and batch. A row that is absent was not run.

On a GPU ``allocated_bytes`` and ``reserved_bytes`` are the most that torch handed out and the most that it held (the
CUDA context comes on top), and ``seconds`` is the median step behind the first, which searches for convolutions. On a
CPU ``peak_bytes`` is the most that the process ever held, ``before_bytes`` the same before the first step, and
``cpu_seconds`` the median of the processor's time, which other work on the machine does not enter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medloom.config import Recipe, load_recipe
from medloom.data.case_cache import PLACES, Cases
from medloom.data.phantom_volumes import CLASSES, phantom_volumes
from medloom.data.plan_memory import recipe_gigabytes
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.files import write_json
from medloom.machine import peak_memory
from medloom.models.registry import create_model
from medloom.training.batches import parts
from medloom.training.distributed import World
from medloom.training.optimizers import make_optimizer
from medloom.training.precision import choose_device, memory_format, number_format, settings
from medloom.training.segmentation import CaseExamples, segmenting
from medloom.training.step import gradients
from models_rr_vit import machine

GOAL = 8 * 10**9
"""Bytes: the smallest GPU that the project is meant for has 8 GB, and is to train on patches of 96 cubed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="maxvit_unet_3d_tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--side", type=int, default=96, help="voxels per axis of a patch, at most 128")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="at least 2; the first is not timed")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "segmenter_memory.json")
    arguments = parser.parse_args()
    device, load = choose_device(arguments.device), os.getloadavg()[0]
    recipe = recipe_of(arguments)
    # The thread count of torch is put back behind the steps, and the row is to say the one that they had.
    with settings(device, arguments.threads):
        row = {
            **{key: getattr(arguments, key) for key in ("model", "device", "side", "batch", "steps")},
            "precision": {"bf16": "bfloat16", "off": "float32"}[number_format(device, "auto")],
            **measure(arguments.model, recipe, device, arguments.steps),
            "machine": {**machine(load), **_gpu(device)},
        }
    if device.type == "cuda" and arguments.side >= 96:  # what the goal speaks of
        row["within_goal"] = row["reserved_bytes"] <= GOAL
    result = {
        "benchmark": "segmenter_memory",
        "question": "peak memory and time of training steps on cubes of one side; a row that is absent was not run",
        "classes": len(CLASSES),
        "goal_bytes": GOAL,
        "rows": rows_with(row, arguments.out),
    }
    write_json(arguments.out, result)
    print(json.dumps(row, indent=2))


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """What is trained: the settings of the shipped recipes for volumes."""
    return load_recipe(
        {
            "model": {"name": arguments.model},
            "augment": {"rotate": 15, "zoom": [0.85, 1.15], "brightness": 0.15, "contrast": 0.2, "gamma": [0.8, 1.25]},
            "segmentation": {"patch": [arguments.side] * 3},
            "train": {"optimizer": "adamw", "learning_rate": 1e-3, "batch_size": arguments.batch},
        }
    )


def measure(name: str, recipe: Recipe, device: torch.device, steps: int) -> dict[str, Any]:
    """Take the steps, and say what they took.

    Returns:
        parameters, bytes and seconds as the head of this file names them, and ``estimate_bytes``, what a run says of
        its memory before the first step, where it can say it.
    """
    side, batch = recipe.segmentation.patch[0], recipe.train.batch_size  # type: ignore[index]
    torch.manual_seed(0)
    model = create_model(
        name, num_classes=len(CLASSES), in_chans=1, image_size=side, spatial_dims=3, deep_supervision=True
    )
    model.to(device=device, memory_format=memory_format(model)).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(model, recipe.train)
    work = segmenting(
        model,
        train=examples(side, batch),
        val=None,
        recipe=recipe,
        preprocess=VolumePreprocess(mean=(0.5,), std=(0.25,)),
        device=device,
    )
    net = work.trained(1)
    before, taken = peak_memory(), []
    for epoch in range(1, steps + 1):  # an epoch is one step here
        (part,) = parts(work.steps(epoch), batch, epoch, 0)
        batches = iter([work.read(part)])
        started = _clock(device)
        optimizer.zero_grad(set_to_none=True)
        gradients(
            net,
            batches,
            work.objective,
            recipe,
            World(),
            stop=False,
            weight=work.weight(part.rows),
            images=len(part.rows),
            device=device,
        )
        optimizer.step()
        taken.append(_clock(device) - started)
    half = number_format(device, "auto") == "bf16"
    estimate = recipe_gigabytes(name, {}, (side,) * 3, batch, half=half)
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "estimate_bytes": None if estimate is None else round(1e9 * estimate),
    }
    median = round(statistics.median(taken[1:]), 4)
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {**found, "allocated_bytes": allocated, "reserved_bytes": reserved, "seconds": median}
    return {**found, "before_bytes": before, "peak_bytes": peak_memory(), "cpu_seconds": median}


def examples(side: int, n: int) -> CaseExamples:
    """Phantom volumes of ``side`` voxels per axis, as the cache of a run holds its cases."""
    grid = VolumePreprocess()
    drawn = list(phantom_volumes(n, size=side, sites=("north",)))
    cases = Cases(
        pixels=tuple(grid.to_uint16(case.image) for case in drawn),
        labels=tuple(case.labels for case in drawn),
        places=tuple(
            {k: np.argwhere(case.labels == k)[:PLACES].astype(np.int32) for k in np.unique(case.labels)[1:]}
            for case in drawn
        ),
        key="phantom",
    )
    return CaseExamples(cases, np.arange(n), tuple(case.patient for case in drawn), len(CLASSES))


def rows_with(row: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    """The rows of the file with this one among them, in order."""
    keys = ("model", "device", "side", "batch")
    older = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    kept = [other for other in older if any(other[key] != row[key] for key in keys)]
    return sorted([*kept, row], key=lambda other: [other[key] for key in keys])


def _clock(device: torch.device) -> float:
    """Seconds: by the wall once the GPU has done what it was given, else of this process's processor time."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _gpu(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}


if __name__ == "__main__":
    main()
