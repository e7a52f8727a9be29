"""What is refused about learning to choose tokens, how early, and that the same command, mended, then begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medloom import cli
from medloom.data.phantom import CLASSES, golden_images, write_phantom
from medloom.data.preprocess import Preprocess
from medloom.deployment.export import export_bundle
from medloom.errors import UsageError
from medloom.models.registry import create_model
from medloom.training.loop import FitResult
from medloom.workflows import run_steps
from medloom.workflows.train import train

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"patient": "column:patient", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 32, "channels": "grey", "statistics": "half"},
    "model": {"name": "token_pruned", "options": {"patch_size": 8, **SIZES}},
    "train": {"epochs": 1, "batch_size": 16, "threads": 1, "amp": "off"},
    "evaluation": {"resamples": 20, "min_positives": 2},
}
STARTED = ("recipe.yaml", "environment.json", "log.jsonl", "checkpoint")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=40, size=32, seed=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ViT with the student's grid."""
    torch.manual_seed(0)
    architecture = {"name": "vit", "patch_size": 8, **SIZES, "num_classes": 2, "in_chans": 1, "image_size": 32}
    return export_bundle(
        create_model(**architecture), tmp_path_factory.mktemp("teacher") / "vit", name="vit", task="binary",
        architecture=architecture, classes=CLASSES, images=golden_images(2, 32, 5),
        preprocess=Preprocess(size=(32, 32), channels="grey", mean=(0.5,), std=(0.5,)),
    )  # fmt: skip


@pytest.fixture
def stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before training is looked at, so training ends where it begins."""
    monkeypatch.setattr(run_steps, "fit", lambda *_, **__: FitResult("SIGTERM", 0, 1, None, None, ()))


def begins(out: Path, data: Path, *overrides: str) -> None:
    """The command gets as far as training."""
    assert train(RECIPE, data=data, out=out, overrides=overrides).exit_code == 143
    assert (out / "recipe.yaml").exists()


def refused(out: Path, data: Path, *overrides: str, code: str) -> None:
    """The command is refused with that code, and leaves nothing that looks like a run."""
    with pytest.raises(UsageError) as caught:
        train(RECIPE, data=data, out=out, overrides=overrides)
    assert caught.value.code == code
    assert not any((out / name).exists() for name in STARTED)


@pytest.mark.usefixtures("stopped_at_once")
def test_U227_a_run_of_the_scorer_alone_leaves_nothing(phantom: Path, tmp_path: Path) -> None:
    out, absent, alone = tmp_path / "run", tmp_path / "absent", "tokens.scorer_epochs=1"
    refused(out, absent, alone, code="U227")
    assert not out.exists()
    refused(out, absent, alone, "train.epochs=3", "train.max_steps=1", code="U227")  # an epoch has one at least
    assert not out.exists()
    refused(out, phantom, alone, "train.epochs=3", "train.max_steps=2", code="U227")  # the data say how many
    begins(out, phantom, alone, "train.epochs=2")


@pytest.mark.usefixtures("stopped_at_once")
def test_U225_a_teacher_that_cannot_teach_leaves_nothing(phantom: Path, teacher: Path, tmp_path: Path) -> None:
    out, absent = tmp_path / "run", tmp_path / "absent"
    looks, by = "tokens.attention_weight=1", f"distill.teacher={teacher}"
    refused(out, absent, looks, code="U225")
    refused(out, absent, looks, by, "model.options.patch_size=16", code="U225")  # another grid
    refused(out, absent, by, "preprocess.intensity=equalize", code="U225")
    assert not out.exists()
    refused(out, phantom, by, f"data.classes=[{', '.join(CLASSES[::-1])}]", code="U225")  # the data have the classes
    begins(out, phantom, looks, by)


def test_U222_a_weight_of_no_class_leaves_no_run(phantom: Path, tmp_path: Path) -> None:
    refused(tmp_path / "run", phantom, "imbalance.method=class_weights", "imbalance.weights.ghost=2", code="U222")


@pytest.mark.parametrize("option", ["keep_rate=1.5", "keep_rate=0", "second_keep=0"])
def test_U208_a_keep_rate_that_is_no_share(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(path), "--data", "absent", "--out", str(out), "--set", f"model.options.{option}"])
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.err.startswith(f"error[U208] option {option.partition('=')[0]}")
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert not out.exists()
