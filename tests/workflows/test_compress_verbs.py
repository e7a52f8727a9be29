"""distill and prune from end to end on phantoms: what is written, what is refused, and that nothing is left of that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medloom
from medloom.data.phantom import write_phantom
from medloom.deployment import turns
from medloom.deployment.export import restore_model
from medloom.deployment.quality_gate import Limits
from medloom.errors import DataError, GateError, UsageError
from medloom.evaluation.predictions import read_csv
from medloom.training.stopping import StopRequests
from medloom.workflows import prune as prune_verb
from medloom.workflows.distill import distill
from medloom.workflows.prune import prune
from medloom.workflows.prune_lesson import lesson_recipe
from medloom.workflows.train import train

RECIPE: dict[str, Any] = {
    "name": "big",
    "data": {"patient": "column:patient", "site": "column:site", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 32, "channels": "grey", "statistics": "half"},
    "model": {"name": "conv2d"},
    "train": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "threads": 1, "amp": "off"},
    "evaluation": {"resamples": 50, "min_positives": 2},
}

STUDENT = "vit(patch_size=8, embed_dim=16, depth=1, num_heads=2)"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=60, size=32, seed=1)


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE, data=data, out=tmp_path_factory.mktemp("teacher") / "run").directory.root


def _steady(monkeypatch: pytest.MonkeyPatch, faster: float) -> None:
    """Speed as if measured: a busy machine must not decide a test."""

    def measured(before: bytes, after: bytes, **options: Any) -> dict[str, Any]:
        one = {"faster": faster, "low": faster, "high": faster, "before_ms": faster, "after_ms": 1.0, "turns": 7}
        return {"threads": 1, "runtime": "made up", "batch 1": one, "batch 16": one}

    monkeypatch.setattr(prune_verb, "speed_in_turns", measured)


def _forgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = prune_verb.quality_gate
    monkeypatch.setattr(prune_verb, "quality_gate", lambda *a, **k: {**gate(*a, **k), "passed": True, "reasons": []})


def test_a_student_is_held_against_its_teacher_and_its_like(data: Path, teacher: Path, tmp_path: Path) -> None:
    options = {"name": "vit", "options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}}
    alone = train({**RECIPE, "name": "alone", "model": options}, data=data, out=tmp_path / "alone").directory.root
    done = distill(teacher, STUDENT, data=data, beside=alone, out=tmp_path / "small", overrides=["train.epochs=1"])
    written = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert written["weight"] == 1.0
    assert written["teacher"]["model"] == "conv2d"
    assert written["student"]["parameters"] < written["teacher"]["parameters"]
    mine, theirs = (read_csv(tmp_path / "small" / f"predictions_{n}.csv") for n in ("test", "teacher"))
    own = read_csv(teacher / "predictions_test.csv")
    assert mine.ids == theirs.ids
    order = [own.ids.index(i) for i in theirs.ids]
    np.testing.assert_allclose(theirs.probabilities, own.probabilities[order], atol=1e-4)
    for part in (written["against_teacher"], written["beside"]):
        assert part["auc"]["difference"]["value"] == pytest.approx(part["auc"]["a"] - part["auc"]["b"])
    assert "less that of the teacher" in done.text()
    page = (tmp_path / "small" / "report.html").read_text()
    assert "Taught by big (conv2d, " in page
    assert (tmp_path / "small" / "ledger.jsonl").read_text().count("test scored") == 2
    assert "distillation" in (tmp_path / "small" / "log.jsonl").read_text()


def test_D116_a_like_that_was_tested_on_other_images_is_refused_before_training(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(teacher, tmp_path / "alone"))
    table = read_csv(alone / "predictions_test.csv")
    table.select(np.arange(1, len(table))).write_csv(alone / "predictions_test.csv")
    with pytest.raises(DataError, match="D116"):
        distill(teacher, STUDENT, data=data, beside=alone, out=tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_without_a_test_split_distill_says_that_nothing_could_be_compared(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    overrides = ["train.epochs=1", "data.split_column=none", "data.test_fraction=0"]
    done = distill(teacher, STUDENT, data=data, out=tmp_path / "small", overrides=overrides)
    written = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert (written["against_teacher"], written["beside"]) == (None, None)
    assert written["student"]["parameters"] < written["teacher"]["parameters"]
    assert "no test split" in done.text()
    assert "there is no test split" in (tmp_path / "small" / "report.html").read_text()
    assert not (tmp_path / "small" / "predictions_teacher.csv").exists()


def test_D117_a_teacher_that_knows_the_test_images(data: Path, teacher: Path, tmp_path: Path) -> None:
    other = {"recipe": {**RECIPE, "data": {**RECIPE["data"], "split_column": "none", "test_fraction": 0.4}}}
    with pytest.raises(DataError, match="D117") as refusal:
        train({**other["recipe"], "distill": {"teacher": str(teacher)}}, data=data, out=tmp_path / "run")
    assert "memory" in refusal.value.problem


def test_U236_and_U233_what_distill_cannot_begin(data: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U236"):
        distill(teacher / "bundle", "resnet18", data=data, out=tmp_path / "a")
    with pytest.raises(UsageError, match="U233"):
        distill(teacher, "resnet18", data=data, beside=tmp_path, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_pruned_model_is_an_ordinary_bundle_that_is_built_again(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _steady(monkeypatch, 1.9)
    _forgiving(monkeypatch)
    done = prune(teacher, data=data, ratio=0.5, steps=2, out=tmp_path / "small", threads=1)
    report = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert [step["step"] for step in report["steps"]] == [1, 2]
    assert report["steps"][1]["parameters"] < report["steps"][0]["parameters"] < report["before"]["parameters"]
    assert report["after"]["macs"] < 0.45 * report["before"]["macs"]
    bundle = medloom.load(tmp_path / "small")
    plan = bundle.document["architecture"]["pruned"]
    assert plan["widths"]["trunk.stacks.1.0.0"]["out_channels"] == 64
    model = restore_model(bundle)
    assert sum(p.numel() for p in model.parameters()) == report["after"]["parameters"]
    table = read_csv(tmp_path / "small" / "predictions_test.csv")
    image = data.parent / table.ids[0]
    found = bundle.predict([image])[0]
    np.testing.assert_allclose(list(found.probabilities.values()), table.probabilities[0], atol=1e-4)
    before, point = medloom.load(teacher), bundle.document["operating_point"]
    assert point["points"][0]["threshold"] == before.document["operating_point"]["points"][0]["threshold"]
    assert point["validation"]["sha256"] != before.document["operating_point"]["validation"]["sha256"]
    assert "1.90 times as fast" in done.text()
    assert "Pruned from big" in (tmp_path / "small" / "report.html").read_text()
    assert not list((tmp_path / "small" / "steps").rglob("*.safetensors"))
    log = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if line["event"] == "best"] == [1, 2]  # whatever its AUC, the last counts
    assert report["steps"][1]["validation_auc"] == pytest.approx(log[-3]["val_auc"], abs=1e-4)


def test_a_lesson_is_short_and_averages_no_weights(data: Path, tmp_path: Path) -> None:
    long = {**RECIPE, "train": {**RECIPE["train"], "ema_decay": 0.999, "warmup_epochs": 1}}
    (tmp_path / "long.yaml").write_text(json.dumps(long))
    lesson = lesson_recipe(tmp_path, tmp_path / "long.yaml", data, 3, (), ())
    assert (lesson.train.epochs, lesson.train.ema_decay, lesson.train.warmup_epochs) == (3, 0.0, 0.0)
    assert lesson.train.learning_rate == pytest.approx(3e-4)
    own = lesson_recipe(tmp_path, tmp_path / "long.yaml", data, 3, ("train.ema_decay=0.9",), ())
    assert own.train.ema_decay == 0.9


def test_X604_a_model_that_is_not_fast_enough_leaves_nothing(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _steady(monkeypatch, 1.1)
    _forgiving(monkeypatch)
    with pytest.raises(GateError, match="X604") as refusal:
        prune(teacher, data=data, target=1.8, steps=1, out=tmp_path / "small")
    assert refusal.value.exit_code == 6
    assert "1.10 times as fast" in refusal.value.problem
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == []


def test_X604_with_a_ratio_as_fast_as_before_is_not_enough(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _steady(monkeypatch, 1.0)
    _forgiving(monkeypatch)
    with pytest.raises(GateError, match=r"X604.*1\.00 times as fast, more than 1 was asked for"):
        prune(teacher, data=data, ratio=0.3, steps=1, out=tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == []


def test_X604_a_model_that_lost_too_much_leaves_nothing(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _steady(monkeypatch, 9.0)
    limits = prune_verb.quality_gate
    strict = Limits(auc_loss=-1.0)
    monkeypatch.setattr(prune_verb, "quality_gate", lambda *a, **k: limits(*a, **k, limits=strict))
    with pytest.raises(GateError, match="X604"):
        prune(teacher, data=data, ratio=0.3, steps=1, out=tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == []


def test_T409_a_signal_in_a_lesson_ends_pruning_and_leaves_nothing(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _steady(monkeypatch, 9.0)
    _forgiving(monkeypatch)

    def entered(self: StopRequests) -> StopRequests:
        self.received = "SIGTERM"  # a lesson is all that listens for it
        return self

    monkeypatch.setattr(StopRequests, "__enter__", entered)
    done = prune(teacher, data=data, ratio=0.3, steps=2, out=tmp_path / "small")
    assert (done.exit_code, done.text()) == (143, "stopped; nothing was written")
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == []


def test_U236_and_U212_what_prune_cannot_begin(data: Path, teacher: Path, tmp_path: Path) -> None:
    for wrong in ({"ratio": 0.9}, {"target": 0.5}, {"what": ["neurons"]}):
        with pytest.raises(UsageError, match="U236"):
            prune(teacher, data=data, out=tmp_path / "small", **wrong)
    with pytest.raises(UsageError, match="U236"):
        prune(teacher / "bundle", data=data, out=tmp_path / "small")
    with pytest.raises(UsageError, match="U212"):
        prune(teacher, data=data, out=tmp_path)


def test_turns_find_a_network_as_fast_as_itself(teacher: Path) -> None:
    onnx = (teacher / "bundle" / "model.onnx").read_bytes()
    found = turns.speed_in_turns(onnx, onnx, threads=1, batches=(1,))
    assert 0.5 < found["batch 1"]["faster"] < 2.0
    assert found["batch 1"]["turns"] >= turns.LEAST
