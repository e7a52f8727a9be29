"""``medloom compare``: many models under one protocol, one after another, and one leaderboard of what they did."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medloom.errors import UsageError
from medloom.files import RunDirectory, sweep_orphans
from medloom.reporting.compared import read, refuse_mixtures
from medloom.reporting.wording import plural
from medloom.training.stopping import EXIT_CODES, StopRequests
from medloom.workflows import compare_plan
from medloom.workflows.compare_check import refuse_other_data
from medloom.workflows.compare_plan import Planned
from medloom.workflows.compare_run import Book, estimate, finished, in_process, run_all
from medloom.workflows.compare_text import estimates_table, standings_table
from medloom.workflows.outcome import Outcome
from medloom.workflows.progress import Progress, duration
from medloom.workflows.run_lock import exclusive

if TYPE_CHECKING:
    from medloom.reporting.leaderboard import Measured


def compare(
    sources: Sequence[str | Path] = (),
    *,
    recipe: str | Path | None = None,
    models: Sequence[str] = (),
    data: str | Path | None = None,
    seeds: str | Sequence[int] | None = None,
    baseline: str | None = None,
    out: str | Path = "runs/compare",
    against: str | None = None,
    overrides: Sequence[str] = (),
    accept: Sequence[str] = (),
    max_minutes: float | None = None,
    threads: int | None = None,
    dry_run: bool = False,
    quiet: bool = True,
) -> Outcome:
    """Run what is missing, then write ``leaderboard.html``, ``.csv``, ``.json`` and ``.md`` into ``out``.

    Args:
        sources: recipes to run, and finished run directories to read.
        recipe, models: models laid over one recipe, ``["resnet18", "vit_tiny(patch_size=8)@0"]``.
        seeds: ``"0,1,2"``; the recipe's own without it.
        baseline: the row that the others are held against; the first one by default.
        against: ``"published"`` puts published tables of the same data set beside ours.
        max_minutes: start no run after so many; what is missing is run by the same command another time.
        threads: of inference; all usable cores by default.
        dry_run: estimate time and memory, run nothing.

    A run that fails is a marked row; the outcome's exit code is then that of the first failure, and 130 or 143 after a
    signal, when the run in hand is saved and the same command goes on.

    Raises:
        UsageError: U211, U230 to U233, T412. DataError: D133 runs on different images; what listing the data raises.
    """
    started = time.monotonic()
    folder = Path(out)
    if against not in (None, "published"):
        raise UsageError("U232", "--against", f"'{against}' is not known", "Write --against published")
    listings: dict[str, compare_plan.Listed] = {}
    planned = compare_plan.plan(
        sources,
        recipe=recipe,
        models=models,
        data=data,
        seeds=compare_plan.parse_seeds(seeds),
        overrides=overrides,
        accept=accept,
        out=folder,
        listings=listings,
    )
    labels = list(dict.fromkeys(p.label for p in planned))
    if baseline is not None and baseline not in labels:
        raise UsageError("U232", "--baseline", f"no row is called '{baseline}'", f"Rows: {', '.join(labels)}")
    if given := [read(p.label, p.seed, p.directory) for p in planned if p.given]:
        refuse_mixtures(given)
    refuse_other_data(planned, listings)
    deadline = None if max_minutes is None else started + 60 * max_minutes
    with exclusive(RunDirectory(folder)), StopRequests() as stop:
        sweep_orphans(folder)
        costs = _estimates(planned, listings, folder, stop, deadline, quiet)
        table = estimates_table(planned, costs, {p.name for p in planned if finished(p)})
        if dry_run or stop.requested():
            code = EXIT_CODES.get(str(stop.requested()), 0)
            return Outcome({"out": folder, "estimates": costs, "runs": len(planned)}, tuple(table), code)
        if not all(map(finished, planned)):
            Progress("comparing", quiet=quiet).keep("\n".join(table))
        book = Book(folder / "runs.json")
        todo = [p for p in planned if not _settled(p, costs, book)]
        left = run_all(
            todo,
            {p.setting: costs.get(p.setting, {}).get("seconds", 0.0) for p in planned},
            folder=folder,
            book=book,
            stop=stop,
            deadline=deadline,
            quiet=quiet,
        )
        if stop.requested():
            done = sum(map(finished, planned))
            said = f"stopped and saved: {done} of {len(planned)} runs are finished; the same command goes on"
            return Outcome({"out": folder, "finished": done}, (said,), EXIT_CODES.get(str(stop.requested()), 0))
        return _leaderboard(planned, costs, book, folder, stop, left, baseline, against, threads, started)


def _estimates(
    planned: Sequence[Planned],
    listings: dict[str, compare_plan.Listed],
    folder: Path,
    stop: StopRequests,
    deadline: float | None,
    quiet: bool,
) -> dict[str, dict[str, Any]]:
    """What each setting that is not finished will take, by setting."""
    book = Book(folder / "estimates.json")
    open_ones = {p.setting: p for p in planned if not finished(p)}
    costs: dict[str, dict[str, Any]] = {}
    if not open_ones:
        return costs
    with Progress("estimating time and memory", quiet=quiet) as progress:
        for k, one in enumerate(open_ones.values()):
            if stop.requested() or (deadline is not None and time.monotonic() > deadline):
                break
            progress.line(f"trying a few steps of {one.label} ({k + 1} of {len(open_ones)})")
            listed = compare_plan.listing(one.recipe, listings)
            costs[one.setting] = estimate(one, listed, book, folder, stop)
    return costs


def _settled(one: Planned, costs: dict[str, dict[str, Any]], book: Book) -> bool:
    """Nothing to run: finished, or not possible at all, or trained and scored while its export was refused (exit 5):
    to run that again would only score the test images once more."""
    if finished(one) or "error" in costs.get(one.setting, {}):
        return True
    failed = book.values.get(one.directory.root.name, {}).get("exit") == 5
    return failed and one.directory.metrics.exists()


def _leaderboard(
    planned: Sequence[Planned],
    costs: dict[str, dict[str, Any]],
    book: Book,
    folder: Path,
    stop: StopRequests,
    left: int,
    baseline: str | None,
    against: str | None,
    threads: int | None,
    started: float,
) -> Outcome:
    from medloom.reporting.leaderboard import build
    from medloom.reporting.leaderboard_page import write_leaderboard
    from medloom.workflows.environment import environment

    have = [p for p in planned if p.directory.metrics.exists() and p.directory.predictions("test").exists()]
    problems = _problems(planned, costs, book)
    if not have:
        lines = [f"{p.name}: {problems[p.name]}" for p in planned if p.name in problems]
        lines.append(f"no run is finished; {left} were not begun" if left else "no run is finished")
        return Outcome({"out": folder, "failed": problems}, tuple(lines), _exit_code(planned, problems, costs, book))
    measured = _measure(planned, have, problems, folder, stop, threads)
    if stop.requested():
        return Outcome(
            {"out": folder},
            ("stopped while measuring speed; the same command goes on",),
            EXIT_CODES.get(str(stop.requested()), 0),
        )
    runs = [read(p.label, p.seed, p.directory) for p in have]
    asked = runs[0].recipe.evaluation.resamples
    standing = baseline if any(p.label == baseline for p in have) else None
    content = build(runs, measured, baseline=standing, against=against, resamples=asked, environment=environment())
    page = write_leaderboard(content, folder, title=_title(content))
    lines = [*standings_table(content), f"finished in {duration(time.monotonic() - started)}"]
    if content["baseline"] != (baseline or planned[0].label):
        lines.append(f"{baseline or planned[0].label} has no result: held against {content['baseline']} instead")
    if against and not content["published"]:
        lines.append(f"no published table of {content['data']['source']} is known here")
    if left:
        lines.append(f"time is up: {plural(left, 'run')} to go; the same command goes on")
    values = {"leaderboard": page, "out": folder, "remaining": left, "failed": problems, "content": content}
    return Outcome(values, (*lines, f"open {page}"), _exit_code(planned, problems, costs, book))


def _problems(planned: Sequence[Planned], costs: dict[str, dict[str, Any]], book: Book) -> dict[str, str]:
    """Runs that gave no result, by name, with their line."""
    found = {}
    for one in planned:
        recorded = book.values.get(one.directory.root.name, {}).get("error")
        error = costs.get(one.setting, {}).get("error") or recorded
        if error and not finished(one):
            found[one.name] = str(error)
    return found


def _measure(
    planned: Sequence[Planned],
    have: Sequence[Planned],
    problems: dict[str, str],
    folder: Path,
    stop: StopRequests,
    threads: int | None,
) -> Measured:
    """Work and speed of each row, remembered by the hash of its bundle and the machine's processor."""
    from medloom.reporting.leaderboard import Measured
    from medloom.workflows.environment import environment

    machine = "{cpu}, {instructions}".format(**environment())
    book, log = Book(folder / "measured.json"), folder / "logs" / "measure.log"
    cost: dict[str, Any] = {}
    speed: dict[str, Any] = {}
    for one in have:
        document = _document(one)
        if one.label in speed or document is None or stop.requested():
            continue
        key = f"{document['hashes']['document']}/{threads or 'all'}/{machine}"
        if key not in book.values:
            counted = in_process(["count", json.dumps({"architectures": [document["architecture"]]})], log, stop)
            request = {"bundle": str(one.directory.bundle), "threads": threads}
            timed = in_process(["speed", json.dumps(request)], log, stop)
            if counted.error or timed.error:
                continue
            book.put(key, {"cost": json.loads(counted.output)[0], "speed": json.loads(timed.output)})
        cost[one.label], speed[one.label] = book.values[key]["cost"], book.values[key]["speed"]
    failed: dict[str, list[dict[str, Any]]] = {}
    waiting: dict[str, list[int]] = {}
    for one in planned:
        if one.name in problems:
            failed.setdefault(one.label, []).append({"seed": one.seed, "error": problems[one.name]})
        elif one not in have:
            waiting.setdefault(one.label, []).append(one.seed)
    return Measured(cost, speed, failed, waiting)


def _document(one: Planned) -> dict[str, Any] | None:
    try:
        found = json.loads((one.directory.bundle / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"architecture", "hashes"} <= found.keys() else None


def _title(content: dict[str, Any]) -> str:
    count = len(content["rows"])
    return f"{count} model{'' if count == 1 else 's'} on {content['data']['source']}"


def _exit_code(
    planned: Sequence[Planned], problems: Collection[str], costs: dict[str, dict[str, Any]], book: Book
) -> int:
    """With which the process of the first failure ended; 7 where it was ended from outside."""
    for one in planned:
        if one.name in problems:
            tried = costs.get(one.setting, {})
            code = int((tried if "error" in tried else book.values[one.directory.root.name]).get("exit", 1))
            return code if code > 0 else 7
    return 0
