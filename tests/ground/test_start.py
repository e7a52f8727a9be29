"""The front door: quick to open, and what it says when a part of the house is not installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def _seconds(*command: str) -> float:
    """Least of five: what the command needs, not what a busy machine adds."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_import_is_quick() -> None:
    bare = _seconds("-c", "pass")
    assert _seconds("-c", "import medloom") - bare < 0.2


def test_help_is_quick() -> None:
    bare = _seconds("-c", "pass")
    assert _seconds("-m", "medloom.cli", "--help") - bare < 0.5


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, medloom.cli; print([m for m in ('torch', 'numpy', 'matplotlib', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_verb_has_help(medloom: Run) -> None:
    verbs = re.findall(r"^  (\w[\w-]*)  ", medloom("--help").stdout, re.MULTILINE)
    assert {"demo", "models", "doctor", "train", "evaluate", "predict", "data"} <= set(verbs)
    for verb in verbs:
        assert medloom(verb, "--help").returncode == 0


def test_without_torch_train_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from medloom.cli import main; main(['train', sys.argv[1], '--data', '.'])"
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\n")
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error[U210]")
    assert "medloom[train]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], "U200"),
        (["train"], "U200"),
        (["train", "absent.yaml", "--data", "x"], "U201"),
        (["models", "hatr_resnt50"], "U206"),
    ],
)
def test_wrong_commands_are_one_line_and_exit_2(medloom: Run, arguments: list[str], code: str) -> None:
    done = medloom(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error[{code}]")
    assert len(done.stderr.strip().splitlines()) == 1


def test_X001_the_unforeseen_is_still_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from medloom import cli
    from medloom.workflows import environment

    def broken() -> None:
        raise RuntimeError("of a kind\nnobody thought of")

    monkeypatch.setattr(environment, "doctor", broken)
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor"])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error[X001] RuntimeError: of a kind\\nnobody thought of")
    assert len(said.splitlines()) == 1


def test_debug_shows_the_traceback(medloom: Run) -> None:
    assert "Traceback" in medloom("train", "absent.yaml", "--data", "x", "--debug").stderr


def test_json_errors_have_the_same_content(medloom: Run) -> None:
    import json

    done = medloom("models", "hatr_resnt50", "--json")
    problem = json.loads(done.stdout)
    assert problem["error"] == "U206"
    assert problem["problem"] in done.stderr


def test_the_readme_example_runs(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if line.strip()]
    assert len(lines) <= 10
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", block[1]], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "AUC" in done.stdout


def test_the_shipped_text_speaks_of_the_project_alone() -> None:
    """No host of a registry, no path of a machine, no heavy words of marketing in what a newcomer reads."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=PROJECT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    offences = []
    for name in listed.stdout.splitlines():
        path = PROJECT / name
        if path.suffix in {".md", ".py", ".yaml", ".toml", ".txt", ".html", ".json"} and path != Path(__file__):
            text = path.read_text(encoding="utf-8", errors="replace")
            offences += [f"{name}: {m}" for m in re.findall(r"/(?:work|root|home)/[a-z]\S*", text)]
    assert not offences


def test_every_error_code_is_documented_and_tested() -> None:
    used: set[str] = set()
    for path in (PROJECT / "src").rglob("*.py"):
        used |= set(re.findall(r'"([DMNUTCX]\d{3})"', path.read_text(encoding="utf-8")))
    text = (PROJECT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert sorted(used - set(re.findall(r"\b[DMNUTCX]\d{3}\b", text))) == []
    tests = "".join(p.read_text(encoding="utf-8") for p in (PROJECT / "tests").rglob("*.py"))
    assert sorted(code for code in used if code not in tests) == []
