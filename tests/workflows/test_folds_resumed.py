"""``train --folds --resume`` takes finished folds of the same experiment only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medloom.config import load_recipe
from medloom.data.phantom_masks import write_phantom_masks
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.data.splits import make_splits
from medloom.errors import UsageError
from medloom.files import RunDirectory
from medloom.workflows.cross_validate import cross_validate

RECIPE: dict[str, Any] = {
    "name": "masks",
    "preprocess": {"size": 48, "channels": "grey"},
    "model": {"name": "unet", "options": {"dims": [8, 16, 16]}},
    "data": {"split_column": "none", "val_fraction": 0.2},
    "train": {"epochs": 1, "device": "cpu", "amp": "off"},
}


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_masks(tmp_path_factory.mktemp("data") / "masks", n_patients=12, size=32, seed=1)


@pytest.fixture
def folds(masks: Path, tmp_path: Path) -> Path:
    """What two finished folds of three leave for a look at whether they may stay."""
    for fold in range(2):
        run = RunDirectory(tmp_path / "folds" / f"fold{fold}")
        run.root.mkdir(parents=True)
        own = load_recipe(RECIPE, ("data.folds=3", f"data.fold={fold}", f"data.path={masks}"))
        run.recipe.write_text(own.as_yaml())
        found = scan(open_dataset(masks, own.data), own.data, workers=1)
        make_splits(found.dataset, own.data, own.train.seed).dataset.write_csv(run.records)
        run.metrics.write_text("{}")
        run.report.touch()
    return tmp_path / "folds"


def test_T411_finished_folds_of_another_experiment_are_not_mixed_in(
    folds: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    class Trained(Exception):
        pass

    def note(recipe: object, *, out: Path, **options: object) -> None:
        trained.append(out.name)
        raise Trained

    monkeypatch.setattr("medloom.workflows.cross_validate.train", note)
    other = write_phantom_masks(tmp_path / "other", n_patients=12, size=32, seed=2)
    changed = RECIPE | {"segmentation": {"batch_dice": True}}
    cases: list[tuple[dict[str, Any], int, dict[str, Any], str]] = [
        (changed, 3, {"data": masks}, "segmentation.batch_dice"),
        (RECIPE, 2, {"data": masks}, "data.folds: 3 -> 2"),
        (RECIPE, 2, {"data": masks, "accept": ("T411",)}, "the data changed"),  # other folds are other parts
        (RECIPE, 3, {"data": masks, "seed": 5}, "train.seed"),
        (RECIPE, 3, {"data": other}, "the data changed"),
    ]
    for recipe, count, options, words in cases:
        with pytest.raises(UsageError, match="T411") as refused:
            cross_validate(recipe, count, out=folds, resume=True, **options)
        assert words in str(refused.value)
    assert trained == []
    with pytest.raises(Trained):
        cross_validate(RECIPE, 3, out=folds, resume=True, data=masks)
    assert trained == ["fold2"]


def test_U211_folds_need_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U211"):
        cross_validate(RECIPE, 2, out=tmp_path / "folds")
