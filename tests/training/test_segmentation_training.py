"""Segmentation as the loop's work: it learns, it is judged over whole cases, and a stopped run is the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_cases
import torch
from kill_runs import outcome
from small_cases import CLASSES, CPU, GRID, Tiny, cases, recipe, run, split
from small_runs import deliver

from medloom.training.batches import parts
from medloom.training.case_batches import ImageReader, PatchReader
from medloom.training.distributed import World
from medloom.training.predict_cases import case_logits
from medloom.training.segmentation import batch_dice, segmenting

HERE = Path(__file__).parent
DIMS = pytest.mark.parametrize("dims", [2, 3])


def epochs(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


@DIMS
def test_it_learns_and_the_best_epoch_is_that_of_the_highest_dice(tmp_path: Path, dims: int) -> None:
    result = run(tmp_path, recipe(dims, train={"epochs": 12}), dims)
    lines = epochs(tmp_path)
    assert max(line["val_dice"] for line in lines) > 0.8
    assert lines[-1]["train_loss"] < 0.7 * lines[0]["train_loss"]
    assert result.best is not None
    assert result.best["monitor"] == "val_dice"
    assert result.best["score"] == max(line["val_dice"] for line in lines)


@DIMS
def test_validation_dice_is_that_of_whole_cases(tmp_path: Path, dims: int) -> None:
    wanted = recipe(dims, train={"epochs": 1})
    run(tmp_path, wanted, dims)
    model = Tiny(dims)
    from safetensors.torch import load_file

    (weights,) = (tmp_path / "checkpoint").glob("best*.safetensors")
    model.load_state_dict(load_file(weights))
    _, val = split(dims)
    scores: dict[int, list[float]] = {1: [], 2: []}
    for row in val.rows:
        logits_KS = case_logits(model.eval(), val.cases.pixels[row], GRID[dims], wanted.segmentation, CLASSES, CPU)
        answer, truth = logits_KS.argmax(0), val.cases.labels[row]
        for k, found in scores.items():
            total = (answer == k).sum() + (truth == k).sum()
            if total:
                found.append(2 * ((answer == k) & (truth == k)).sum() / total)
    assert epochs(tmp_path)[0]["val_dice"] == pytest.approx(np.mean([np.mean(f) for f in scores.values() if f]))


@DIMS
def test_T409_stopped_in_the_middle_and_resumed_it_is_the_same_run(tmp_path: Path, dims: int) -> None:
    wanted = recipe(dims, train={"epochs": 4, "save_steps": 1})
    run(tmp_path / "whole", wanted, dims)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "saved" and event["epoch"] == 2:
            deliver(signal.SIGTERM)

    stopped = run(tmp_path / "cut", wanted, dims, progress=stop)
    assert stopped.exit_code == 143
    run(tmp_path / "cut", wanted, dims, resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_coarser_answers_are_learnt_and_logged(tmp_path: Path) -> None:
    run(tmp_path / "deep", recipe(2, train={"epochs": 4}), 2, deep=True)
    errors = [line["deep_supervision"] for line in epochs(tmp_path / "deep")]
    assert errors[-1] < errors[0]
    run(tmp_path / "off", recipe(2, train={"epochs": 1}, segmentation={"deep_supervision": False}), 2, deep=True)
    assert "deep_supervision" not in epochs(tmp_path / "off")[0]


@DIMS
def test_an_epoch_shows_every_case_as_often_as_it_is_asked_to(dims: int) -> None:
    train, val = split(dims)
    wanted = recipe(dims, segmentation={"patches_per_case": 3})
    work = segmenting(Tiny(dims), train=train, val=val, recipe=wanted, preprocess=GRID[dims], device=CPU)
    shown = np.concatenate(work.steps(1))
    assert sorted(shown.tolist()) == list(range(30))
    assert len(work.ids) == 30
    assert [work.ids.count(i) for i in train.ids] == [3] * 10
    assert not np.array_equal(shown, np.concatenate(work.steps(2)))


@DIMS
def test_processes_share_the_patches_of_a_step(dims: int) -> None:
    """What two processes read together is what one reads."""
    train, _ = split(dims)
    rows = np.arange(10)

    def reader(world: World) -> ImageReader | PatchReader:
        config = recipe(dims).augment
        if dims == 2:
            return ImageReader(train.cases, rows, CLASSES, GRID[2], config, 0, world, CPU)  # type: ignore[arg-type]
        return PatchReader(train.cases, rows, (8, 8, 8), 0.5, GRID[3], config, 0, world, CPU)  # type: ignore[arg-type]

    (part,) = parts([np.array([4, 1, 7, 2, 9])], 5, 1, 0)
    alone = reader(World()).read(part)
    halves = [reader(World(rank, 2)).read(part) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([h.x_BCHW for h in halves]), alone.x_BCHW)
    torch.testing.assert_close(torch.cat([h.target for h in halves]), alone.target)


def test_the_dice_of_a_step_counts_a_rightly_empty_answer_as_perfect() -> None:
    target_BS = torch.zeros(2, 4, 4, dtype=torch.long)
    target_BS[0, :2] = 1
    logits_BKS = torch.nn.functional.one_hot(target_BS, CLASSES).movedim(-1, 1).float()
    assert float(batch_dice(logits_BKS, target_BS)) == 2.0
    logits_BKS[1, 2] = 9.0
    assert float(batch_dice(logits_BKS, target_BS)) == 1.0


def test_volumes_smaller_than_a_window_are_answered_too() -> None:
    source = cases(2, 3)
    wanted = recipe(3, segmentation={"patch": [20, 20, 20]})
    logits_KS = case_logits(Tiny(3).eval(), source.pixels[0], GRID[3], wanted.segmentation, CLASSES, CPU)
    assert logits_KS.shape == (CLASSES, *small_cases.SHAPE[3])
    assert np.isfinite(logits_KS).all()


def test_two_processes_train_one_segmenter(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(HERE / "two_segmenters.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for dims in (2, 3):
        run(tmp_path / f"alone{dims}", recipe(dims), dims)
        pairs = zip(epochs(tmp_path / f"alone{dims}"), epochs(tmp_path / f"two{dims}"), strict=True)
        for alone, two in pairs:
            for key in ("train_loss", "val_loss", "val_dice", "train_dice"):
                assert two[key] == pytest.approx(alone[key], rel=2e-3), key
