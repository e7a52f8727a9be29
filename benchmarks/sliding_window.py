"""Time and peak memory of sliding-window inference over a volume: MedLoom's numpy slabs against MONAI's inferer.

    python benchmarks/sliding_window.py
    python benchmarks/sliding_window.py --volume 96 96 80 --patch 48 48 48 --repeats 3   # in minutes

The same network, weights, volume, windows, overlap and weighting on both sides, so the ratio of the times is that of
what lies around the network. Sides:

- medloom: ``data.sliding.slide``, the logits of the whole volume as the result, as MONAI's inferer gives them;
- medloom_labels: ``slide_labels``, which keeps the most probable class of each finished slab and no logits;
- monai: ``monai.inferers.sliding_window_inference(mode="gaussian", sigma_scale=0.125)``.

Each side of each repeat has a process of its own, which builds the network, answers one window to warm up, notes its
memory, answers the volume, and notes the most that it ever held. Sides take turns inside a repeat, and the ratio is
taken inside a repeat too; with several, the median of the ratios counts. ``network_share`` is how much of the time was
spent inside the network. The answers are compared: a tenth of the volume's logits, by their largest difference.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medloom.data.sliding import count_windows, slide, slide_labels
from medloom.files import write_json
from medloom.models.registry import create_model
from models_rr_vit import machine

SIDES = ("medloom", "monai", "medloom_labels")
GOALS = {"time_ratio": 1.2, "peak_bytes": 4 * 10**9, "largest_difference": 1e-4}
CLASSES = 3
_SAMPLED = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="maxvit_unet_3d_tiny")
    parser.add_argument("--volume", type=int, nargs=3, default=(256, 256, 200))
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=1, help="windows per call of the network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help="only answer with this side, and print what it took")
    parser.add_argument("--sample", type=Path, help="where a side leaves a part of its answer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sliding_window.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(answer_with(arguments)))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        repeats = [one_repeat(Path(scratch), turn) for turn in range(arguments.repeats)]
        difference = compare(Path(scratch))
    cpu = {s: [r[s]["cpu_seconds"] / r["monai"]["cpu_seconds"] for r in repeats] for s in SIDES if s != "monai"}
    ratios = {s: [r[s]["seconds"] / r["monai"]["seconds"] for r in repeats] for s in SIDES if s != "monai"}
    result = {
        "benchmark": "sliding_window",
        "question": "time and peak memory of the answer to a whole volume, over MONAI's inferer around one network",
        "model": arguments.model,
        "volume": list(arguments.volume),
        "patch": list(arguments.patch),
        "overlap": arguments.overlap,
        "windows": count_windows(arguments.volume, arguments.patch, arguments.overlap),
        "batch": arguments.batch,
        "classes": CLASSES,
        "precision": "float32",
        "repeats": repeats,
        "time_ratio": {side: round(statistics.median(values), 4) for side, values in ratios.items()},
        "time_ratio_each": {side: [round(v, 4) for v in values] for side, values in ratios.items()},
        "cpu_time_ratio": {side: round(statistics.median(values), 4) for side, values in cpu.items()},
        "peak_bytes": {side: max(r[side]["peak_bytes"] for r in repeats) for side in SIDES},
        "largest_difference": difference,
        "goals": GOALS,
        "machine": machine(load),
    }
    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


def answer_with(arguments: argparse.Namespace) -> dict[str, Any]:
    """What one side took for the volume, in seconds and bytes."""
    torch.manual_seed(0)
    patch = tuple(arguments.patch)
    model = create_model(arguments.model, num_classes=CLASSES, in_chans=1, image_size=patch, spatial_dims=3).eval()
    volume = np.random.default_rng(0).normal(size=(1, *arguments.volume)).astype(np.float32)
    inside = [0.0]

    def network(x_BCP: Tensor) -> Tensor:
        started = time.perf_counter()
        logits_BKP: Tensor = model(x_BCP)
        inside[0] += time.perf_counter() - started
        return logits_BKP

    def answer(x_BCP: np.ndarray) -> np.ndarray:
        logits: np.ndarray = network(torch.from_numpy(x_BCP)).numpy()
        return logits

    with torch.inference_mode():
        network(torch.zeros(arguments.batch, 1, *patch))
        inside[0] = 0.0
        options = {"patch": patch, "classes": CLASSES, "overlap": arguments.overlap, "batch": arguments.batch}
        run = {"medloom": slide, "medloom_labels": slide_labels}.get(arguments.side)
        if run is None:
            from monai.inferers import sliding_window_inference
        before, started, spent = _memory("VmRSS"), time.perf_counter(), time.process_time()
        if run is not None:
            result = run(volume, answer, **options)
        else:
            result = sliding_window_inference(
                torch.from_numpy(volume)[None],
                patch,
                arguments.batch,
                network,
                overlap=arguments.overlap,
                mode="gaussian",
                sigma_scale=0.125,
            )[0].numpy()
    seconds, spent = time.perf_counter() - started, time.process_time() - spent
    peak = _memory("VmHWM")
    if arguments.sample is not None and result.ndim == 4:
        np.save(arguments.sample, result.reshape(CLASSES, -1)[:, ::_SAMPLED])
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(spent, 3),
        "network_share": round(inside[0] / seconds, 4),
        "peak_bytes": peak,
        "before_bytes": before,
    }


def one_repeat(scratch: Path, turn: int) -> dict[str, Any]:
    """Every side once, each in a process of its own; the order turns with the repeats."""
    order = SIDES[turn % len(SIDES) :] + SIDES[: turn % len(SIDES)]
    found: dict[str, Any] = {}
    for side in order:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--sample", str(scratch / f"{side}.npy")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side] = json.loads(done.stdout)
        print(f"{side}: {found[side]}", file=sys.stderr, flush=True)
    return found


def compare(scratch: Path) -> float:
    """Largest difference of the sampled logits."""
    ours, theirs = (np.load(scratch / f"{side}.npy") for side in ("medloom", "monai"))
    return float(np.abs(ours - theirs).max())


def _memory(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process, in bytes, as Linux counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
