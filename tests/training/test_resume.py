"""Resumed: at its end, from a damaged checkpoint, with something changed; the run is the same run, or says why not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from kill_runs import outcome
from small_runs import Noisy, Plain, build, recipe, run, troubled

from medloom.errors import ModelError, UsageError
from medloom.training import checkpoint
from medloom.training import state as states


def test_T411_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    changed = recipe(learning_rate=0.02)
    with pytest.raises(UsageError, match=r"T411.*recipe.train.learning_rate: 0.01 -> 0.02") as caught:
        run(tmp_path, changed, resume=True)
    assert caught.value.exit_code == 2
    result = run(tmp_path, changed, resume=True, accept=("T411",))
    assert any("learning_rate" in notice for notice in result.notices)
    found, _ = checkpoint.newest(tmp_path / "checkpoint")
    assert found is not None
    assert found.values["changes"] == ["recipe.train.learning_rate: 0.01 -> 0.02"]
    accepted = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(a["event"], a["code"], a["what"]) for a in accepted] == [("accepted", "T411", found.values["changes"])]
    run(tmp_path, changed, resume=True)
    sessions = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    assert [s["over"] for s in sessions if s["event"] == "resume"] == [False, True]


@pytest.mark.parametrize(
    ("part", "key"), [("environment", "torch"), ("environment", "threads"), ("environment", "code"), ("data", "hash")]
)
def test_T411_changed_data_torch_threads_or_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, key: str
) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    real = small_runs.fingerprint

    def other(*arguments: Any, **options: Any) -> dict[str, Any]:
        marks = real(*arguments, **options)
        return {**marks, part: {**marks[part], key: "other"}}

    monkeypatch.setattr(small_runs, "fingerprint", other)
    with pytest.raises(UsageError, match=f"T411.*{part}.{key}: .* -> 'other'"):
        run(tmp_path, recipe(), resume=True)
    if part == "data":
        with pytest.raises(UsageError, match=r"T411.*the data are not those"):
            run(tmp_path, recipe(), resume=True, accept=("T411",))
    else:
        assert run(tmp_path, recipe(), resume=True, accept=("T411",)).stopped == "epochs"


def test_T411_names_notes_and_evaluation_may_change(tmp_path: Path) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    other = recipe().model_copy(update={"name": "other", "notes": "later"})
    assert run(tmp_path, other, resume=True).stopped == "epochs"


def test_T414_resume_after_the_last_epoch_does_nothing_and_says_so(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    before, model = outcome(tmp_path), build(Noisy, seed=5)
    result = run(tmp_path, recipe(), resume=True, model=model)
    assert outcome(tmp_path) == before
    assert any("nothing left to do" in notice for notice in result.notices)
    assert result.weights is not None
    saved = checkpoint.read_tensors(result.weights)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_T414_more_epochs_go_on_from_the_end_when_accepted(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=2))
    assert run(tmp_path, recipe(epochs=4), resume=True, accept=("T411",)).epochs == 4


def test_T414_a_damaged_checkpoint_falls_back_and_ends_at_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "whole", recipe(save_steps=2))
    run(tmp_path, recipe(save_steps=2), data=troubled(12, signal.SIGTERM))
    newest = max((tmp_path / "checkpoint").glob("[0-9]*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    result = run(tmp_path, recipe(save_steps=2), resume=True)
    assert any("C503" in notice and newest.name in notice for notice in result.notices)
    assert outcome(tmp_path) == outcome(tmp_path / "whole")


def test_T414_all_checkpoints_damaged_or_gone_is_exit_4(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    for path in (tmp_path / "checkpoint").glob("[0-9]*.json"):
        path.write_text("{}")
    with pytest.raises(ModelError, match="T414"):
        run(tmp_path, recipe(), resume=True)
    for path in (tmp_path / "checkpoint").iterdir():
        path.unlink()
    with pytest.raises(ModelError, match="T414"):
        run(tmp_path, recipe(), resume=True)


def test_T414_nothing_saved_yet_starts_from_the_beginning_and_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, recipe(epochs=1), resume=True)
    assert any("from the beginning" in notice for notice in result.notices)


def test_T414_a_saved_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=1))
    with pytest.raises(UsageError, match=r"T414.*--resume"):
        run(tmp_path, recipe(epochs=1))


def test_C505_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, recipe(), data=troubled(3, signal.SIGTERM))
    with pytest.raises(ModelError, match="C505"):
        run(tmp_path, recipe(), resume=True, model=build(Plain))


def test_T401_adam_moments_come_back_in_the_layout_of_their_parameters(tmp_path: Path) -> None:
    model = build(Noisy).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = []
    for _ in range(2):
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        made.append(states.State(model, optimizer, None, {}))
    model(torch.zeros(2, 1, 12, 12)).sum().backward()
    made[0].optimizer.step()
    path = states.save(made[0], tmp_path)
    states.load(made[1], checkpoint.read_checkpoint(path))
    for parameter in model.parameters():
        first, second = (m.optimizer.state[parameter] for m in made)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(first[key], second[key])
            assert first[key].stride() == second[key].stride()
            assert second[key].data_ptr() % 16 == 0
