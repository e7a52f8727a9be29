"""A checkpoint directory to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medloom.training import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint directory with two checkpoints and best weights."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for step in (1, 2):
        best = checkpoint.write_weights(directory, step, {"w": torch.full((3,), float(step))})
        checkpoint.write_checkpoint(directory, step, {"best": best, "n": step}, {"a": torch.arange(4.0) * step})
    return directory
