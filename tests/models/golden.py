"""Weights and images that depend on nothing but names, so that answers can be compared between machines and versions.

Run this file to write ``golden.json`` anew, or with names to write those alone; do so only when a change of the
answers is meant.
"""

from __future__ import annotations

import hashlib
import json
import sys
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


def images(in_chans: int, size: int | tuple[int, ...], count: int = 2) -> torch.Tensor:
    """Fixed images ``(B, C, H, W)``, or volumes, about as wide as standardised ones."""
    extents = (size, size) if isinstance(size, int) else size
    return torch.from_numpy((2.0 * _uniform("images", (count, in_chans, *extents))).astype(np.float32))


@torch.no_grad()
def settle(model: nn.Module, size: int | tuple[int, ...]) -> nn.Module:
    """Running statistics of a few fixed images, for networks that double their maps from block to block."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    usual = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
        layer.train()  # the norms alone: nothing random may happen
    model(images(3, size, count=8))
    for layer, momentum in zip(norms, usual, strict=True):
        layer.momentum = momentum
        layer.eval()
    return model


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 2.0 - 1.0


def main(names: list[str]) -> None:
    from test_models import CASES, prepared

    answers = json.loads(FILE.read_text()) if names else {}
    for name in names or CASES:
        with torch.no_grad():
            answers[name] = prepared(name)(images(3, CASES[name].sizes[0])).double().numpy().round(6).tolist()
        print(name, answers[name])
    FILE.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
