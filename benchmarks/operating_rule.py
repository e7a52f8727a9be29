"""Which rule for the threshold stands another machine's images? Validation shifted on purpose; no test image is scored.

    python benchmarks/operating_rule.py --data chest_xray --runs runs/bench/default-pneumonia-seed0 ...

The finished runs of the default recipe answer their validation images as they are and under the shifts of
``robustness.py``. Each rule chooses its threshold on the clean answers, as training does, and is judged on all shifts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import medloom
from medloom.config import load_recipe
from medloom.data.images import Image, decode
from medloom.data.records import read_csv
from medloom.evaluation.operating_point import choose_threshold
from medloom.files import RunDirectory, write_json
from medloom.workflows.environment import environment
from robustness import corruptions, to_bytes

RULES = ("accuracy", "youden", "sensitivity")
RESULT = Path(__file__).parent / "results" / "operating_rule.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = {path.name: judged(RunDirectory(path), arguments.data) for path in arguments.runs}
    means = {
        rule: {
            kind: {
                m: round(float(np.mean([row[rule][kind][m] for row in rows.values()])), 4)
                for m in ("accuracy", "balanced_accuracy", "specificity")
            }
            for kind in ("clean", "shifted")
        }
        for rule in RULES
    }
    for rule, found in means.items():
        print(rule, found)
    write_json(arguments.out, {
        "question": "which rule for the threshold keeps its accuracy under ten shifts of validation",
        "means": means, "runs": rows, "environment": environment(), "test_images_scored": 0,
    })  # fmt: skip


def judged(run: RunDirectory, data: Path) -> dict[str, Any]:
    """Per rule what its threshold gives on clean and on shifted validation."""
    bundle = medloom.load(run.root)
    recipe = load_recipe(run.recipe)
    validation = read_csv(run.records, data).select("val")
    positive = validation.targets() == 1
    images = [decode(validation, r, recipe.data).pixels.astype(np.float32) / 255 for r in validation.records]
    scores = {}
    for name, change in corruptions().items():
        pictures = [Image(to_bytes(change(x)), 8, "L", "array", 0, ()) for x in images]
        pixels = np.stack([bundle.preprocess.to_uint8(picture) for picture in pictures])
        z_NK = np.concatenate([bundle.pipeline.logits(pixels[k : k + 128]) for k in range(0, len(pixels), 128)])
        margin = z_NK[:, 1].astype(np.float64) - z_NK[:, 0]
        scores[name] = 1 / (1 + np.exp(-margin / bundle.pipeline.temperature))
    out: dict[str, Any] = {}
    for rule in RULES:
        cut = choose_threshold(positive, scores["none"], rule)
        assert cut is not None
        found = {name: _rates(score >= cut, positive) for name, score in scores.items()}
        shifted = [v for k, v in found.items() if k != "none"]
        out[rule] = {
            "threshold": cut,
            "clean": found["none"],
            "shifted": {m: float(np.mean([v[m] for v in shifted])) for m in found["none"]},
            "worst_accuracy": min(v["accuracy"] for v in shifted),
        }
    return out


def _rates(said: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    sensitivity, specificity = float(said[positive].mean()), float((~said[~positive]).mean())
    return {
        "accuracy": float((said == positive).mean()),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


if __name__ == "__main__":
    main()
