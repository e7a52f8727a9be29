"""The command line: one verb per step, each a thin call of one workflow.

Heavy imports happen inside the verbs, so that ``medloom --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from medloom.cli_compare import compare
from medloom.cli_compress import advise, distill, prune, search
from medloom.cli_data import data_app
from medloom.cli_deploy import benchmark, export, quantize
from medloom.cli_explain import explain
from medloom.errors import DataError, MedloomError, UsageError, check_accept

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Hybrid CNN-Transformer models for medical images, from a folder of scans to one small bundle. "
    "Research software, not a medical device.",
)
app.add_typer(data_app, name="data")
app.command()(compare)
app.command()(explain)
app.command()(distill)
app.command()(prune)
app.command()(advise)
app.command()(search)
app.command()(export)
app.command()(quantize)
app.command()(benchmark)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress is silent.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. train.epochs=5.")]
Accept = Annotated[list[str] | None, typer.Option(metavar="CODE", help="Pass this gate; it stands in the report.")]
Out = Annotated[Path | None, typer.Option(help="Where to write.")]


def version_option(value: bool) -> None:
    if value:
        import importlib.metadata

        typer.echo(f"medloom {importlib.metadata.version('medloom')}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[bool, typer.Option("--version", callback=version_option, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the verb; ``main`` reads --debug itself."""


@app.command()
def demo(
    kind: Annotated[
        Literal["images", "volumes"], typer.Option(help="Radiographs with labels, or volumes with masks.")
    ] = "images",
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/demo or runs/demo-volumes.")] = None,
    as_json: Json = False,
) -> None:
    """Train on synthetic images or volumes: a report and a working bundle in minutes, with no data of yours."""
    from medloom.workflows.demo import demo as of_images
    from medloom.workflows.demo import demo_volumes as of_volumes

    run_demo = {"images": of_images, "volumes": of_volumes}[kind]
    _finish(run_demo(quiet=as_json) if out is None else run_demo(out, quiet=as_json), as_json)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Show one model's card.")] = None, as_json: Json = False
) -> None:
    """List the models with parameters and source, or show one card."""
    from medloom.workflows.catalogue import catalogue

    _finish(catalogue(name), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, what is missing, and which extra brings it."""
    from medloom.workflows.environment import doctor as examine

    _finish(examine(), as_json)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A .yaml from recipes/ or your own.")],
    data: Annotated[Path | None, typer.Option(help="Data; overrides the recipe's data.path.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME.")] = None,
    config: Set = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides train.seed; names the default run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    folds: Annotated[int | None, typer.Option(min=2, max=50, help="Cross-validate: one run per fold.")] = None,
    accept: Accept = None,
    as_json: Json = False,
) -> None:
    """Audit, train, test, report, and bundle."""
    from medloom.workflows.cross_validate import cross_validate
    from medloom.workflows.train import train as run_train

    asked: dict[str, Any] = {
        "data": data,
        "out": out,
        "overrides": config or (),
        "seed": seed,
        "resume": resume,
        "accept": accept or (),
        "quiet": as_json,
    }
    _finish(run_train(recipe, **asked) if folds is None else cross_validate(recipe, folds, **asked), as_json)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory or bundle.")],
    data: Annotated[Path, typer.Option(help="Another data set, e.g. of another hospital.")],
    name: Annotated[str | None, typer.Option(help="Name of this evaluation; default the data's name.")] = None,
    relabel: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="THEIRS=OURS", help="Rename a class; others are left out."),
    ] = None,
    config: Set = None,
    accept: Accept = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write; needed for a bare bundle. Default RUN/evaluations/NAME."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score an external data set with the threshold that validation chose."""
    from medloom.workflows.evaluate import evaluate as run_evaluate

    done = run_evaluate(
        run,
        data=data,
        name=name,
        relabel=relabel or (),
        overrides=config or (),
        accept=check_accept(accept or ()),
        out=out,
        quiet=as_json,
    )
    _finish(done, as_json)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle, or a run directory that holds one.")],
    paths: Annotated[list[Path], typer.Argument(help="Files and folders: images, or NIfTI and DICOM series.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: .csv or .json; default: print CSV. For masks: the folder of masks."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime, in each process.")] = None,
    runtime: Annotated[str | None, typer.Option(help="onnx or openvino; default, the fastest here.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Spread over so many processes.")] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Answer the I-th of N parts, as in an array job.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Make --out of all parts; none missing, none double.")] = False,
    as_json: Json = False,
) -> None:
    """Answer for images and volumes, with classes or masks, without torch. The same command goes on after a kill."""
    from medloom.workflows.predict import predict as run_predict

    divided: dict[str, Any] = {"shard": shard, "merge": merge, "processes": processes}
    done = run_predict(bundle, paths, out=out, threads=threads, runtime=runtime, **divided, quiet=as_json)
    if done.exit_code:
        first = next(p for p in done.values["predictions"] if p["error"])
        problem = f"{done.values['refused']} of {done.values['images']} images refused, the first: {first['problem']}"
        typer.echo(str(DataError(first["error"], first["id"], problem, "See the column 'error'")), err=True)
    _finish(done, as_json)


def _finish(result: Any, as_json: bool) -> None:
    """Every workflow returns an object with ``as_dict()``, ``text()`` and ``exit_code``."""
    text = json.dumps(result.as_dict(), ensure_ascii=False, allow_nan=False) if as_json else result.text()
    try:
        if text:
            typer.echo(text)
    except BrokenPipeError:
        _silence()  # the reader has seen enough, as head does
    except OSError as problem:
        _silence()
        from medloom.errors import ResourceError

        code = "T404" if problem.errno == errno.ENOSPC else "T405"
        said = problem.strerror or str(problem)
        raise ResourceError(code, "standard output", f"not written: {said}", "Send it elsewhere") from problem
    if result.exit_code:
        # Not typer.Exit: the 130 of a run that was stopped and saved is not that of an abort (main).
        sys.exit(result.exit_code)


def _silence() -> None:
    """Let what is still unwritten go, or the interpreter would complain of it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: every failure is one line and an exit code (docs/errors.md)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, as_json = "--debug" in arguments, "--json" in arguments
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    try:
        code = app(arguments, standalone_mode=False, prog_name="medloom")
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except MedloomError as problem:
        _fail(problem, debug, as_json)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("stopped by the keyboard", err=True)
        sys.exit(130)
    except ModuleNotFoundError as problem:
        _fail(_missing(problem), debug, as_json)
    except MemoryError:
        _fail(_memory(), debug, as_json)
    except Exception as problem:  # noqa: BLE001 - the last door: nothing leaves as a traceback
        # Of the parser's own errors only this method is public; where its classes live changes between versions.
        if explain := getattr(problem, "format_message", None):
            _fail(UsageError("U200", "command line", explain(), "See medloom --help"), debug, as_json)
        inner = MedloomError("X001", type(problem).__name__, str(problem) or "no message", "Run again with --debug")
        _fail(inner, debug, as_json)


def _missing(problem: ModuleNotFoundError) -> MedloomError:
    extras = {"pydicom": "dicom", "nibabel": "volumes", "openvino": "deploy", "optuna": "search", "cv2": "fast"}
    module = (problem.name or "").split(".")[0]
    extra = extras.get(module, "train")
    remedy = f"Install the extra: pip install 'medloom[{extra}]'"
    return UsageError("U210", "environment", f"this verb needs the package {module}, which is not installed", remedy)


def _memory() -> MedloomError:
    from medloom.errors import ResourceError

    return ResourceError("T407", "memory", "this machine's memory ran out", "Lower train.batch_size or preprocess.size")


def _fail(problem: MedloomError, debug: bool, as_json: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    if as_json:
        with contextlib.suppress(OSError):
            typer.echo(json.dumps(problem.as_dict(), ensure_ascii=False))
    typer.echo(str(problem), err=True)
    sys.exit(problem.exit_code)


if __name__ == "__main__":
    main()
