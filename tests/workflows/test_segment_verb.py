"""A segmenter from folder to masks, as a user runs it, on phantoms: what is written, judged, refused and resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from medloom.data.phantom import write_phantom
from medloom.data.phantom_masks import write_phantom_masks
from medloom.data.phantom_volumes import write_phantom_volumes
from medloom.errors import DataError, UsageError
from medloom.evaluation.case_table import read_cases
from medloom.files import RunDirectory
from medloom.workflows.cross_validate import cross_validate
from medloom.workflows.evaluate import evaluate
from medloom.workflows.train import TrainedRun, train

MASKS: dict[str, Any] = {
    "name": "masks",
    "preprocess": {"size": 48, "channels": "grey", "statistics": "train"},
    "model": {"name": "unet", "options": {"dims": [8, 16, 16]}},
    "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.003, "optimizer": "adamw", "threads": 1},
    "evaluation": {"resamples": 200},
}
VOLUMES: dict[str, Any] = {
    "name": "volumes",
    "volume": {"spacing": [4, 4, 4]},
    "model": {"name": "unet_3d", "options": {"dims": [8, 16]}},
    "augment": {"elastic": 1.0},
    "segmentation": {"patch": [16, 16, 16], "keep_largest": "auto"},
    "train": {"epochs": 1, "batch_size": 4, "learning_rate": 0.003, "optimizer": "adamw", "threads": 1},
    "evaluation": {"resamples": 200},
}


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_masks(tmp_path_factory.mktemp("data") / "masks", n_patients=24, size=48, seed=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, masks: Path) -> TrainedRun:
    return train(MASKS, data=masks, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    data = tmp_path_factory.mktemp("data") / "volumes"
    write_phantom_volumes(data, n_patients=16, size=24, seed=1)
    return train(VOLUMES, data=data, out=tmp_path_factory.mktemp("runs") / "run")


def test_a_run_leaves_everything_that_a_segmenter_has(finished: TrainedRun) -> None:
    present = {p.name for p in finished.directory.root.iterdir()}
    assert present >= {
        "recipe.yaml", "environment.json", "records.csv", "split.json", "audit.json", "audit.html", "log.jsonl",
        "checkpoint", "cases_val.csv", "cases_test.csv", "metrics.json", "postprocessing.json", "pictures.npz",
        "pictures.json", "report.html", "bundle", "ledger.jsonl",
    }  # fmt: skip
    assert not [p for p in finished.directory.root.rglob("*") if "medloom-tmp" in p.name]


def test_metrics_follow_from_the_table_of_cases(finished: TrainedRun) -> None:
    table = read_cases(finished.directory.cases("test"))
    part = finished.metrics["splits"]["test"]
    assert finished.metrics["task"] == "segmentation"
    assert part["metrics"]["dice"]["value"] == pytest.approx(np.nanmean(table.per_case("dice")))
    assert set(part["structures"]) == {"lung", "opacity"}
    assert part["structures"]["lung"]["metrics"]["dice"]["value"] > part["metrics"]["dice"]["baseline"] - 0.5
    assert finished.metrics["test_scorings"] == 1
    assert "Dice" in finished.text()


def test_the_page_shows_outlines_and_the_trivial_answer(finished: TrainedRun) -> None:
    page = finished.report.read_text(encoding="utf-8")
    assert "Worst, median and best cases" in page
    assert "mean shape" in page
    assert "bundle/model.json is not recorded" not in page


def test_the_bundle_draws_the_masks_that_the_run_judged(finished: TrainedRun, masks: Path, tmp_path: Path) -> None:
    import medloom

    table = read_cases(finished.directory.cases("test"))
    bundle = medloom.load(finished.bundle)
    for row, name in enumerate(table.ids[:4]):
        (answer,) = bundle.segment([masks.parent / name])  # type: ignore[union-attr]
        with finished.directory.records.open() as handle:
            next(handle)
            record = next(r for r in csv.DictReader(handle) if r["id"] == name)
        truth = np.asarray(Image.open(masks.parent / record["mask"]))
        for k, value in enumerate((127, 255)):
            both = 2 * ((answer.mask == value) & (truth == value)).sum()
            total = (answer.mask == value).sum() + (truth == value).sum()
            recorded = table.values["dice"][row, k]
            assert (np.isnan(recorded) and total == 0) or both / total == pytest.approx(recorded)


def test_volumes_are_judged_on_the_grid_of_their_files_in_millimetres(volumes: TrainedRun) -> None:
    table = read_cases(volumes.directory.cases("test"))
    assert (table.distance_unit, table.size_unit) == ("mm", "ml")
    chosen = json.loads((volumes.directory.root / "postprocessing.json").read_text())
    assert chosen["chosen_on"] == "validation"
    assert chosen["keep_largest"] == (chosen["dice_with"] > chosen["dice_without"])
    facts = json.loads((volumes.directory.root / "pictures.json").read_text())
    assert {view["plane"] for view in facts[0]["views"]} == {"axial", "coronal", "sagittal"}


def test_T414_a_finished_run_is_not_answered_again(finished: TrainedRun, masks: Path) -> None:
    before = finished.directory.ledger.read_bytes()
    again = train(MASKS, data=masks, out=finished.directory.root, resume=True)
    assert again.metrics == finished.metrics
    assert finished.directory.ledger.read_bytes() == before


def test_folds_test_every_case_once_and_go_on_where_they_stopped(masks: Path, tmp_path: Path) -> None:
    recipe = MASKS | {"train": MASKS["train"] | {"epochs": 1}, "data": {"split_column": "none", "val_fraction": 0.2}}
    done = cross_validate(recipe, 2, data=masks, out=tmp_path / "folds")
    together = read_cases(tmp_path / "folds" / "cases_test.csv")
    with masks.open(newline="") as handle:
        wanted = [row["image"] for row in csv.DictReader(handle)]
    assert sorted(together.ids) == sorted(wanted)
    assert [fold["fold"] for fold in done.values["folds"]] == [0, 1]
    assert done.values["over_folds"]["dice"]["mean"] == pytest.approx(
        np.mean([fold["metrics"]["dice"]["value"] for fold in done.values["folds"]])
    )
    page = (tmp_path / "folds" / "folds.html").read_text(encoding="utf-8")
    assert "HD95, mm" in page or "HD95, pixels" in page
    assert "All cases together" in page
    with pytest.raises(UsageError, match="U212"):
        cross_validate(recipe, 2, data=masks, out=tmp_path / "folds")
    stamp = (tmp_path / "folds" / "fold0" / "metrics.json").stat().st_mtime_ns
    again = cross_validate(recipe, 2, data=masks, out=tmp_path / "folds", resume=True)
    assert again.values == done.values
    assert (tmp_path / "folds" / "fold0" / "metrics.json").stat().st_mtime_ns == stamp


def test_another_data_set_is_judged_and_stands_in_the_report(finished: TrainedRun, tmp_path: Path) -> None:
    other = write_phantom_masks(tmp_path / "elsewhere", n_patients=12, size=64, seed=9)
    done = evaluate(finished.directory.root, data=other, name="elsewhere")
    place = finished.directory.root / "evaluations" / "elsewhere"
    table = read_cases(place / "cases.csv")
    assert done.values["metrics"]["splits"]["test"]["n"] == len(table)
    assert done.values["metrics"]["evaluation"]["seen_images"] == 0
    assert "elsewhere" in finished.report.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="U212"):
        evaluate(finished.directory.root, data=other, name="elsewhere")


def test_D117_the_images_that_it_learnt_from_are_no_other_data_set(finished: TrainedRun, masks: Path) -> None:
    with pytest.raises(DataError, match="D117"):
        evaluate(finished.directory.root, data=masks, name="same")


def test_D116_other_structures(finished: TrainedRun, tmp_path: Path) -> None:
    other = write_phantom_masks(tmp_path / "elsewhere", n_patients=12, size=32, seed=9)
    with pytest.raises(DataError, match="D116"):
        evaluate(finished.directory.root, data=other, overrides=("data.classes=[background, heart, liver]",))


def test_U228_a_segmenter_on_images_with_labels(tmp_path: Path) -> None:
    table = write_phantom(tmp_path / "phantom", n_patients=20, size=32, seed=1)
    with pytest.raises(UsageError, match="U228"):
        train(MASKS, data=table, out=tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_U228_a_classifier_on_masks(masks: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U228"):
        train({"model": {"name": "resnet18"}}, data=masks, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation": {"patch": [16, 16]}}, "learnt whole"),
        ({"augment": {"elastic": 2.0}}, "deforms volumes"),
        ({"preprocess": {"size": 48, "resize": "crop", "channels": "grey"}}, "crop"),
    ],
)
def test_U226_a_recipe_that_images_contradict(masks: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match="U226") as refused:
        train(MASKS | changes, data=masks, out=tmp_path / "run")
    assert words in str(refused.value)


def test_U226_volumes_without_a_patch(tmp_path: Path) -> None:
    write_phantom_volumes(tmp_path / "v", n_patients=16, size=16, seed=1)
    with pytest.raises(UsageError, match="U226"):
        train(VOLUMES | {"segmentation": {}}, data=tmp_path / "v", out=tmp_path / "run")


def test_N312_a_structure_that_no_training_mask_holds(masks: Path, tmp_path: Path) -> None:
    with masks.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    kept = []
    for row in rows:
        values = np.unique(np.asarray(Image.open(masks.parent / row["mask"])))
        kept += [row] if (255 in values) == (row["split"] == "test") else []
    table = masks.parent / "uneven.csv"
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    try:
        with pytest.raises(DataError, match="N312"):
            train(MASKS | {"data": {"val_fraction": 0.3}}, data=table, out=tmp_path / "run", accept=("D119",))
    finally:
        table.unlink()


def test_the_recipe_that_data_plan_writes_trains(tmp_path: Path) -> None:
    from medloom.workflows.plan import plan

    write_phantom_volumes(tmp_path / "v", n_patients=16, size=16, seed=2)
    plan(tmp_path / "v", out=tmp_path / "plan.yaml", model="unet_3d")
    written = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert written["segmentation"]["patch"]
    done = train(
        tmp_path / "plan.yaml",
        data=tmp_path / "v",
        out=tmp_path / "run",
        overrides=("train.max_steps=2", "train.threads=1", "model.options={dims: [8, 16]}", "evaluation.resamples=200"),
    )
    assert RunDirectory(tmp_path / "run").report.exists()
    assert done.metrics["task"] == "segmentation"
