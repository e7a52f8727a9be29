"""Finished runs of several models and seeds on one made-up data set, for leaderboards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from run_fixture import make_run

from medloom.files import RunDirectory
from medloom.reporting.compared import Run, read

SIZES: dict[str, tuple[int, ...]] = {"train": (40, 60), "val": (30, 30), "test": (60, 80)}


def made(folder: Path, label: str, seed: int = 0, *, draw: int = 0, **more: Any) -> RunDirectory:
    """A run of the registry's model ``label``; ``draw`` decides how good its answers are by chance."""
    more.setdefault("sizes", SIZES)
    run = make_run(folder / f"{label}-seed{seed}", name=label, seed=draw, resamples=50, **more)
    change(run, **{"model.name": label, "train.seed": seed, "model.options": {}})
    return run


def change(run: RunDirectory, **values: Any) -> None:
    """Alter keys of the recorded recipe."""
    recipe = yaml.safe_load(run.recipe.read_text())
    for key, value in values.items():
        part, _, leaf = key.rpartition(".")
        (recipe[part] if part else recipe)[leaf] = value
    run.recipe.write_text(yaml.safe_dump(recipe))


def several(folder: Path, **more: Any) -> list[Run]:
    """Three models with two seeds each."""
    names = ("conv2d", "resnet18", "vit_tiny")
    found = []
    for k, label in enumerate(names):
        for seed in (0, 1):
            found.append(read(label, seed, made(folder, label, seed, draw=10 * k + seed, **more)))
    return found


def copy_of(run: Run, folder: Path) -> RunDirectory:
    """The run's directory once more, to be changed."""
    return RunDirectory(shutil.copytree(run.directory.root, folder / f"{run.directory.root.name}-copy"))
