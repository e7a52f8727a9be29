"""Token pruning, structured pruning, export and eight bits, one upon the other; and a kill in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medloom
from medloom.data.phantom import write_phantom
from medloom.deployment.export import restore_model
from medloom.evaluation.predictions import read_csv
from medloom.files import sweep_orphans
from medloom.workflows import prune as prune_verb
from medloom.workflows import quantize_steps
from medloom.workflows.export import export
from medloom.workflows.prune import prune
from medloom.workflows.quantize import quantize
from medloom.workflows.train import train

OPTIONS = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "keep_rate": 0.5}
RECIPE: dict[str, Any] = {
    "name": "tokens",
    "data": {"patient": "column:patient", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 64, "channels": "grey", "statistics": "half"},
    "model": {"name": "token_pruned", "options": OPTIONS},
    "tokens": {"scorer_epochs": 1},
    "train": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "threads": 1, "amp": "off"},
    "evaluation": {"resamples": 50, "min_positives": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=120, size=64, seed=1)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE, data=data, out=tmp_path_factory.mktemp("trained") / "run").directory.root


def test_pruned_tokens_pruned_channels_and_eight_bits_stack(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"faster": 1.9, "low": 1.9, "high": 1.9, "before_ms": 1.9, "after_ms": 1.0, "turns": 7}
    speed = {"threads": 1, "runtime": "made up", "batch 1": one, "batch 16": one}
    monkeypatch.setattr(prune_verb, "speed_in_turns", lambda *a, **k: speed)  # a busy machine must not decide a test
    gate = prune_verb.quality_gate
    for verb in (prune_verb, quantize_steps):  # nor one film of two dozen that turns over
        monkeypatch.setattr(verb, "quality_gate", lambda *a, **k: {**gate(*a, **k), "passed": True, "reasons": []})
    prune(trained, data=data, ratio=0.4, steps=1, out=tmp_path / "small", threads=1)
    export(tmp_path / "small")
    small = medloom.load(tmp_path / "small")
    quantize(tmp_path / "small", images=32)

    place = tmp_path / "small" / "bundle-int8"
    said = json.loads((place / "model.json").read_text())
    assert said["architecture"]["keep_rate"] == 0.5
    assert said["architecture"]["pruned"] == small.document["architecture"]["pruned"]
    assert {each["precision"] for each in said["runtimes"].values()} == {"int8"}
    whole, rest = restore_model(medloom.load(trained)), restore_model(medloom.load(place))
    assert rest.keep_rate == 0.5
    assert sum(p.numel() for p in rest.parameters()) < 0.8 * sum(p.numel() for p in whole.parameters())
    table = read_csv(tmp_path / "small" / "predictions_test.csv")
    coarse = medloom.load(place).predict([data.parent / name for name in table.ids])
    found = np.array([list(answer.probabilities.values()) for answer in coarse])
    assert 0 < np.abs(found - table.probabilities).mean() <= 0.05


_KILLED = """
import os, signal, sys
import medloom.deployment.bundle_folder as folder
import medloom.workflows.quantize_steps as steps
from medloom.workflows.quantize import quantize
gate, real = steps.quality_gate, folder.write_bytes
steps.quality_gate = lambda *a, **k: {{**gate(*a, **k), "passed": True, "reasons": []}}
def dying(path, data):
    if {root!r} in str(path) and path.name == {name!r}:  # not the trial copy, which lies elsewhere
        path.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data)
folder.write_bytes = dying
quantize({root!r}, images=16, runtimes=["onnx"])
"""


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_X607_quantize_killed_in_the_middle_leaves_the_float_bundle_alone(trained: Path, name: str) -> None:
    before = medloom.load(trained).hash
    code = _KILLED.format(root=str(trained), name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (trained / "bundle-int8").exists()
    assert not (trained / "bundle-int8.json").exists()
    assert medloom.load(trained).hash == before
    sweep_orphans(trained)
    assert not [entry for entry in trained.iterdir() if "medloom-tmp" in entry.name]
