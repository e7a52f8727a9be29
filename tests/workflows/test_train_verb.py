"""The main job end to end, as a user runs it, on phantom radiographs: what is written, refused, resumed and counted."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from medloom.data.phantom import write_phantom
from medloom.evaluation.predictions import read_csv
from medloom.files import RunDirectory, sha256_file

Run = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = {
    "name": "tiny",
    "data": {"patient": "column:patient", "site": "column:site", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 48, "channels": "grey", "statistics": "train"},
    "model": {
        "name": "hatr_conv2d",
        "options": {"embed_dim": 32, "depth": 1, "num_heads": 2, "dropout": 0.0, "drop_path": 0.0},
    },
    "train": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "threads": 1},
    "evaluation": {"resamples": 200},
}
ARTEFACTS = {
    "recipe.yaml", "environment.json", "records.csv", "split.json", "audit.json", "audit.html", "log.jsonl",
    "checkpoint", "operating_point.json", "ledger.jsonl", "predictions_val.csv", "predictions_test.csv",
    "metrics.json", "pictures.npz", "pictures.json", "report.html", "bundle",
}  # fmt: skip


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=60, size=64, seed=1)


def _recipe(folder: Path, **train: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "train": {**RECIPE["train"], **train}}))
    return path


@pytest.fixture(scope="module")
def finished(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """One finished run that several tests look at."""
    folder = tmp_path_factory.mktemp("finished")
    command = ["train", _recipe(folder), "--data", phantom, "--out", folder / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "medloom.cli", *map(str, command)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("report.html")
    return RunDirectory(folder / "run")


def test_a_run_leaves_everything_that_the_contract_names(finished: RunDirectory) -> None:
    present = {p.name for p in finished.root.iterdir()}
    assert present >= ARTEFACTS
    assert not [p for p in finished.root.rglob("*") if "medloom-tmp" in p.name]
    assert {p.name for p in finished.bundle.iterdir()} == {
        "model.safetensors", "model.onnx", "model.json", "golden.npz", "CARD.md",
    }  # fmt: skip


def test_every_test_image_is_scored_once_and_the_scoring_is_counted(finished: RunDirectory) -> None:
    table = read_csv(finished.predictions("test"))
    with finished.records.open() as handle:
        next(handle)
        wanted = [row["id"] for row in csv.DictReader(handle) if row["split"] == "test"]
    assert sorted(table.ids) == sorted(wanted)
    assert len(finished.ledger.read_text().splitlines()) == 1
    assert json.loads(finished.metrics.read_text())["test_scorings"] == 1


def test_the_decision_was_frozen_before_the_test_images_were_opened(finished: RunDirectory) -> None:
    frozen = json.loads(finished.operating_point.read_text())["timestamp"]
    opened = json.loads(finished.ledger.read_text().splitlines()[0])["time"]
    assert frozen <= opened
    assert finished.operating_point.stat().st_mtime_ns <= finished.predictions("test").stat().st_mtime_ns


def test_the_bundle_answers_as_the_run_did(finished: RunDirectory, phantom: Path) -> None:
    import medloom

    table = read_csv(finished.predictions("test"))
    paths = [phantom.parent / name for name in table.ids[:8]]
    answers = medloom.load(finished.root).predict(paths)
    found = [[a.probabilities[c] for c in table.classes] for a in answers]
    np.testing.assert_allclose(found, table.probabilities[:8], atol=1e-4)


def test_the_metrics_follow_from_the_predictions_file(finished: RunDirectory) -> None:
    from sklearn.metrics import roc_auc_score

    table = read_csv(finished.predictions("test"))
    recorded = json.loads(finished.metrics.read_text())["splits"]["test"]["metrics"]["auc"]["value"]
    assert recorded == pytest.approx(roc_auc_score(table.labels, table.probabilities[:, 1]))


def test_a_run_is_not_overwritten(finished: RunDirectory, phantom: Path, tmp_path: Path, medloom: Run) -> None:
    before = finished.metrics.read_bytes()
    done = medloom("train", _recipe(tmp_path), "--data", phantom, "--out", finished.root)
    assert done.returncode == 2
    assert "error[U212]" in done.stderr
    assert finished.metrics.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "RECIPE"], "U211"),
        (["train", "RECIPE", "--data", "DATA", "--out", "absent", "--resume"], "U213"),
        (["train", "RECIPE", "--data", "DATA", "--out", "new", "--set", "train.device=cuda"], "U310"),
        (["evaluate", "BUNDLE", "--data", "DATA"], "U216"),
        (["evaluate", "RUN", "--data", "DATA", "--map", "PNEUMONIA"], "U218"),
        (["train", "RECIPE", "--data", "DATA", "--out", "new", "--set", "model.name=conv2d"], "U207"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    arguments: list[str], code: str, finished: RunDirectory, phantom: Path, tmp_path: Path, medloom: Run
) -> None:
    import torch

    if code == "U310" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    names = {"RECIPE": _recipe(tmp_path), "DATA": phantom, "RUN": finished.root, "BUNDLE": finished.bundle}
    done = medloom(*[names.get(a, a) for a in arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error[{code}]")
    assert not (tmp_path / "new" / "recipe.yaml").exists()


def test_a_folder_without_a_test_split_gives_a_report_all_the_same(phantom: Path, tmp_path: Path, medloom: Run) -> None:
    with phantom.open() as handle:
        rows = [r for r in csv.DictReader(handle) if r["split"] != "test"]
    table = phantom.parent / "without_test.csv"
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    run = RunDirectory(tmp_path / "run")
    done = medloom("train", _recipe(tmp_path, max_steps=2), "--data", table, "--out", run.root)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(run.metrics.read_text())["splits"]) == {"val"}
    assert not run.ledger.exists()
    assert run.report.exists()


def test_T414_resume_after_the_last_epoch_changes_nothing(
    finished: RunDirectory, phantom: Path, tmp_path: Path, medloom: Run
) -> None:
    before = {p: p.read_bytes() for p in (finished.metrics, finished.ledger, finished.report)}
    done = medloom("train", _recipe(tmp_path), "--data", phantom, "--out", finished.root, "--resume")
    assert done.returncode == 0, done.stderr
    assert {p: p.read_bytes() for p in before} == before


def test_T411_another_recipe_or_other_data_is_not_resumed(
    finished: RunDirectory, phantom: Path, tmp_path: Path, medloom: Run
) -> None:
    done = medloom("train", _recipe(tmp_path, epochs=3), "--data", phantom, "--out", finished.root, "--resume")
    assert done.returncode == 2
    assert "error[T411]" in done.stderr
    assert "train.epochs: 2 -> 3" in done.stderr
    other = write_phantom(tmp_path / "other", n_patients=60, size=64, seed=2)
    done = medloom("train", _recipe(tmp_path), "--data", other, "--out", finished.root, "--resume", "--accept", "T411")
    assert done.returncode == 2
    assert "error[T411]" in done.stderr


def test_an_external_set_is_scored_with_the_frozen_threshold(
    finished: RunDirectory, tmp_path: Path, medloom: Run
) -> None:
    other = write_phantom(tmp_path / "elsewhere", n_patients=40, size=80, seed=9)
    done = medloom("evaluate", finished.root, "--data", other, "--name", "elsewhere", "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    frozen = json.loads(finished.operating_point.read_text())["points"][0]["threshold"]
    assert metrics["splits"]["test"]["operating_points"][0]["threshold"] == frozen
    assert (finished.root / "evaluations" / "elsewhere" / "predictions.csv").exists()
    assert "elsewhere" in finished.report.read_text()
    assert len(finished.ledger.read_text().splitlines()) == 1


def test_D117_training_images_are_refused_as_an_external_set(
    finished: RunDirectory, phantom: Path, medloom: Run
) -> None:
    done = medloom("evaluate", finished.root, "--data", phantom)
    assert done.returncode == 3
    assert "error[D117]" in done.stderr


@pytest.mark.parametrize(("code", "leak"), [("D119", "patient"), ("D117", "pixels")])
def test_leakage_is_refused_unless_accepted(code: str, leak: str, phantom: Path, tmp_path: Path, medloom: Run) -> None:
    data = tmp_path / "leaky"
    (data / "images").mkdir(parents=True)
    with phantom.open() as handle:
        rows = list(csv.DictReader(handle))
    train = next(r for r in rows if r["split"] == "train")
    test = next(r for r in rows if r["split"] == "test" and r["label"] == train["label"])
    for row in rows:
        source = train if leak == "pixels" and row is test else row
        with Image.open(phantom.parent / source["path"]) as image:
            image.save(data / row["path"])
    if leak == "patient":
        test["patient"] = train["patient"]
    with (data / "table.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    command = ["train", _recipe(tmp_path, max_steps=2), "--data", data / "table.csv", "--out", tmp_path / "run"]
    done = medloom(*command)
    assert done.returncode == 3
    assert f"error[{code}]" in done.stderr
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    done = medloom(*command, "--accept", code)
    assert done.returncode == 0, done.stderr
    assert f"accepted [{code}]" in done.stderr
    assert code in (tmp_path / "run" / "report.html").read_text()


def test_T409_sigterm_saves_and_the_resumed_run_ends_in_the_same_bytes(
    finished: RunDirectory, phantom: Path, tmp_path: Path, medloom: Run
) -> None:
    run = RunDirectory(tmp_path / "run")
    command = ["train", _recipe(tmp_path), "--data", phantom, "--out", run.root]
    process = subprocess.Popen(
        [sys.executable, "-m", "medloom.cli", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not run.log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not run.metrics.exists()
    done = medloom(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert sha256_file(run.bundle / "model.safetensors") == sha256_file(finished.bundle / "model.safetensors")
    assert run.predictions("test").read_bytes() == finished.predictions("test").read_bytes()


def test_two_processes_score_every_image_once(phantom: Path, tmp_path: Path, finished: RunDirectory) -> None:
    recipe = _recipe(tmp_path)
    command = ["-m", "medloom.cli", "train", recipe, "--data", phantom, "--out", tmp_path / "run"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            *map(str, command),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ids = read_csv(RunDirectory(tmp_path / "run").predictions("test")).ids
    assert sorted(ids) == sorted(read_csv(finished.predictions("test")).ids)
    assert len(set(ids)) == len(ids)


def test_T416_an_interrupted_scoring_of_the_test_images_stays_in_the_ledger(
    finished: RunDirectory, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloom import cli
    from medloom.workflows import evaluate

    run = RunDirectory(tmp_path / "copy")
    shutil.copytree(finished.root, run.root)
    with phantom.open() as handle:
        rows = [r for r in csv.DictReader(handle) if r["split"] == "test"]
    table = phantom.parent / "only_test.csv"
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "_logits", interrupted)
    before = len(run.ledger.read_text().splitlines())
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(run.root), "--data", str(table), "--name", "again"])
    assert caught.value.code == 130
    assert len(run.ledger.read_text().splitlines()) == before + 1
    assert not (run.root / "evaluations" / "again").exists()
