"""``medloom data plan``: a recipe for a data set of masks, with the reason of every choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medloom.config import load_recipe
from medloom.files import make_folder, write_text
from medloom.workflows.audit import examine
from medloom.workflows.outcome import Outcome


def plan(
    path: str | Path,
    *,
    out: str | Path | None = None,
    model: str | None = None,
    memory: float = 4.0,
    overrides: Sequence[str] = (),
    quiet: bool = True,
) -> Outcome:
    """Scan a data set and write (or hand back) a recipe for it.

    Args:
        out: recipe to write; folders above it are made.
        model: segmenter to plan for; by default the small hybrid for images or volumes.
        memory: gigabytes that a training step may take.
        overrides: of the data section, as in ``audit``; they stand in the recipe.

    Raises:
        DataError: what opening and scanning raise.
        UsageError: U204, U228, U229 as ``make_plan``.
        ResourceError: T404, T405 when the recipe cannot be written.
    """
    from medloom.data.plan import make_plan

    keys = tuple(o if o.startswith(("data.", "volume.")) else f"data.{o}" for o in overrides)
    asked = load_recipe({}, keys)
    given: dict[str, Any] = {}
    for key in keys:
        name, _, value = key.partition("=")
        if name.startswith("data."):
            given[name.removeprefix("data.")] = yaml.safe_load(value)
    scan, found = examine(path, asked.data, prefer=asked.volume.prefer, quiet=quiet)
    made = make_plan(scan, model=model, memory=memory, data=given)
    text = made.as_yaml()
    load_recipe(yaml.safe_load(text))  # what is written can be read: a fault here is ours
    refused = sorted({f.code for f in found.refusals(asked.data.accept)})
    facts = made.facts
    lines = [
        f"{facts['cases']} cases, median {_by(facts['median_shape'])}; patch {_by(facts['patch'])}, "
        f"batch {facts['batch_size']}, {facts['model']}: about {facts['memory_gb']} GB for a training step in float32"
    ]
    if refused:
        lines.append(f"training would refuse: {', '.join(refused)} (see medloom data audit)")
    values: dict[str, Any] = {**facts, "recipe": text, "refused": refused}
    if out is None:
        return Outcome(values, (*(f"# {line}" for line in lines), text.rstrip("\n")))
    make_folder(Path(out).parent)
    write_text(out, text)
    values["path"] = Path(out)
    start = f"medloom train {out} --data {path}"
    return Outcome(values, (*lines, f"to train: {start}", f"open {out}"))


def _by(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
