"""Time of an epoch of HATR-ResNet over HATR-Conv2D, in the paper's setting: 224 px, batches of 32. The paper says 1.2.

    python benchmarks/epoch_time.py

An epoch is the same number of steps for both, so the ratio of a step is the ratio of an epoch. The two take turns;
the ratio is taken inside a turn, of wall time and of CPU time of the process, which other work does not enter.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from medloom.files import write_json
from medloom.models.registry import create_model
from medloom.training.precision import MEMORY_FORMAT
from models import ratio, trainer, turn
from models_rr_vit import machine

SIDES = ("hatr_resnet50", "hatr_conv2d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "epoch_time.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = machine(os.getloadavg()[0])
    torch.manual_seed(0)
    x_BCHW = torch.randn(arguments.batch, 3, 224, 224).contiguous(memory_format=MEMORY_FORMAT)
    steps = {}
    for name in SIDES:
        network = create_model(name, num_classes=2).to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
        steps[name] = trainer(network, x_BCHW, arguments.precision)
    rng = np.random.default_rng(0)
    turns = [turn(steps, rng) for _ in range(arguments.repeats + 1)][1:]
    named = [{"ours": t["hatr_conv2d"], "resnet": t["hatr_resnet50"]} for t in turns]
    found = {clock: ratio(named, "resnet", clock) for clock in ("wall", "cpu")}
    seconds = {name: round(float(np.median([t[name]["wall"] for t in turns])), 3) for name in SIDES}
    print(found, seconds)
    write_json(
        arguments.out,
        {
            "question": "time of an epoch of HATR-ResNet-50 over one of HATR-Conv2D, 224 px, batches of 32",
            "paper": 1.2,
            "ratio": found,
            "seconds_a_step": seconds,
            "precision": arguments.precision,
            "repeats": arguments.repeats,
            "machine": {**where, "load_after": round(os.getloadavg()[0], 2)},
        },
    )


if __name__ == "__main__":
    main()
