"""Finished runs read for a comparison: what each is, whether they may stand in one table, what they had in common."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medloom.config import Recipe, difference, load_recipe
from medloom.data.records import Dataset, read_csv
from medloom.errors import DataError
from medloom.evaluation.predictions import Predictions
from medloom.files import RunDirectory, sha256_json
from medloom.reporting.recorded import Recorded, read_run
from medloom.reporting.wording import SPLITS, asked_of, plural
from medloom.reporting.wording import grouped as grouped_number

# What may differ without the budget being another: the model itself, names, places, and how a machine is used.
_FREE = ("name", "notes", "data.path", "data.accept", "model.name", "model.options", "model.new_head", "train.seed")
_MACHINE = ("train.threads", "train.device", "train.save_steps")


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        images: hash of the images with labels, patients and which of them are the test split.
        split: hash of the same with the split of the rest.
        steps: optimiser steps taken; None where the log does not say.
        changed: what was altered by hand while it ran (accepted resumes), in words.
        pixels: height and width of the commonest source image.
        tested: hash of the test images alone, with labels and patients.
        images_per_second: of training; None where not recorded.
        peak_memory, memory_of: of training, in bytes: of the ``device`` where it was one with memory of its own,
            else of the process (``host``); None where not recorded.
    """

    label: str
    seed: int
    directory: RunDirectory
    recipe: Recipe
    test: Predictions
    metrics: dict[str, Any]
    images: str
    tested: str
    split: str
    source: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    pixels: tuple[int, int] | None
    steps: int | None
    epochs: int | None
    changed: tuple[str, ...]
    images_per_second: float | None
    peak_memory: int | None
    memory_of: str | None
    minutes: float | None
    model: dict[str, Any] | None
    environment: dict[str, Any]


def read(label: str, seed: int, directory: RunDirectory) -> Run:
    """One run with what a comparison needs of it.

    Raises:
        DataError: D133, it has no test predictions; D114, D116, its tables cannot be read.
    """
    found = read_run(directory)
    if found.test is None or not len(found.test) or "test" not in (found.metrics or {}).get("splits", {}):
        raise DataError("D133", directory.root, "it has no scored test images", "Give the data a test split")
    dataset = read_csv(directory.records, directory.root)
    log = [e for e in found.log if e.get("event") == "epoch"]
    peak, memory_of = _peak(found)
    return Run(
        label=label,
        seed=seed,
        directory=directory,
        recipe=load_recipe(directory.recipe),
        test=found.test,
        metrics=found.metrics or {},
        images=images_hash(dataset),
        tested=images_hash(dataset.select("test")),
        split=dataset.hash(),
        source=dataset.name,
        classes=dataset.classes,
        counts={s: len(dataset.select(s)) for s in ("train", "val", "test")},
        pixels=_pixels(found),
        steps=log[-1].get("step") if log else None,
        epochs=log[-1].get("epoch") if log else None,
        changed=_changed(found),
        images_per_second=statistics.median(e["images_per_second"] for e in log) if log else None,
        peak_memory=peak,
        memory_of=memory_of,
        minutes=sum(e["seconds"] + e.get("val_seconds", 0.0) for e in log) / 60 if log else None,
        model=found.model,
        environment=found.environment or {},
    )


def refuse_mixtures(runs: Sequence[Run]) -> None:
    """No table of apples and pears.

    Raises:
        DataError: D133 when two runs saw other images, labels or patients, or were tested on others.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            problem = f"its classes are {', '.join(run.classes)}, those of {first.directory.root.name} are "
            problem += ", ".join(first.classes)
        elif set(run.test.ids) != set(first.test.ids):
            shared = len(set(run.test.ids) & set(first.test.ids))
            problem = f"it was tested on {plural(len(run.test), 'image')}, {first.directory.root.name} on "
            problem += f"{len(first.test)}; {shared} are the same"
        elif run.tested != first.tested or (_whole(run) and _whole(first) and run.images != first.images):
            problem = f"its images, labels or patients are not those of {first.directory.root.name}"
        else:
            continue
        raise DataError("D133", run.directory.root, problem, "Compare runs on one data set and one test split")


def protocol(runs: Sequence[Run]) -> dict[str, Any]:
    """What all runs had in common, and what each did otherwise.

    Returns ``shown``: the terms and texts of the commonest recipe; ``departures``: directory name to lines, for runs
    whose budget, data treatment or selection was another.
    """
    keys = Counter(sha256_json(_kept(r.recipe)) for r in runs)
    common = next(r for r in runs if sha256_json(_kept(r.recipe)) == keys.most_common(1)[0][0])
    steps = Counter(r.steps for r in runs).most_common(1)[0][0]
    splits: dict[int, str] = {}
    departures: dict[str, list[str]] = {}
    for run in runs:
        lines = [
            f"{key}: {_plain(new)} (others {_plain(old)})" for key, old, new in _differences(common.recipe, run.recipe)
        ]
        if not lines and run.steps != steps:
            lines.append(f"{run.steps} steps (others {steps})")
        if splits.setdefault(run.seed, run.split) != run.split:
            lines.append("another division into training and validation than other runs of its seed")
        lines += [f"changed by hand while it ran: {text}" for text in run.changed]
        if lines:
            departures[run.directory.root.name] = lines
    asked = {t: _without_seed(x) for t, x in asked_of(common.recipe.as_dict()) if t not in ("Model", "Accepted")}
    parts = ", ".join(f"{SPLITS[s]} {grouped_number(n)}" for s, n in common.counts.items())
    asked["Data"] = f"{common.source}: {parts} images"
    asked["Input"] = asked["Input"] + _enlarged(common)
    terms = list({"Data": "", "Budget": _budget(common, steps), **asked}.items())
    accepted = sorted({code for r in runs for code in r.recipe.data.accept})
    if accepted:
        terms.append(("Gates passed by hand", ", ".join(accepted)))
    starts = sorted({_start(r.recipe) for r in runs})
    terms.insert(3, ("Start", "; ".join(starts)))
    terms.append(("Tuning", "none per model: one setting for all of them, each run once per seed"))
    return {"shown": terms, "departures": departures}


def _differences(common: Recipe, other: Recipe) -> list[tuple[str, str, str]]:
    found = []
    for line in difference(common, other):
        key, _, rest = line.partition(": ")
        if key.startswith((*_FREE, *_MACHINE)):
            continue
        old, _, new = rest.partition(" -> ")
        found.append((key, old, new))
    return found


def _kept(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what may differ."""
    values = recipe.as_dict()
    for path in (*_FREE, *_MACHINE):
        part, _, key = path.rpartition(".")
        (values[part] if part else values).pop(key, None)
    return values


def _whole(run: Run) -> bool:
    """Each seed keeps labels of its own where only a share of them is kept: then the test images alone must agree."""
    return run.recipe.data.label_fraction == 1


def _peak(found: Recorded) -> tuple[int | None, str | None]:
    """The largest peak of its sessions, and whose memory that was: a GPU's says what a model needs there."""
    for key, whose in (("peak_device_memory", "device"), ("peak_memory", "host")):
        if peaks := [s[key] for s in found.sessions or () if s.get(key)]:
            return max(peaks), whose
    return None, None


def images_hash(dataset: Dataset) -> str:
    """Hash of the images with labels, patients and sites, and which of them are the test split."""
    rows = sorted(
        [r.id, r.pixel_hash or "", list(r.labels), r.split == "test", r.patient or "", r.site or ""]
        for r in dataset.records
    )
    return sha256_json({"classes": dataset.classes, "multi_label": dataset.multi_label, "rows": rows})


def _changed(found: Recorded) -> tuple[str, ...]:
    entries = [e for e in found.ledger or () if e.get("event") == "accepted"]
    return tuple("; ".join(e["what"]) if isinstance(e.get("what"), list) else str(e.get("what")) for e in entries)


def _pixels(found: Recorded) -> tuple[int, int] | None:
    sizes = ((found.audit or {}).get("summary") or {}).get("sizes") or []
    return (int(sizes[0][0]), int(sizes[0][1])) if sizes else None


def _budget(common: Run, steps: int | None) -> str:
    train = common.recipe.train
    batch = train.batch_size * train.accumulate
    told = f"{plural(steps, 'step')} of {batch} images" if steps else f"{plural(train.epochs, 'epoch')}, batch {batch}"
    if not steps:
        return told
    passes = steps * batch / max(common.counts["train"], 1)
    return f"{told} ({passes:.{0 if passes >= 10 else 1 if passes >= 1 else 2}f} passes over the training images)"


def _start(recipe: Recipe) -> str:
    if recipe.model.pretrained:
        return f"{recipe.model.name}: published weights"
    return f"{recipe.model.name}: {recipe.model.weights}" if recipe.model.weights else "random weights"


def _enlarged(run: Run) -> str:
    """Images that were made larger hold no more detail than before, and the table must say so."""
    size, sides = run.recipe.preprocess.size, run.pixels
    target = min(size) if isinstance(size, tuple) else size
    if not sides or max(sides) >= target:
        return ""
    return f"; the source images are {sides[1]} × {sides[0]} pixels, enlarged"


def _without_seed(text: str) -> str:
    return text.rpartition(", seed ")[0] or text


def _plain(text: str) -> str:
    return text.strip("'")


def grouped(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    """Runs by row, in the order given, each row by seed."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.label, []).append(run)
    return {label: sorted(each, key=lambda r: r.seed) for label, each in rows.items()}
