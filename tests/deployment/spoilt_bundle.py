"""Edit a bundle with or without its hashes, and the refusal to load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medloom.deployment.bundle import load
from medloom.errors import ModelError

Forge = Callable[..., None]


def refused(path: Path, code: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.code == code, str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return caught.value


def document(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "model.json").read_text())


def edit(bundle: Path, **changes: Any) -> None:
    (bundle / "model.json").write_text(json.dumps({**document(bundle), **changes}, indent=2, ensure_ascii=False) + "\n")


def refused_swap(bundle: Path, forge: Forge, section: str, swap: dict[str, Any]) -> None:
    """C507 for other values in a section: by the hashes, and where those were forged by the golden answers."""
    changed = {section: {**document(bundle)[section], **swap}}
    edit(bundle, **changed)
    refused(bundle, "C507")
    forge(bundle, **changed)
    assert "golden" in str(refused(bundle, "C507"))
