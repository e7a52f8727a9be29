"""The verb ``explain`` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medloom.errors import DataError


def explain(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_OR_RUN", help="Bundle, or a run that holds one.")],
    paths: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Image files and folders.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not be there yet.")] = Path("tokens"),
    keep: Annotated[
        float | None, typer.Option(metavar="RATE", help="Another keep rate for the maps, above 0, at most 1.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many images.")] = 50,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress is silent.")] = False,
) -> None:
    """Draw the tokens that a model kept and weighed over each image; no tested explanation."""
    from medloom.cli import _finish as finish
    from medloom.workflows.explain import explain as run_explain

    done = run_explain(bundle, paths, out=out, keep=keep, limit=limit, threads=threads, quiet=as_json)
    if done.exit_code:
        first = next(row for row in done.values["images"] if row["error"])
        problem = f"{done.values['refused']} of {len(done.values['images'])} images refused, the first: "
        remedy = "See the end of tokens.html"
        typer.echo(str(DataError(first["error"], first["id"], problem + first["problem"], remedy)), err=True)
    finish(done, as_json)
