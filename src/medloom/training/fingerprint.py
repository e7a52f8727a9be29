"""What must be equal for a resumed run to be the same run (T411)."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import medloom
from medloom import files
from medloom.errors import UsageError

if TYPE_CHECKING:
    from medloom.config import Recipe

_FREE = ("name", "notes", "evaluation")
"""Parts of a recipe that do not touch the weights."""


def fingerprint(
    recipe: Recipe, data: dict[str, Any], *, device: torch.device, processes: int = 1, augmentation: str = ""
) -> dict[str, Any]:
    """Everything that decides the bytes of the final weights, as plain values.

    Args:
        recipe: where its data lie, its name and how it is evaluated are left out.
        data: hashes of what is trained on, e.g. ``{"hash": dataset.hash(), "split": split.hash}``.
        device: of the run.
        processes: under torchrun.
        augmentation: which path augments (``data.augment.backend``); the paths differ in rounding.
    """
    wanted = {key: value for key, value in recipe.as_dict().items() if key not in _FREE}
    wanted["data"] = {key: value for key, value in wanted["data"].items() if key not in ("path", "accept")}
    return {
        "recipe": wanted,
        "data": data,
        "environment": {
            "medloom": medloom.__version__,
            "code": _code(),
            "torch": torch.__version__,
            "python": ".".join(platform.python_version_tuple()[:2]),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "processes": processes,
            "augmentation": augmentation,
        },
    }


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every value in which two fingerprints differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


def check_same(saved: dict[str, Any], now: dict[str, Any], accept: tuple[str, ...], place: Path) -> list[str]:
    """Refuse to continue another run; returns the differences that were accepted, for the record.

    Raises:
        UsageError: T411 with the difference. ``accept`` lets it pass, but never other data.
    """
    # A round trip through JSON makes tuples lists, as in what was saved.
    lines = difference(saved, json.loads(json.dumps(now)))
    if not lines:
        return []
    shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
    if any(line.startswith("data.") for line in lines):
        raise UsageError("T411", place, f"the data are not those of this run: {shown}", "Start anew with another --out")
    if "T411" not in accept:
        raise UsageError(
            "T411",
            place,
            f"what was changed since this run was saved: {shown}",
            "Undo it, start anew with another --out, or go on as changed with --accept T411",
        )
    return lines


def _code() -> str:
    """Hash of the source that decides results."""
    root = Path(__file__).resolve().parents[1]
    rooms = ("blocks", "models", "training", "data")
    return files.sha256_json(
        {
            str(path.relative_to(root)): files.sha256_file(path)
            for room in rooms
            for path in sorted((root / room).glob("*.py"))
        }
    )[:16]
