"""The verb ``compare`` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medloom.errors import check_accept

_SEEDS = "Seeds of every model, as in 0,1,2; NAME@0+1 in --models gives one model its own."


def compare(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="RECIPE_OR_RUN", help="Recipes to run, finished run directories.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="The one protocol that --models are laid over.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="E.g. resnet18,vit_tiny(patch_size=8)@0; with --recipe."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data; overrides data.path of every recipe.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help=_SEEDS)] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Row to compare with; default the first.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("runs/compare"),
    against: Annotated[str | None, typer.Option(help="'published': published tables of the same data beside.")] = None,
    config: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. train.max_steps=500.")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Pass this gate; it stands in the report.")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Start no run after so many minutes.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the inference that is timed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and memory, run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress is silent.")] = False,
) -> None:
    """Run models under one protocol, resumable, and write one leaderboard with intervals and cost."""
    from medloom.cli import _finish as finish
    from medloom.workflows.compare import compare as run_compare

    done = run_compare(
        sources or (),
        recipe=recipe,
        models=models or (),
        data=data,
        seeds=seeds,
        baseline=baseline,
        out=out,
        against=against,
        overrides=config or (),
        accept=check_accept(accept or ()),
        max_minutes=max_minutes,
        threads=threads,
        dry_run=dry_run,
        quiet=as_json,
    )
    finish(done, as_json)
