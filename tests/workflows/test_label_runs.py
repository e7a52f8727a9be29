"""A whole run of images with many labels, and the recipes that such labels contradict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from medloom import cli
from medloom.config import load_recipe
from medloom.data.records import Dataset, Record
from medloom.workflows import run_steps
from medloom.workflows.prepare import few_positives
from medloom.workflows.train import train

RECIPE = {
    "name": "many",
    "data": {"accept": ["D117", "D118", "D120"]},
    "preprocess": {"size": 32, "channels": "grey", "statistics": "half"},
    "model": {"name": "conv2d"},
    "loss": {"name": "asymmetric"},
    "imbalance": {"method": "oversample"},
    "train": {"epochs": 1, "max_steps": 2, "batch_size": 16, "threads": 1, "amp": "off"},
    "evaluation": {"resamples": 20},
}


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen labels as ChestMNIST has them, most of them rare, many images without any."""
    path, rng = tmp_path_factory.mktemp("npz") / "chestmnist_64.npz", np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 160), ("val", 150), ("test", 120)):
        labels = rng.random((n, 14)) < np.linspace(0.45, 0.04, 14)
        labels[:14] = np.eye(14, dtype=bool)
        labels[::3] = False
        labels[1:15] |= np.eye(14, dtype=bool)
        arrays[f"{split}_images"] = rng.integers(0, 255, (n, 64, 64), dtype=np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_D124_a_run_goes_on_with_the_labels_that_have_enough(
    chest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(RECIPE, data=chest, out=tmp_path / "run", quiet=False)
    said = capsys.readouterr().err
    assert "labels go without a threshold, as validation has fewer than 50 images" in said
    assert said.index("go without a threshold") < said.index("epoch 1:")
    notices = json.loads((tmp_path / "run/split.json").read_text())["notices"]
    assert any("hernia" in n and "D124" in n for n in notices)
    points = json.loads((tmp_path / "run/operating_point.json").read_text())["points"]
    assert points[13]["threshold"] is None
    assert "D124" in points[13]["reason"]
    part = done.metrics["splits"]["test"]
    assert done.metrics["classes"][13] == "hernia"
    assert part["metrics"]["accuracy"]["baseline"] > 0.5
    page = done.report.read_text(encoding="utf-8")
    assert "Calling no finding in any image" in page
    assert "Labels without a threshold" in page


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("loss.name=cross_entropy", "U223"),
        ("imbalance.method=undersample", "U221"),
        ("imbalance.method=focal", "U223"),
    ],
)
def test_U223_contradictions_come_before_training(
    chest: Path, recipe: Path, tmp_path: Path, setting: str, code: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(run_steps, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(recipe), "--data", str(chest), "--out", str(tmp_path / "run"), "--set", setting])
    assert caught.value.code == 2
    assert f"error[{code}]" in capsys.readouterr().err
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_D124_which_labels_are_named() -> None:
    def told(*positives: int, **data: list[str]) -> str | None:
        rows = []
        for i in range(200):
            labels = tuple(k for k, n in enumerate(positives) if i < n)
            rows.append(Record(str(i), str(i), labels=labels, split="val"))
        dataset = Dataset("d", Path(), tuple("abc")[: len(positives)], tuple(rows), multi_label=True)
        return few_positives(dataset, load_recipe({"data": data}))

    assert told(50, 150) is None
    assert (told(49, 60) or "").startswith("1 of 2 labels go without a threshold")
    assert "b 151" in (told(60, 151) or "")
    assert (told(3, 4) or "").startswith("All 2 labels go without")
    assert "fewer than 10 images" in (told(9, 20, accept=["D124"]) or "")
    assert told(10, 20, accept=["D124"]) is None
    single = Dataset("d", Path(), ("a", "b"), (Record("0", "0", labels=(0,), split="val"),))
    assert few_positives(single, load_recipe({})) is None
