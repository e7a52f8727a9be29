"""Checkpoints on disk: safetensors for tensors, JSON for the rest, no pickle; whole and verified, or not there.

::

    checkpoint/00000262.safetensors       every tensor that resuming needs
    checkpoint/00000262.json              the rest, with the SHA-256 of both files; written last, so it is the commit
    checkpoint/best-0002-4f8a11c0.safetensors   weights of the best epoch so far, named by epoch and content

The number is the count of optimiser steps. The newest checkpoint is the highest number whose files have their hashes,
so there is no pointer that could be wrong. The last two are kept, and the best weights that they name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from medloom import files
from medloom.errors import ModelError

FORMAT = 1
KEPT = 2
_REMEDY = "Start the run again under another --out, or restore the directory from a backup"


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint: the plain values and the tensors that were saved, and where."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, Tensor]


def write_checkpoint(directory: Path, step: int, values: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write checkpoint ``step`` durably, then drop the ones before the last two. When this returns, it is saved.

    Args:
        directory: ``RunDirectory.checkpoint``; made when missing.
        step: optimiser steps so far.
        values: fit for JSON; ``values["best"]["file"]``, when there, names weights that ``write_weights`` wrote.
        tensors: by name, on any device.

    Raises:
        ModelError: C508, a tensor holds NaN or infinity: that is no state to go on from.
        ResourceError: T404 or T405; the checkpoints before are untouched.
    """
    if broken := not_finite(tensors):
        raise ModelError("C508", directory, f"'{broken[0]}' holds NaN or infinity", "Lower train.learning_rate")
    data = _pack(tensors)
    name = f"{step:08d}.safetensors"
    files.write_bytes(directory / name, data)
    body = {"format": FORMAT, "step": step, "tensors": _entry(name, data), "values": values}
    path = directory / f"{step:08d}.json"
    files.write_json(path, {**body, "sha256": files.sha256_json(body)})
    tidy(directory)
    return path


def write_weights(directory: Path, epoch: int, state: dict[str, Tensor]) -> dict[str, Any]:
    """Write the weights of an epoch; returns ``{"file", "bytes", "sha256"}`` for the next checkpoint's values."""
    data = _pack(state)
    # The content is part of the name: an older checkpoint's best weights are never overwritten by another history.
    name = f"best-{epoch:04d}-{files.sha256_bytes(data)[:8]}.safetensors"
    files.write_bytes(directory / name, data)
    return _entry(name, data)


def read_tensors(path: Path, entry: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file, verified.

    Args:
        path: the file.
        entry: its recorded ``bytes`` and ``sha256``; None where nobody recorded them.

    Raises:
        ModelError: C501 not safetensors by name or content (a pickle is never opened), C502 cut off or malformed,
            C503 other bytes than were saved, C508 NaN or infinity inside.
    """
    if path.suffix != ".safetensors":
        raise ModelError("C501", path, "not a .safetensors file", "Convert the weights to safetensors first")
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise ModelError("C502", path, f"not readable ({problem.strerror})", _REMEDY) from None
    if entry is not None and len(data) < entry["bytes"]:
        raise ModelError("C502", path, f"ends after {len(data)} of {entry['bytes']} bytes", _REMEDY)
    if entry is not None and files.sha256_bytes(data) != entry["sha256"]:
        raise ModelError("C503", path, "other bytes than were saved (SHA-256 differs)", _REMEDY)
    if data[8:9] != b"{" and data.startswith((b"PK\x03\x04", b"\x80")):
        raise ModelError("C501", path, "a pickle or archive under the name of safetensors", "It is not opened")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as problem:
        raise ModelError("C502", path, f"cut off or malformed ({problem})", _REMEDY) from None
    if broken := not_finite(tensors):
        raise ModelError("C508", path, f"'{broken[0]}' holds NaN or infinity", _REMEDY)
    return tensors


def newest(directory: Path) -> tuple[Checkpoint | None, list[ModelError]]:
    """The newest good checkpoint, and why newer ones were passed over. None where nothing was ever saved.

    Raises:
        ModelError: T414, there are checkpoints and none of them is good.
    """
    refused: list[ModelError] = []
    for path in sorted(directory.glob("[0-9]*.json"), reverse=True):
        try:
            return read_checkpoint(path), refused
        except ModelError as problem:
            refused.append(problem)
    if refused:
        first = refused[0]
        raise ModelError(
            "T414", directory, f"none of {len(refused)} checkpoints is good; the newest: {first.problem}", _REMEDY
        )
    if any(directory.glob("*.safetensors")):
        # Tensors are committed by their JSON; a run that was killed in its very first save has only the former.
        return None, [ModelError("C502", directory, "a first checkpoint was never completed", "It is made again")]
    return None, []


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify the checkpoint whose JSON is ``path``, its best weights included.

    Raises:
        ModelError: C502, C503, C508 as ``read_tensors``; C509 another format.
    """
    try:
        body = json.loads(path.read_bytes())
        recorded = body.pop("sha256")
        digest = files.sha256_json(body)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ModelError("C502", path, "cut off or malformed", _REMEDY) from None
    if recorded != digest:
        raise ModelError("C503", path, "its content does not have its hash", _REMEDY)
    if body["format"] != FORMAT:
        problem = f"checkpoint format {body['format']}, this version reads {FORMAT}"
        raise ModelError("C509", path, problem, "Resume with the version that wrote it")
    values = body["values"]
    tensors = read_tensors(path.parent / body["tensors"]["file"], body["tensors"])
    if best := values.get("best"):
        read_tensors(path.parent / best["file"], best)
    return Checkpoint(path, values, tensors)


def best_weights(directory: Path) -> tuple[Path, dict[str, Any]]:
    """File of the best weights of a run, and ``State.best``, by its newest good checkpoint.

    Raises:
        ModelError: T414, no good checkpoint, or no epoch was finished yet.
    """
    found, _ = newest(directory)
    best = found.values.get("best") if found else None
    if best is None:
        raise ModelError("T414", directory, "no finished epoch is saved here", "Train first, or --resume the run")
    return directory / best["file"], best


def fill(target: dict[str, Tensor], source: dict[str, Tensor], place: object) -> None:
    """Copy ``source`` into ``target`` in place: same names, shapes and types, or nothing is changed.

    Copying into the tensors that are there keeps their memory layout, on which rounding depends.

    Raises:
        ModelError: C505 with at most five names.
    """
    wrong = [f"missing {n}" for n in target.keys() - source.keys()] + [f"unknown {n}" for n in source.keys() - target]
    for name in target.keys() & source.keys():
        have, want = source[name], target[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            wrong.append(f"{name} is {tuple(have.shape)} {have.dtype}, not {tuple(want.shape)} {want.dtype}")
    if wrong:
        listed = ", ".join(sorted(wrong)[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ModelError("C505", place, f"does not fit the model: {listed}", "Use the recipe that it was made with")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]


def discard_after(directory: Path, checkpoint: Checkpoint) -> None:
    """Remove checkpoints newer than ``checkpoint``, which were found damaged, so that they are not counted as kept."""
    for path in directory.glob("[0-9]*.json"):
        if path.stem > checkpoint.path.stem:
            path.unlink(missing_ok=True)


def tidy(directory: Path) -> None:
    """Remove all but the last checkpoints and the best weights that they name; also what a kill left half removed."""
    kept = sorted(directory.glob("[0-9]*.json"), reverse=True)[:KEPT]
    names = {path.stem for path in kept} | set(_best_named_by(kept))
    # What cannot be removed (a read-only directory) does no harm, and the new checkpoint is already safe.
    with contextlib.suppress(OSError):
        for pattern in ("[0-9]*.json", "[0-9]*.safetensors", "best-*.safetensors"):
            for path in directory.glob(pattern):
                if path.stem not in names and path.name not in names:
                    path.unlink(missing_ok=True)


def _pack(tensors: dict[str, Tensor]) -> bytes:
    packed: bytes = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    return packed


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"file": name, "bytes": len(data), "sha256": files.sha256_bytes(data)}


def _best_named_by(kept: list[Path]) -> Iterator[str]:
    for path in kept:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            yield json.loads(path.read_bytes())["values"]["best"]["file"]
