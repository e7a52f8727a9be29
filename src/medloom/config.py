"""What a user may ask for: the recipe, strict in every key, read from YAML, overridden by dotted ``a.b=c``.

A recipe is complete in itself: two runs with equal recipes, data and machine give equal bytes. Values that are
decided from the data (class weights, mean and deviation) are written as the rule, not as the number.
"""

from __future__ import annotations

import copy
import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medloom.errors import UsageError, check_accept, plain_words
from medloom.files import sha256_json


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number, as everybody expects (YAML 1.1 wants ``1.0e-4``)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]


class DataConfig(_Part):
    """Which images, whose, and with what labels."""

    path: str | None = None
    source: Literal["auto", "folder", "table", "medmnist"] = "auto"
    patient: str = Field(
        default="auto",
        description="auto | kermany (number with kind) | kermany-number | column:NAME | pattern:REGEX | none",
    )
    site: str | None = Field(default=None, description="column:NAME | pattern:REGEX with one group")
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    classes: tuple[str, ...] | None = Field(
        default=None, description="names in order; the last is the positive one of two"
    )
    rename: dict[str, str] = Field(
        default={}, description="label in the source: its name here, '' to leave it out; '*' stands for the rest"
    )
    multi_label: bool | None = None
    uncertain: Literal["refuse", "negative", "positive", "drop"] = "refuse"
    encoding: str = "utf-8"
    exclude: tuple[str, ...] = ()
    exclude_limit: Fraction = 0.01
    frames: Literal["refuse", "first", "all"] = "refuse"
    max_megapixels: Annotated[float, Field(gt=0)] = 64.0
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.0
    min_val_per_class: Annotated[int, Field(ge=1)] = 50
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    accept: tuple[str, ...] = Field(default=(), description="codes of gates to pass; each stands in the report")
    _gates = field_validator("accept")(check_accept)


class PreprocessConfig(_Part):
    """Array to model input; becomes the frozen ``Preprocess`` of the bundle."""

    size: Positive | tuple[Positive, Positive] = 224
    resize: Literal["squash", "pad", "crop"] = "squash"
    channels: Literal["grey", "replicate", "pseudocolor", "rgb"] = "replicate"
    intensity: Literal["none", "percentile", "equalize"] = "none"
    percentiles: tuple[float, float] = (0.5, 99.5)
    statistics: Literal["paper", "imagenet", "train", "half"] = "paper"


class ModelConfig(_Part):
    """Which network; ``options`` go to its builder unchanged."""

    name: str = "hatr_resnet50"
    options: dict[str, Any] = {}
    pretrained: bool = False
    weights: str | None = Field(default=None, description="safetensors file to start from")
    new_head: bool = Field(default=False, description="with weights: leave out a head of another class count")


class AugmentConfig(_Part):
    """Ranges of the random changes to training images; 0 or (1, 1) switches one off. One draw per image."""

    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    vertical_flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    crop: tuple[float, float] = Field(
        default=(1.0, 1.0), description="area share of a random resized crop, e.g. (0.55, 1)"
    )
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.1
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    blur: Annotated[float, Field(ge=0)] = Field(default=0.0, description="largest Gaussian sigma in pixels")
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0


class ImbalanceConfig(_Part):
    """One switch for class imbalance."""

    method: Literal["none", "class_weights", "oversample", "undersample", "focal"] = "class_weights"
    weights: Literal["inverse_frequency"] | dict[str, float] = Field(
        default="inverse_frequency", description="for class_weights: a rule, or a weight per class name"
    )
    gamma: Annotated[float, Field(ge=0)] = 2.0


class TrainConfig(_Part):
    """The loop."""

    epochs: Positive = 20
    max_steps: Positive | None = None
    batch_size: Positive = 32
    accumulate: Positive = 1
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Fraction = 0.9
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: tuple[Positive, ...] = ()
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    label_smoothing: Fraction = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    ema_decay: Fraction = 0.0
    amp: Literal["bf16", "off"] = "bf16"
    patience: Positive | None = None
    monitor: Literal["val_auc", "val_loss"] = "val_auc"
    save_steps: Positive | None = Field(default=None, description="also save inside an epoch, every so many steps")
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


class EvaluationConfig(_Part):
    """How the numbers are made."""

    threshold: Literal["youden", "balanced_accuracy", "accuracy", "sensitivity"] = "accuracy"
    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95
    calibration: Literal["temperature", "none"] = "temperature"
    resamples: Positive = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    min_positives: Positive = 10
    flip_average: bool = Field(default=False, description="mean of the logits of an image and its mirror")


class Recipe(_Part):
    """Everything that a run is asked to do."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "run"
    notes: str = ""
    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    imbalance: ImbalanceConfig = ImbalanceConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        """YAML has no tuples; strict validation would refuse its lists."""
        return _tuples(value)

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
