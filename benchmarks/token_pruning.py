"""Is a model with fewer tokens faster by the clock? Every row against its unpruned twin, in a process of its own.

    python benchmarks/token_pruning.py                       # all rows, all runtimes that are installed
    python benchmarks/token_pruning.py --rows "keep 0.5" --runtimes eager
    python benchmarks/token_pruning.py --runtimes eager --device cuda --batches 64 --out cuda.json  # an accelerator
    python benchmarks/token_pruning.py --count               # multiply-adds of each row, and nothing timed

A row and its twin have the same weights and take turns on the same images, so the ratio of a turn does not see what
else the machine does; the median of the ratios is given with the middle 90 percent of its bootstrap. Each row also
says how many multiply-adds ran for one image (counted, not computed from a formula), and each runtime the largest
difference between its answers and PyTorch's, and whether it kept the same tokens. Every cell names its machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medloom.deployment.export import onnx_bytes
from medloom.files import write_json
from medloom.machine import instructions
from medloom.models.macs import count_macs
from medloom.models.pruning import reduce_tokens
from medloom.models.registry import create_model
from medloom.workflows.environment import cpu_name

RUNTIMES = ("eager", "onnxruntime", "openvino")
OWN_RATE = ("gate", "predictors")
SIZE = 224


@dataclass(frozen=True)
class Row:
    """One way to save tokens: a model, and what is done to it; ``goal`` is the least speed-up asked of it.

    Methods: ``gate`` and ``predictors`` are models with a keep rate, whose twin is themselves at rate 1 (DynamicViT
    then leaves its predictors out); ``evit`` and ``tome`` are put into a ViT.
    """

    model: str
    keep: float
    second: float = 1.0
    method: str = "gate"
    options: dict[str, Any] = field(default_factory=dict)
    goal: float | None = None


ROWS = {
    "keep 0.7": Row("token_pruned", 0.7),
    "keep 0.5": Row("token_pruned", 0.5, goal=1.6),
    "keep 0.3": Row("token_pruned", 0.3, goal=2.2),
    "keep 0.5, second cut 0.7": Row("token_pruned", 0.5, 0.7, goal=1.85),
    "ResNet-18 stem, 6 blocks, keep 0.5": Row(
        "token_pruned", 0.5, options={"trunk": "resnet18", "depth": 6}
    ),
    "DynamicViT 0.7": Row("dynamic_vit", 0.7, method="predictors"),
    "ViT-S, EViT 0.7": Row("vit_small", 0.7, method="evit"),
    "ViT-S, EViT 0.5": Row("vit_small", 0.5, method="evit"),
    "ViT-S, ToMe to 0.2": Row("vit_small", 0.2, method="tome"),
}  # fmt: skip


class WithKept(nn.Module):
    """Logits, and the mask of kept tokens, as outputs of one graph: to ask a runtime which tokens it kept."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        taps: dict[str, Any] = {}
        logits_BK = self.model(x_BCHW, taps)
        return torch.cat([logits_BK, taps["kept"].value], dim=1)


def build(row: Row) -> tuple[nn.Module, nn.Module]:
    """The dense twin and the pruned model, with the same weights."""
    pair = []
    for keep, second in ((1.0, 1.0), (row.keep, row.second)):
        torch.manual_seed(0)
        options = dict(row.options)
        if row.method in OWN_RATE:
            options |= {"keep_rate": keep}
        if row.method == "gate":
            options |= {"second_keep": second}
        model = create_model(row.model, num_classes=2, in_chans=1, image_size=SIZE, **options)
        if row.method not in OWN_RATE and keep < 1.0:
            reduce_tokens(model, row.method, keep_rate=keep)  # type: ignore[arg-type]
        pair.append(model.eval())
    return pair[0], pair[1]


@functools.cache
def _onnx(model: nn.Module) -> bytes:
    """Once for all batches: ToMe takes minutes."""
    return onnx_bytes(model, in_chans=1, size=(SIZE, SIZE))


def runner(
    model: nn.Module, runtime: str, threads: int, batch: int, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """``float32 (B, 1, H, W) -> (B, ...)`` in that runtime; fetching the answer waits for an accelerator."""
    if runtime == "eager":
        torch.set_num_threads(threads)
        model = model.to(device)

        def answer(x_BCHW: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(x_BCHW).to(device)).cpu().numpy()

        return answer
    torch.set_num_threads(1)
    data = _onnx(model)
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda x_BCHW: session.run(None, {"image": x_BCHW})[0]
    import openvino

    core = openvino.Core()
    network = core.read_model(data, b"")
    network.reshape([batch, 1, SIZE, SIZE])
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(network, "CPU", {"INFERENCE_NUM_THREADS": threads, **hints})
    return lambda x_BCHW: compiled(x_BCHW)[0]


def measure(name: str, runtime: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row in one runtime: ratios at each batch, and parity."""
    row = ROWS[name]
    rng = np.random.default_rng(0)
    images = rng.random((max(arguments.batches), 1, SIZE, SIZE), dtype=np.float32)
    result: dict[str, Any] = {}
    dense, pruned = build(row)
    for batch in arguments.batches:
        sides = [runner(model, runtime, arguments.threads, batch, arguments.device) for model in (dense, pruned)]
        x_BCHW = images[:batch]
        for side in sides:
            side(x_BCHW), side(x_BCHW)
        turns = []
        for _ in range(arguments.repeats if batch == 1 else max(arguments.repeats // 4, 5)):
            turn = []
            for side in sides:
                started = time.perf_counter()
                side(x_BCHW)
                turn.append(time.perf_counter() - started)
            turns.append(turn)
        seconds = np.array(turns)
        ratios = seconds[:, 0] / seconds[:, 1]
        draws = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        result[f"batch {batch}"] = {
            "faster": round(float(np.median(ratios)), 3),
            "low": round(float(np.quantile(draws, 0.05)), 3),
            "high": round(float(np.quantile(draws, 0.95)), 3),
            "dense_ms": round(1000 * float(np.median(seconds[:, 0])) / batch, 2),
            "pruned_ms": round(1000 * float(np.median(seconds[:, 1])) / batch, 2),
            "turns": len(turns),
        }
    if runtime != "eager":
        result["parity"] = parity(row, pruned, runtime, images[:4], arguments.threads)
    return result


def parity(row: Row, pruned: nn.Module, runtime: str, x_BCHW: np.ndarray, threads: int) -> dict[str, Any]:
    """Largest difference of the answers, and whether the same tokens were kept."""
    model = pruned if row.method == "tome" else WithKept(pruned)
    there = runner(model, runtime, threads, len(x_BCHW))(x_BCHW)
    with torch.inference_mode():
        here = model(torch.from_numpy(x_BCHW)).numpy()
    found: dict[str, Any] = {"largest_difference": float(np.abs(there[:, :2] - here[:, :2]).max())}
    if row.method != "tome":
        found |= {"same_tokens": bool((there[:, 2:] == here[:, 2:]).all()), "kept": int(here[0, 2:].sum())}
    return found


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of every cell, as a later one may be measured elsewhere."""
    device = {} if arguments.device == "cpu" else {"device": torch.cuda.get_device_name()}
    return {
        "processor": cpu_name(),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **device,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40, help="turns at batch 1; a quarter of it at batch 16")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--device", default="cpu", help="of eager PyTorch; the other runtimes take the CPU")
    parser.add_argument("--count", action="store_true", help="only count multiply-adds")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "RUNTIME"), help="only this, as JSON")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "token_pruning.json")
    arguments = parser.parse_args()
    if arguments.one:
        name, runtime = arguments.one
        print(json.dumps(measure(name, runtime, arguments)))
        return
    whole = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": {}}
    whole |= {
        "question": "how many times faster than the same network with all its tokens; medians of paired ratios",
        "size": SIZE,
        "macs": "multiply-adds that ran for one image, of the twin with all tokens and of the row",
    }
    for name in arguments.rows:
        dense, pruned = (count_macs(model, 1, (SIZE, SIZE)) for model in build(ROWS[name]))
        row = whole["rows"].setdefault(name, {"goal": ROWS[name].goal})
        row["macs"] = {"dense": dense, "pruned": pruned, "ratio": round(dense / pruned, 3)}
        write_json(arguments.out, whole)
        for runtime in () if arguments.count else arguments.runtimes:
            load = os.getloadavg()[0]
            command = [sys.executable, __file__, "--one", name, runtime, "--device", arguments.device]
            command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
            command += ["--batches", *map(str, arguments.batches)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}, {runtime}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
                continue
            said = {"load_before": round(load, 2), "machine": machine(arguments)}
            row[runtime] = json.loads(done.stdout.splitlines()[-1]) | said
            write_json(arguments.out, whole)
            print(f"{name}, {runtime}: {json.dumps(row[runtime])}", flush=True)


if __name__ == "__main__":
    main()
