"""What a run will cost, found by starting it: a few steps of the true loop on made-up images, and a count of its work.

Each function runs in a process of its own (``workflows.child``), so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.config import Recipe, load_recipe
from medloom.data.cache import DevicePixels
from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle import load_classifier
from medloom.deployment.export import restore_model
from medloom.errors import UsageError
from medloom.files import RunDirectory
from medloom.models.macs import count_macs
from medloom.models.registry import create_model
from medloom.training.batches import Examples
from medloom.training.classification import classifying
from medloom.training.fingerprint import fingerprint
from medloom.training.journal import peak_memory
from medloom.training.loop import fit
from medloom.workflows.run_steps import device_of

EPOCHS, STEPS = 4, 1  # of the first epoch nothing is counted: it warms up
# A few steps stand for all: of the stages of a training the one that lasts, in which everything learns.
_TRAIN = {
    **{"epochs": EPOCHS, "max_steps": None, "patience": None, "save_steps": None, "warmup_epochs": 0.0},
    **{"step_epochs": (), "freeze_epochs": 0},
}
_TOKENS = {"scorer_epochs": 0, "freeze_scorer": 0.0, "multi_keep": ()}


def trial(recipe: dict[str, Any], num_classes: int, multi_label: bool) -> dict[str, Any]:
    """Train ``EPOCHS * STEPS`` steps at the recipe's batch and size, with its teacher, of which the trial has the cost.

    Returns ``seconds_per_step``, ``seconds_per_scored_image``, ``peak_memory`` in bytes (and ``peak_device_memory``
    on a GPU), ``parameters``, ``macs``.

    Raises:
        What the loop and the model raise: T407 out of memory, C511, U206 to U208, U225, ...
    """
    wanted = load_recipe(shortened(recipe))
    device = device_of(wanted)
    per_step = wanted.train.batch_size * wanted.train.accumulate
    train, val = STEPS * per_step, 2 * wanted.train.batch_size
    generator = np.random.default_rng(0)
    draft = Preprocess.from_config(wanted.preprocess)
    pixels = generator.integers(0, 256, (train + val, *draft.size, draft.stored_channels), dtype=np.uint8)
    preprocess = Preprocess.from_config(wanted.preprocess, pixels)
    labels: np.ndarray = np.arange(train + val) % num_classes
    if multi_label:
        labels = (generator.random((train + val, num_classes)) < 0.3).astype(np.float32)
        labels[:2] = ((1,) * num_classes, (0,) * num_classes)
    shape: dict[str, Any] = {"num_classes": num_classes, "in_chans": preprocess.in_chans, "image_size": preprocess.size}
    torch.manual_seed(0)
    model = create_model(wanted.model.name, **shape, **wanted.model.options)
    source = DevicePixels(pixels, device, None)

    def part(rows: np.ndarray) -> Examples:
        return Examples(source, rows, labels[rows], tuple(map(str, rows)))

    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "trial")
        run.root.mkdir()
        work = classifying(
            model,
            train=part(np.arange(train)),
            val=part(np.arange(train, train + val)),
            recipe=wanted,
            preprocess=preprocess,
            device=device,
            teacher=_teacher(wanted, num_classes, preprocess, device),
        )
        marks = fingerprint(wanted, {"hash": "trial"}, device=device)
        fit(model, work=work, recipe=wanted, run=run, fingerprint=marks, device=device)
        lines = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    counted = [line for line in lines if line["event"] == "epoch"][1:]
    return {
        "seconds_per_step": float(np.median([e["seconds"] for e in counted])) / STEPS,
        "seconds_per_scored_image": float(np.median([e["val_seconds"] for e in counted])) / val,
        **peak_memory(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": count_macs(model, preprocess.in_chans, preprocess.size),
    }


def shortened(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without stages that a few steps would not get through."""
    tokens = {**recipe.get("tokens", {}), **_TOKENS}
    return {**recipe, "train": {**recipe["train"], **_TRAIN}, "tokens": tokens}


def _teacher(recipe: Recipe, num_classes: int, preprocess: Preprocess, device: torch.device) -> nn.Module | None:
    """The teacher's network; names of classes and statistics of pixels are the run's to compare.

    Raises:
        UsageError: U225, it cannot be the teacher on any data of this shape. What a bundle is refused for.
    """
    if recipe.distill.teacher is None:
        return None
    bundle = load_classifier(recipe.distill.teacher)
    theirs = (len(bundle.classes), bundle.preprocess.in_chans, tuple(bundle.preprocess.size))
    if theirs != (num_classes, preprocess.in_chans, tuple(preprocess.size)):
        told = f"it has {theirs[0]} classes, {theirs[1]} channels and input of {theirs[2][0]} x {theirs[2][1]} pixels"
        remedy = "Train student and teacher on the same classes with the same preprocess part"
        raise UsageError("U225", f"distill.teacher {recipe.distill.teacher}", told, remedy)
    return restore_model(bundle).to(device).requires_grad_(False)


def count(architectures: list[dict[str, Any]]) -> list[dict[str, int]]:
    """``parameters`` and ``macs`` of networks as ``model.json`` describes them, at their own size and channels."""
    out = []
    for values in architectures:
        with torch.device("meta"):
            model = create_model(**values)
        macs = count_macs(model, values.get("in_chans", 3), values.get("image_size", 224))
        out.append({"parameters": sum(p.numel() for p in model.parameters()), "macs": macs})
    return out


def bare_speed(architecture: dict[str, Any], threads: int | None = None, clock: str = "wall") -> dict[str, Any]:
    """Milliseconds of one image and of 16 through ONNX Runtime, of an untrained network: speed asks for no training.

    Args:
        clock: ``wall``, or ``cpu``: what the processor spent, which with one thread is the latency of an idle machine,
            whatever else goes on.

    Returns ``batch 1`` and ``batch 16`` (of the whole batch; the fastest tenth of the runs, for a machine has other
    work too), ``median 1``, ``median 16``, ``parameters, threads, clock, load``.

    Raises:
        UsageError: U206 to U208. ModelError: C505, C511. ExportError: X601.
    """
    from medloom.deployment.export import onnx_bytes
    from medloom.deployment.runtime import Runtime

    model = create_model(**architecture)
    size = architecture["image_size"]
    pair = (size, size) if isinstance(size, int) else tuple(size)
    runtime = Runtime(onnx_bytes(model, in_chans=architecture["in_chans"], size=pair), threads=threads)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "threads": runtime.threads}
    found |= {"clock": clock, "load": round(os.getloadavg()[0], 2)}
    now = time.process_time if clock == "cpu" else time.perf_counter
    for batch, repeats in ((1, 30), (16, 4)):
        x_BCHW = np.zeros((batch, architecture["in_chans"], *pair), dtype=np.float32)
        taken = []
        for _ in range(repeats + 2):
            started = now()
            runtime.logits(x_BCHW)
            taken.append(1000 * (now() - started))
        found[f"batch {batch}"] = round(float(np.quantile(taken[2:], 0.1)), 3)
        found[f"median {batch}"] = round(float(np.median(taken[2:])), 3)
    return found
