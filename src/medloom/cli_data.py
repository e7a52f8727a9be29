"""The verbs ``data audit``, ``plan``, ``phantom`` and ``fetch`` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

data_app = typer.Typer(rich_markup_mode=None, help="Look at data before anything learns from it.")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress is silent.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. train.epochs=5.")]
Data = Annotated[Path, typer.Argument(help="Folder of classes or of images and masks, table, or MedMNIST npz.")]


@data_app.command("audit")
def data_audit(
    path: Data,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.html.")] = None,
    config: Set = None,
    recipe: Annotated[Path | None, typer.Option(help="Take the data section of this recipe.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when the audit refuses anything.")] = False,
    as_json: Json = False,
) -> None:
    """Count, and look for leakage, duplicates, broken files and shortcuts."""
    from medloom.cli import _finish as finish
    from medloom.workflows.audit import audit

    finish(audit(path, recipe=recipe, overrides=config or (), out=out, strict=strict, quiet=as_json), as_json)


@data_app.command("plan")
def data_plan(
    path: Annotated[Path, typer.Argument(help="Images or volumes with their masks: folder or table.")],
    out: Annotated[Path | None, typer.Option(help="Recipe to write; without it, it is printed.")] = None,
    model: Annotated[str | None, typer.Option(help="Segmenter to plan for; medloom models lists them.")] = None,
    memory: Annotated[float, typer.Option(min=0.5, help="GB that a training step may take.")] = 4.0,
    config: Set = None,
    as_json: Json = False,
) -> None:
    """Read sizes, spacing, values and structures, and write a recipe whose every choice says why."""
    from medloom.cli import _finish as finish
    from medloom.workflows.plan import plan

    done = plan(path, out=out, model=model, memory=memory, overrides=config or (), quiet=as_json)
    finish(done, as_json)


@data_app.command("phantom")
def data_phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    kind: Annotated[
        Literal["images", "masks", "volumes"],
        typer.Option(help="Radiographs with labels, the same with masks, or volumes with masks."),
    ] = "images",
    patients: Annotated[
        int | None, typer.Option(min=10, help="Number of synthetic patients; default 400, of masks and volumes 60.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Pixels per side; default 128, of volumes 48 of 2 mm.")
    ] = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Write synthetic images of several sites, with lesions whose place is known."""
    from medloom.cli import _finish as finish
    from medloom.workflows.demo import write_phantom_folder

    finish(write_phantom_folder(out, kind=kind, patients=patients, size=size, seed=seed), as_json)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str | None, typer.Argument(help="Data set, e.g. chestmnist; without it, list them.")] = None,
    size: Annotated[int, typer.Option(help="Pixels per side: 28, 64, 128 or 224.")] = 28,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path(),
    url: Annotated[str | None, typer.Option(help="Folder of a mirror; also MEDLOOM_MEDMNIST_URL.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a MedMNIST set: resumable, checked against its published sum. This verb uses the network."""
    from medloom.cli import _finish as finish
    from medloom.workflows.fetch import fetch

    finish(fetch(name, size=size, out=out, url=url, quiet=as_json), as_json)
