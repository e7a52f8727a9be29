"""``medloom prune``: what matters least is taken out of a trained model, step by step, each healed by its teacher.

The unpruned model teaches; the pruned one takes over its temperature and its thresholds, and takes its place only where
it is as much faster as was asked, and loses no more than the gate allows. A refused model leaves nothing behind.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medloom.config import Recipe, load_recipe
from medloom.data.cache import DevicePixels, finish, to_device
from medloom.data.sampling import class_weights
from medloom.deployment.bundle import Bundle, load_classifier
from medloom.deployment.export import onnx_bytes
from medloom.deployment.quality_gate import quality_gate, require
from medloom.deployment.turns import speed_in_turns
from medloom.errors import GateError, UsageError
from medloom.evaluation.operating_point import carried_over, thresholds
from medloom.files import RunDirectory, atomic_directory, make_folder, write_json, write_text
from medloom.models.macs import count_macs
from medloom.models.narrowed import plan_of
from medloom.models.prune import KINDS, original_of, prune_step
from medloom.models.registry import create_model
from medloom.reporting.pictures import write_pictures
from medloom.reporting.report import write_report
from medloom.training.batches import Examples
from medloom.training.classification import classifying
from medloom.training.fingerprint import fingerprint
from medloom.training.loop import fit
from medloom.training.predict import predict_logits
from medloom.workflows import score
from medloom.workflows.environment import environment
from medloom.workflows.examples import pictures
from medloom.workflows.networks import load_teacher, refuse_taught_test_images
from medloom.workflows.outcome import Outcome
from medloom.workflows.prepare import Prepared, prepare
from medloom.workflows.progress import Progress
from medloom.workflows.prune_lesson import lesson_recipe
from medloom.workflows.prune_text import lines_of, step_line
from medloom.workflows.run_bundle import write_run_bundle
from medloom.workflows.run_steps import device_of
from medloom.workflows.train_steps import EVALUATION_BATCH, decide

IMPORTANCE_IMAGES = 64
MOST_SHARE = 0.8
_REMEDY = "Prune less (--target, --ratio), in more steps, or with more --epochs between them"


def prune(
    source: str | Path,
    *,
    data: str | Path,
    ratio: float | None = None,
    target: float = 1.8,
    steps: int = 4,
    epochs: int = 1,
    what: Sequence[str] = KINDS,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    accept: Sequence[str] = (),
    threads: int | None = None,
    quiet: bool = True,
) -> Outcome:
    """Prune the model of ``source`` and write a run directory with a bundle.

    Args:
        source: a run directory, or a bundle together with ``recipe``.
        ratio: share of all widths that goes, at most ``MOST_SHARE``; without one, as much as ``target`` needs.
        target: times as fast at batch 1 as before, measured; with ``ratio`` anything above 1.00 is enough.
        steps: as many until ``target`` is expected, and twice as many at most.
        epochs: of learning from the unpruned model after each step; twice as many after the last.
        what: kinds of parts, of ``models.prune.KINDS``.

    Raises:
        GateError: X604, too slow or too much lost; nothing is left then.
        UsageError: U212, U225, U236. ModelError: C516 a network whose graph cannot be followed. DataError: D117.
    """
    started = time.monotonic()
    if (ratio is not None and not 0 < ratio <= MOST_SHARE) or target <= 1 or steps < 1 or epochs < 1:
        problem = f"--ratio {ratio}, --target {target}, --steps {steps}, --epochs {epochs}"
        raise UsageError("U236", "prune", problem, f"Give 0 < ratio <= {MOST_SHARE}, a target above 1, counts from 1")
    bundle = load_classifier(source)
    wanted = lesson_recipe(source, recipe, data, epochs, overrides, accept)
    place = Path(out) if out is not None else Path("runs") / f"{wanted.name}"
    if place.exists():
        raise UsageError("U212", place, "something is already there", "Name another with --out")
    make_folder(place.parent)
    try:
        with atomic_directory(place) as temporary:
            pruning = _Pruning(bundle, RunDirectory(Path(source)), wanted, RunDirectory(temporary), threads, quiet)
            report = pruning.run(ratio, target, steps, tuple(what))
    except _Stopped as signal:
        return Outcome({"run": None}, ("stopped; nothing was written",), signal.args[0])
    write_report(RunDirectory(place))  # anew, for its name is that of the folder
    report["seconds"] = round(time.monotonic() - started, 1)
    return Outcome({"run": place, **report}, (*lines_of(report), f"open {place / 'report.html'}"))


class _Stopped(Exception):
    """A signal ended a lesson: what was half learnt is not judged."""


class _Pruning:
    """One pruning on its way: everything that its steps share."""

    def __init__(
        self, bundle: Bundle, home: RunDirectory, recipe: Recipe, run: RunDirectory, threads: int | None, quiet: bool
    ) -> None:
        self.bundle, self.recipe, self.run_directory, self.threads, self.quiet = bundle, recipe, run, threads, quiet
        self.device = device_of(recipe)
        self.prepared: Prepared = prepare(recipe, run, resume=False, quiet=quiet)
        refuse_taught_test_images(home, self.prepared.dataset, ("val", "test"), recipe.data.accept)
        teacher, _ = load_teacher(recipe, self.prepared, self.device)
        assert teacher is not None
        self.teacher: nn.Module = teacher
        self.pixels: DevicePixels = to_device(self.prepared.cache, self.device)

    def run(self, ratio: float | None, target: float, steps: int, what: tuple[str, ...]) -> dict[str, Any]:
        architecture = dict(self.bundle.document["architecture"])
        whole = {key: value for key, value in architecture.items() if key != "pruned"}
        model = create_model(**architecture)
        model.load_state_dict(self.teacher.state_dict())
        model.to(self.device)
        original, before = original_of(model), self._onnx(self.teacher)
        dropped = tuple((architecture.get("pruned") or {}).get("dropped", ()))
        goal = ratio if ratio is not None else min(MOST_SHARE, 1.25 * (1 - target**-0.5))
        counted, share, told = self._counts(model), 0.0, []
        base = counted
        with Progress("pruning", quiet=self.quiet) as progress:
            for k in range(1, 2 * steps + 1):
                share = min(goal * k / steps, MOST_SHARE)
                x_BCHW, labels = self._importance_batch(k)
                dropped += prune_step(model, original, share, x_BCHW=x_BCHW, target=labels, kinds=what)
                counted = self._counts(model)
                speed = speed_in_turns(before, self._onnx(model), threads=self.threads, batches=(1,))
                last = k >= steps if ratio is not None else speed["batch 1"]["faster"] >= 1.02 * target
                last |= k == 2 * steps or share == MOST_SHARE
                area = self._heal(model, k, last)
                step = {"step": k, "share": round(share, 4), **counted, "faster": speed["batch 1"]["faster"]}
                told.append({**step, "validation_auc": area})
                progress.keep(step_line(told[-1], base))
                if last:
                    break
        plan = plan_of(model.cpu(), create_model(**whole), dropped)
        model.to(self.device)
        speed = speed_in_turns(before, self._onnx(model), threads=self.threads)
        return self._judge(model, {**whole, "pruned": plan}, told, base, speed, 1.0 if ratio is not None else target)

    def _judge(
        self,
        model: nn.Module,
        architecture: dict[str, Any],
        told: list[dict[str, Any]],
        base: dict[str, int],
        speed: dict[str, Any],
        target: float,
    ) -> dict[str, Any]:
        """Gate on validation; only then are the test images scored, and everything written."""
        run, bundle, dataset, recipe = self.run_directory, self.bundle, self.prepared.dataset, self.recipe
        temperature, point = bundle.pipeline.temperature, bundle.document["operating_point"]
        cuts, place = thresholds(point), bundle.root
        options: dict[str, Any] = {
            "resamples": recipe.evaluation.resamples,
            "min_positives": recipe.evaluation.min_positives,
        }

        def both(split: str) -> tuple[Any, Any]:
            part = dataset.select(split)
            sides = (self._logits(self.teacher, split), self._logits(model, split))
            one, other = (score.predictions_of(part, split, logits, temperature) for logits in sides)
            return one, other

        old, table = both("val")
        gate = quality_gate(old, table, thresholds=cuts, **options)
        require(gate, place, _REMEDY)
        faster = speed["batch 1"]["faster"]
        if faster < target or round(faster, 2) <= 1:  # 1.00, as it is told, is not faster
            slow = f"it is {faster:.2f} times as fast, {f'{target:g}' if target > 1 else 'more than 1'} was asked for"
            raise GateError("X604", place, slow, _REMEDY)
        decision = carried_over(point, table, recipe.evaluation, timestamp=score.now(), seed=recipe.train.seed)
        write_json(run.environment, environment())
        write_text(run.recipe, recipe.as_yaml())
        write_json(run.operating_point, decision)
        table.write_csv(run.predictions("val"))
        scored, outside = None, None
        if len(dataset.select("test")):
            score.open_test(run, "pruned model and the one before", dataset.hash())
            before, scored = both("test")
            outside = quality_gate(before, scored, thresholds=cuts, **options)
        metrics = score.write_metrics(run, scored, table, decision, recipe, temperature=temperature)
        shown, rows = (table, self.prepared.rows("val")) if scored is None else (scored, self.prepared.rows("test"))
        answers, preprocess = decide(shown, decision), self.prepared.preprocess
        write_pictures(run, pictures(model, self.pixels, preprocess, rows, shown, answers, self.device, rebuild=False))
        report = {
            "what": "pruned",
            "before": {"name": bundle.name, "bundle": bundle.hash, **base},
            "after": {key: told[-1][key] for key in base},
            "steps": told,
            "speed": speed,
            "target": target,
            "gate": gate,
            "test": outside,
        }
        write_json(run.root / "compression.json", report)
        write_run_bundle(
            model, recipe, run, self.prepared, decision, temperature, metrics, table, architecture=architecture
        )
        return report

    def _heal(self, model: nn.Module, k: int, last: bool) -> float | None:
        """Learn from labels and the unpruned model for a while; returns the validation AUC.

        The last epoch is taken: the gate asks how near the answers are to the unpruned model's, and an AUC that hardly
        moves from epoch to epoch would choose by chance.
        """
        values = self.recipe.as_dict()
        values["train"]["epochs"] *= 2 if last else 1
        recipe, dataset = load_recipe(values), self.prepared.dataset
        folder = RunDirectory(self.run_directory.root / "steps" / f"{k:02d}")
        make_folder(folder.root.parent)
        make_folder(folder.root)
        train = dataset.select("train")
        work = classifying(
            model,
            train=self._examples("train"),
            val=self._examples("val"),
            recipe=recipe,
            preprocess=self.prepared.preprocess,
            device=self.device,
            class_weights=class_weights(train.targets(), len(dataset.classes), recipe.imbalance, dataset.classes),
            teacher=self.teacher,
        )
        work = replace(work, monitor="epoch")
        marks = fingerprint(recipe, {"hash": dataset.hash(), "step": k}, device=self.device)
        found = fit(model, work=work, recipe=recipe, run=folder, fingerprint=marks, device=self.device)
        if found.exit_code:
            raise _Stopped(found.exit_code)
        shutil.rmtree(folder.checkpoint, ignore_errors=True)
        if last:  # the lesson that made the weights is the one whose curves the report shows
            for own, shown in zip((folder.log, folder.sessions), (self.run_directory.log, self.run_directory.sessions)):
                shutil.copyfile(own, shown)
        epochs = [line for line in map(json.loads, folder.log.read_text().splitlines()) if line["event"] == "epoch"]
        area = epochs[-1].get("val_auc")
        return None if area is None else round(float(area), 5)

    def _examples(self, split: str) -> Examples:
        part = self.prepared.dataset.select(split)
        return Examples(self.pixels, self.prepared.rows(split), part.targets(), tuple(r.id for r in part.records))

    def _importance_batch(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.prepared.rows("train")
        chosen = np.random.default_rng((self.recipe.train.seed, k)).permutation(len(rows))[:IMPORTANCE_IMAGES]
        block = torch.from_numpy(np.asarray(self.prepared.cache.pixels[np.sort(rows[chosen])]))
        x_BCHW = finish(block.permute(0, 3, 1, 2).float() / 255, self.prepared.preprocess)
        order = np.argsort(rows[chosen])
        labels = torch.from_numpy(np.asarray(self.prepared.dataset.select("train").targets()[chosen][order]))
        return x_BCHW.to(self.device), labels.to(self.device)

    def _logits(self, model: nn.Module, split: str) -> np.ndarray:
        rows, flip = self.prepared.rows(split), self.recipe.evaluation.flip_average
        preprocess = self.prepared.preprocess
        return predict_logits(model, self.pixels, preprocess, rows, EVALUATION_BATCH, self.device, flip_average=flip)

    def _onnx(self, model: nn.Module) -> bytes:
        return onnx_bytes(model, in_chans=self.prepared.preprocess.in_chans, size=self.prepared.preprocess.size)

    def _counts(self, model: nn.Module) -> dict[str, int]:
        macs = count_macs(model, self.prepared.preprocess.in_chans, self.prepared.preprocess.size)
        return {"parameters": sum(p.numel() for p in model.parameters()), "macs": macs}
