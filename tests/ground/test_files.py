"""Atomic writes, locks and error texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medloom import files
from medloom.errors import DataError, ResourceError, UsageError
from medloom.workflows.run_lock import exclusive


def test_a_failed_write_leaves_the_old_file_and_no_orphan(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "old")

    def write_half() -> None:
        with files.atomic_path(target) as temp:
            temp.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_T404_a_full_disk_is_reported_and_the_old_file_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"old")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from medloom import files; from medloom.errors import ResourceError\n"
        "try: files.write_bytes(sys.argv[1], b'x' * 5000)\n"
        "except ResourceError as e: print(e.code, e.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
    assert done.stdout.split() == ["T404", "7"], done.stderr
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_T405_a_directory_that_is_gone_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        files.write_text(tmp_path / "gone" / "a.txt", "x")
    assert caught.value.code == "T405"


def test_T402_orphans_of_dead_processes_are_swept(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    orphan = tmp_path / f".medloom-tmp-{int(child.stdout)}-x"
    living = tmp_path / f".medloom-tmp-{os.getppid()}-x"
    orphan.touch()
    living.touch()
    assert files.sweep_orphans(tmp_path) == [orphan]
    assert living.exists()


def test_T412_a_second_process_is_refused_and_a_dead_one_blocks_nobody(tmp_path: Path) -> None:
    run = files.RunDirectory(tmp_path / "run")
    code = (
        "import sys; from medloom.files import *; from medloom.workflows.run_lock import exclusive\n"
        "with exclusive(RunDirectory(Path(sys.argv[1]))): print('held')"
    )
    command = [sys.executable, "-c", code, str(run.root)]
    with exclusive(run):
        done = subprocess.run(command, capture_output=True, text=True)
        assert "T412" in done.stderr
        assert str(os.getpid()) in done.stderr
    holder = subprocess.Popen(
        [sys.executable, "-c", code.replace("print('held')", "print('held', flush=True); input()"), str(run.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline()
    with pytest.raises(UsageError), exclusive(run):
        pass
    holder.kill()
    holder.communicate()
    with exclusive(run):
        pass


def test_D126_control_characters_in_names_cannot_break_the_line() -> None:
    error = DataError("D103", "a\nerror[X] b\x1b[2K.png", "cut", "Copy it again")
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"auc": float("nan")})
    assert not list(tmp_path.iterdir())
