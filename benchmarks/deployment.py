"""How many times faster than eager float32 PyTorch is the same network in each runtime, and what an answer costs.

    python benchmarks/deployment.py                          # all rows; rows that are done are not measured again
    python benchmarks/deployment.py --rows resnet50 "token pruned, keep 0.5"
    python benchmarks/deployment.py --edge runs/pneumonia_edge/bundle-int8   # its cold start, besides

Weights are random: speed does not depend on them. Files are made in one process; every measurement has its own, and
eager PyTorch is measured before and after the others of its row, so that a machine that slows down is seen
(``drift``). The token-pruned network is compared with its own twin that keeps all tokens. Goals are batch 1 / batch 16.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 224
BATCHES = (1, 16)
KINDS = ("onnx", "openvino", "openvino bf16", "onnx int8", "openvino int8")
CALIBRATION = 16


@dataclass(frozen=True)
class Row:
    """A model; ``goal`` is asked of the kinds named in ``by``, of the fastest of them at each batch."""

    model: str
    goal: tuple[float, float]
    by: tuple[str, ...] = KINDS
    options: dict[str, Any] = field(default_factory=dict)
    eager: dict[str, Any] | None = None  # options of the network to compare with, where they differ


HYBRID = (2.5, 4.0)
ROWS = {
    "resnet50": Row("resnet50", (5, 10), ("openvino int8",)),
    "deit_small": Row("deit_small", (4, 5.5), ("openvino int8",)),
    "hatr_resnet50": Row("hatr_resnet50", (4, 8)),
    "hatr_conv2d": Row("hatr_conv2d", (4, 8)),
    "token pruned, keep 0.5": Row(
        "token_pruned", (6, 8), ("openvino int8",), {"keep_rate": 0.5}, {"keep_rate": 1.0}
    ),
    **{
        name: Row(name, HYBRID)
        for name in (
            *("coatnet_0", "maxvit_tiny", "convnext_deit", "convnext_deit_atto", "medvit_tiny", "medvit_small"),
            *("dbct", "rr_vit", "hybrid_rr_vit", "token_pruned"),
        )
    },
}  # fmt: skip
BUNDLES = {"resnet50, file over network": "resnet50", "efficientnet_b0, cold start": "efficientnet_b0"}


def prepare(model: str, options: dict[str, Any], folder: Path, size: int) -> None:
    """Write ``model.onnx``, ``model.xml``, ``model.bin`` and both in eight bits."""
    import torch

    from medloom.deployment.export import onnx_bytes
    from medloom.deployment.openvino_ir import ir_of
    from medloom.deployment.quantize import quantise_onnx, quantise_openvino
    from medloom.models.registry import create_model

    torch.manual_seed(0)
    network = create_model(model, num_classes=2, in_chans=1, image_size=size, **options).eval()
    onnx = onnx_bytes(network, in_chans=1, size=(size, size))
    ir = ir_of(onnx)
    x_NCHW = np.random.default_rng(0).standard_normal((CALIBRATION, 1, size, size)).astype(np.float32)
    (folder / "model.onnx").write_bytes(onnx)
    write_ir(folder / "model", ir)
    write_ir(folder / "int8", quantise_openvino(ir, x_NCHW))
    (folder / "int8.onnx").write_bytes(quantise_onnx(onnx, x_NCHW))


def write_ir(stem: Path, ir: Any) -> None:
    stem.with_suffix(".xml").write_bytes(ir.xml)
    stem.with_suffix(".bin").write_bytes(ir.weights)


def prepare_bundle(model: str, folder: Path, size: int) -> None:
    """A bundle whose IR is in eight bits, for the whole way from file to answer."""
    from medloom.data.phantom import golden_images
    from medloom.data.preprocess import Preprocess
    from medloom.deployment.bundle_files import read_arrays
    from medloom.deployment.bundle_folder import golden_bytes, open_folder
    from medloom.deployment.bundle_rewrite import rewrite
    from medloom.deployment.export import export_bundle
    from medloom.deployment.openvino_ir import ir_of
    from medloom.deployment.quantize import quantise_openvino
    from medloom.deployment.runtime import Runtime, open_image
    from medloom.models.registry import create_model

    architecture = {"name": model, "num_classes": 2, "in_chans": 1, "image_size": [size, size]}
    preprocess = Preprocess(size=(size, size), channels="grey", mean=(0.45,), std=(0.25,))
    network = create_model(**architecture).eval()
    plain = export_bundle(
        network, folder / "plain", name=model, architecture=architecture, classes=("NORMAL", "PNEUMONIA"),
        task="binary", preprocess=preprocess, images=golden_images(4, size, 1),
    )  # fmt: skip
    opened = open_folder(plain)
    arrays = dict(read_arrays(plain / "golden.npz", opened.content["golden.npz"]))
    images = [preprocess.to_uint8(open_image(image, "golden")) for image in arrays["images"]]
    x_NCHW = np.ascontiguousarray(preprocess.normalise(np.stack(images)), dtype=np.float32)
    ir = quantise_openvino(ir_of(opened.content["model.onnx"]), x_NCHW)
    runtime = Runtime(ir.xml, weights=ir.weights)
    arrays["logits_openvino"] = np.concatenate([runtime.logits(x_NCHW[k : k + 1]) for k in range(len(x_NCHW))])
    said = {
        "onnx": {"precision": "float32", "tolerance": 1e-4},
        "openvino": {"precision": "int8", "tolerance": 0.02},
    }
    files = {"model.xml": ir.xml, "model.bin": ir.weights, "golden.npz": golden_bytes(**arrays)}
    rewrite(opened, folder / "bundle", files=files, changes={"runtimes": said})


def answerer(kind: str, row: Row, folder: Path, threads: int, size: int) -> Callable[[np.ndarray], object]:
    """``float32 (B, 1, H, W) -> (B, 2)``."""
    if kind == "eager":
        import torch

        from medloom.models.registry import create_model

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        options = row.options if row.eager is None else row.eager
        network = create_model(row.model, num_classes=2, in_chans=1, image_size=size, **options).eval()

        def answer(x_BCHW: np.ndarray) -> object:
            with torch.inference_mode():
                return network(torch.from_numpy(x_BCHW)).numpy()

        return answer
    from medloom.deployment.runtime import Runtime

    runtime, _, precision = kind.partition(" ")
    stem = folder / ("int8" if precision == "int8" else "model")
    if runtime == "onnx":
        return Runtime(stem.with_suffix(".onnx").read_bytes(), threads=threads).logits
    weights = stem.with_suffix(".bin").read_bytes()
    bf16 = "bf16" if precision == "bf16" else "f32"
    return Runtime(stem.with_suffix(".xml").read_bytes(), weights=weights, threads=threads, precision=bf16).logits


def measure(kind: str, name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per image at each batch, after three turns that are not counted.

    Seven turns at least; where those would take over 20 seconds, three, after one that is not counted.
    """
    answer = answerer(kind, ROWS[name], folder, arguments.threads, arguments.size)
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
    for batch in BATCHES:
        shape = (batch, 1, arguments.size, arguments.size)
        x_BCHW = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        started = time.perf_counter()
        answer(x_BCHW)
        slow = 7 * (time.perf_counter() - started) > 20
        for _ in range(0 if slow else 2):
            answer(x_BCHW)
        taken: list[float] = []
        while len(taken) < (3 if slow else 7) or (sum(taken) < arguments.seconds and len(taken) < 400):
            started = time.perf_counter()
            answer(x_BCHW)
            taken.append(time.perf_counter() - started)
        found[f"batch {batch}"] = {"ms": round(1000 * float(np.median(taken)) / batch, 3), "turns": len(taken)}
    return found


def measure_row(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Eager, every kind, and eager again, each in a process of its own."""
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        child(["--prepare", name, "--folder", folder], arguments)
        first = child(["--one", "eager", name, "--folder", folder], arguments)
        found = {kind: child(["--one", kind, name, "--folder", folder], arguments) for kind in arguments.kinds}
        second = child(["--one", "eager", name, "--folder", folder], arguments)
    eager = {b: (first[f"batch {b}"]["ms"] + second[f"batch {b}"]["ms"]) / 2 for b in BATCHES}
    for values in found.values():
        for b in BATCHES:
            values[f"batch {b}"]["faster"] = round(eager[b] / values[f"batch {b}"]["ms"], 2)
    asked = [kind for kind in row.by if kind in found]
    best = [max((found[kind][f"batch {b}"]["faster"] for kind in asked), default=None) for b in BATCHES]
    return {
        "goal": list(row.goal),
        "best": best,
        "reached": bool(asked) and all(b is not None and b >= g for b, g in zip(best, row.goal)),
        "eager": {"before": first, "after": second},
        "drift": round(max(abs(first[f"batch {b}"]["ms"] / second[f"batch {b}"]["ms"] - 1) for b in BATCHES), 3),
        **found,
    }


def measure_bundle(bundle: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """From file to answer over the network alone, and the cold start of ``predict``."""
    from medloom.workflows.benchmark import benchmark

    rows = benchmark([bundle], threads=arguments.threads, seconds=arguments.seconds).values["rows"]
    found: dict[str, Any] = {}
    for row in rows:
        one = row["batch 1"]
        ratio = one["file to answer"]["median_ms"] / one["network"]["median_ms"]
        said = {key: value for key, value in row.items() if key != "bundle"}  # a place on this machine
        found[f"{row['runtime']} {row['precision']}"] = {"file over network": round(ratio, 3), **said}
    return found


def child(extra: list[str], arguments: argparse.Namespace) -> Any:
    common = ["--threads", arguments.threads, "--seconds", arguments.seconds, "--size", arguments.size]
    command = [sys.executable, __file__, *extra, *map(str, common)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[*ROWS, *BUNDLES], choices=[*ROWS, *BUNDLES])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each batch of each kind is measured")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--edge", type=Path, help="a bundle whose cold start is measured too")
    parser.add_argument("--again", action="store_true", help="measure rows that are done once more")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "ROW"), help="only this, as JSON")
    parser.add_argument("--prepare", metavar="ROW", help="only write its files")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "deployment.json")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.folder, arguments)))
        return
    if arguments.prepare:
        if arguments.prepare in BUNDLES:
            prepare_bundle(BUNDLES[arguments.prepare], arguments.folder, arguments.size)
        else:
            row = ROWS[arguments.prepare]
            prepare(row.model, row.options, arguments.folder, arguments.size)
        print("{}")
        return
    from importlib.metadata import version

    from medloom.files import write_json
    from medloom.machine import instructions
    from medloom.workflows.environment import cpu_name

    whole = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": {}}
    whole |= {
        "question": "times faster than eager float32 PyTorch of the same network; milliseconds are per image, medians",
        "size": arguments.size,
        "machine": {
            "processor": cpu_name(),
            "instructions": instructions(),
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnxruntime", "openvino", "nncf")},
        },
    }
    for name in [*arguments.rows, *(["edge"] if arguments.edge else [])]:
        if name in whole["rows"] and not arguments.again:
            continue
        try:
            if name == "edge":
                found = measure_bundle(arguments.edge, arguments)
            elif name in BUNDLES:
                with tempfile.TemporaryDirectory() as folder:
                    child(["--prepare", name, "--folder", folder], arguments)
                    found = measure_bundle(Path(folder) / "bundle", arguments)
            else:
                found = measure_row(name, arguments)
        except RuntimeError as problem:
            print(f"{name}: failed\n{problem}", file=sys.stderr)
            continue
        whole["rows"][name] = found
        write_json(arguments.out, whole)
        print(f"{name}: {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
