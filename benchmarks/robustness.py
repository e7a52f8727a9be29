"""Choose among remedies without looking at a test image: validation, and validation that was shifted on purpose.

    python benchmarks/robustness.py --data chest_xray/train --out benchmarks/results/robustness.json

Trains each variant of ``recipes/pneumonia.yaml`` on the training folder alone (a tenth of the patients validates),
then scores the validation images as they are and under corruptions that another machine, exposure or export would
bring. The threshold stays the one of the clean validation images, so ``accuracy`` shows what shift does to a decision.
Resumable: a variant that is in the result file is not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL
from scipy import ndimage

import medloom
from medloom.config import load_recipe
from medloom.data.images import Image, decode
from medloom.data.records import read_csv
from medloom.deployment.bundle import Bundle
from medloom.evaluation.metrics import auc, rank
from medloom.files import RunDirectory, write_json
from medloom.workflows.environment import environment

PROJECT = Path(__file__).resolve().parents[1]
TRUNK = ["model.name=resnet18", "model.options={}"]
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "without equalisation": ["preprocess.intensity=none"],
    "paper's light augmentation": [
        "augment.crop=[1.0, 1.0]", "augment.translate=0", "augment.gamma=[1.0, 1.0]", "augment.contrast=0",
        "augment.noise=0", "augment.blur=0", "augment.erase=0", "augment.brightness=0.1",
    ],
    "without noise, blur, erasing": ["augment.noise=0", "augment.blur=0", "augment.erase=0"],
    "trunk alone": [*TRUNK],
    "trunk without equalisation": [*TRUNK, "preprocess.intensity=none"],
    "trunk without noise, blur, erasing": [*TRUNK, "augment.noise=0", "augment.blur=0", "augment.erase=0"],
    "trunk, zooming out, without equalisation": [*TRUNK, "augment.zoom=[0.75, 1.0]", "preprocess.intensity=none"],
    "trunk, zooming out too": [*TRUNK, "augment.zoom=[0.75, 1.0]"],
}  # fmt: skip


def corruptions() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Changes to a grey image in [0, 1] that keep the diagnosis."""
    rng = np.random.default_rng(0)

    def jpeg(x: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        PIL.fromarray(to_bytes(x)).save(buffer, "JPEG", quality=15)
        return np.asarray(PIL.open(buffer), dtype=np.float32) / 255

    def coarse(x: np.ndarray) -> np.ndarray:
        small = PIL.fromarray(to_bytes(x)).resize((x.shape[1] // 3, x.shape[0] // 3), PIL.Resampling.BILINEAR)
        return np.asarray(small.resize((x.shape[1], x.shape[0]), PIL.Resampling.BILINEAR), dtype=np.float32) / 255

    def border(x: np.ndarray) -> np.ndarray:
        edge = x.shape[0] // 12
        out = np.zeros_like(x)
        inner = PIL.fromarray(to_bytes(x)).resize(
            (x.shape[1] - 2 * edge, x.shape[0] - 2 * edge), PIL.Resampling.BILINEAR
        )
        out[edge:-edge, edge:-edge] = np.asarray(inner, dtype=np.float32) / 255
        return out

    return {
        "none": lambda x: x,
        "brighter": lambda x: x**0.6,
        "darker": lambda x: x**1.6,
        "flat": lambda x: 0.2 + 0.6 * x,
        "blurred": lambda x: ndimage.gaussian_filter(x, 1.8),
        "noisy": lambda x: x + rng.normal(0, 0.06, x.shape).astype(np.float32),
        "compressed": jpeg,
        "coarse": coarse,
        "collimated": lambda x: x[x.shape[0] // 14 : -(x.shape[0] // 14), x.shape[1] // 14 : -(x.shape[1] // 14)],
        "bordered": border,
        "tilted": lambda x: ndimage.rotate(x, 8, reshape=False, order=1),
    }


def to_bytes(x: np.ndarray) -> np.ndarray:
    """[0, 1] as 8 bits."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def score(bundle: Bundle, run: RunDirectory, data: Path) -> dict[str, dict[str, float]]:
    """AUC and accuracy of a bundle on the run's validation images under each corruption."""
    recipe = load_recipe(run.recipe)
    validation = read_csv(run.records, data).select("val")
    positive = validation.targets() == 1
    images = [decode(validation, r, recipe.data).pixels.astype(np.float32) / 255 for r in validation.records]
    cut = bundle.document["operating_point"]["points"][0]["threshold"]
    found = {}
    for name, change in corruptions().items():
        pixels = np.stack(
            [bundle.preprocess.to_uint8(Image(to_bytes(change(x)), 8, "L", "array", 0, ())) for x in images]
        )
        z_NK = np.concatenate([bundle.pipeline.logits(pixels[k : k + 128]) for k in range(0, len(pixels), 128)])
        margin = z_NK[:, 1].astype(np.float64) - z_NK[:, 0]
        said = 1 / (1 + np.exp(-margin / bundle.pipeline.temperature)) >= cut
        found[name] = {
            "auc": float(auc(rank(positive, margin))),
            "accuracy": float((said == positive).mean()),
            "specificity": float((~said[~positive]).mean()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "results" / "robustness.json")
    parser.add_argument("--runs", type=Path, default=PROJECT / "runs" / "robustness")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="for every variant, e.g. a budget")
    arguments = parser.parse_args()
    whole: dict[str, Any] = {"rows": {}}
    if arguments.out.exists():
        whole = json.loads(arguments.out.read_text())
    for name in arguments.variants:
        if name in whole["rows"]:
            continue
        started = time.monotonic()
        run = RunDirectory(arguments.runs / name.replace(" ", "_").replace("'", "").replace(",", ""))
        medloom.train(
            PROJECT / "recipes" / "pneumonia.yaml",
            data=arguments.data,
            out=run.root,
            overrides=[*arguments.overrides, *VARIANTS[name]],
            resume=run.recipe.exists(),
        )
        rows = score(medloom.load(run.root), run, arguments.data)
        shifted = [v for k, v in rows.items() if k != "none"]
        whole["rows"][name] = {
            "changes": VARIANTS[name],
            "minutes": round((time.monotonic() - started) / 60, 1),
            "clean": rows["none"],
            "shifted_mean": {k: float(np.mean([v[k] for v in shifted])) for k in rows["none"]},
            "shifted_worst_auc": min(v["auc"] for v in shifted),
            "corruptions": rows,
        }
        whole |= {"environment": environment(), "budget": arguments.overrides, "test_images_scored": 0}
        write_json(arguments.out, whole)
        print(name, json.dumps(whole["rows"][name]["shifted_mean"]), flush=True)


if __name__ == "__main__":
    main()
