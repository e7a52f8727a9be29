"""DICOM series with NIfTI masks from data set to masks: plan, train, evaluate, compare, predict."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medloom.config import DataConfig
from medloom.data.phantom_volumes import write_phantom_volumes
from medloom.data.volumes import canonical, read_nifti
from medloom.evaluation.case_table import read_cases
from medloom.workflows.audit import examine
from medloom.workflows.compare_plan import plan
from medloom.workflows.evaluate import evaluate
from medloom.workflows.predict import predict
from medloom.workflows.train import train
from series_files import write_series

RECIPE: dict[str, Any] = {
    "name": "series",
    "volume": {"spacing": [4, 4, 4]},
    "model": {"name": "unet_3d", "options": {"dims": [8, 16]}},
    "data": {"test_fraction": 0.25, "val_fraction": 0.25},
    "segmentation": {"patch": [16, 16, 16]},
    "train": {"epochs": 1, "batch_size": 4, "learning_rate": 0.003, "optimizer": "adamw", "threads": 1},
    "evaluation": {"resamples": 200},
}


def tree(root: Path, n: int, seed: int) -> Path:
    """Phantom volumes as ``images/<case>/*.dcm`` beside ``masks/<case>.nii.gz``."""
    source = write_phantom_volumes(root.with_name(f"{root.name}_nifti"), n_patients=n, size=24, seed=seed)
    with source.open(newline="") as handle:
        for row in csv.DictReader(handle):
            volume = read_nifti(source.parent / row["image"])
            write_series(root / "images" / row["patient"], volume, PatientID=row["patient"], name=row["patient"])
            (root / "masks").mkdir(exist_ok=True)
            shutil.copy(source.parent / row["mask"], root / "masks" / f"{row['patient']}.nii.gz")
    return root


def test_series_are_learnt_judged_and_answered(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", 12, 1)
    scanned, found = examine(data, DataConfig(), quiet=True)
    assert not scanned.excluded
    assert not found.refusals()
    done = train(RECIPE, data=data, out=tmp_path / "run")
    table = read_cases(done.directory.cases("test"))
    assert all(name.startswith("images/") for name in table.ids)
    assert all(str(patient).startswith("dicom-") for patient in table.patients)
    other = tree(tmp_path / "other", 4, 9)
    judged = evaluate(done.directory.root, data=other, name="other")
    assert judged.values["metrics"]["splits"]["test"]["n"] == 4
    predict(done.bundle, [other / "images"], out=tmp_path / "masks")
    written = sorted((tmp_path / "masks").glob("*_mask.nii.gz"))
    assert len(written) == 4
    cases = read_cases(done.directory.root / "evaluations" / "other" / "cases.csv")
    for path in written:
        answer = canonical(read_nifti(path))
        name = path.name.removesuffix("_mask.nii.gz")
        truth = canonical(read_nifti(other / "masks" / f"{name}.nii.gz"))
        np.testing.assert_allclose(answer.affine, truth.affine, atol=1e-4)
        both = 2 * ((answer.array == 1) & (truth.array == 1)).sum()
        dice = both / ((answer.array == 1).sum() + (truth.array == 1).sum())
        assert cases.values["dice"][cases.ids.index(f"images/{name}"), 0] == pytest.approx(dice)


def test_compare_sees_that_a_slice_is_gone(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", 4, 1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))

    def setting() -> str:
        asked: dict[str, Any] = {"recipe": None, "models": [], "seeds": (), "overrides": [], "accept": []}
        (planned,) = plan([recipe], data=data, out=tmp_path / "out", **asked)
        return planned.setting

    before = setting()
    assert setting() == before
    next(data.glob("images/*/000.dcm")).unlink()
    assert setting() != before
