"""``medloom train``: from a recipe and a data set to a run directory with evidence.

The order is the argument: audit before anything is split, split before anything is learnt, threshold and temperature
from validation before the test images are scored, and the bundle only after its answers equal the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medloom.config import Recipe, load_recipe
from medloom.errors import UsageError
from medloom.files import RunDirectory, sweep_orphans
from medloom.workflows.progress import duration, number
from medloom.workflows.run_lock import exclusive


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: where it lies, and its recorded numbers."""

    directory: RunDirectory
    metrics: dict[str, Any]
    seconds: float
    exit_code: int = 0
    notices: tuple[str, ...] = ()

    @property
    def report(self) -> Path:
        return self.directory.report

    @property
    def bundle(self) -> Path:
        return self.directory.bundle

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.directory.root),
            "report": str(self.report),
            "bundle": str(self.bundle),
            "seconds": round(self.seconds, 1),
            "metrics": self.metrics,
        }

    def text(self) -> str:
        if not self.metrics and not self.exit_code:
            return ""  # one of several processes, and not the one that speaks
        lines = list(self.notices)
        if self.exit_code:
            told = f"stopped and saved; the same command with --resume and --out {self.directory.root} goes on"
            return "\n".join([*lines, told])
        for split, title in (("val", "validation"), ("test", "test")):
            part = self.metrics.get("splits", {}).get(split)
            if part and self.metrics["task"] == "segmentation":
                lines.append(f"{title}: {_dice(part)}; {part['n']} cases")
            elif part:
                shown = [f"AUC {number(part['metrics']['auc'])}"]
                points = [p for p in part["operating_points"] or [] if p["metrics"]]
                if len(points) == 1:
                    shown += [
                        f"{k} {number(points[0]['metrics'][k])}" for k in ("accuracy", "sensitivity", "specificity")
                    ]
                lines.append(f"{title}: {', '.join(shown)}; {part['n']} images")
        lines.append(f"finished in {duration(self.seconds)}")
        lines.append(f"open {self.report}")
        return "\n".join(lines)


def _dice(part: dict[str, Any]) -> str:
    """Mean Dice over the structures, and of each where there are several."""
    shown = [f"Dice {number(part['metrics']['dice'])}"]
    structures = part["structures"]
    if len(structures) > 1:
        shown += [f"{name} {number(values['metrics']['dice'])}" for name, values in structures.items()]
    return ", ".join(shown)


def train(
    recipe: str | Path | dict[str, Any] | Recipe,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    accept: Sequence[str] = (),
    quiet: bool = True,
) -> TrainedRun:
    """Train what ``recipe`` says on ``data`` and write everything into the run directory.

    Args:
        recipe: a path, plain values, or a ``Recipe``.
        data: folder, table or npz; overrides ``data.path``.
        out: run directory; default ``runs/NAME``, with ``-seedN`` where ``seed`` is given.
        overrides: ``"train.epochs=5"`` and the like.
        resume: go on from the last checkpoint of that directory.
        accept: codes of gates that may be passed.

    Raises:
        UsageError, DataError, ModelError, ExportError, GateError, ResourceError: see docs/errors.md.
    """
    resolved = resolve(recipe, data=data, overrides=overrides, seed=seed, accept=accept)
    if resolved.data.path is None:
        raise UsageError("U211", "data", "no data set given", "Name it with --data PATH")
    name = resolved.name if seed is None else f"{resolved.name}-seed{seed}"
    directory = RunDirectory(Path(out) if out is not None else Path("runs") / name)

    from medloom.models.registry import list_models
    from medloom.training import distributed
    from medloom.workflows import run_steps, segment_steps, train_steps

    device = run_steps.device_of(resolved)
    resolved = run_steps.with_number_format(resolved, device)
    steps = segment_steps if resolved.model.name in list_models(task="segmentation") else train_steps
    with distributed.world(device) as world:
        if not world.is_main:
            return steps.follow(resolved, directory, world, resume=resume)
        if directory.recipe.exists() and not resume:
            raise UsageError(
                "U212", directory.root, "a run is already there", "Go on with --resume, or name another with --out"
            )
        if resume and not directory.recipe.exists():
            raise UsageError("U213", directory.root, "no run to resume there", "Leave --resume away to start one")
        with exclusive(directory):
            sweep_orphans(directory.root)
            return steps.lead(resolved, directory, world, resume=resume, quiet=quiet)


def resolve(
    recipe: str | Path | dict[str, Any] | Recipe,
    *,
    data: str | Path | None,
    overrides: Sequence[str],
    seed: int | None,
    accept: Sequence[str],
) -> Recipe:
    """The recipe with all that the command line says laid over it.

    The path of the data is kept out of the resolved recipe's hash by being stored as given: two runs from different
    working directories compare equal by the data's own hash, not by where it lay.
    """
    values = recipe.as_dict() if isinstance(recipe, Recipe) else recipe
    read = load_recipe(values, tuple(overrides)).as_dict()
    if data is not None:
        read["data"]["path"] = str(data)
    if seed is not None:
        read["train"]["seed"] = seed
    read["data"]["accept"] = sorted({*read["data"]["accept"], *accept})
    return load_recipe(read)
