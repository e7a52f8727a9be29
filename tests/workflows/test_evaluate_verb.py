"""``medloom evaluate``: names, maps, what it prints, and what the report says of images that the run had seen."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from medloom.config import DataConfig
from medloom.data.phantom import write_phantom
from medloom.data.sources import open_dataset
from medloom.errors import DataError, UsageError
from medloom.files import RunDirectory
from medloom.workflows.evaluate import _text, as_name, evaluate

RECIPE = {
    "name": "tiny",
    "data": {"patient": "column:patient", "site": "column:site", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 48, "channels": "grey", "statistics": "train"},
    "model": {
        "name": "hatr_conv2d",
        "options": {"embed_dim": 32, "depth": 1, "num_heads": 2, "dropout": 0.0, "drop_path": 0.0},
    },
    "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "threads": 1},
    "evaluation": {"resamples": 50, "min_positives": 2},
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=60, size=48, seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("other") / "elsewhere", n_patients=40, size=48, seed=9)


@pytest.fixture(scope="module")
def trained(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    command = ["train", folder / "tiny.yaml", "--data", phantom, "--out", folder / "run"]
    done = subprocess.run([sys.executable, "-m", "medloom.cli", *map(str, command)], capture_output=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return RunDirectory(folder / "run")


@pytest.fixture
def run(trained: RunDirectory, tmp_path: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(trained.root, tmp_path / "run"))


def _labels(table: Path, names: dict[str, str], to: Path) -> Path:
    """The data set of ``table`` under other class names."""
    shutil.copytree(table.parent, to)
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    with (to / table.name).open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "label": names.get(row["label"], row["label"])} for row in rows)
    return to / table.name


def test_it_prints_the_auc_and_then_what_the_frozen_threshold_gives(run: RunDirectory, other: Path) -> None:
    done = evaluate(run.root, data=other)
    test = done.values["metrics"]["splits"]["test"]
    at = test["operating_points"][0]["metrics"]
    text = done.text()
    for key in ("accuracy", "balanced_accuracy", "sensitivity", "specificity"):
        assert f"  {key.replace('_', ' ')} {at[key]['value']:.3f} " in text
    assert text.index(f"auc {test['metrics']['auc']['value']:.3f}") < text.index("at the frozen threshold")
    assert "Other data sets, same threshold" in run.report.read_text()


def test_without_a_threshold_it_prints_why(run: RunDirectory, other: Path) -> None:
    metrics = evaluate(run.root, data=other).values["metrics"]
    point = metrics["splits"]["test"]["operating_points"][0]
    point.update(metrics=None, threshold=None, reason="only 3 positives in validation")
    lines = _text("elsewhere", metrics, open_dataset(other, DataConfig()))
    assert f"no decision for {point['class']}: only 3 positives in validation" in lines
    assert not any("accuracy" in line for line in lines)


def test_D117_accepted_training_images_are_counted_and_are_no_external_set(run: RunDirectory, phantom: Path) -> None:
    done = evaluate(run.root, data=phantom, name="again", accept=("D117",))
    assert done.text().startswith("again: ")
    told = done.values["metrics"]["evaluation"]
    with run.records.open() as handle:
        next(handle)
        splits = [row["split"] for row in csv.DictReader(handle)]
    assert told["seen_images"] == len(splits) - splits.count("test")
    assert told["own_test_images"] == splits.count("test")
    page = run.report.read_text()
    assert "NOT EXTERNALLY VALIDATED" in page
    assert '<li class="red">Evaluation again: gate D117 passed by hand' in page


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "-x", "a/b", "a b", "a\n"])
def test_U219_a_name_that_is_no_folder_name_is_refused(run: RunDirectory, other: Path, name: str) -> None:
    with pytest.raises(UsageError, match="U219"):
        evaluate(run.root, data=other, name=name)
    assert not (run.root / "evaluations").exists()


@pytest.mark.parametrize(("name", "wanted"), [("NIH (part 2)", "NIH_part_2_"), ("..", "data"), ("肺", "_"), ("a", "a")])
def test_the_default_name_is_one_that_would_be_accepted(name: str, wanted: str) -> None:
    assert as_name(name) == wanted


def test_U212_an_evaluation_is_not_overwritten(run: RunDirectory, other: Path) -> None:
    evaluate(run.root, data=other, name="one")
    before = (run.root / "evaluations" / "one" / "metrics.json").read_bytes()
    with pytest.raises(UsageError, match=r"U212.*an evaluation is already there.*Name another with --name"):
        evaluate(run.root, data=other, name="one")
    assert (run.root / "evaluations" / "one" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("pair", ["PNEUMONIA", "=NORMAL", "a=b=c"])
def test_U218_a_malformed_pair_is_refused(run: RunDirectory, other: Path, pair: str) -> None:
    with pytest.raises(UsageError, match="U218"):
        evaluate(run.root, data=other, relabel=(pair,))


def test_D116_a_label_that_the_data_do_not_hold_is_refused_with_the_nearest(
    run: RunDirectory, other: Path, tmp_path: Path
) -> None:
    from medloom.deployment.bundle import load

    ours = load(run.root).classes
    theirs = _labels(other, {ours[0]: "No Finding", ours[1]: "Infiltration"}, tmp_path / "theirs")
    pairs = (f"No Finding={ours[0]}", f"Infiltraton={ours[1]}")
    with pytest.raises(DataError, match=r"D116.*no image has the label 'Infiltraton'.*'Infiltration'"):
        evaluate(run.root, data=theirs, relabel=pairs)
    done = evaluate(run.root, data=theirs, relabel=(pairs[0], f"infiltration={ours[1]}"))
    plain = evaluate(run.root, data=other, name="plain").values["metrics"]["splits"]["test"]
    assert done.values["metrics"]["splits"]["test"]["metrics"]["auc"] == plain["metrics"]["auc"]


def test_U218_the_numbers_of_an_npz_file_are_not_renamed_in_silence(run: RunDirectory, tmp_path: Path) -> None:
    pixels, labels = np.zeros((4, 48, 48), np.uint8), np.array([[0], [1], [0], [1]])
    np.savez(tmp_path / "other.npz", test_images=pixels, test_labels=labels)
    with pytest.raises(UsageError, match=r"U218.*npz"):
        evaluate(run.root, data=tmp_path / "other.npz", relabel=("1=NORMAL", "0=PNEUMONIA"))
