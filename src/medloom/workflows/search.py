"""``medloom search``: a small search over the composition of a hybrid, under a latency budget of this machine.

Each trial is first built, exported and timed; what is over the budget is never trained. What fits is trained as the
recipe says and judged by validation alone: the test images are never scored. The journal lies in the folder, so that a
search that was stopped goes on; the winner is a recipe.

Reference: search over backbone and composition as future work: Zhang, HATR, EMITI 2025, DOI 10.5220/0014361900004718;
tree-structured Parzen estimator: Bergstra et al., NIPS 2011, by Optuna.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medloom.config import Recipe, load_recipe
from medloom.errors import ExportError, ModelError, UsageError
from medloom.files import RunDirectory, make_folder, write_json, write_text
from medloom.training.stopping import EXIT_CODES, StopRequests
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress, duration
from medloom.workflows.run_lock import exclusive
from medloom.workflows.search_space import compose, families_of

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"


@dataclass(frozen=True)
class Bounds:
    """When it ends: so many trials in all, or so many minutes of this session; and what one image may take."""

    budget_ms: float
    trials: int
    minutes: float | None


def search(
    recipe: str | Path | dict[str, Any] | Recipe,
    *,
    data: str | Path,
    budget: float,
    trials: int = 20,
    minutes: float | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    accept: Sequence[str] = (),
    threads: int | None = None,
    quiet: bool = True,
) -> Outcome:
    """Search, and write ``search.html``, ``search.json``, ``search.md`` and ``best.yaml``; the same command goes on.

    Args:
        recipe: of a ``hatr`` or ``token_pruned`` model: protocol and training of every trial.
        budget: milliseconds of one image through ONNX Runtime, network alone.
        trials: in all, those of earlier sessions, those over the budget and impossible ones included.
        threads: of the inference that is timed.

    Raises:
        UsageError: U211, U238 no such search, or another one lies there; T412. What ``prepare`` raises.
    """
    from medloom.workflows.train import resolve

    started = time.monotonic()
    wanted = resolve(recipe, data=data, overrides=overrides, seed=None, accept=accept)
    families = families_of(wanted)
    if not budget > 0 or trials < 1 or (minutes is not None and not minutes > 0):
        raise UsageError(
            "U238", "search", f"budget {budget}, trials {trials}, minutes {minutes}", "Give positive numbers"
        )
    place = Path(out) if out is not None else Path("runs") / f"{wanted.name}-search"
    make_folder(place)
    with exclusive(RunDirectory(place)), StopRequests() as stop:
        _same_search(place, wanted, budget, threads)
        study = _study(place, wanted)
        bounds = Bounds(budget, trials, minutes)
        _run(study, wanted, families, bounds, place, stop, threads, quiet, started)
        content = _content(study, wanted, bounds, threads)
        page = _write(place, content, wanted)
        code = EXIT_CODES.get(str(stop.requested()), 0)
    return Outcome({"out": place, **content}, (*_lines(content, time.monotonic() - started), f"open {page}"), code)


def _study(place: Path, recipe: Recipe) -> optuna.Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(place / JOURNAL)))
    # A resumed sampler begins anew: without the count it would propose the same trials once more.
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize", load_if_exists=True)
    seed = recipe.train.seed + 1000 * len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:  # of a session that was killed
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _run(
    study: optuna.Study,
    recipe: Recipe,
    families: tuple[str, ...],
    bounds: Bounds,
    place: Path,
    stop: StopRequests,
    threads: int | None,
    quiet: bool,
    started: float,
) -> None:
    left = bounds.trials - len(study.trials)
    if left <= 0:
        return
    from medloom.workflows.search_trial import Session

    session = Session(recipe, place, threads=threads, quiet=quiet)
    with Progress("searching", quiet=quiet) as progress:
        while len(study.trials) < bounds.trials and not stop.requested():
            if bounds.minutes is not None and time.monotonic() - started > 60 * bounds.minutes:
                break
            trial = study.ask()
            model = compose(trial, families, recipe)
            trial.set_user_attr("model", model)
            said = _one(study, trial, session, model, bounds, stop)
            progress.keep(f"trial {trial.number + 1} of {bounds.trials}: {_spelled(model)}: {said}")
            if stop.requested():
                break


def _one(
    study: optuna.Study,
    trial: optuna.Trial,
    session: Any,
    model: dict[str, Any],
    bounds: Bounds,
    stop: StopRequests,
) -> str:
    """Time it, train it if it fits, tell the study; what happened in words."""
    from optuna.trial import TrialState

    try:
        facts = session.measure(model)
    except (ModelError, ExportError, UsageError) as problem:
        trial.set_user_attr("refused", f"{problem.code}: {problem.problem}")
        study.tell(trial, state=TrialState.PRUNED)
        return f"not possible ({problem.code})"
    for key, value in facts.items():
        trial.set_user_attr(key, value)
    if facts["ms"] > bounds.budget_ms:
        trial.set_user_attr("refused", "over the budget")
        study.tell(trial, state=TrialState.PRUNED)
        return f"{facts['ms']:.2f} ms, over the budget: not trained"
    area, stopped = session.train(model, trial.number)
    if stopped or stop.requested():
        study.tell(trial, state=TrialState.FAIL)
        return "stopped"
    if area is None:
        trial.set_user_attr("refused", "validation AUC not estimable")
        study.tell(trial, state=TrialState.PRUNED)
        return "validation AUC not estimable"
    study.tell(trial, area)
    return f"{facts['ms']:.2f} ms, validation AUC {area:.4f}"


def _content(study: optuna.Study, recipe: Recipe, bounds: Bounds, threads: int | None) -> dict[str, Any]:
    """Every trial, those on the Pareto front marked, and the best."""
    rows: list[dict[str, Any]] = []
    for trial in study.trials:
        facts = trial.user_attrs
        rows.append(
            {
                "trial": trial.number + 1,
                "model": facts.get("model"),
                "spelled": _spelled(facts["model"]) if "model" in facts else "",
                "ms": facts.get("ms"),
                "parameters": facts.get("parameters"),
                "macs": facts.get("macs"),
                "validation_auc": trial.value,
                "front": False,
                "refused": facts.get("refused") or (None if trial.value is not None else "stopped"),
            }
        )
    done = [row for row in rows if row["validation_auc"] is not None]
    for row, front in zip(done, mark_front([(row["ms"], row["validation_auc"]) for row in done])):
        row["front"] = front
    best = max(done, key=lambda row: (row["validation_auc"], -row["ms"]), default=None)
    return {
        "recipe": recipe.name,
        "budget_ms": bounds.budget_ms,
        "threads": threads,
        "trained": len(done),
        "trials": rows,
        "best": best,
        "test_scorings": 0,
    }


def mark_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of ``(milliseconds, AUC)`` no other beats: as fast and as good, and better in one of the two."""
    return [
        not any(ms <= own_ms and area >= own_area and (ms, area) != (own_ms, own_area) for ms, area in points)
        for own_ms, own_area in points
    ]


def _write(place: Path, content: dict[str, Any], recipe: Recipe) -> Path:
    from medloom.reporting.search_page import search_table, write_search_page

    write_json(place / "search.json", content)
    write_text(place / "search.md", search_table(content))
    if content["best"] is not None:
        best = content["best"]
        values = recipe.as_dict()
        note = (
            f"Found by medloom search among {content['trained']} compositions under {content['budget_ms']:g} ms: "
            f"{best['ms']:.2f} ms, validation AUC {best['validation_auc']:.4f} (the best of many on the same images, "
            "and so a little too good; test images were never scored)."
        )
        # The weights that the recipe started from fit its own model; every trial started without any.
        model = {**values["model"], "weights": None, "new_head": False, "pretrained": False, **best["model"]}
        values |= {"name": f"{recipe.name}-found", "notes": note, "model": model}
        write_text(place / "best.yaml", load_recipe(values).as_yaml())
    return write_search_page(place, content)


def _same_search(place: Path, recipe: Recipe, budget: float, threads: int | None) -> None:
    """A journal goes on only with the question that it was begun with."""
    from medloom.workflows.environment import cpu_name

    asked: dict[str, Any] = {"recipe": recipe.as_dict(), "budget_ms": budget, "threads": threads, "cpu": cpu_name()}
    asked["recipe"]["data"].pop("path")
    path = place / "question.json"
    if not path.exists():
        if (place / JOURNAL).exists():
            raise UsageError("U238", place, "a journal without its question", "Name another with --out")
        write_json(path, asked)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := [key for key in asked if json.loads(json.dumps(asked[key])) != before.get(key)]:
        told = f"another search lies there ({', '.join(changed)} changed)"
        raise UsageError("U238", place, told, "Ask as before, or name another with --out")


def _spelled(model: Mapping[str, Any]) -> str:
    return f"{model['name']}({', '.join(f'{k}={v}' for k, v in model['options'].items())})"


def _lines(content: Mapping[str, Any], seconds: float) -> list[str]:
    rows, best = content["trials"], content["best"]
    over = sum(row["refused"] == "over the budget" for row in rows)
    lines = [f"{len(rows)} trials, {content['trained']} trained, {over} over the budget, in {duration(seconds)}"]
    lines.append("judged by validation alone: the test images were never scored")
    if best is None:
        return [*lines, f"nothing fits {content['budget_ms']:g} ms: raise --budget, or lower preprocess.size"]
    lines.append(f"best: {best['spelled']}, {best['ms']:.2f} ms, validation AUC {best['validation_auc']:.4f}")
    return [*lines, "train it with medloom train best.yaml, in the folder of the search"]
