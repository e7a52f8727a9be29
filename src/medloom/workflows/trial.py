"""What a run will cost, found by starting it: a few steps of the true loop on made-up images, and a count of its work.

Each function runs in a process of its own (``workflows.child``), so that its peak memory is its own.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medloom.config import load_recipe
from medloom.data.cache import DevicePixels
from medloom.data.preprocess import Preprocess
from medloom.files import RunDirectory
from medloom.models.macs import count_macs
from medloom.models.registry import create_model
from medloom.training.batches import Examples
from medloom.training.fingerprint import fingerprint
from medloom.training.journal import peak_memory
from medloom.training.loop import fit
from medloom.workflows.train_steps import device_of

EPOCHS, STEPS = 4, 1  # of the first epoch nothing is counted: it warms up


def trial(recipe: dict[str, Any], num_classes: int, multi_label: bool) -> dict[str, Any]:
    """Train ``EPOCHS * STEPS`` steps at the recipe's batch and size.

    Returns ``seconds_per_step``, ``seconds_per_scored_image``, ``peak_memory`` in bytes (and ``peak_device_memory``
    on a GPU), ``parameters``, ``macs``.

    Raises:
        What the loop and the model raise: T407 out of memory, C511, U206 to U208, ...
    """
    short: dict[str, Any] = {
        "epochs": EPOCHS,
        "max_steps": None,
        "patience": None,
        "save_steps": None,
        "warmup_epochs": 0.0,
    }
    short["step_epochs"] = ()
    wanted = load_recipe({**recipe, "train": {**recipe["train"], **short}})
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
        fit(
            model,
            train=part(np.arange(train)),
            val=part(np.arange(train, train + val)),
            recipe=wanted,
            run=run,
            preprocess=preprocess,
            fingerprint=fingerprint(wanted, {"hash": "trial"}, device=device),
            device=device,
        )
        lines = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    counted = [line for line in lines if line["event"] == "epoch"][1:]
    return {
        "seconds_per_step": float(np.median([e["seconds"] for e in counted])) / STEPS,
        "seconds_per_scored_image": float(np.median([e["val_seconds"] for e in counted])) / val,
        **peak_memory(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": count_macs(model, preprocess.in_chans, preprocess.size),
    }


def count(architectures: list[dict[str, Any]]) -> list[dict[str, int]]:
    """``parameters`` and ``macs`` of networks as ``model.json`` describes them, at their own size and channels."""
    out = []
    for values in architectures:
        with torch.device("meta"):
            model = create_model(**values)
        macs = count_macs(model, values.get("in_chans", 3), values.get("image_size", 224))
        out.append({"parameters": sum(p.numel() for p in model.parameters()), "macs": macs})
    return out
