"""Models that rebuild their input: the joint loss is what it is said to be, and every promise of the loop holds."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_runs import final
from small_runs import PREPROCESS, Plain, build, rebuilding, recipe, run, splits, troubled
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from medloom.data.cache import finish, restore
from medloom.data.preprocess import Preprocess
from medloom.errors import GateError, ResourceError
from medloom.models.rr_vit import RRViT
from medloom.training.batches import Examples

ONE_STEP = {
    "epochs": 1,
    "max_steps": 1,
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": 1.0,
    "clip_norm": None,
    "augment": {"flip": 0.0, "rotate": 0.0, "brightness": 0.0},
    "imbalance": {"method": "none"},
}


def epochs(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def eight() -> tuple[Examples, Examples]:
    train, val = splits()
    return Examples(train.pixels, train.rows[:8], train.labels[:8], train.ids[:8]), val


def by_hand(model: nn.Module, weight: float) -> Tensor:
    """Gradient of cross-entropy + weight * mean squared error over the eight images."""
    train, _ = eight()
    x_BCHW = train.pixels.gather(train.rows).float() / 255
    outputs = model.train_outputs(finish(x_BCHW, PREPROCESS))  # type: ignore[operator]
    loss = nn.functional.cross_entropy(outputs["logits"], torch.from_numpy(train.labels))
    (loss + weight * nn.functional.mse_loss(outputs["reconstruction"], x_BCHW)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]


def moved(directory: Path, wanted: Any, model: nn.Module) -> Tensor:
    """By how much the one step of ``wanted`` moves the weights, against its direction."""
    before = parameters_to_vector(model.parameters()).detach().clone()
    run(directory, wanted, model=model, data=eight())
    return before - parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("weight", [0.0, 0.1, 5.0])
def test_a_step_follows_the_joint_loss(tmp_path: Path, weight: float) -> None:
    model = build(rebuilding)
    expected = by_hand(copy.deepcopy(model).train(), weight)
    wanted = recipe(**ONE_STEP, batch_size=8, loss={"reconstruction": weight})
    torch.testing.assert_close(moved(tmp_path, wanted, model), expected, atol=2e-6, rtol=1e-4)


def test_the_log_tells_classification_and_reconstruction_apart(tmp_path: Path) -> None:
    model, (train, _) = build(rebuilding), eight()
    x_BCHW = train.pixels.gather(train.rows).float() / 255
    with torch.no_grad():
        outputs = model.train_outputs(finish(x_BCHW, PREPROCESS))  # type: ignore[operator]
    run(tmp_path, recipe(**ONE_STEP, batch_size=8, loss={"reconstruction": 7.0}), model=model, data=eight())
    line = epochs(tmp_path)[0]
    loss = nn.functional.cross_entropy(outputs["logits"], torch.from_numpy(train.labels))
    assert line["train_loss"] == pytest.approx(float(loss))
    assert line["reconstruction"] == pytest.approx(float((outputs["reconstruction"] - x_BCHW).square().mean()))


def test_the_default_weight_is_a_tenth(tmp_path: Path) -> None:
    model = build(rebuilding)
    expected = by_hand(copy.deepcopy(model).train(), 0.1)
    moves = moved(tmp_path, recipe(**ONE_STEP, batch_size=8), model)
    torch.testing.assert_close(moves, expected, atol=2e-6, rtol=1e-4)


def test_accumulated_micro_batches_take_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    moves, lines = [], []
    for name, size in (("a", {"batch_size": 8}), ("b", {"batch_size": 3, "accumulate": 3})):
        moves.append(
            moved(tmp_path / name, recipe(**ONE_STEP, **size, loss={"reconstruction": 3.0}), build(rebuilding))
        )
        lines.append(epochs(tmp_path / name)[0])
    torch.testing.assert_close(moves[0], moves[1], rtol=0, atol=1e-6)
    assert lines[0]["reconstruction"] == pytest.approx(lines[1]["reconstruction"])
    assert lines[0]["train_loss"] == pytest.approx(lines[1]["train_loss"])


def test_without_its_weight_the_model_trains_as_a_plain_classifier(tmp_path: Path, monkeypatch: Any) -> None:
    wanted = recipe(epochs=2, optimizer="sgd", momentum=0.0, loss={"reconstruction": 0.0})
    joint, plain = build(rebuilding), build(rebuilding)
    decoder = joint.decoder.weight.detach().clone()  # type: ignore[union-attr, operator]
    run(tmp_path / "a", wanted, model=joint)
    monkeypatch.setattr(RRViT, "reconstructs", False)
    run(tmp_path / "b", wanted, model=plain)
    assert torch.equal(joint.decoder.weight, decoder)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(parameters_to_vector(joint.parameters()), parameters_to_vector(plain.parameters()))
    assert "reconstruction" not in epochs(tmp_path / "b")[0]


def test_the_error_falls_and_is_logged_beside_the_classification(tmp_path: Path) -> None:
    model = build(rebuilding)
    wanted = recipe(epochs=15, learning_rate=0.01, amp="bf16", ema_decay=0.5, loss={"reconstruction": 1.0})
    result = run(tmp_path, wanted, model=model)
    errors = [line["reconstruction"] for line in epochs(tmp_path)]
    assert errors[-1] < 0.7 * errors[0]
    assert all(0 < error < 1 for error in errors)
    assert result.best is not None
    assert result.best["monitor"] == "val_auc"


def test_other_models_log_no_reconstruction(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=1), model=build(Plain))
    assert "reconstruction" not in epochs(tmp_path)[0]


WANTED = {"epochs": 3, "ema_decay": 0.9, "schedule": "cosine", "batch_size": 3, "accumulate": 3}


@pytest.mark.parametrize("at", [2, 8, 17])
def test_T409_a_stopped_and_resumed_run_is_the_whole_run(tmp_path: Path, at: int) -> None:
    def model(seed: int = 0) -> nn.Module:
        return build(rebuilding, seed=seed, dropout=0.2)

    run(tmp_path / "whole", recipe(**WANTED), model=model())
    stopped = run(tmp_path / "cut", recipe(**WANTED), model=model(), data=troubled(at, signal.SIGTERM))
    assert stopped.stopped == "SIGTERM"
    run(tmp_path / "cut", recipe(**WANTED), resume=True, model=model(9))
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


def test_T406_a_picture_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = build(rebuilding)
    nn.init.constant_(model.decoder.bias, float("nan"))  # type: ignore[union-attr, arg-type]
    with pytest.raises(GateError, match="T406"):
        run(tmp_path, recipe(), model=model)


class Hungry(RRViT):
    """Runs out of memory where it rebuilds more than six images."""

    def train_outputs(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        if len(x_BCHW) > 6:
            raise MemoryError
        return super().train_outputs(x_BCHW)


def test_T407_out_of_memory_names_a_batch_size_that_fits(tmp_path: Path) -> None:
    model = build(rebuilding)
    model.__class__ = Hungry
    with pytest.raises(ResourceError, match=r"T407.*train.batch_size=5 fits"):
        run(tmp_path, recipe(batch_size=32), model=model)


@pytest.mark.parametrize("channels", ["grey", "replicate", "pseudocolor"])
def test_the_target_is_the_input_before_standardising(channels: Any) -> None:
    count = 1 if channels == "grey" else 3
    preprocess = Preprocess(size=(4, 4), channels=channels, mean=(0.4, 0.5, 0.3)[:count], std=(0.2, 0.3, 0.25)[:count])
    x_BCHW = torch.from_numpy(np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32))
    restored_BCHW = restore(finish(x_BCHW, preprocess), preprocess)
    plain = Preprocess(size=(4, 4), channels=channels, mean=(0.0,) * count, std=(1.0,) * count)
    torch.testing.assert_close(restored_BCHW, finish(x_BCHW, plain), atol=1e-6, rtol=0)
    assert restored_BCHW.min() >= -1e-6
    assert restored_BCHW.max() <= 1 + 1e-6
