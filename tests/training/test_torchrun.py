"""Two processes under torchrun do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from two_processes import scored

from medloom.training.distributed import World

HERE = Path(__file__).parent


def errors_of(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line["reconstruction"] for line in lines if line["event"] == "epoch"]


def test_two_processes_train_one_model_and_score_every_image_once(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(HERE / "two_processes.py"), str(tmp_path), "Plain", "Noisy", "rebuilding", "Held"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    # Without batch statistics and dropout the processes are only a way to cut the same sums.
    for kind in ("Plain", "rebuilding", "Held"):
        alone, _ = scored(tmp_path / "alone" / kind, kind, World())
        np.testing.assert_allclose(np.load(tmp_path / f"{kind}.npz")["logits"], alone, atol=1e-4)
    errors = [errors_of(tmp_path / "rebuilding"), errors_of(tmp_path / "alone" / "rebuilding")]
    np.testing.assert_allclose(*errors, rtol=1e-4)
    for kind in ("Plain", "Noisy", "rebuilding", "Held"):
        assert np.load(tmp_path / f"{kind}.npz")["count"].tolist() == [1] * 61
        assert not np.allclose(np.load(tmp_path / f"{kind}.npz")["logits"], 0)
    assert (tmp_path / "Plain" / "log.jsonl").read_text().count('"event": "epoch"') == 3
