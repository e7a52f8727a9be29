"""Does the scorer keep what matters? Phantoms with lesions of known place, no larger than two tokens.

    python benchmarks/token_selection.py

Trains the token-pruned hybrid on synthetic chests and asks, on test images with lesions, whether the token under each
lesion's centre is among the kept ones, at several keep rates of the one checkpoint. Beside it, what a random choice
of as many tokens keeps (many draws), and what a choice by brightness alone keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import medloom
from medloom.data.cache import finish
from medloom.data.images import Image
from medloom.data.phantom import Phantom, phantom_images, write_phantom
from medloom.deployment.export import restore_model
from medloom.files import write_json
from medloom.models.token_pruned import TokenPruned
from medloom.workflows.environment import environment

PATCH = 8
RADII = (0.05, 0.095)  # of half the image: at 128 px and tokens of 8 px, half axes of 3.2 to 6.1 px
CONTRAST = (0.7, 1.3)
KEEP = (0.3, 0.5, 0.7)


def recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": "token_selection",
        "preprocess": {"size": arguments.size, "channels": "grey", "statistics": "half"},
        "model": {
            "name": "token_pruned",
            "options": {"patch_size": PATCH, "embed_dim": 96, "depth": 4, "num_heads": 3, "keep_rate": 0.3},
        },
        "augment": {"flip": 0.5, "rotate": 8, "translate": 0.05, "brightness": 0.1, "contrast": 0.2},
        "tokens": {
            "scorer_epochs": arguments.scorer_epochs,
            "freeze_scorer": 0.3,
            "multi_keep": [0.3, 0.5, 1.0],
            "attention_weight": 0.0,
        },
        "train": {
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.02,
            "schedule": "cosine",
            "warmup_epochs": 0.5,
            "batch_size": 32,
            "epochs": arguments.epochs,
            "threads": arguments.threads,
            "seed": arguments.seed,
        },
    }


def kept_at_centres(
    kept_NR: np.ndarray, grid: tuple[int, int], phantom: Phantom, rows: np.ndarray, size: int
) -> tuple[float, float]:
    """Share of images in which every lesion's centre is kept, and share of the lesions."""
    images, lesions = [], []
    for mask, row in zip(kept_NR.reshape(-1, *grid), rows, strict=True):
        hits = [
            bool(mask[int(y * grid[0] / size), int(x * grid[1] / size)]) for y, x, _ in phantom.lesions[row]
        ]  # fmt: skip
        images.append(all(hits))
        lesions += hits
    return float(np.mean(images)), float(np.mean(lesions))


@torch.inference_mode()
def choice(model: TokenPruned, x_NCHW: torch.Tensor, keep: float) -> np.ndarray:
    model.set_keep(keep)
    parts = []
    for start in range(0, len(x_NCHW), 64):
        taps: dict[str, Any] = {}
        model(x_NCHW[start : start + 64], taps)
        parts.append(taps["kept"].value.numpy())
    return np.concatenate(parts)


def best_of(score_NR: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros_like(score_NR)
    np.put_along_axis(mask, np.argsort(-score_NR, axis=1)[:, :k], 1, axis=1)
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=900)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--scorer-epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "token_selection.json")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {"lesion_radii": RADII, "lesion_contrast": CONTRAST, "size": arguments.size}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        table = write_phantom(Path(folder) / "data", n_patients=arguments.patients, seed=arguments.seed, **settings)
        run = medloom.train(recipe(arguments), data=table, out=Path(folder) / "run")
        bundle = medloom.load(run.directory.root)
        model = restore_model(bundle)
        auc = run.metrics["splits"]["test"]["metrics"]["auc"]
    assert isinstance(model, TokenPruned)
    phantom = phantom_images(arguments.patients, seed=arguments.seed, **settings)
    rows = np.array([k for k in range(len(phantom)) if phantom.splits[k] == "test" and phantom.lesions[k]])
    pixels = [bundle.preprocess.to_uint8(Image(phantom.images[k], 8, "L", "array", 0, ())) for k in rows]
    u8_NCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    x_NCHW = finish(u8_NCHW.float() / 255, bundle.preprocess)
    grid = (arguments.size // PATCH, arguments.size // PATCH)
    brightness = torch.nn.functional.avg_pool2d(u8_NCHW.float(), PATCH).flatten(1).numpy()
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {}
    for keep in KEEP:
        mask = choice(model, x_NCHW, keep)
        k = int(mask[0].sum())
        images, lesions = kept_at_centres(mask, grid, phantom, rows, arguments.size)
        n = len(rows)
        low, high = wilson(images * n, n)
        random = [
            kept_at_centres(best_of(rng.random(mask.shape), k), grid, phantom, rows, arguments.size) for _ in range(50)
        ]
        bright = kept_at_centres(best_of(brightness, k), grid, phantom, rows, arguments.size)
        result[f"keep {keep}"] = {
            "tokens": f"{k} of {mask.shape[1]}",
            "images": round(images, 4),
            "interval": [round(low, 4), round(high, 4)],
            "lesions": round(lesions, 4),
            "random": {"images": round(float(np.mean([r[0] for r in random])), 4),
                       "lesions": round(float(np.mean([r[1] for r in random])), 4)},
            "brightest": {"images": round(bright[0], 4), "lesions": round(bright[1], 4)},
        }  # fmt: skip
        print(keep, json.dumps(result[f"keep {keep}"]), flush=True)
    radius = np.array([r for k in rows for _, _, r in phantom.lesions[k]])
    write_json(
        arguments.out,
        {
            "question": "share of test images with lesions in which the tokens at all lesion centres are kept",
            "goal": "0.95 at keep 0.3",
            "images": len(rows),
            "lesion_diameter_in_tokens": {
                "median": round(float(np.median(2 * radius / PATCH)), 2),
                "largest": round(float(2 * radius.max() / PATCH), 2),
            },
            "rows": result,
            "test_auc": {key: auc[key] for key in ("value", "low", "high")},
            "settings": {**settings, "patients": arguments.patients, "seed": arguments.seed},
            "recipe": recipe(arguments),
            "minutes": round((time.monotonic() - started) / 60, 1),
            "machine": environment(),
            "load": round(os.getloadavg()[0], 2),
        },
    )
    print(f"test AUC {auc['value']:.3f}; {(time.monotonic() - started) / 60:.1f} min; open {arguments.out}")


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 percent interval of a share."""
    share = hits / n
    middle, spread = share + z * z / (2 * n), z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


if __name__ == "__main__":
    main()
