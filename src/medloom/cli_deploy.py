"""The verbs ``export``, ``quantize`` and ``benchmark`` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress is silent.")]
Accept = Annotated[list[str] | None, typer.Option(metavar="CODE", help="Pass this gate; it stands in the report.")]


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="Run directory or bundle.")],
    openvino: Annotated[bool, typer.Option(help="Write an OpenVINO IR beside ONNX.")] = True,
    data: Annotated[
        Path | None, typer.Option(help="Images to prove a bare bundle on, or where a run's images lie now.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Bundle to write; default, in its place.")] = None,
    accept: Accept = None,
    as_json: Json = False,
) -> None:
    """Write the networks of a bundle anew, each proved on validation images in a clean process."""
    from medloom.cli import _finish as finish
    from medloom.workflows.export import export as run_export

    finish(run_export(source, openvino=openvino, data=data, out=out, accept=accept or (), quiet=as_json), as_json)
