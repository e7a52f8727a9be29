"""The verbs ``distill``, ``prune``, ``advise`` and ``search`` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medloom.errors import check_accept

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress is silent.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. train.epochs=5.")]
Accept = Annotated[list[str] | None, typer.Option(metavar="CODE", help="Pass this gate; it stands in the report.")]
Data = Annotated[Path, typer.Option(help="The images that the model was trained on.")]


def distill(
    teacher: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="The teacher.")],
    student: Annotated[str, typer.Option(metavar="NAME_OR_RECIPE", help="E.g. resnet18, or a .yaml.")],
    data: Data,
    beside: Annotated[Path | None, typer.Option(help="A run of the same student without a teacher.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME.")] = None,
    config: Set = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides train.seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    accept: Accept = None,
    as_json: Json = False,
) -> None:
    """Train a small student by a teacher's answers, and say what it gained or lost."""
    from medloom.cli import _finish as finish
    from medloom.workflows.distill import distill as run_distill

    done = run_distill(
        teacher,
        student,
        data=data,
        beside=beside,
        out=out,
        overrides=config or (),
        seed=seed,
        resume=resume,
        accept=check_accept(accept or ()),
        quiet=as_json,
    )
    finish(done, as_json)


def prune(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run, or a bundle with --recipe.")],
    data: Data,
    ratio: Annotated[float | None, typer.Option(help="Share of all widths that goes.")] = None,
    target: Annotated[float, typer.Option(help="Or as much as this speed-up at batch 1 needs.")] = 1.8,
    steps: Annotated[int, typer.Option(min=1, help="Steps until that is expected.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Of learning from the unpruned model after each step.")] = 1,
    what: Annotated[str, typer.Option(help="Kinds of parts.")] = "channels,heads,units,blocks",
    recipe: Annotated[Path | None, typer.Option(help="What a bare bundle was trained by.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME-pruned.")] = None,
    config: Set = None,
    accept: Accept = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the inference that is timed.")] = None,
    as_json: Json = False,
) -> None:
    """Take out channels, heads, units and blocks; kept only where it is faster and as good."""
    from medloom.cli import _finish as finish
    from medloom.workflows.prune import prune as run_prune

    done = run_prune(
        source,
        data=data,
        ratio=ratio,
        target=target,
        steps=steps,
        epochs=epochs,
        what=[kind.strip() for kind in what.split(",")],
        recipe=recipe,
        out=out,
        overrides=config or (),
        accept=check_accept(accept or ()),
        threads=threads,
        quiet=as_json,
    )
    finish(done, as_json)


def advise(
    task: Annotated[str | None, typer.Option(help="classification or segmentation; found from --data.")] = None,
    volume: Annotated[bool, typer.Option("--volume", help="The images have three axes.")] = False,
    data: Annotated[Path | None, typer.Option(help="Images to train on; they are listed, not read.")] = None,
    cores: Annotated[int | None, typer.Option(help="Threads to measure with; default this machine's cores.")] = None,
    memory: Annotated[float | None, typer.Option(metavar="GB", help="Of what answers; default this machine's.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Of its GPU, 0 for none; default what torch finds here.")
    ] = None,
    latency: Annotated[float, typer.Option(metavar="MS", help="What one image may take; not for masks.")] = 50.0,
    labels: Annotated[int | None, typer.Option(help="Labelled images; found from --data.")] = None,
    size: Annotated[int, typer.Option(metavar="PX", help="Pixels per side of the input; not for masks.")] = 224,
    measure: Annotated[bool, typer.Option("--measure", help="Time the candidates on this machine first.")] = False,
    cache: Annotated[Path, typer.Option(help="Where measured figures are kept.")] = Path("runs/advise_figures.json"),
    as_json: Json = False,
) -> None:
    """Propose system, size and compression for this place, with the branch that was taken and its figures."""
    from medloom.cli import _finish as finish
    from medloom.workflows.advise import advise_here

    done = advise_here(
        task=task,
        volume=volume,
        data=data,
        cores=cores,
        memory=memory,
        gpu_memory=gpu_memory,
        latency=latency,
        labels=labels,
        size=size,
        measure=measure,
        cache=cache,
        quiet=as_json,
    )
    finish(done, as_json)


def search(
    recipe: Annotated[Path, typer.Argument(help="A recipe of hatr or token_pruned: the protocol of every trial.")],
    data: Data,
    budget: Annotated[float, typer.Option(metavar="MS", help="What one image may take, network alone.")],
    trials: Annotated[int, typer.Option(min=1, help="In all, with those of earlier sessions.")] = 20,
    minutes: Annotated[float | None, typer.Option(help="Begin no trial after so many.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default runs/NAME-search. The same command goes on.")
    ] = None,
    config: Set = None,
    accept: Accept = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the inference that is timed.")] = None,
    as_json: Json = False,
) -> None:
    """Search trunk, scales, refinement, depth, width and tokens kept under a latency budget, on validation alone."""
    from medloom.cli import _finish as finish
    from medloom.workflows.search import search as run_search

    done = run_search(
        recipe,
        data=data,
        budget=budget,
        trials=trials,
        minutes=minutes,
        out=out,
        overrides=config or (),
        accept=check_accept(accept or ()),
        threads=threads,
        quiet=as_json,
    )
    finish(done, as_json)
