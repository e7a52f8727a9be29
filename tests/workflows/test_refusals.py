"""What the command line refuses, with which code, how early, and what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from medloom import cli
from medloom.data.phantom import write_phantom
from medloom.data.records import Dataset, Record, read_csv
from medloom.errors import DataError, GateError, ModelError, UsageError
from medloom.files import RunDirectory
from medloom.workflows import run_steps
from medloom.workflows.prepare import check_validation, require_same_data
from medloom.workflows.progress import Progress
from medloom.workflows.run_lock import exclusive

RECIPE = {
    "name": "tiny",
    "data": {"patient": "column:patient", "min_val_per_class": 5},
    "preprocess": {"size": 32, "channels": "grey", "statistics": "half"},
    "model": {"name": "resnet18"},
    "train": {"epochs": 1, "batch_size": 16, "threads": 1},
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=40, size=32, seed=1)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and the last line on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, arguments)))
    said = capsys.readouterr().err.strip().splitlines()
    return int(str(caught.value.code)), said[-1] if said else ""


@pytest.mark.parametrize("below", ["", "x"])
def test_T405_an_out_that_is_a_file(
    phantom: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    out = taken / below
    demos = (["demo"], ["demo", "--kind", "volumes"])
    for verb in (["train", recipe, "--data", phantom], ["data", "audit", phantom], *demos):
        code, said = refuse(capsys, *verb, "--out", out)
        assert code == 7, said
        assert said.startswith("error[T405]")
        assert "has that name" in said
    assert taken.read_text() == "mine"


def test_C502_a_run_without_its_records_is_not_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"C502.*records.csv.*No such file"):
        read_csv(tmp_path / "records.csv", tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has /dev/full")
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_T404_a_full_standard_output(flag: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "medloom.cli", "models", *flag]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 7, done.stderr
    assert done.stderr.startswith("error[T404] standard output")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_went_away_is_no_error() -> None:
    command = [sys.executable, "-m", "medloom.cli", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 0


def test_T406_weights_that_overflow_are_named_with_step_and_rate(
    phantom: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overflow = ["--set", "train.learning_rate=1e9", "--accept", "D124"]
    code, said = refuse(capsys, "train", recipe, "--data", phantom, "--out", tmp_path / "run", *overflow)
    assert code == 6, said
    assert "error[T406] epoch 1 step " in said
    assert "at learning rate 1e+09" in said
    assert "Nothing was saved yet" in said


@pytest.mark.parametrize("verb", [["train", "RECIPE", "--data", "x"], ["evaluate", "run", "--data", "x"]])
def test_U204_a_gate_that_does_not_exist(recipe: Path, capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    code, said = refuse(capsys, *[recipe if a == "RECIPE" else a for a in verb], "--accept", "D999")
    assert code == 2
    assert said.startswith("error[U204] accept: D999 is no gate")
    assert "D124" in said


def test_ctrl_c_before_training_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from medloom.workflows import environment

    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "doctor", interrupted)
    assert refuse(capsys, "doctor") == (130, "stopped by the keyboard")


def test_D124_comes_before_training(
    phantom: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_steps, "fit", lambda *_, **__: pytest.fail("it trained"))
    code, said = refuse(capsys, "train", recipe, "--data", phantom, "--out", tmp_path / "run")
    assert code == 6
    assert "error[D124]" in said
    assert said.endswith("--accept D124.")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def _validation(*counts: int) -> Dataset:
    labels = [k for k, n in enumerate(counts) for _ in range(n)]
    records = tuple(Record(str(i), str(i), labels=(k,), split="val") for i, k in enumerate(labels))
    return Dataset("d", Path(), tuple("abc"[: len(counts)]), records)


def test_D124_the_early_check_has_the_rule_of_the_late_one() -> None:
    check_validation(_validation(50, 50), (), resume=False)
    check_validation(_validation(50, 30, 20), (), resume=False)  # one question of three can be tuned
    check_validation(_validation(49, 50), ("D124",), resume=False)
    with pytest.raises(GateError, match="--resume --accept D124"):
        check_validation(_validation(49, 500), (), resume=True)
    with pytest.raises(GateError, match="D124"):
        check_validation(_validation(9, 9, 500), (), resume=False)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("model.name=resnet81", "U206"),
        ("model.options.depht=3", "U207"),
        ("model.weights=absent.safetensors", "U209"),
    ],
)
def test_the_model_is_checked_before_the_data_are_read(
    key: str, code: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    status, said = refuse(capsys, "train", recipe, "--data", tmp_path / "absent", "--out", out, "--set", key)
    assert status == 2
    assert said.startswith(f"error[{code}]")
    assert not out.exists()


def test_a_held_folder_keeps_what_is_in_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with exclusive(run):
        (run.root / "a").touch()
    assert sorted(p.name for p in run.root.iterdir()) == [".lock", "a"]
    (tmp_path / "mine").mkdir()
    with exclusive(RunDirectory(tmp_path / "mine")):
        pass
    assert (tmp_path / "mine").is_dir()


def test_T411_another_place_of_the_data_is_no_other_recipe(recipe: Path, tmp_path: Path) -> None:
    from medloom.config import load_recipe
    from medloom.errors import UsageError

    run = RunDirectory(tmp_path)
    run.recipe.write_text(load_recipe(recipe, ["data.path=one"]).as_yaml())
    run_steps.check_recipe(load_recipe(recipe, ["data.path=other", "notes=more"]), run)
    with pytest.raises(UsageError, match="--accept T411"):
        run_steps.check_recipe(load_recipe(recipe, ["data.patient=none"]), run)


def test_U203_U204_recipe_problems_are_in_plain_words(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(key: str) -> str:
        return refuse(capsys, "train", recipe, "--data", "x", "--set", key)[1]

    assert said("train.epoch=3").endswith("Did you mean 'epochs'?")
    assert "imbalance.weights: " in said("imbalance.weights=3")
    assert "preprocess.size: " in said("preprocess.size=x")
    for key in ("imbalance.weights=3", "preprocess.size=x", "train=3", "preprocess.size=-1", "data.classes=3"):
        line = said(key)
        assert line.startswith("error[U204]")
        for leak in ("literal[", "constrained", "instance of", "tuple", "dict[", "dictionary"):
            assert leak not in line


def test_a_log_names_each_stage_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading images"):
        assert capsys.readouterr().err == "reading images\n"
    with Progress("reading images", quiet=True):
        assert capsys.readouterr().err == ""


def test_D104_pixels_that_differ_from_the_record_are_named(tmp_path: Path) -> None:
    def listed(*pixels: str, labels: int = 0) -> Dataset:
        records = tuple(
            Record(id=f"{k}.png", path=f"{k}.png", labels=(labels,), pixel_hash=p) for k, p in enumerate(pixels)
        )
        return Dataset("some", tmp_path, ("a", "b"), records)

    recorded = listed("p", "q", "r")
    require_same_data(recorded, listed("p", "q", "r"), tmp_path)
    with pytest.raises(DataError, match=r"D104\] 1\.png: its pixels"):
        require_same_data(recorded, listed("p", "x", "r"), tmp_path)
    with pytest.raises(DataError, match=r"D104\] 0\.png \(and 1 more\)"):
        require_same_data(recorded, listed("x", "y", "r"), tmp_path)
    for other in (listed("x", "y", "z"), listed("p", "q"), listed("p", "x"), listed("p", "q", "r", labels=1)):
        with pytest.raises(UsageError, match="T411"):
            require_same_data(recorded, other, tmp_path)
