"""A run directory of a segmenter as training leaves it: balls in noise, answered a little wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from run_fixture import ENVIRONMENT, TIME

from medloom.config import load_recipe
from medloom.data.records import Dataset, Record
from medloom.evaluation.case_table import Case, CaseTable, case_table
from medloom.evaluation.mean_shape import mean_shape
from medloom.evaluation.segmentation import score_case, units
from medloom.evaluation.segmentation_summary import notable_cases, summarise_segmentation
from medloom.files import RunDirectory, append_line, write_json, write_text
from medloom.reporting.overlays import case_picture, case_views, write_case_pictures

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


def volume_case(generator: np.random.Generator, *, shape: tuple[int, ...] = (36, 50, 34)) -> Drawn:
    """Image, reference and answer: two neighbouring lumps, the second now and then missing in either mask."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    centre = np.array(shape) / 2 + generator.uniform(-3, 3, len(shape))

    def lump(at: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return (((grid - at) / radii) ** 2).sum(axis=-1) <= 1

    gap = np.array([0, shape[1] / 5, 0])[: len(shape)]
    radii = np.array(shape) * generator.uniform(0.15, 0.2, len(shape))
    wrong = generator.normal(0, 0.9, len(shape))
    truth, answer = (np.zeros(shape, dtype=np.uint8) for _ in range(2))
    for mask, off, grown in ((truth, 0 * wrong, 1.0), (answer, wrong, generator.uniform(0.85, 1.1))):
        mask[lump(centre + gap + off, grown * radii)] = 2
        mask[lump(centre - gap + off, grown * radii)] = 1
    if generator.random() < 0.06:
        truth[truth == 2] = 0
    if generator.random() < 0.06:
        answer[answer == 2] = 0
    image = 300 * (truth > 0) + generator.normal(600, 90, shape)
    return image.astype(np.float32), truth, answer


def film_case(generator: np.random.Generator) -> Drawn:
    """The same in two axes with one structure."""
    image, truth, answer = volume_case(generator, shape=(180, 160))
    picture = np.clip(image / 4, 0, 255).astype(np.uint8)
    return picture, (truth > 0).astype(np.uint8), (answer > 0).astype(np.uint8)


def make_masks_run(
    root: Path,
    *,
    deep: bool = True,
    cases: int = 40,
    sites: tuple[str | None, ...] = ("Kyiv", "Lviv"),
    name: str = "hippocampus",
    structures: tuple[str, ...] | None = None,
    id_pattern: str = "case_{i:03d}",
    seed: int = 0,
) -> RunDirectory:
    """Write every file that a report reads."""
    generator = np.random.default_rng(seed)
    run = RunDirectory(root)
    (root / "bundle").mkdir(parents=True)
    structures = structures or (("anterior", "posterior") if deep else ("lung",))
    spacing = (1.0, 1.0, 1.2) if deep else None
    recipe = load_recipe(
        {
            "name": name,
            "notes": "Synthetic masks for the tests of the report.",
            "data": {"path": name},
            "model": {"name": "unet_3d" if deep else "unet"},
            "segmentation": {"patch": [32, 48, 32]} if deep else {},
            "evaluation": {"resamples": 100},
        }
    )
    write_text(run.recipe, recipe.as_yaml())
    write_json(run.environment, ENVIRONMENT)
    tables, drawn = {}, {}
    for split, count in (("val", cases // 3), ("test", cases)):
        made = [(volume_case if deep else film_case)(generator) for _ in range(count)]
        shape = mean_shape([truth for _, truth, _ in made], len(structures))
        rows = []
        for i, (image, truth, answer) in enumerate(made):
            identity = id_pattern.format(i=i, split=split)
            drawn[split, identity] = (image, truth, answer)
            trivial = shape.at(truth.shape)
            values = score_case(truth, answer, len(structures), spacing, tolerance=1.0, trivial_S=trivial)
            patient = f"{split} {i}"
            rows.append(Case(identity, patient, sites[i % len(sites)], values, *units(truth.ndim, spacing)))
        tables[split] = case_table(rows, structures, split=split, tolerance=1.0)
        tables[split].write_csv(run.cases(split))
    _write_data(run, tables, structures)
    _write_log(run, generator)
    metrics = summarise_segmentation(tables["test"], validation=tables["val"], config=recipe.evaluation)
    metrics["segmentation"] |= {
        "postprocessing": {"keep_largest": False, "chosen_on": "validation", "dice_without": 0.9, "dice_with": 0.89}
    }
    write_json(run.metrics, metrics)
    append_line(run.ledger, json.dumps({"event": "test scored", "what": "training", "time": TIME, "data": "ab12"}))
    pictures = [
        case_picture(tables["test"], identity, group, case_views(*drawn["test", identity], spacing))
        for group, ids in notable_cases(tables["test"]).items()
        for identity in ids
    ]
    write_case_pictures(run, pictures)
    write_json(run.bundle / "model.json", _model(structures, deep))
    return run


def _write_data(run: RunDirectory, tables: dict[str, CaseTable], structures: tuple[str, ...]) -> None:
    records = [
        Record(f"{s}/{i}", f"{s}/{i}", None, tuple(range(1, len(structures) + 1)), t.sites[n], s, t.patients[n])
        for s, t in tables.items()
        for n, i in enumerate(t.ids)
    ]
    dataset = Dataset("masks", Path("masks"), ("background", *structures), tuple(records), multi_label=True)
    dataset.write_csv(run.records)
    counts = {s: len(t) for s, t in tables.items()}
    classes = {s: {c: int((t.values["size_truth"][:, k] > 0).sum()) for k, c in enumerate(structures)}
               for s, t in tables.items()}  # fmt: skip
    split: dict[str, Any] = {"hash": dataset.hash(), "seed": 0, "images": counts, "patients": counts}
    write_json(run.split, split | {"classes": classes, "notices": []})
    write_json(run.audit, {"findings": [], "counts": classes, "summary": {"images": len(records)}, "excluded": []})


def _write_log(run: RunDirectory, generator: np.random.Generator, epochs: int = 24) -> None:
    events: list[dict[str, Any]] = [{"event": "start", "time": TIME}]
    for e in range(1, epochs + 1):
        wobble = float(generator.normal()) * 0.5 ** (e / 8)
        events.append(
            {
                "event": "epoch",
                "epoch": e,
                "step": 52 * e,
                "train_loss": 1.1 * 0.84**e + 0.2,
                "train_dice": 0.93 - 0.7 * 0.8**e,
                "val_loss": 1.0 * 0.85**e + 0.25 + 0.04 * wobble,
                "val_dice": 0.89 - 0.6 * 0.78**e - 0.02 * abs(wobble),
                "learning_rate": 1e-3 * (1 + float(np.cos(np.pi * (e - 1) / epochs))) / 2,
                "seconds": 21.5 + wobble,
                "images_per_second": 9.7 - wobble,
            }
        )
    events += [{"event": "best", "epoch": 19, "val_dice": 0.88}, {"event": "stop", "reason": "all epochs done"}]
    for event in events:
        append_line(run.log, json.dumps(event))
    for session in ({"event": "start", "over": False}, {"event": "end", "stopped": "epochs", "peak_memory": 3 << 29}):
        append_line(run.sessions, json.dumps(session))


def _model(structures: tuple[str, ...], deep: bool) -> dict[str, Any]:
    size: Any = [32, 48, 32] if deep else 160
    classes = ["background", *structures]
    made = {"name": "unet", "num_classes": len(classes), "in_chans": 1, "image_size": size}
    return {
        "format": 1,
        "medloom": "0.1.0",
        "architecture": made,
        "classes": classes,
        "hashes": {"document": "c0" * 32},
    }
