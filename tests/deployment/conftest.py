"""Whole bundles, a copy to spoil, a way to make a spoilt one look right, and images to give them."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ask_bundle import ask
from PIL import Image as PIL
from tiny_bundle import parts
from tiny_segmenter import KINDS, segmenter_parts

from medloom.data.phantom import golden_images
from medloom.deployment.bundle import write_bundle
from medloom.deployment.bundle_document import complete, render
from medloom.deployment.bundle_segmenter import write_segmenter


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


@pytest.fixture(scope="session")
def segmenters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole bundle of images and one of volumes; nobody writes to them."""
    root = tmp_path_factory.mktemp("segmenters")
    return {kind: write_segmenter(root / kind, **segmenter_parts(axes)) for kind, axes in zip(KINDS, (2, 3))}


@pytest.fixture(scope="session")
def flat(segmenters: dict[str, Path]) -> Path:
    return segmenters["flat"]


@pytest.fixture(scope="session")
def deep(segmenters: dict[str, Path]) -> Path:
    return segmenters["deep"]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Five images under names that need care, and one file that is none."""
    root = tmp_path / "scans"
    (root / "b" / "deeper").mkdir(parents=True)
    pixels = golden_images(5, 60, 3)
    for name, picture in zip(("знімок.png", "one two.jpg", "b/a.tif", "b/deeper/a.tif", "b/a.png"), pixels):
        PIL.fromarray(picture[:, :44]).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Ten images, one of them broken, and a ZIP of two."""
    root = tmp_path / "many"
    root.mkdir()
    for number, pixels in enumerate(golden_images(9, 40, 5)):
        PIL.fromarray(pixels).save(root / f"{number}.png")
    (root / "9.png").write_bytes(b"")
    with zipfile.ZipFile(root / "study.zip", "w") as out:
        for number in (0, 1):
            out.write(root / f"{number}.png", f"{number}.png")
    return root


@pytest.fixture
def whole(original: Path, many: Path, tmp_path: Path) -> bytes:
    """The table of one process that was never disturbed."""
    ask(original, many, tmp_path / "whole.csv", batch_size=3)
    return (tmp_path / "whole.csv").read_bytes()
