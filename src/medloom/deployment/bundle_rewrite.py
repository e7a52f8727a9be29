"""A bundle written anew with other networks in it; everything that it says of classes, decision and input stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloom.deployment.bundle import load
from medloom.deployment.bundle_document import IR_FILES
from medloom.deployment.bundle_folder import Opened, plain, write_folder
from medloom.deployment.bundle_runtimes import card_with_runtimes, stated
from medloom.deployment.runtime_engines import installed


def rewrite(
    opened: Opened, directory: str | Path, *, files: Mapping[str, bytes | None], changes: Mapping[str, Any]
) -> Path:
    """Write the bundle ``opened`` into ``directory``, open it in every runtime as a user would, and put it in place.

    Args:
        files: new contents; None takes a file out.
        changes: of model.json.

    Raises:
        ModelError: what ``medloom.load`` would refuse. ResourceError: T404, T405; an older bundle is then untouched.
    """
    body = {key: value for key, value in opened.document.items() if key not in ("files", "hashes")}
    document = plain({**body, **changes})
    content = {name: data for name, data in {**opened.content, **files}.items() if data is not None}
    whole = {**document, "files": content}
    content["CARD.md"] = card_with_runtimes(content["CARD.md"].decode("utf-8"), whole).encode("utf-8")
    return write_folder(directory, document, content, load_in_each)


def load_in_each(path: Path) -> None:
    """Open a bundle once in every runtime that it has files for and that is installed here.

    Raises:
        ModelError: what ``medloom.load`` raises.
    """
    import json

    document = json.loads((path / "model.json").read_text(encoding="utf-8"))
    for name in stated(document):
        if installed(name):
            load(path, runtime=name)


def without_ir() -> dict[str, bytes | None]:
    """What takes an IR out of a bundle."""
    return dict.fromkeys(IR_FILES)
