"""A whole bundle, a copy to spoil, and a way to make a spoilt one look right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import parts

from medloom.deployment.bundle import write_bundle
from medloom.deployment.bundle_document import complete, render


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; nobody writes to it."""
    return write_bundle(tmp_path_factory.mktemp("whole") / "bundle", **parts())


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


@pytest.fixture
def forge() -> Callable[..., None]:
    """Change a bundle and make all its hashes fit again, as an attacker or a careless script would."""

    def change(bundle: Path, files: dict[str, bytes] | None = None, **document: Any) -> None:
        for name, data in (files or {}).items():
            (bundle / name).write_bytes(data)
        old = json.loads((bundle / "model.json").read_text())
        body = {key: value for key, value in {**old, **document}.items() if key not in ("files", "hashes")}
        whole = complete(body, {name: (bundle / name).read_bytes() for name in old["files"]})
        (bundle / "model.json").write_text(render(whole))

    return change
