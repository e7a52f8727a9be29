"""Weights and images that depend on nothing but names, so that answers can be compared between machines and versions.

Run this file to write ``golden.json`` anew; do so only when a change of the answers is meant.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

FILE = Path(__file__).with_name("golden.json")


def fill(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Everything that a file of weights holds, from numpy's generator, seeded with its name.

    Without trained statistics a deep network shrinks or swells its input; ``gain`` keeps the answers near one.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():  # it shares the memory; computed tables are not in it
            if not tensor.is_floating_point():
                continue
            draws = _uniform(name, tuple(tensor.shape))
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                draws = 1.0 + 0.2 * draws
            elif tensor.ndim < 2:
                draws = 0.2 * draws
            elif tensor.shape[0] > 1 or tensor.ndim == 2:
                draws = draws * (3.0 * gain / max(tensor[0].numel(), 1)) ** 0.5  # variance gain / fan in
            tensor.copy_(torch.from_numpy(draws.astype(np.float32)))
    return model


def images(in_chans: int, size: int, count: int = 2) -> torch.Tensor:
    """Fixed images ``(B, C, H, W)`` about as wide as standardised ones."""
    return torch.from_numpy((2.0 * _uniform("images", (count, in_chans, size, size))).astype(np.float32))


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 2.0 - 1.0


def main() -> None:
    from test_models import CASES, build

    answers = {}
    for name, case in CASES.items():
        with torch.no_grad():
            answers[name] = fill(build(name), case.gain)(images(3, case.sizes[0])).double().numpy().round(6).tolist()
        print(name, answers[name])
    FILE.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
