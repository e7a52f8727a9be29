"""What ``medloom compare`` is asked for: recipes, models laid over one recipe, and finished runs become one list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medloom.config import Recipe, load_recipe
from medloom.data.records import Dataset
from medloom.data.sources import open_dataset
from medloom.data.volume_source import sizes_below
from medloom.errors import UsageError
from medloom.files import RunDirectory, sha256_file, sha256_json
from medloom.workflows.train import resolve

_SPEC = re.compile(r"(?P<name>[\w./-]+)\s*(?:\((?P<options>.*)\))?\s*(?:@(?P<seeds>\d+(?:\+\d+)*))?", re.DOTALL)


@dataclass(frozen=True)
class Planned:
    """One run: its row in the table, what it is asked, and where it lies.

    Attributes:
        setting: hash of recipe and data without the seed; runs that share it are one row.
        given: a finished run that was named on the command line; it is read, never run.
    """

    label: str
    recipe: Recipe
    directory: RunDirectory
    setting: str
    given: bool = False

    @property
    def seed(self) -> int:
        return self.recipe.train.seed

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Listed:
    """What a listing of the data tells before any image is read: enough to estimate and to recognise it."""

    stamp: str
    num_classes: int
    multi_label: bool
    images: dict[str, int]
    dataset: Dataset = field(compare=False, repr=False)  # the stamp tells it, wherever it lies


def parse_models(texts: Sequence[str]) -> list[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """``resnet18,vit_tiny(patch_size=8)@0+1`` as ``(name, options, seeds)`` each; a model may be named again with other
    options.

    Raises:
        UsageError: U231, not of this form.
    """
    found = []
    for text in (part.strip() for given in texts for part in _split(given)):
        match = _SPEC.fullmatch(text)
        if match is None:
            raise UsageError("U231", text or "--models", "not a model", "Write NAME, NAME(key=value, ...) or NAME@SEED")
        options: dict[str, Any] = {}
        for item in _split(match["options"] or "") if match["options"] else []:
            key, equals, value = item.partition("=")
            try:
                options[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError:
                equals = ""
            if not equals or not key.strip():
                raise UsageError("U231", text, f"'{item.strip()}' is no option", "Write key=value")
        seeds = tuple(int(s) for s in match["seeds"].split("+")) if match["seeds"] else ()
        found.append((match["name"], options, seeds))
    return found


def parse_seeds(text: str | Sequence[int] | None) -> tuple[int, ...]:
    """``0,1,2``; empty for None.

    Raises:
        UsageError: U231.
    """
    if text is None:
        return ()
    items = text.split(",") if isinstance(text, str) else [str(s) for s in text]
    if not all(item.strip().isdigit() for item in items):
        raise UsageError("U231", "--seeds", f"'{text}' is no list of seeds", "Write whole numbers, as in 0,1,2")
    return tuple(dict.fromkeys(int(item) for item in items))


def plan(
    sources: Sequence[str | Path],
    *,
    recipe: str | Path | None,
    models: Sequence[str],
    data: str | Path | None,
    seeds: tuple[int, ...],
    overrides: Sequence[str],
    accept: Sequence[str],
    out: Path,
    listings: dict[str, Listed] | None = None,
) -> list[Planned]:
    """All runs of the comparison, the first seed of every row before the second of any.

    Args:
        listings: is filled with what was listed, see :func:`listing`.

    Raises:
        UsageError: U211 no data, U230 nothing to compare, U231 bad ``models``, U232 two rows of one name, U233 a named
            run is not finished; U201 to U205 for recipes. DataError: the data cannot be listed.
    """
    if models and recipe is None:
        raise UsageError("U230", "--models", "no recipe to lay them over", "Name it with --recipe FILE.yaml")
    given = [Path(s) for s in sources if (Path(s) / "recipe.yaml").exists()]
    wanted: list[tuple[str, Recipe, tuple[int, ...]]] = []
    for source in (Path(s) for s in sources if Path(s) not in given):
        if source.is_dir():
            raise UsageError("U233", source, "no run is there", "Give recipes, or run directories with recipe.yaml")
        one = resolve(source, data=data, overrides=overrides, seed=None, accept=accept)
        wanted.append((one.name, one, ()))
    if recipe is not None:
        base = resolve(recipe, data=data, overrides=overrides, seed=None, accept=accept)
        wanted += [_laid_over(base, *spec) for spec in parse_models(models)] if models else [(base.name, base, ())]
    listings = {} if listings is None else listings
    planned = [_given(run) for run in given]
    for label, one, own_seeds in wanted:
        setting = _setting(one, listing(one, listings).stamp)
        for seed in own_seeds or seeds or (one.train.seed,):
            seeded = load_recipe({**one.as_dict(), "train": {**one.as_dict()["train"], "seed": seed}})
            folder = f"{_slug(label)}-seed{seed}-{setting[:8]}"
            planned.append(Planned(label, seeded, RunDirectory(out / "runs" / folder), setting))
    if not planned:
        raise UsageError("U230", "compare", "nothing to compare", "Give recipes, run directories, or --models")
    return _in_turn(_named_apart(planned))


def listing(recipe: Recipe, known: dict[str, Listed]) -> Listed:
    """The listing of a recipe's data set; ``known`` remembers it for recipes with the same data section.

    Raises:
        UsageError: U211, none is named. DataError: D113 to D116.
    """
    if recipe.data.path is None:
        raise UsageError("U211", "data", "no data set given", "Name it with --data PATH")
    key = sha256_json(recipe.as_dict()["data"])
    if key not in known:
        dataset = open_dataset(recipe.data.path, recipe.data)
        counts = _counts(dataset, recipe)
        known[key] = Listed(_stamp(dataset), len(dataset.classes), dataset.multi_label, counts, dataset)
    return known[key]


def _laid_over(
    base: Recipe, name: str, options: dict[str, Any], seeds: tuple[int, ...]
) -> tuple[str, Recipe, tuple[int, ...]]:
    """The recipe with another model; its own model without options keeps those that the recipe gives it."""
    values = base.as_dict()
    if name != values["model"]["name"] or options:
        values["model"] = {**values["model"], "name": name, "options": options}
    shown = ", ".join(f"{k}={yaml.safe_dump(v, default_flow_style=True).split(chr(10))[0]}" for k, v in options.items())
    label = f"{name}({shown})" if shown else name
    values["name"] = _slug(label)
    return label, load_recipe(values), seeds


def _given(path: Path) -> Planned:
    directory = RunDirectory(path)
    if not (directory.metrics.exists() and directory.predictions("test").exists()):
        raise UsageError("U233", path, "the run is not finished", f"Finish it with medloom train --resume --out {path}")
    recipe = load_recipe(directory.recipe)
    return Planned(recipe.name, recipe, directory, _setting(recipe, ""), given=True)


def _setting(recipe: Recipe, stamp: str) -> str:
    """Only what differs from a default counts, so that a key that a later version adds makes no run another one.

    Weights and teacher count by their content: other weights under the same name make another run.
    """
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    for part, key in (("model", "weights"), ("distill", "teacher")):
        if (named := values.get(part, {}).get(key)) is not None:
            values[part][key] = _content(Path(named))
    for part, key in (("", "name"), ("", "notes"), ("data", "path"), ("data", "accept"), ("train", "seed")):
        (values.get(part, {}) if part else values).pop(key, None)
    return sha256_json({"recipe": {k: v for k, v in values.items() if v != {}}, "data": stamp})


def _content(path: Path) -> str:
    """Hash of the weights that a file, a bundle or a run directory holds; the name where none are found, as the run
    will refuse it."""
    root = path.parent if path.name == "model.json" else path
    for file in (root, root / "model.safetensors", root / "bundle" / "model.safetensors"):
        if file.is_file():
            return sha256_file(file)
    return str(path)


def _stamp(dataset: Dataset) -> str:
    """What tells one data set from another without decoding it: names, sizes, labels, splits and patients."""
    if dataset.root.is_file() and dataset.root.suffix == ".npz":
        files = [sha256_file(dataset.root)]
    else:
        files = [_size(dataset.file(record)) for record in dataset.records]
    rows = [[r.id, list(r.labels), r.split or "", r.patient or ""] for r in dataset.records]
    return sha256_json({"classes": dataset.classes, "files": files, "rows": rows})


def _size(path: Path) -> str:
    """Bytes of a file; of the folder of a series its files with theirs, as a folder's own size says nothing."""
    if path.is_dir():
        return sha256_json(sizes_below(path))
    return str(path.stat().st_size if path.exists() else -1)


def _counts(dataset: Dataset, recipe: Recipe) -> dict[str, int]:
    """Images per split, where the source has none as the fractions will make them: good enough for an estimate."""
    found = {s: len(dataset.select(s)) for s in ("train", "val", "test")}
    rest = len(dataset) - sum(found.values())
    if not found["test"]:
        found["test"] = round((rest + found["train"]) * recipe.data.test_fraction)
        found["train"] += rest - found["test"]
    if not found["val"]:
        found["val"] = round(found["train"] * recipe.data.val_fraction)
        found["train"] -= found["val"]
    return found


def _named_apart(planned: list[Planned]) -> list[Planned]:
    """Runs of one setting are one row; different settings need different names."""
    rows: dict[str, list[str]] = {}
    for one in planned:
        settings = rows.setdefault(one.label, [])
        if one.setting not in settings:
            settings.append(one.setting)
    out, taken = [], set()
    for one in planned:
        settings = rows[one.label]
        label = one.label
        if len(settings) > 1:
            if not one.given:
                raise UsageError("U232", one.label, "two rows have this name", "Give the recipes different names")
            label = f"{one.label} ({one.recipe.model.name}, {settings.index(one.setting) + 1})"
        if (label, one.seed) in taken:
            raise UsageError("U232", label, f"seed {one.seed} is there twice", "Name each run once")
        taken.add((label, one.seed))
        out.append(Planned(label, one.recipe, one.directory, one.setting, one.given))
    return out


def _in_turn(planned: list[Planned]) -> list[Planned]:
    """An interrupted sitting still tells something of every model."""
    seen: dict[str, int] = {}
    turn = []
    for one in planned:
        seen[one.label] = seen.get(one.label, 0) + 1
        turn.append(seen[one.label])
    return [planned[k] for k in sorted(range(len(planned)), key=lambda k: turn[k])]


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_.-") or "run"
