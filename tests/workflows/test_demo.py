"""The demonstrations: which there are, what they may replace, and that masks of volumes end in report and bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import medloom
from medloom import cli
from medloom.config import load_recipe
from medloom.data.volumes import read_nifti
from medloom.deployment.bundle_segmenter import SegmenterBundle
from medloom.errors import UsageError
from medloom.evaluation.case_table import read_cases
from medloom.models.registry import list_models
from medloom.workflows import demo as demos

VERBS = {"images": demos.demo, "volumes": demos.demo_volumes}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the demos give ``train``, which does not train; few and small phantoms."""
    asked: list[dict[str, Any]] = []

    class Finished:
        exit_code = 0

        def text(self) -> str:
            return "finished"

    def noted(recipe: dict[str, Any], **options: Any) -> Finished:
        asked.append({"recipe": recipe, **options})
        return Finished()

    monkeypatch.setattr(demos, "train", noted)
    for name, value in {"PATIENTS": 4, "SIZE": 32, "VOLUME_PATIENTS": 3, "VOLUME_SIZE": 16}.items():
        monkeypatch.setattr(demos, name, value)
    return asked


@pytest.mark.parametrize(
    ("arguments", "name", "folder", "files"),
    [
        ([], "demo", "runs/demo", "images/*.png"),
        (["--kind", "volumes"], "demo-volumes", "runs/demo-volumes", "imagesTr/*.nii.gz"),
        (["--kind", "volumes", "--out", "mine"], "demo-volumes", "mine", "imagesTr/*.nii.gz"),
    ],
)
def test_each_kind_has_its_recipe_its_data_and_its_folder(
    arguments: list[str],
    name: str,
    folder: str,
    files: str,
    trained: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *arguments])
    assert ended.value.code == 0
    (asked,) = trained
    assert asked["recipe"]["name"] == name
    assert asked["out"] == Path(folder)
    assert asked["data"].is_file()
    assert list(asked["data"].parent.glob(files))


@pytest.mark.parametrize("kind", list(VERBS))
def test_U212_a_demo_replaces_a_demo_and_nothing_else(kind: str, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    VERBS[kind](out)
    (out / "report.html").write_text("of the first time")
    VERBS[kind](out)
    assert len(trained) == 2
    assert not (out / "report.html").exists()
    (out / "demo.txt").unlink()
    with pytest.raises(UsageError, match="U212"):
        VERBS[kind](out)
    assert (out / "phantom").is_dir()


@pytest.mark.parametrize(
    ("values", "task"), [(demos.DEMO_RECIPE, "classification"), (demos.VOLUMES_RECIPE, "segmentation")]
)
def test_the_recipes_hold(values: dict[str, Any], task: str) -> None:
    recipe = load_recipe(values)
    assert recipe.model.name in list_models(task=task)
    if task == "segmentation":
        assert recipe.segmentation.patch == (demos.VOLUME_SIZE,) * 3


def test_masks_of_volumes_end_in_outlines_and_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "model": {"name": "unet_3d", "options": {"dims": [8, 16]}},  # the real one takes two minutes to export
        "segmentation": demos.VOLUMES_RECIPE["segmentation"] | {"patch": [16, 16, 16]},
        "train": demos.VOLUMES_RECIPE["train"] | {"epochs": 1, "max_steps": 2, "threads": 1},
        "evaluation": {"resamples": 200},
    }
    monkeypatch.setattr(demos, "VOLUMES_RECIPE", demos.VOLUMES_RECIPE | small)
    monkeypatch.setattr(demos, "VOLUME_PATIENTS", 15)
    monkeypatch.setattr(demos, "VOLUME_SIZE", 16)
    done = demos.demo_volumes(tmp_path / "run", quiet=True)
    assert done.metrics["task"] == "segmentation"
    assert set(done.metrics["splits"]["test"]["structures"]) == {"organ", "lesion"}
    _check_evidence(done.directory.root)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_demo_of_volumes_learns(tmp_path: Path) -> None:
    done = demos.demo_volumes(tmp_path / "run", quiet=True)
    assert done.metrics["splits"]["val"]["structures"]["organ"]["metrics"]["dice"]["value"] > 0.6
    _check_evidence(done.directory.root)


def _check_evidence(run: Path) -> None:
    """Outlines in the report, and a bundle that draws a mask on the grid of a test case's file."""
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Worst, median and best cases" in page
    assert {view["plane"] for view in json.loads((run / "pictures.json").read_text())[0]["views"]} == {
        *("axial", "coronal", "sagittal")
    }
    assert re.search("<svg|<img", page)
    bundle = medloom.load(run / "bundle")
    assert isinstance(bundle, SegmenterBundle)
    file = run / "phantom" / read_cases(run / "cases_test.csv").ids[0]
    (answer,) = bundle.segment([file])
    assert answer.mask.shape == read_nifti(file).stored_shape
