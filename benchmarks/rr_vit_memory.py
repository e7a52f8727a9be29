"""Peak memory of one training step of Hybrid RR-ViT at 224 px (3,137 tokens), which its authors had no memory for.

    python benchmarks/rr_vit_memory.py

Sides: the fused kernel with checkpointed blocks, the fused kernel alone, and the softmax written out without
checkpointing. Each has a process of its own, which builds the model, notes its memory, takes one step (joint loss,
AdamW, float32) and notes the most that it ever held. The difference is the step: activations, gradients, moments.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from medloom.files import write_json
from models_rr_vit import build, machine, trainer

SIDES: dict[str, dict[str, bool]] = {
    "fused_checkpointed": {"explicit": False, "checkpoint_blocks": True},
    "fused": {"explicit": False, "checkpoint_blocks": False},
    "explicit": {"explicit": True, "checkpoint_blocks": False},
}
GOAL = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1, help="the explicit form takes about 3 GB per image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=list(SIDES), help="only take the step of this side, and print its memory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rr_vit_memory.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(step_of(arguments.side, arguments.size, arguments.batch)))
        return
    load = os.getloadavg()[0]
    sides = {side: in_a_process_of_its_own(side) for side in SIDES}
    steps = {side: found["step_bytes"] for side, found in sides.items()}
    result = {
        "benchmark": "rr_vit_memory",
        "question": "peak memory of one training step, fused and checkpointed, over that of the explicit softmax",
        "model": "hybrid_rr_vit",
        "size": arguments.size,
        "batch": arguments.batch,
        "precision": "float32",
        "sides": sides,
        "ratio": round(steps["fused_checkpointed"] / steps["explicit"], 4),
        "ratio_without_checkpointing": round(steps["fused"] / steps["explicit"], 4),
        "goal": GOAL,
        "machine": machine(load),
    }
    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


def step_of(side: str, size: int, batch: int) -> dict[str, Any]:
    """Memory of this process before and after its one step, in bytes."""
    torch.manual_seed(1)
    step = trainer(build(size=size, **SIDES[side]), torch.randn(batch, 1, size, size))
    before, started = _memory("VmRSS"), time.perf_counter()
    step()
    seconds, peak = time.perf_counter() - started, _memory("VmHWM")
    return {"step_bytes": peak - before, "peak_bytes": peak, "before_bytes": before, "seconds": round(seconds, 2)}


def in_a_process_of_its_own(side: str) -> dict[str, Any]:
    """The same with the arguments of this process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _memory(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process, in bytes, as Linux counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
