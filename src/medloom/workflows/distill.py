"""``medloom distill``: a small student learns from a teacher's answers beside the labels, and is held against both.

Plain logit distillation over the recipe part ``distill``: softened answers, one Bernoulli divergence per label where
labels are many. What comes out is an ordinary run; ``compression.json`` says what it gained or lost.

Reference: Hinton et al., Distilling the knowledge in a neural network, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.config import Recipe, load_recipe
from medloom.errors import UsageError
from medloom.files import RunDirectory, write_json
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress, number

if TYPE_CHECKING:
    from medloom.deployment.bundle import Bundle
    from medloom.evaluation.predictions import Predictions

WEIGHT, TEMPERATURE = 1.0, 2.0
"""Of a student that is named by its model alone: labels and teacher count the same."""

METRICS = ("auc", "accuracy")


def distill(
    teacher: str | Path,
    student: str,
    *,
    data: str | Path,
    beside: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    accept: Sequence[str] = (),
    quiet: bool = True,
) -> Outcome:
    """Train the student and compare it, on the same test images, with its teacher and with its like that had none.

    Args:
        teacher: run directory or bundle.
        student: a recipe file, or a model ``NAME`` or ``NAME(key=value, ...)``, which is then trained by the teacher's
            recipe.
        beside: a finished run of the same student without a teacher; where it was tested on other images than the
            student will be, nothing is trained.

    Without a test split ``compression.json`` holds no comparison, and the outcome says so.

    Raises:
        UsageError: U206, U207, U225, U233 ``beside`` is not finished, U236 no recipe to train by. DataError: D117 the
            teacher has learnt from test images, D116 ``beside`` was tested on other images. What ``train`` raises.
    """
    from medloom.deployment.bundle import load_classifier
    from medloom.evaluation.predictions import read_csv
    from medloom.reporting.report import write_report
    from medloom.workflows.train import resolve, train

    bundle = load_classifier(teacher)
    recipe = _student(teacher, student, bundle.name, overrides)
    other = None
    if beside is not None:
        path = RunDirectory(Path(beside)).predictions("test")
        if not path.exists():
            raise UsageError(
                "U233", beside, "no finished run with a test split is there", "Name another, or leave it out"
            )
        other = read_csv(path)
        _same_test_images(other, resolve(recipe, data=data, overrides=(), seed=seed, accept=accept), quiet=quiet)
    done = train(recipe, data=data, out=out, seed=seed, resume=resume, accept=accept, quiet=quiet)
    if done.exit_code:
        return Outcome(done.as_dict(), (done.text(),), done.exit_code)
    run, against, its_like = done.directory, None, None
    if run.predictions("test").exists():
        mine = read_csv(run.predictions("test"))
        against = _compared(mine, _teacher_answers(bundle, run), recipe)
        if other is not None:
            its_like = {"run": Path(str(beside)).name, **_compared(mine, other, recipe)}
    report: dict[str, Any] = {
        "what": "distilled",
        "teacher": {"name": bundle.name, "bundle": bundle.hash, **_size(bundle)},
        "student": _size(load_classifier(run.bundle)),
        "weight": recipe.distill.weight,
        "temperature": recipe.distill.temperature,
        "against_teacher": against,
        "beside": its_like,
    }
    write_json(run.root / "compression.json", report)
    write_report(run)
    return Outcome({**done.as_dict(), "distillation": report}, (*_lines(report), done.text()))


def _student(teacher: str | Path, student: str, name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of the student, with its teacher in it."""
    from medloom.workflows.compare_plan import parse_models

    if Path(student).is_file() or student.endswith((".yaml", ".yml")):
        values = load_recipe(student).as_dict()
    else:
        own = RunDirectory(Path(teacher)).recipe
        if not own.exists():
            told = "a bare bundle does not tell how it was trained"
            raise UsageError("U236", teacher, told, "Give its run directory, or a recipe as the student")
        models = parse_models([student])
        if len(models) != 1:
            raise UsageError("U231", student, "not one model", "Write NAME or NAME(key=value, ...)")
        model, options, _ = models[0]
        values = load_recipe(own).as_dict()
        values["name"] = f"{model.replace('/', '_')}-from-{name}"
        values["model"] = {"name": model, "options": options}
        values["distill"] = {"weight": WEIGHT, "temperature": TEMPERATURE}
    values["distill"] |= {"teacher": str(teacher)}
    return load_recipe(values, tuple(overrides))


def _same_test_images(other: Predictions, recipe: Recipe, *, quiet: bool) -> None:
    """Refuse, before anything is trained, to be held against what was tested on other images.

    Raises:
        DataError: D116. What reading the images raises.
    """
    from medloom.data.scan import scan
    from medloom.data.sources import open_dataset
    from medloom.data.splits import make_splits
    from medloom.evaluation.comparison import aligned
    from medloom.workflows.score import predictions_of

    with Progress("reading images", quiet=quiet) as step:
        dataset = scan(open_dataset(str(recipe.data.path), recipe.data), recipe.data, progress=step).dataset
    if dataset.label_values:
        return  # masks: training refuses them, with what to do
    test = make_splits(dataset, recipe.data, recipe.train.seed).dataset.select("test")
    aligned(predictions_of(test, "test", np.zeros((len(test), len(test.classes))), 1.0), other)


def _teacher_answers(bundle: Bundle, run: RunDirectory) -> Predictions:
    """The teacher on the student's test images, from the pixels that both see; entered in the ledger."""
    from medloom.data.records import read_csv
    from medloom.workflows.prepare import load_pixels
    from medloom.workflows.score import open_test, predictions_of

    recipe = load_recipe(run.recipe)
    dataset = read_csv(run.records, Path(str(recipe.data.path)))
    prepared = load_pixels(recipe, run, dataset)
    open_test(run, "the teacher, for comparison", dataset.hash())
    rows = prepared.rows("test")
    parts = [
        bundle.pipeline.logits(np.asarray(prepared.cache.pixels[rows[k : k + 256]])) for k in range(0, len(rows), 256)
    ]
    table = predictions_of(dataset.select("test"), "test", np.concatenate(parts), bundle.pipeline.temperature)
    table.write_csv(run.root / "predictions_teacher.csv")
    return table


def _compared(mine: Predictions, other: Predictions, recipe: Recipe) -> dict[str, Any]:
    """Student less the other, paired over the patients."""
    from medloom.evaluation.comparison import paired_difference

    config = recipe.evaluation
    asked = {"resamples": config.resamples, "confidence": config.confidence, "min_positives": config.min_positives}
    return {metric: paired_difference(mine, other, metric, **asked) for metric in METRICS}  # type: ignore[arg-type]


def _size(bundle: Bundle) -> dict[str, Any]:
    document = bundle.document
    return {
        "model": document["architecture"].get("name"),
        "parameters": document["provenance"].get("parameters"),
        "milliseconds": document["latency"].get("milliseconds_per_image_at_batch", {}).get("1"),
    }


def _lines(report: Mapping[str, Any]) -> list[str]:
    small, large = report["student"], report["teacher"]
    lines = [
        f"{small['model']}, {small['parameters']:,} parameters, taught by {large['model']} ({large['name']}), "
        f"{large['parameters']:,} parameters"
        if small["parameters"] and large["parameters"]
        else f"{small['model']}, taught by {large['model']} ({large['name']})"
    ]
    for title, part in (("the teacher", report["against_teacher"]), ("the same without a teacher", report["beside"])):
        if part is not None:
            gap = part["auc"]["difference"]
            told = number(gap) if gap["value"] is not None else str(gap["note"])
            lines.append(f"test AUC less that of {title}: {told}")
    if report["against_teacher"] is None:
        lines.append("there is no test split: the student could not be compared with its teacher")
    return lines
