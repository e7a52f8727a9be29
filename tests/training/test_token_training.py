"""Models that choose their tokens: stages, keep rate per step, what the scores learn from, teachers."""

from __future__ import annotations

import itertools
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_runs import final
from small_runs import PREPROCESS, SIZE, Plain, build, choosing, recipe, run, splits, troubled
from torch import nn

from medloom.data.cache import finish
from medloom.data.masks import Masks
from medloom.errors import UsageError
from medloom.models.registry import create_model
from medloom.training.added_losses import mask_error, soft_error
from medloom.training.batches import Batch
from medloom.training.token_stages import keep_rate, standing_still


def epochs(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def scorer_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.scorer.parameters()])  # type: ignore[union-attr]


def test_the_keep_rate_starts_at_one_falls_and_ends_at_the_goal() -> None:
    wanted = recipe(tokens={"warmup": 0.1, "ramp": 0.6})
    rates = [keep_rate(wanted, 0.4, step, 100) for step in range(100)]
    assert rates[:10] == [1.0] * 10
    assert all(before >= after for before, after in itertools.pairwise(rates))
    assert rates[35] == pytest.approx(0.7, abs=0.02)  # half way along the cosine
    assert rates[60:] == [0.4] * 40
    assert keep_rate(wanted, None, 3, 100) is None


def test_many_rates_are_drawn_by_seed_and_step() -> None:
    wanted = recipe(tokens={"multi_keep": [0.3, 0.5, 1.0]}, seed=3)
    rates = [keep_rate(wanted, 0.5, step, 100) for step in range(60)]
    assert set(rates) == {0.3, 0.5, 1.0}
    assert rates == [keep_rate(wanted, 0.5, step, 100) for step in range(60)]
    assert rates != [keep_rate(recipe(tokens={"multi_keep": [0.3, 0.5, 1.0]}), 0.5, s, 100) for s in range(60)]


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_drawn_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=r"U204.*multi_keep"):
        recipe(tokens={"multi_keep": [rate]})


def test_first_the_scorer_alone_then_all_but_the_scorer_then_all() -> None:
    wanted = recipe(epochs=11, tokens={"scorer_epochs": 1, "freeze_scorer": 0.3})
    model = build(choosing)
    assert "blocks." in standing_still(wanted, model, 1)
    assert standing_still(wanted, model, 2) == ("scorer.",)
    assert standing_still(wanted, model, 4) == ("scorer.",)
    assert standing_still(wanted, model, 5) == ()
    assert standing_still(wanted, build(Plain), 1) == ()


def test_in_its_stage_the_scorer_learns_and_the_blocks_stand_still(tmp_path: Path) -> None:
    model = build(choosing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved: set[str] = set()

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 1:
            moved.update(name for name, value in model.state_dict().items() if not torch.equal(value, before[name]))

    run(tmp_path, recipe(epochs=2, tokens={"scorer_epochs": 1}), model=model, progress=look)
    assert any(name.startswith("scorer.") for name in moved)
    assert any(name.startswith("scorer_head.") for name in moved)
    assert not any(name.startswith(("blocks.", "head.", "position")) for name in moved)
    assert epochs(tmp_path)[0]["scorer"] > 0
    assert all(parameter.requires_grad for parameter in model.parameters()), "thawed at the end"


@pytest.mark.parametrize("budget", [{"epochs": 2}, {"epochs": 5, "max_steps": 10}])
def test_U227_a_run_of_the_scorer_alone_is_refused(tmp_path: Path, budget: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"U227.*scorer_epochs"):
        run(tmp_path, recipe(**budget, tokens={"scorer_epochs": 2}), model=build(choosing))
    assert not (tmp_path / "checkpoint").exists()


def test_the_head_that_is_there_for_a_teacher_learns_from_it(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return create_model(
            "vit", num_classes=2, in_chans=1, image_size=SIZE, patch_size=4, embed_dim=16, depth=1, num_heads=2,
            distilled=True,
        )  # fmt: skip

    teacher = build(Plain, seed=5).eval().requires_grad_(False)
    teacher.head.weight *= 12  # type: ignore[operator, union-attr]  # sure of itself
    wanted = recipe(epochs=6, distill={"weight": 5.0})
    student = build(model)
    run(tmp_path, wanted, model=student, teacher=teacher)
    found = [line["distillation"] for line in epochs(tmp_path)]
    assert found[-1] < 0.5 * found[0]


def test_while_it_stands_still_the_scorer_keeps_its_weights(tmp_path: Path) -> None:
    model = build(choosing)
    before = scorer_of(model)
    run(tmp_path / "a", recipe(epochs=2, tokens={"freeze_scorer": 0.9}), model=model)
    assert torch.equal(scorer_of(model), before)
    free = build(choosing)
    run(tmp_path / "b", recipe(epochs=2, tokens={"freeze_scorer": 0.0}), model=free)
    assert not torch.equal(scorer_of(free), before)


def test_the_run_ends_at_the_rate_it_was_built_with(tmp_path: Path) -> None:
    model = build(choosing, keep_rate=0.6)
    run(tmp_path, recipe(epochs=1, ema_decay=0.5, tokens={"multi_keep": [1.0]}), model=model)
    assert model.keep_rate == 0.6  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("at", [3, 11])
def test_T409_a_stopped_and_resumed_run_is_the_whole_run(tmp_path: Path, at: int) -> None:
    wanted = recipe(
        epochs=3,
        batch_size=3,
        ema_decay=0.9,
        tokens={"scorer_epochs": 1, "multi_keep": [0.3, 1.0], "freeze_scorer": 0.4},
    )

    def model(seed: int = 0) -> nn.Module:
        return build(choosing, seed=seed, dropout=0.2)

    run(tmp_path / "whole", wanted, model=model())
    stopped = run(tmp_path / "cut", wanted, model=model(), data=troubled(at, signal.SIGTERM))
    assert stopped.stopped == "SIGTERM"
    run(tmp_path / "cut", wanted, resume=True, model=model(9))
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


@pytest.mark.parametrize("many", [False, True])
def test_the_distance_to_a_teacher(many: bool) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 3))
    s, t = student / 2, teacher / 2
    if many:
        p, q = 1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-s))
        expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(1).sum()
    else:
        p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (t, s))
        expected = 4 * (p * np.log(p / q)).sum()
    found = soft_error(torch.from_numpy(student), torch.from_numpy(teacher), 2.0, many=many)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(soft_error(torch.from_numpy(teacher), torch.from_numpy(teacher), 2.0, many=many)) == pytest.approx(0)


def test_a_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    teacher = build(Plain, seed=5).eval().requires_grad_(False)
    wanted = recipe(epochs=6, distill={"weight": 5.0})
    run(tmp_path, wanted, model=build(Plain), teacher=teacher)
    found = [line["distillation"] for line in epochs(tmp_path)]
    assert found[-1] < 0.5 * found[0]


def test_the_scores_learn_where_the_teacher_looks(tmp_path: Path) -> None:
    teacher = create_model(
        "vit", num_classes=2, in_chans=1, image_size=SIZE, patch_size=4, embed_dim=16, depth=2, num_heads=2
    )
    for parameter in teacher.parameters():
        parameter.data *= 6  # looks somewhere
    wanted = recipe(epochs=8, tokens={"attention_weight": 3.0, "freeze_scorer": 0.0})
    run(tmp_path, wanted, model=build(choosing), teacher=teacher.eval().requires_grad_(False))
    found = [line["attention"] for line in epochs(tmp_path)]
    assert found[-1] < 0.7 * found[0]


def test_U225_attention_needs_a_teacher_and_a_scorer(tmp_path: Path) -> None:
    wanted = recipe(tokens={"attention_weight": 1.0})
    with pytest.raises(UsageError, match="U225"):
        run(tmp_path / "a", wanted, model=build(choosing))
    with pytest.raises(UsageError, match="U225"):
        run(tmp_path / "b", wanted, model=build(Plain), teacher=build(Plain))
    with pytest.raises(UsageError, match=r"U225.*grid"):
        run(tmp_path / "c", wanted, model=build(choosing), teacher=build(Looking))


class Looking(nn.Module):
    """A teacher without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()

    def forward(self, x: torch.Tensor, taps: dict[str, Any] | None = None) -> torch.Tensor:
        return self.inner(x)


def test_an_epoch_of_the_scorer_alone_is_never_the_best(tmp_path: Path) -> None:
    result = run(tmp_path, recipe(epochs=3, tokens={"scorer_epochs": 2}), model=build(choosing))
    assert result.best is not None
    assert result.best["epoch"] == 3


def test_the_scores_learn_the_masks(tmp_path: Path) -> None:
    """The finding is where the mask says, so the tokens there end with the highest scores."""
    train, val = splits()
    pixels = np.zeros((len(train) + len(val), SIZE, SIZE), dtype=np.uint8)
    pixels[:, 4:8, 4:8] = 255  # the middle one of nine tokens
    marked = replace(train, masks=Masks(pixels, np.arange(len(pixels))))
    model = build(choosing)
    wanted = recipe(epochs=6, tokens={"scorer_epochs": 4, "mask_weight": 2.0}, augment={"flip": 0.0, "rotate": 0.0})
    run(tmp_path, wanted, model=model, data=(marked, val))
    found = [line["masks"] for line in epochs(tmp_path)]
    assert found[-1] < 0.3 * found[0]
    taps: dict[str, Any] = {}
    model.eval()(finish(val.pixels.gather(val.rows).float() / 255, PREPROCESS), taps)
    assert (taps["token_score"].value.argmax(dim=1) == 4).float().mean() > 0.75  # chance: 0.11


def test_images_without_a_mask_teach_the_scores_nothing() -> None:
    score_BN = torch.randn(2, 9, requires_grad=True)
    mask_BHW = torch.zeros(2, SIZE, SIZE)
    batch = Batch(torch.zeros(2, 1, SIZE, SIZE), torch.zeros(2), True, True, mask_BHW, torch.tensor([False, True]))
    mask_error({"token_score": score_BN}, batch).backward()
    assert score_BN.grad is not None
    assert not score_BN.grad[0].any()
    assert score_BN.grad[1].all()
