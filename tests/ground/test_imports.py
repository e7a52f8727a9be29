"""The import direction of docs/architecture.md, read from the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "medloom"
EVERYWHERE = {"errors", "files", "machine", "config", "config_parts", "config_segmentation"}
ALLOWED: dict[str, set[str]] = {
    "blocks": set(),
    "models": {"blocks"},
    "data": set(),
    "evaluation": set(),
    "training": {"models", "data", "evaluation"},
    "pretraining": {"training", "models", "blocks", "data", "evaluation"},
    "explanation": {"models", "data", "evaluation"},
    "reporting": {"data", "evaluation"},
    "deployment": {"models", "data", "evaluation", "training"},
    "serving": {"deployment", "data", "evaluation"},
    "workflows": {
        "blocks",
        "models",
        "data",
        "evaluation",
        "training",
        "pretraining",
        "explanation",
        "reporting",
        "deployment",
        "serving",
    },
}
TORCH_FREE = (
    *("evaluation", "reporting", "serving"),
    *("deployment/bundle", "deployment/runtime", "deployment/segmenter", "deployment/card"),
)
TORCH_IN_DATA = {"cache", "augment", "augment_volumes"}
TORCH = {"torch", "timm", "torchvision", "kornia"}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def _rooms() -> list[str]:
    return sorted(p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists())


def test_every_room_has_a_row_in_the_table() -> None:
    assert set(_rooms()) <= set(ALLOWED)


@pytest.mark.parametrize("room", _rooms())
def test_a_room_imports_only_what_the_plan_allows(room: str) -> None:
    offences = []
    for path in sorted((SOURCE / room).rglob("*.py")):
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] != "medloom" or len(parts) < 2 or parts[1] in EVERYWHERE | {room}:
                continue
            if parts[1] not in ALLOWED[room]:
                offences.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not offences


def test_package_files_of_rooms_are_empty() -> None:
    assert [str(p) for p in SOURCE.glob("*/**/__init__.py") if p.read_text().strip()] == []


def test_the_command_line_imports_workflows_alone() -> None:
    files = sorted(SOURCE.glob("cli*.py"))
    ours = {n.split(".")[1] for path in files for n in _imports(path) if n.startswith("medloom.")}
    assert ours <= {"workflows", *(path.stem for path in files)} | EVERYWHERE


def test_torch_stays_out_of_the_rooms_that_a_hospital_runs() -> None:
    offences = []
    for path in sorted(SOURCE.rglob("*.py")):
        where = path.relative_to(SOURCE).with_suffix("").as_posix()
        free = where.startswith(TORCH_FREE) or (where.startswith("data/") and where.split("/")[1] not in TORCH_IN_DATA)
        if free and {n.split(".")[0] for n in _imports(path)} & TORCH:
            offences.append(where)
    assert not offences


def test_torch_free_rooms_import_with_torch_blocked() -> None:
    modules = [
        "medloom." + p.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")
        for p in sorted(SOURCE.rglob("*.py"))
        if p.name != "__init__.py"
        and (
            p.relative_to(SOURCE).as_posix().startswith(TORCH_FREE)
            or (p.parent.name == "data" and p.stem not in TORCH_IN_DATA)
        )
    ]
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in sorted(TORCH))
    code = f"import sys, importlib; {blocked}[importlib.import_module(m) for m in {modules!r}]"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_files_stay_under_three_hundred_lines() -> None:
    long = {str(p.relative_to(SOURCE)): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 300}
    assert not long
