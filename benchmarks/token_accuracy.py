"""What does it cost in accuracy to look at fewer tokens? Real chest X-rays, one checkpoint per seed, many keep rates.

    python benchmarks/token_accuracy.py run --data chest_xray --baselines    # three seeds, resumable
    python benchmarks/token_accuracy.py speed                                # of the exported networks, machine quiet
    python benchmarks/token_accuracy.py summary

Each seed trains ``recipes/pneumonia_cpu_token_pruned.yaml`` once and scores the official test images at every keep rate
and with the published ways of saving tokens on the same weights (all tokens through the stem, then EViT or ToMe in
the blocks, untrained for it). The AUC loss against all tokens is paired: the same images, patients and seeds
resampled together. The adaptive mode chooses among the rates image by image; what it costs is the mean over the test
images of what ran for each. Beside it, with ``--baselines``, ResNet-18, ViT-Small and DynamicViT at keep 0.7 trained by
the same recipe: accuracy, best training accuracy, parameters, images per second of the exported network. ``speed``
measures those anew, since what an export noted may have been timed beside other trainings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import medloom
from medloom.blocks.selection import keep_count
from medloom.blocks.taps import Taps
from medloom.config import load_recipe
from medloom.data.cache import finish
from medloom.data.images import decode
from medloom.data.records import read_csv as read_records
from medloom.deployment.bundle import Bundle
from medloom.deployment.export import restore_model
from medloom.files import RunDirectory, write_json
from medloom.models.macs import count_macs
from medloom.models.pruning import reduce_tokens
from medloom.models.token_pruned import BUCKETS, TokenPruned
from medloom.workflows.benchmark import benchmark
from medloom.workflows.environment import environment
from token_accuracy_tables import FOLDER, summary

PROJECT = Path(__file__).resolve().parents[1]
RECIPE = PROJECT / "recipes" / "pneumonia_cpu_token_pruned.yaml"


@dataclass(frozen=True)
class Way:
    """One way to save tokens on trained weights; in the adaptive mode ``keep`` says nothing."""

    keep: float
    second: float = 1.0
    method: str = "gate"


WAYS = {
    "all tokens": Way(1.0),
    "keep 0.7": Way(0.7),
    "keep 0.5": Way(0.5),
    "keep 0.5, second cut 0.7": Way(0.5, 0.7),
    "keep 0.3": Way(0.3),
    "adaptive": Way(0.5, method="adaptive"),
    "EViT 0.7 at three blocks": Way(0.7, method="evit"),
    "ToMe to 0.5": Way(0.5, method="tome"),
    "random 0.5": Way(0.5, method="random"),
}
BASELINES: dict[str, list[str]] = {
    "ResNet-18": ["model.name=resnet18", "model.options={}", "tokens.scorer_epochs=0", "train.epochs=3"],
    "ViT-Small": [
        "model.name=vit_small",
        "model.options={patch_size: 16}",  # 8 px: 70 minutes an epoch on one thread without AVX-512
        "tokens.scorer_epochs=0",
        "train.epochs=2",
    ],
    "DynamicViT": [
        "model.name=dynamic_vit",
        "model.options={patch_size: 8, embed_dim: 192, depth: 6, num_heads: 3, keep_rate: 0.7, drop_path: 0.1}",
        "tokens.multi_keep=[]",
        "tokens.scorer_epochs=0",
        "train.epochs=2",
    ],
}
"""The recipe has an epoch of the scorer alone and three of everything; these have three or two, as their files say. So
few steps place no method above another; they say what each costs and that it learns."""
WAYS_OF: dict[str, dict[str, Way | None]] = {
    "token_pruned": {**WAYS},
    "DynamicViT": {"keep 0.7": Way(0.7), "all tokens": Way(1.0)},
}
"""Where nothing is said, there is one: all tokens."""


def run(arguments: argparse.Namespace) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    plan: list[tuple[str, int, list[str]]] = [("token_pruned", seed, []) for seed in arguments.seeds]
    if arguments.baselines:
        plan += [(name, 0, changes) for name, changes in BASELINES.items()]
    for name, seed, changes in plan:
        file = FOLDER / f"{name.lower()}-seed{seed}.json"
        if file.exists():
            continue
        place = RunDirectory(arguments.runs / f"{name.lower()}-seed{seed}")
        if not place.metrics.exists():
            medloom.train(
                RECIPE,
                data=arguments.data,
                out=place.root,
                seed=seed,
                resume=place.recipe.exists(),
                overrides=[*changes, *arguments.overrides],
            )
        if not place.metrics.exists():
            print(f"{place.root} was stopped and is saved; the same command goes on", flush=True)
            return
        write_json(file, distil(name, seed, place, arguments.data))
        print(f"recorded {file}", flush=True)


def distil(name: str, seed: int, place: RunDirectory, data: Path) -> dict[str, Any]:
    """One committed file: logits of every way on the test images, in the order of the sorted names."""
    bundle = medloom.load(place.root)
    model = restore_model(bundle)
    recipe = load_recipe(place.recipe)
    test = read_records(place.records, data).select("test")
    order = np.argsort([record.id for record in test.records])
    groups = [test.records[k].patient or test.records[k].id for k in order]
    numbers = {group: k for k, group in enumerate(dict.fromkeys(groups))}
    pixels = np.stack([bundle.preprocess.to_uint8(decode(test, test.records[k], recipe.data)) for k in order])
    x_NCHW = finish(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, bundle.preprocess)
    log = [json.loads(line) for line in place.log.read_text().splitlines()]
    epochs = [e for e in log if e["event"] == "epoch"]
    ways = WAYS_OF.get(name, {"all tokens": None})
    found = {}
    for label, way in ways.items():
        change(model, way)
        z_N = margins(model, x_NCHW, mirror=bundle.pipeline.flip_average)
        if way is not None and way.method == "adaptive":
            cost = adaptive_cost(model, x_NCHW, mirror=bundle.pipeline.flip_average)
        else:
            cost = {"macs": count_macs(model, bundle.preprocess.in_chans, bundle.preprocess.size)}
        found[label] = {**cost, "logit_difference": [round(float(z), 4) for z in z_N]}
    return {
        "name": name,
        "seed": seed,
        "epochs": len(epochs),
        "recipe_sha256": recipe.hash,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round(sum(e["seconds"] + e["val_seconds"] for e in epochs) / 60, 2),
        "best_training_accuracy": max(e["train_accuracy"] for e in epochs),
        "val_auc": max(e["val_auc"] for e in epochs),
        "test_metrics_at_recipe": {
            k: json.loads(place.metrics.read_text())["splits"]["test"]["metrics"][k] for k in ("auc", "accuracy")
        },
        "images_per_second": speed(bundle),
        "threshold": bundle.document["operating_point"]["points"][0]["threshold"],
        "temperature": bundle.pipeline.temperature,
        "test_scorings": len(ways) + 1,
        "environment": environment(),
        "patients": [numbers[g] for g in groups],
        "labels": test.targets()[order].tolist(),
        "ways": found,
    }


def change(model: nn.Module, way: Way | None) -> None:
    if way is None:
        return
    keep: Callable[..., None] = model.set_keep  # type: ignore[assignment]
    if not isinstance(model, TokenPruned):  # DynamicViT has one rate and nothing else
        keep(way.keep)
        return
    in_blocks = way.method if way.method in ("evit", "tome") else "none"
    keep(way.keep if in_blocks == "none" else 1.0, second=way.second, adaptive=way.method == "adaptive")
    reduce_tokens(model, in_blocks, keep_rate=way.keep)  # type: ignore[arg-type]
    if way.method == "random":
        model.scorer.forward = random_scores  # type: ignore[method-assign, assignment]
    elif "forward" in vars(model.scorer):
        del model.scorer.forward


def random_scores(x_BDhw: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(x_BDhw.shape[0], x_BDhw.shape[2] * x_BDhw.shape[3], generator=generator)


@torch.inference_mode()
def margins(model: nn.Module, x_NCHW: torch.Tensor, *, mirror: bool) -> np.ndarray:
    parts = []
    for start in range(0, len(x_NCHW), 64):
        x_BCHW = x_NCHW[start : start + 64]
        z_BK = model(x_BCHW)
        if mirror:
            z_BK = (z_BK + model(x_BCHW.flip(-1))) / 2
        parts.append((z_BK[:, 1] - z_BK[:, 0]).numpy())
    return np.concatenate(parts)


def adaptive_cost(model: nn.Module, x_NCHW: torch.Tensor, *, mirror: bool) -> dict[str, Any]:
    """What the adaptive mode ran: mean over the images, and over their mirror images where those were asked too.

    An image runs what the model runs at the rate of its bucket, so multiply-adds are counted once per bucket.
    """
    assert isinstance(model, TokenPruned)
    kept: list[int] = []
    with torch.inference_mode():
        for x_BCHW in x_NCHW.split(64):
            for view_BCHW in (x_BCHW, x_BCHW.flip(-1)) if mirror else (x_BCHW,):
                taps: Taps = {}
                model(view_BCHW, taps)
                kept += taps["kept"].value.sum(dim=1).int().tolist()
    tokens, macs, images = taps["kept"].value.shape[1], {}, {}
    for rate in BUCKETS:
        model.set_keep(rate, adaptive=False)
        count = keep_count(tokens, rate)
        macs[count] = count_macs(model, x_NCHW.shape[1], tuple(x_NCHW.shape[2:]))
        images[str(rate)] = round(kept.count(count) / len(kept), 4)
    return {
        "macs": round(float(np.mean([macs[count] for count in kept]))),
        "kept_share": round(float(np.mean(kept)) / tokens, 4),
        "share_of_images_at_rate": images,
    }


def speed(bundle: Bundle) -> dict[str, float]:
    """Of the exported network, as its bundle measured it."""
    found = bundle.document["latency"]["milliseconds_per_image_at_batch"]
    return {f"batch {batch}": round(1000 / value, 1) for batch, value in found.items()}


def measure_speed(runs: Path, threads: int) -> None:
    """Write images per second into what is recorded: network alone, ONNX Runtime; of pruned ones with all tokens."""
    for file in sorted(FOLDER.glob("*.json")):
        measured = benchmark([runs / file.stem / "bundle"], threads=threads).values
        one = json.loads(file.read_text())
        for row in measured["rows"]:
            if row["runtime"] == "onnx":
                key = "images_per_second_all_tokens" if "twin_of" in row else "images_per_second"
                one[key] = {b: row[b]["network"]["images_per_second"] for b in ("batch 1", "batch 16")}
                print(f"{file.stem}, {key}: {one[key]}", flush=True)
        write_json(file, one | {"timed_on": measured["machine"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("run", "speed", "summary"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--baselines", action="store_true", help="ResNet-18, ViT-Small and DynamicViT too")
    parser.add_argument("--runs", type=Path, default=PROJECT / "runs" / "token_accuracy")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    parser.add_argument("--threads", type=int, default=2, help="of speed")
    arguments = parser.parse_args()
    if arguments.step == "run":
        run(arguments)
    if arguments.step == "speed":
        measure_speed(arguments.runs, arguments.threads)
    print(json.dumps(summary()["rows"], indent=1))


if __name__ == "__main__":
    main()
