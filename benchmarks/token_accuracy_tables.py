"""The tables of ``token_accuracy.py``: each way to save tokens against all tokens of the same weights, over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medloom.evaluation.comparison import mean_and_sd, seeds_difference
from medloom.evaluation.metrics import auc, rank
from medloom.evaluation.predictions import Predictions, from_logits
from medloom.files import write_json
from medloom.workflows.environment import environment

FOLDER = Path(__file__).parent / "results" / "token_accuracy"


def summary() -> dict[str, Any]:
    """Write, and return, what all recorded runs say together."""
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    ours = [one for one in found if one["name"] == "token_pruned"]
    rows: dict[str, dict[str, Any]] = {}
    for label in [label for label in (ours[0]["ways"] if ours else ()) if all(label in o["ways"] for o in ours)]:
        rows[label] = {
            "auc": mean_and_sd([float(auc(rank(np.array(o["labels"]) == 1, margin(o, label)))) for o in ours]),
            "accuracy": mean_and_sd([accuracy(o, label) for o in ours]),
            "macs": round(float(np.mean([o["ways"][label]["macs"] for o in ours]))),
        }
        if "kept_share" in ours[0]["ways"][label]:
            rows[label]["kept_share"] = mean_and_sd([o["ways"][label]["kept_share"] for o in ours])
        if label != "all tokens":
            pairs = [(table(o, label), table(o, "all tokens")) for o in ours]
            rows[label]["auc_minus_all_tokens"] = seeds_difference(pairs, "auc", resamples=2000, seed=0)["difference"]
    networks = {
        one["name"]: {
            **{k: one[k] for k in ("parameters", "epochs", "best_training_accuracy", "minutes")},
            **{k: one[k] for k in one if k.startswith("images_per_second")},
            "test": one["test_metrics_at_recipe"],
            "ways": {
                label: {
                    "auc": round(float(auc(rank(np.array(one["labels"]) == 1, margin(one, label)))), 4),
                    "macs": way["macs"],
                }
                for label, way in one["ways"].items()
                if one["name"] != "token_pruned"  # its ways are the rows, over all seeds
            },
        }
        for one in found
        if one["seed"] == 0
    }
    whole = {
        "question": "AUC on the official 624 test images with fewer tokens, against all tokens of the same weights",
        "goal": "a loss of at most 0.005 at keep 0.5",
        "seeds": [o["seed"] for o in ours],
        "test_scorings": sum(o["test_scorings"] for o in found),
        "rows": rows,
        "networks": networks,
        "environment": environment(),
    }
    write_json(FOLDER.with_suffix(".json"), whole)
    return whole


def margin(one: dict[str, Any], label: str) -> np.ndarray:
    return np.array(one["ways"][label]["logit_difference"])


def accuracy(one: dict[str, Any], label: str) -> float:
    said = 1 / (1 + np.exp(-margin(one, label) / one["temperature"])) >= one["threshold"]
    return float((said == (np.array(one["labels"]) == 1)).mean())


def table(one: dict[str, Any], label: str) -> Predictions:
    z_N = margin(one, label)
    ids = [str(i) for i in range(len(z_N))]
    logits_NK = np.stack([np.zeros_like(z_N), z_N], axis=1)
    patients = [str(p) for p in one["patients"]]
    return from_logits(ids, patients, [None] * len(ids), np.array(one["labels"]), logits_NK, ("NORMAL", "PNEUMONIA"))
