"""A model that rebuilds its input, from recipe to report: what is logged, recorded and shown, and what is bundled."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from medloom.data.phantom import write_phantom
from medloom.files import RunDirectory
from medloom.reporting.pictures import read_pictures

Run = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = {
    "name": "rebuilt",
    "data": {"patient": "column:patient", "site": "column:site", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 48, "channels": "replicate", "statistics": "half"},
    "model": {"name": "rr_vit", "options": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
    "train": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "threads": 1},
    "evaluation": {"resamples": 200},
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=60, size=64, seed=1)


def finished(phantom: Path, folder: Path, medloom: Run, *overrides: str) -> RunDirectory:
    (folder / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    chosen = [word for override in overrides for word in ("--set", override)]
    done = medloom("train", folder / "r.yaml", "--data", phantom, "--out", folder / "run", *chosen)
    assert done.returncode == 0, done.stderr
    return RunDirectory(folder / "run")


def test_the_report_shows_what_was_rebuilt(phantom: Path, tmp_path: Path, medloom: Run) -> None:
    run = finished(phantom, tmp_path, medloom)
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    errors = [line["reconstruction"] for line in lines if line["event"] == "epoch"]
    assert errors[-1] < errors[0]
    shown = read_pictures(run)
    assert shown
    for entry in shown:
        assert entry.rebuilt is not None
        assert entry.rebuilt.shape == entry.image.shape == (48, 48)
        error = float(np.square((entry.rebuilt.astype(float) - entry.image) / 255).mean())
        assert entry.rebuilt_error == pytest.approx(error, rel=0.1)  # three equal channels, and rounding
    page = run.report.read_text(encoding="utf-8")
    assert page.count("as the model rebuilt it") == len(shown)
    assert "Reconstruction error" in page
    assert (run.bundle / "model.onnx").exists()


@pytest.mark.long
def test_a_decoder_that_was_never_taught_is_not_shown(phantom: Path, tmp_path: Path, medloom: Run) -> None:
    run = finished(phantom, tmp_path, medloom, "loss.reconstruction=0", "train.epochs=1")
    assert all(entry.rebuilt is None for entry in read_pictures(run))
    assert "as the model rebuilt it" not in run.report.read_text(encoding="utf-8")
