"""What a run does when nothing goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import CPU, PREPROCESS, Noisy, Plain, build, pixels, recipe, run, splits
from torch import Tensor, nn

from medloom.errors import DataError, UsageError
from medloom.evaluation import metrics
from medloom.training import checkpoint, precision
from medloom.training.batches import Examples
from medloom.training.losses import make_loss
from medloom.training.predict import predict_logits
from medloom.training.scores import validation_scores


def log(directory: Path, event: str = "epoch") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def scores_of(model: nn.Module, examples: Examples) -> np.ndarray:
    return predict_logits(model, examples.pixels, PREPROCESS, examples.rows, 7, CPU)


@pytest.mark.parametrize(("able", "chosen"), [(True, "bf16"), (False, "off")])
def test_the_number_format_is_one_that_the_processor_has(
    able: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: able)
    cpu = torch.device("cpu")
    assert precision.number_format(cpu, "auto") == chosen
    assert [precision.number_format(cpu, amp) for amp in ("bf16", "off")] == ["bf16", "off"]
    with precision.autocast(cpu, "auto"):
        assert torch.is_autocast_enabled("cpu") is able


def test_it_learns(tmp_path: Path) -> None:
    data = splits(240)
    result = run(tmp_path, recipe(epochs=12, learning_rate=0.03, amp="bf16"), data=data)
    assert result.stopped == "epochs"
    assert result.exit_code == 0
    assert result.best is not None
    assert result.best["score"] > 0.9
    assert log(tmp_path)[-1]["train_loss"] < log(tmp_path)[0]["train_loss"]


def test_the_best_epoch_is_kept_and_its_auc_can_be_recomputed(tmp_path: Path) -> None:
    data, model = splits(90), build(Noisy)
    result = run(tmp_path, recipe(epochs=6, learning_rate=0.1), data=data, model=model)
    lines = log(tmp_path)
    best = max(lines, key=lambda line: (line["val_auc"], -line["val_loss"]))
    assert result.best is not None
    assert (result.best["epoch"], result.best["score"]) == (best["epoch"], best["val_auc"])
    logits = scores_of(model, data[1])
    score = float(metrics.auc(metrics.rank(data[1].labels == 1, logits[:, 1] - logits[:, 0])))
    assert score == pytest.approx(best["val_auc"], abs=1e-12)
    assert result.weights is not None
    saved = checkpoint.read_tensors(result.weights)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_patience_ends_a_run_that_stopped_improving(tmp_path: Path) -> None:
    result = run(tmp_path, recipe(epochs=40, patience=2, learning_rate=1e-12), model=build(Plain))
    assert result.stopped == "patience"
    assert result.best is not None
    assert result.epochs == result.best["epoch"] + 2
    assert log(tmp_path, "stop")[0]["reason"] == "patience"


def test_max_steps_cuts_an_epoch_and_validates(tmp_path: Path) -> None:
    result = run(tmp_path, recipe(max_steps=7))
    assert (result.stopped, result.steps, result.epochs) == ("steps", 7, 2)
    assert log(tmp_path)[-1]["step"] == 7
    assert result.weights is not None


def test_accumulated_micro_batches_take_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    weights = np.array([1.0, 3.0], dtype=np.float32)
    states = []
    for name, options in (("a", {"batch_size": 8}), ("b", {"batch_size": 3, "accumulate": 3})):
        model = build(Plain)
        wanted = recipe(epochs=1, max_steps=1, optimizer="sgd", augment={}, **options)
        train, val = splits()
        only = Examples(train.pixels, train.rows[:8], train.labels[:8], train.ids[:8])
        run(tmp_path / name, wanted, model=model, data=(only, val), class_weights=weights)
        states.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-6)


def test_the_average_is_validated_and_kept(tmp_path: Path) -> None:
    plain, averaged = build(Plain), build(Plain)
    run(tmp_path / "a", recipe(epochs=2), model=plain)
    run(tmp_path / "b", recipe(epochs=2, ema_decay=0.99), model=averaged)
    start = torch.nn.utils.parameters_to_vector(build(Plain).parameters())
    moved = [(torch.nn.utils.parameters_to_vector(m.parameters()) - start).norm() for m in (plain, averaged)]
    assert 0 < moved[1] < moved[0]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_every_optimiser_with_every_schedule_logs_its_rate(tmp_path: Path, optimizer: str, schedule: str) -> None:
    wanted = recipe(epochs=2, optimizer=optimizer, schedule=schedule, step_epochs=(1,), warmup_epochs=0.5)
    run(tmp_path, wanted, model=build(Plain))
    rates = [line["learning_rate"] for line in log(tmp_path)]
    assert all(rate > 0 for rate in rates)
    assert (rates[0] == rates[1]) == (schedule == "constant")


@pytest.mark.parametrize("method", ["none", "class_weights", "oversample", "undersample", "focal"])
def test_every_remedy_for_imbalance_runs(tmp_path: Path, method: str) -> None:
    result = run(tmp_path, recipe(epochs=1, imbalance={"method": method}))
    assert result.epochs == 1


def test_images_may_bear_several_labels(tmp_path: Path) -> None:
    source, labels = pixels(60)
    many = np.stack([labels, 1 - labels, np.arange(60) % 2], axis=1).astype(np.float32)
    many[40:, 2] = 0  # a label that validation lacks does not make its AUC NaN
    ids = tuple(map(str, range(60)))
    train, val = (Examples(source, rows, many[rows], ids) for rows in (np.arange(40), np.arange(40, 60)))
    result = run(tmp_path, recipe(imbalance={"method": "none"}), model=build(Noisy, classes=3), data=(train, val))
    assert result.best is not None
    assert 0.0 <= result.best["score"] <= 1.0
    assert 0.0 <= log(tmp_path)[0]["train_accuracy"] <= 1.0


def test_without_validation_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    train, _ = splits()
    result = run(tmp_path, recipe(), data=(train, None))  # type: ignore[arg-type]
    assert result.best is not None
    assert result.best["epoch"] == 3
    assert result.weights is not None


def test_one_class_validation_is_judged_by_its_loss_and_says_so(tmp_path: Path) -> None:
    train, val = splits()
    rows = val.rows[val.labels == 1]
    result = run(tmp_path, recipe(), data=(train, Examples(val.pixels, rows, np.ones(len(rows), np.int64), val.ids)))
    assert any("not estimable" in notice for notice in result.notices)
    assert result.best is not None
    assert result.best["monitor"] == "val_loss"
    assert log(tmp_path)[0]["val_auc"] is None


def test_T415_batch_larger_than_the_data_and_one_class_only(tmp_path: Path) -> None:
    train, val = splits()
    rows = train.rows[train.labels == 0][:5]
    small = Examples(train.pixels, rows, np.zeros(5, np.int64), train.ids)
    result = run(tmp_path, recipe(batch_size=64), data=(small, val))
    assert result.steps == 3
    assert all(np.isfinite(line["train_loss"]) for line in log(tmp_path))


class Pooled(Noisy):
    """Normalises over the batch after pooling, where one image is one value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).mean((2, 3), keepdim=True)).flatten(1))


def test_T415_last_batch_of_one_is_dealt_away(tmp_path: Path) -> None:
    train, val = splits()
    nine = Examples(train.pixels, train.rows[:9], train.labels[:9], train.ids)
    assert run(tmp_path, recipe(batch_size=8), data=(nine, val), model=build(Pooled)).steps == 6


def test_T415_batch_of_one_with_batch_statistics_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="T415") as caught:
        run(tmp_path, recipe(batch_size=1), model=build(Pooled))
    assert "\n" not in str(caught.value)
    assert run(tmp_path / "b", recipe(batch_size=1, epochs=1), model=build(Plain)).epochs == 1


def test_no_training_images_are_refused(tmp_path: Path) -> None:
    train, val = splits()
    with pytest.raises(DataError, match="D115"):
        run(tmp_path, recipe(), data=(Examples(train.pixels, train.rows[:0], train.labels[:0], ()), val))


def test_the_caller_is_told_how_far_it_is(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run(tmp_path, recipe(), progress=events.append)
    kinds = [event["event"] for event in events]
    assert kinds.count("epoch") == 3
    assert kinds.count("saved") == 3
    first = events[0]
    assert first["event"] == "step"
    assert (first["total"], first["total_steps"], first["steps_per_epoch"]) == (1, 15, 5)
    assert first["seconds_left"] > 0


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_predictions_do_not_depend_on_the_batch_and_leave_the_mode(batch: int) -> None:
    model, (train, _) = build(Noisy).train(), splits()
    whole = scores_of(model, train)
    again = predict_logits(model, train.pixels, PREPROCESS, train.rows, batch, CPU)
    np.testing.assert_allclose(again, whole, atol=1e-5)
    assert model.training
    assert whole.dtype == np.float32


def test_flip_average_is_the_mean_of_both_views() -> None:
    model, (train, _) = build(Noisy), splits()
    flipped = predict_logits(model, train.pixels, PREPROCESS, train.rows, 9, CPU, flip_average=True)
    mirrored = type(train.pixels)(train.pixels.pixels[:, :, ::-1].copy(), CPU, None)  # type: ignore[attr-defined, call-arg]
    other = predict_logits(model, mirrored, PREPROCESS, train.rows, 9, CPU)
    np.testing.assert_allclose(flipped, (scores_of(model, train) + other) / 2, atol=1e-5)


def test_validation_auc_of_three_classes_is_the_mean_of_one_against_rest() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 3, 50)
    source, _ = pixels(50)
    examples = Examples(source, np.arange(50), labels, ())
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = np.mean([float(metrics.auc(metrics.rank(labels == k, probability[:, k]))) for k in range(3)])
    scored = validation_scores(logits, examples, make_loss(multi_label=False))
    assert scored["val_auc"] == pytest.approx(wanted)
    assert scored["val_accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
