"""DynamicViT in the loop: the shares that it keeps come to their goals, and every promise of the loop holds."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_runs import final
from small_runs import PREPROCESS, Plain, build, predicting, recipe, run, splits, troubled
from torch import nn

from medloom.data.cache import finish
from medloom.errors import UsageError
from medloom.training.added_losses import keep_ratio_error


def epochs(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def shares(model: nn.Module) -> torch.Tensor:
    """Of the validation images, as drawn, mean of many draws."""
    _, val = splits()
    x_BCHW = finish(val.pixels.gather(val.rows).float() / 255, PREPROCESS)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = [model.eval().train_outputs(x_BCHW)["kept_share"] for _ in range(20)]  # type: ignore[operator]
    return torch.stack(draws).mean((0, 1))


def test_the_ratio_loss_is_the_squared_distance_of_the_shares() -> None:
    outputs = {
        "kept_share": torch.tensor([[0.5, 0.5, 0.5], [0.7, 0.4, 0.1]]),
        "kept_goal": torch.tensor([0.7, 0.5, 0.3]),
    }
    by_hand = (0.2**2 + 0.0 + 0.2**2) / 3 + (0.0 + 0.1**2 + 0.2**2) / 3
    assert float(keep_ratio_error(outputs)) == pytest.approx(by_hand)


def test_the_shares_come_to_their_goals_at_which_the_run_ends(tmp_path: Path) -> None:
    model = build(predicting)
    wanted = recipe(epochs=12, tokens={"ramp": 0.5, "ratio_weight": 10.0}, augment={"flip": 0.0, "rotate": 0.0})
    run(tmp_path, wanted, model=model)
    found = [line["keep_ratio"] for line in epochs(tmp_path)]
    assert found[-1] < 0.3 * found[0]
    assert model.keep_rate == 0.5  # type: ignore[comparison-overlap]
    torch.testing.assert_close(shares(model), torch.tensor([16.0, 8.0, 8.0]) / 36, atol=0.12, rtol=0)


def test_in_the_warm_up_the_predictors_learn_to_keep_everything(tmp_path: Path) -> None:
    model = build(predicting)
    assert shares(model)[0] < 0.6
    run(tmp_path, recipe(epochs=6, tokens={"multi_keep": [1.0]}), model=model)
    assert shares(model)[2] > 0.9


def test_a_teachers_answers_are_learnt_beside_the_shares(tmp_path: Path) -> None:
    teacher = build(Plain, seed=5).eval().requires_grad_(False)
    teacher.head.weight *= 12  # type: ignore[operator, union-attr]  # sure of itself
    run(tmp_path, recipe(epochs=6, distill={"weight": 5.0}), model=build(predicting), teacher=teacher)
    found = epochs(tmp_path)
    assert found[-1]["distillation"] < 0.7 * found[0]["distillation"]
    assert all(line["keep_ratio"] > 0 for line in found)


def test_U225_a_teachers_attention_has_no_scores_to_teach(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"U225.*scores its tokens"):
        run(tmp_path, recipe(tokens={"attention_weight": 1.0}), model=build(predicting), teacher=build(Plain))


def test_T409_a_stopped_and_resumed_run_is_the_whole_run(tmp_path: Path) -> None:
    wanted = recipe(epochs=3, batch_size=8, ema_decay=0.9)

    def model(seed: int = 0) -> nn.Module:
        return build(predicting, seed=seed, dropout=0.2)

    run(tmp_path / "whole", wanted, model=model())
    assert run(tmp_path / "cut", wanted, model=model(), data=troubled(7, signal.SIGTERM)).stopped == "SIGTERM"
    run(tmp_path / "cut", wanted, resume=True, model=model(9))
    assert final(tmp_path / "cut") == final(tmp_path / "whole")
