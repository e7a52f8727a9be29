"""One complete run directory, made once; tests that damage it work on a copy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from markupsafe import Markup

from medloom.files import RunDirectory

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Do not change it."""
    from run_fixture import make_run

    return make_run(tmp_path_factory.mktemp("runs") / "pneumonia", accept=("D119",))


@pytest.fixture
def run(whole_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the run that a test may change."""
    return RunDirectory(shutil.copytree(whole_run.root, tmp_path / "pneumonia"))


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a page's second; tests that do not look at them leave them out."""
    monkeypatch.setattr("medloom.reporting.plots.inline_svg", lambda *args, **kwargs: Markup("<svg></svg>"))
