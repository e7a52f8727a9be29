"""What a user may ask for: the recipe, strict in every key, read from YAML, overridden by dotted ``a.b=c``.

A recipe is complete in itself: two runs with equal recipes, data and machine give equal bytes. Values that are
decided from the data (class weights, mean and deviation) are written as the rule, not as the number.
"""

from __future__ import annotations

import copy
import difflib
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from medloom.config_parts import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    EvaluationConfig,
    ImbalanceConfig,
    LossConfig,
    ModelConfig,
    Part,
    PreprocessConfig,
    TokensConfig,
    TrainConfig,
)
from medloom.config_segmentation import SegmentationConfig, VolumeConfig
from medloom.errors import UsageError, plain_words
from medloom.files import sha256_json

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EvaluationConfig",
    "ImbalanceConfig",
    "LossConfig",
    "ModelConfig",
    "PreprocessConfig",
    "Recipe",
    "SegmentationConfig",
    "TrainConfig",
    "VolumeConfig",
    "difference",
    "load_recipe",
]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number and ``off`` a word, as everybody expects (YAML 1.1 has it otherwise)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:bool"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class Recipe(Part):
    """Everything that a run is asked to do."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "run"
    notes: str = ""
    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    volume: VolumeConfig = VolumeConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    imbalance: ImbalanceConfig = ImbalanceConfig()
    loss: LossConfig = LossConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    tokens: TokensConfig = TokensConfig()
    distill: DistillConfig = DistillConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        """YAML has no tuples; strict validation would refuse its lists."""
        return _tuples(value)

    @model_validator(mode="after")
    def _changes_fit_the_input(self) -> Recipe:
        """Parts of a recipe that contradict each other, found before an image is read (U226)."""
        colour = [key for key in ("hue", "saturation", "stain") if getattr(self.augment, key) > 0]
        if colour and self.preprocess.channels != "rgb":
            told = f"colours change, and preprocess.channels is {self.preprocess.channels}"
            raise UsageError("U226", f"augment.{colour[0]}", told, "Say preprocess.channels=rgb, or leave it out")
        size = self.preprocess.size
        if self.augment.quarter_turns and not isinstance(size, int) and size[0] != size[1]:
            told = f"an image of {size[0]} x {size[1]} does not fit itself when it is turned"
            raise UsageError("U226", "augment.quarter_turns", told, "Choose a square preprocess.size, or leave it out")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON and YAML."""
        return self.model_dump(mode="json")

    def as_yaml(self) -> str:
        """The resolved recipe, every default written out."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True, width=110)

    @property
    def hash(self) -> str:
        """SHA-256 of the resolved values."""
        return sha256_json(self.as_dict())


def load_recipe(source: str | Path | dict[str, Any], overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and lay ``a.b=c`` overrides over it (values are read as YAML).

    Raises:
        UsageError: U201 file not found, U202 not YAML, U203 unknown key (with the nearest name), U204 bad value,
            U205 malformed override.
    """
    place = "recipe" if isinstance(source, dict) else str(source)
    values = copy.deepcopy(source) if isinstance(source, dict) else _read_yaml(Path(source))
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as problem:
        raise _explain(place, problem) from None


def difference(old: Recipe, new: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for every value in which two recipes differ."""
    before, after = _flatten(old.as_dict()), _flatten(new.as_dict())
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UsageError("U201", path, f"not readable ({problem.strerror})", "Give a .yaml from recipes/") from None
    except UnicodeDecodeError:
        raise UsageError("U202", path, "recipe is not UTF-8 text", "Save it as UTF-8 YAML") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError("U202", line, "not valid YAML", "Check indentation and quotes there") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError("U202", path, "the top level is not a mapping", "Start from a file in recipes/")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError("U205", override, "override has no '='", "Write --set train.epochs=5")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UsageError("U205", override, "value is not valid YAML", "Quote it") from None
    *parents, leaf = key.strip().split(".")
    here = values
    for parent in parents:
        step = here.setdefault(parent, {})
        if not isinstance(step, dict):
            raise UsageError("U203", key, f"'{parent}' holds a value, not a section", "See docs/recipes.md")
        here = step
    here[leaf] = value


def _explain(place: str, problem: ValidationError) -> UsageError:
    first = problem.errors()[0]
    part, location = Recipe.model_fields, []
    for name in map(str, first["loc"]):
        location.append(name)
        if name not in part:
            break
        inner = part[name].default
        if not isinstance(inner, BaseModel):
            break  # what follows names a member of a union, in pydantic's words
        part = type(inner).model_fields
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], list(part), n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(part)}"
        return UsageError("U203", f"{place} {key}", "unknown key", hint)
    same = [e["msg"] for e in problem.errors() if e["loc"][: len(location)] == first["loc"][: len(location)]]
    more = f" (and {problem.error_count() - len(same)} more)" if problem.error_count() > len(same) else ""
    said = f"{plain_words(same)}, got {first['input']!r}{more}"
    return UsageError("U204", f"{place} {key}", said, "Correct the value; see docs/recipes.md")


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: (inner if key == "options" else _tuples(inner)) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(inner) for inner in value)
    return value


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
