"""One trial of a search: how fast the composition is, and then how well it learns, on validation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medloom.config import Recipe, load_recipe
from medloom.data.cache import to_device
from medloom.data.sampling import class_weights
from medloom.deployment.export import onnx_bytes
from medloom.deployment.runtime import Runtime
from medloom.files import RunDirectory, make_folder
from medloom.models.macs import count_macs
from medloom.models.registry import create_model
from medloom.training.batches import Examples
from medloom.training.classification import classifying
from medloom.training.fingerprint import fingerprint
from medloom.training.loop import fit
from medloom.workflows.networks import load_teacher
from medloom.workflows.prepare import prepare
from medloom.workflows.run_steps import device_of

REPEATS = 21


class Session:
    """The data, prepared once for all trials of one process; no test image is ever looked at after the audit."""

    def __init__(self, recipe: Recipe, place: Path, *, threads: int | None, quiet: bool) -> None:
        self.recipe, self.place, self.threads = recipe, place, threads
        self.device = device_of(recipe)
        folder = RunDirectory(place / "data")
        make_folder(folder.root)
        self.prepared = prepare(recipe, folder, resume=folder.records.exists(), quiet=quiet)
        self.pixels = to_device(self.prepared.cache, self.device)

    def measure(self, model: dict[str, Any]) -> dict[str, Any]:
        """``ms`` of one image, ``parameters`` and ``macs``; of a fresh network, for speed asks for no training."""
        network, preprocess = self._build(model), self.prepared.preprocess
        data = onnx_bytes(network, in_chans=preprocess.in_chans, size=preprocess.size)
        found = Runtime(data, threads=self.threads).latency(batches=(1,), repeats=REPEATS)
        parameters = sum(p.numel() for p in network.parameters())
        return {
            "ms": found["1"],
            "parameters": parameters,
            "macs": count_macs(network, preprocess.in_chans, preprocess.size),
        }

    def train(self, model: dict[str, Any], number: int) -> tuple[float | None, bool]:
        """Best validation AUC, and whether a signal ended it before its time."""
        values, dataset = self.recipe.as_dict(), self.prepared.dataset
        values["model"] |= model
        recipe = load_recipe(values)
        run = RunDirectory(self.place / "trials" / f"{number + 1:03d}")
        shutil.rmtree(run.root, ignore_errors=True)  # of a trial of this number that a kill cut short
        make_folder(run.root)
        train = dataset.select("train")
        network = self._build(model)
        teacher, _ = load_teacher(recipe, self.prepared, self.device)
        work = classifying(
            network,
            train=self._examples("train"),
            val=self._examples("val"),
            recipe=recipe,
            preprocess=self.prepared.preprocess,
            device=self.device,
            class_weights=class_weights(train.targets(), len(dataset.classes), recipe.imbalance, dataset.classes),
            teacher=teacher,
        )
        marks = fingerprint(recipe, {"hash": dataset.hash()}, device=self.device)
        done = fit(network, work=work, recipe=recipe, run=run, fingerprint=marks, device=self.device)
        shutil.rmtree(run.checkpoint, ignore_errors=True)
        best = done.best or {}
        return (float(best["score"]) if best.get("monitor") == "val_auc" else None), bool(done.exit_code)

    def _build(self, model: dict[str, Any]) -> nn.Module:
        torch.manual_seed(self.recipe.train.seed)
        preprocess, classes = self.prepared.preprocess, self.prepared.dataset.classes
        shape: dict[str, Any] = {"in_chans": preprocess.in_chans, "image_size": preprocess.size}
        return create_model(model["name"], num_classes=len(classes), **shape, **model["options"])

    def _examples(self, split: str) -> Examples:
        part = self.prepared.dataset.select(split)
        return Examples(self.pixels, self.prepared.rows(split), part.targets(), tuple(r.id for r in part.records))
