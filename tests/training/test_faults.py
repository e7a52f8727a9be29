"""T406 not finite, T407 out of memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import Plain, build, recipe, run
from torch import Tensor

from medloom.errors import GateError, ResourceError
from medloom.training import checkpoint


class Poisoned(Plain):
    """From the n-th training batch on, its answers or its gradients are not finite."""

    def __init__(self, at: int, where: str) -> None:
        super().__init__()
        self.at, self.where, self.count = at, where, 0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.count += self.training
        if self.training and self.count >= self.at:
            # The square root's slope at zero is infinite: a finite loss with a gradient that is not.
            return out * float("inf") if self.where == "loss" else out + (out * 0).abs().sqrt()
        return out


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_T406_not_finite_stops_at_that_step_with_the_last_checkpoint_kept(tmp_path: Path, where: str) -> None:
    with pytest.raises(GateError, match=rf"T406.*epoch 2 step 3.*{where}.*learning rate 0.01.*image0") as caught:
        run(tmp_path, recipe(clip_norm=None), model=build(Poisoned, at=8, where=where))
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    found, refused = checkpoint.newest(tmp_path / "checkpoint")
    assert found is not None
    assert (found.values["total"], refused) == (5, [])
    events = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["event"] == "not_finite"]
    assert (event["epoch"], event["step"], event["learning_rate"], len(event["ids"])) == (2, 3, 0.01, 8)
    result = run(tmp_path, recipe(clip_norm=None), model=build(Plain), resume=True)
    assert result.epochs == 3


def test_T406_a_learning_rate_far_too_high_is_caught(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="T406"):
        run(tmp_path, recipe(learning_rate=1e38, optimizer="sgd", clip_norm=None, epochs=20), model=build(Plain))
    found, _ = checkpoint.newest(tmp_path / "checkpoint")
    if found is not None:
        assert checkpoint.not_finite(found.tensors) == []


class Hungry(Plain):
    """Has memory for so many images, and fails as the CPU, CUDA or Python do."""

    def __init__(self, room: int, problem: Exception) -> None:
        super().__init__()
        self.room, self.problem = room, problem

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.room:
            raise self.problem
        return super().forward(x)


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_T407_out_of_memory_names_a_batch_size_that_fits(tmp_path: Path, problem: Exception) -> None:
    wanted = recipe(batch_size=32)
    with pytest.raises(ResourceError, match=r"T407.*out of CPU memory with 20 images") as caught:
        run(tmp_path, wanted, model=build(Hungry, room=6, problem=problem))
    assert "train.batch_size=5 fits; train.accumulate=4 keeps" in str(caught.value)
    assert caught.value.exit_code == 7
    assert "\n" not in str(caught.value)
    assert run(tmp_path, recipe(batch_size=5, accumulate=4), model=build(Hungry, room=6, problem=problem)).epochs == 3


def test_T407_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"T407.*smaller model"):
        run(tmp_path, recipe(), model=build(Hungry, room=0, problem=MemoryError()))


def test_other_errors_of_a_model_are_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path, recipe(), model=build(Hungry, room=0, problem=RuntimeError("a bug")))


def test_T407_memory_that_ends_outside_the_model_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(ResourceError, match=r"T407.*train.batch_size=8.*Try train.batch_size=4"):
        run(tmp_path, recipe(), model=build(Plain))
