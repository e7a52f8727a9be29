"""A run directory as training leaves it, made of synthetic predictions: realistic in shape, known in content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medloom.config import EvaluationConfig, Recipe, load_recipe
from medloom.data.records import Dataset, Record
from medloom.evaluation.calibration import fit_temperature
from medloom.evaluation.operating_point import choose_operating_points
from medloom.evaluation.predictions import Predictions, from_logits
from medloom.evaluation.summary import summarise
from medloom.files import RunDirectory, append_line, write_json, write_text
from medloom.reporting.pictures import Picture, write_pictures

TIME = "2026-11-21T14:00:00+00:00"
SIZES = {"train": (1207, 3488), "val": (134, 387), "test": (234, 390)}


def make_run(
    root: Path,
    *,
    classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA"),
    sizes: dict[str, tuple[int, ...]] | None = None,
    multi_label: bool = False,
    id_pattern: str = "{split}/{label}/person{k}_bacteria_{j}.jpeg",
    name: str = "pneumonia",
    accept: tuple[str, ...] = (),
    images: list[np.ndarray] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> RunDirectory:
    """Write every file that a report reads."""
    generator = np.random.default_rng(seed)
    run = RunDirectory(root)
    (root / "bundle").mkdir(parents=True)
    sizes = sizes or SIZES
    recipe = load_recipe(
        {
            "name": name,
            "notes": "Synthetic predictions for the tests of the report.",
            "data": {"path": "chest_xray", "accept": list(accept)},
            "model": {"name": "hatr_resnet50"},
            "imbalance": {"weights": dict(zip(classes, (3.0, *[1.0] * (len(classes) - 1))))},
            "evaluation": {"resamples": resamples},
        }
    )
    write_text(run.recipe, recipe.as_yaml())
    dataset = _dataset(classes, sizes, multi_label, id_pattern, generator)
    dataset.write_csv(run.records)
    write_json(run.split, _split(dataset))
    write_json(run.audit, _audit(dataset, accept))
    write_json(run.environment, ENVIRONMENT)
    _write_log(run, generator)
    temperature = _write_results(run, dataset, recipe, generator)
    _write_pictures(run, dataset, images, generator)
    write_json(run.bundle / "model.json", _model(recipe, classes, temperature))
    return run


ENVIRONMENT: dict[str, Any] = {
    "medloom": "0.1.0",
    "python": "3.11.2",
    "system": "Linux x86_64",
    "cpu": "AMD EPYC 9554 64-Core Processor",
    "cores": 2,
    "memory_gib": 7.8,
    "packages": {"numpy": "2.3.5", "torch": "2.11.0", "timm": "1.0.22"},
    "threads": 2,
    "accelerator": None,
}


def _dataset(
    classes: tuple[str, ...],
    sizes: dict[str, tuple[int, ...]],
    multi_label: bool,
    id_pattern: str,
    generator: np.random.Generator,
) -> Dataset:
    records = []
    for split, per_class in sizes.items():
        for k, count in enumerate(per_class):
            for i in range(count):
                labels: tuple[int, ...] = (k,)
                if multi_label:
                    labels = tuple(sorted({k} | set(np.flatnonzero(generator.random(len(classes)) < 0.15).tolist())))
                    labels = () if generator.random() < 0.3 else labels
                person, j = divmod(i, 2)
                identity = id_pattern.format(split=split, label=classes[k], k=person, j=j)
                sex, age = str(generator.choice(["F", "M"])), str(int(generator.integers(1, 90)))
                covariates = {"sex": sex, "age": age}
                patient = f"{split}-{k}-{person}"
                records.append(Record(identity, identity, None, labels, None, split, patient, covariates=covariates))
    return Dataset("chest_xray", Path("chest_xray"), classes, tuple(records), multi_label)


def _split(dataset: Dataset) -> dict[str, Any]:
    parts = {s: dataset.select(s) for s in ("train", "val", "test")}
    return {
        "hash": dataset.hash(),
        "seed": 0,
        "images": {s: len(p) for s, p in parts.items()},
        "patients": {s: len({r.patient for r in p.records}) for s, p in parts.items()},
        "classes": {
            s: {c: sum(k in r.labels for r in p.records) for k, c in enumerate(dataset.classes)}
            for s, p in parts.items()
        },
        "notices": ["The source has no validation part: one tenth of the training patients was set aside for it."],
    }


def _audit(dataset: Dataset, accept: tuple[str, ...]) -> dict[str, Any]:
    first = [r.id for r in dataset.records[:2]]
    findings = [
        {
            "code": "D118",
            "severity": "note",
            "title": "26 exact copies inside train",
            "count": 26,
            "examples": [first],
            "remedy": "Nothing need be done: copies stay together",
        },
        {
            "code": "D106",
            "severity": "warn",
            "title": "image width predicts the label (AUC 0.71)",
            "count": 624,
            "examples": first,
            "remedy": "Compare with a crop of one size",
        },
    ]
    findings += [
        {
            "code": c,
            "severity": "refuse",
            "title": f"refused by {c}",
            "count": 8,
            "examples": [],
            "remedy": "Split again",
        }
        for c in accept
    ]
    return {
        "findings": findings,
        "counts": _split(dataset)["classes"],
        "summary": {"images": len(dataset)},
        "excluded": [{"id": "train/NORMAL/IM-0007.jpeg", "code": "D103", "problem": "JPEG ends early"}],
    }


def _write_log(run: RunDirectory, generator: np.random.Generator, epochs: int = 20) -> None:
    events: list[dict[str, Any]] = [{"event": "start", "time": TIME}]
    for e in range(1, epochs + 1):
        wobble = float(generator.normal()) * 0.5 ** (e / 8)
        events.append(
            {
                "event": "epoch",
                "epoch": e,
                "step": 147 * e,
                "train_loss": 0.62 * 0.84**e + 0.03,
                "train_accuracy": 1 - 0.3 * 0.82**e - 0.012,
                "val_loss": 0.5 * 0.88**e + 0.07 + 0.04 * wobble,
                "val_accuracy": 0.97 - 0.2 * 0.8**e - 0.012 * wobble,
                "val_auc": 0.996 - 0.09 * 0.75**e - 0.002 * abs(wobble),
                "learning_rate": 1e-4 * (1 + float(np.cos(np.pi * (e - 1) / epochs))) / 2,
                "seconds": 34.2 + wobble,
                "images_per_second": 137.2 - wobble,
            }
        )
    events += [{"event": "best", "epoch": 17, "val_auc": 0.995}, {"event": "stop", "reason": "all epochs done"}]
    for event in events:
        append_line(run.log, json.dumps(event))
    for session in ({"event": "start", "over": False}, {"event": "end", "stopped": "epochs", "peak_memory": 3 << 29}):
        append_line(run.sessions, json.dumps(session))


def _logits(part: Dataset, shift: float, generator: np.random.Generator) -> np.ndarray:
    truth = np.array([[float(k in r.labels) for k in range(len(part.classes))] for r in part.records])
    return (6.0 + shift) * (truth - 0.5) + generator.normal(0, 2.6 - shift, truth.shape)


def _table(part: Dataset, split: str, logits: np.ndarray, temperature: float) -> Predictions:
    names = sorted({key for r in part.records for key in r.covariates})
    return from_logits(
        [r.id for r in part.records],
        [r.patient for r in part.records],
        [r.site for r in part.records],
        part.targets(),
        logits,
        part.classes,
        multi_label=part.multi_label,
        temperature=temperature,
        split=split,
        covariates={n: [r.covariates.get(n, "") for r in part.records] for n in names},
    )


def _write_results(run: RunDirectory, dataset: Dataset, recipe: Recipe, generator: np.random.Generator) -> float:
    config: EvaluationConfig = recipe.evaluation
    val, test = dataset.select("val"), dataset.select("test")
    logits = _logits(val, 0.6, generator)
    temperature = fit_temperature(logits, val.targets(), val.multi_label)
    validation = _table(val, "val", logits, temperature)
    decision = choose_operating_points(
        validation, config, timestamp=TIME, temperature=temperature, accept=("D124",), seed=0
    )
    validation.write_csv(run.predictions("val"))
    write_json(run.operating_point, decision)
    append_line(run.ledger, json.dumps({"event": "test scored", "what": "training", "time": TIME, "data": "ab12"}))
    tested = _table(test, "test", _logits(test, -0.8, generator), temperature)
    tested.write_csv(run.predictions("test"))
    metrics = summarise(
        tested, validation=validation, operating_points=decision, temperature=temperature, config=config, seed=0
    )
    write_json(run.metrics, {**metrics, "test_scorings": 1})
    return temperature


def _write_pictures(
    run: RunDirectory, dataset: Dataset, images: list[np.ndarray] | None, generator: np.random.Generator
) -> None:
    entries = []
    test = dataset.select("test")
    for i in range(6 if images is None else len(images)):
        record = test.records[(i * 97) % len(test)]
        image = generator.integers(0, 255, (48, 48)).astype(np.uint8) if images is None else images[i]
        label, wrong = dataset.label_names(record), i % 3 == 0
        other = next(c for c in dataset.classes if c != label)
        weights = {}
        for scale, side in enumerate((14, 7)):
            y, x = np.mgrid[0:side, 0:side] / side
            centre = generator.random(2) * 0.6 + 0.2
            bump = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 0.05)
            weights[f"token_weight.{scale}"] = 0.35 + 0.5 * bump + 0.02 * generator.random((side, side))
        score, positive = float(generator.random()), dataset.classes[-1]
        entries.append(Picture(record.id, label, other if wrong else label, not wrong, score, positive, image, weights))
    write_pictures(run, entries)


def _model(recipe: Recipe, classes: tuple[str, ...], temperature: float) -> dict[str, Any]:
    return {
        "format": 1,
        "medloom": "0.1.0",
        "name": recipe.name,
        "architecture": {"name": recipe.model.name, "num_classes": len(classes), "in_chans": 3, "image_size": 224},
        "classes": list(classes),
        "temperature": temperature,
        "expected_input": {"modality": "chest radiograph", "bits": 8},
        "latency": {"cpu": "AMD EPYC 9554", "threads": 2, "p50_ms": 41.2, "p95_ms": 44.0},
        "parity": {"images": 64, "max_abs_difference": 3.1e-6},
        "licences": {"weights": "Apache-2.0"},
        "provenance": {"data_hash": "ab12", "recipe_hash": recipe.hash[:12]},
        "hashes": {"document": "c0ffee" * 10},
    }
