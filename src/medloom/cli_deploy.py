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
    keep: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="At another keep rate of its tokens, if the answers hold; bundle-keepRATE."),
    ] = None,
    accept: Accept = None,
    as_json: Json = False,
) -> None:
    """Write the networks of a bundle anew, each proved on validation images in a clean process."""
    from medloom.cli import _finish as finish
    from medloom.workflows.export import export as run_export

    done = run_export(source, openvino=openvino, data=data, out=out, keep=keep, accept=accept or (), quiet=as_json)
    finish(done, as_json)


def quantize(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="Run directory or bundle.")],
    data: Annotated[
        Path | None, typer.Option(help="Labelled images of a bare bundle, or where a run's images lie now.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Bundle to write; default, bundle-int8 beside it.")] = None,
    precision: Annotated[str, typer.Option(help="int8, or bf16 where the CPU has it.")] = "int8",
    runtimes: Annotated[str, typer.Option(metavar="NAME,...", help="Which networks to quantise.")] = "openvino,onnx",
    external: Annotated[Path | None, typer.Option(help="Labelled images of another place, to report on too.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Training images to calibrate on.")] = 128,
    accept: Accept = None,
    as_json: Json = False,
) -> None:
    """Write a bundle in eight bits, if its answers hold on validation images."""
    from medloom.cli import _finish as finish
    from medloom.workflows.quantize import quantize as run_quantize

    done = run_quantize(
        source,
        data=data,
        out=out,
        precision=precision,  # type: ignore[arg-type]
        runtimes=[name.strip() for name in runtimes.split(",") if name.strip()],
        external=external,
        images=images,
        accept=accept or (),
        quiet=as_json,
    )
    finish(done, as_json)


def benchmark(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles, or runs that hold one.")],
    images: Annotated[Path | None, typer.Option(help="Files to answer; default, synthetic ones.")] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write (.html); the numbers go beside it.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each runtime; default, all cores.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long each time is taken.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Measure what an answer costs here, in every runtime, each in a process of its own."""
    from medloom.cli import _finish as finish
    from medloom.workflows.benchmark import benchmark as run_benchmark

    finish(run_benchmark(bundles, images=images, out=out, threads=threads, seconds=seconds, quiet=as_json), as_json)
