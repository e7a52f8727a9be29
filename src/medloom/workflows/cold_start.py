"""What the command ``medloom predict`` takes for one image: from before its process starts until it has ended."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from medloom.errors import UsageError

STARTS = 3

_COMMAND = """
import sys
from medloom.cli import main
told = sys.argv.pop(1)
try:
    main()
finally:
    with open(told, "w") as file:
        file.write(str("torch" in sys.modules))
"""
"""What the installed command does, and then a word about what it imported."""


def cold_start(bundle: str | Path, runtime: str, threads: int, image: str, *, masks: bool) -> dict[str, Any]:
    """Median seconds (``median_s``) and processor seconds (``cpu_s``) of the whole command, and whether it took torch.

    Each start answers into a new folder. The system may hold the files of bundle and packages in memory from the start
    before. Where the system does not count its children's time (Windows) ``cpu_s`` is 0.

    Args:
        masks: whether the bundle draws masks, and so writes a folder.

    Raises:
        UsageError: U247 the command failed.
    """
    walls, spent, torch = [], [], False
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            told, out = Path(folder) / "told", Path(folder) / ("masks" if masks else "answers.csv")
            command = [sys.executable, "-c", _COMMAND, str(told), "predict", str(bundle), image, "--out", str(out)]
            command += ["--runtime", runtime, "--threads", str(threads)]
            before, started = os.times(), time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            walls.append(time.perf_counter() - started)
            after = os.times()
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                raise UsageError("U247", bundle, f"predict failed in {runtime}: {last[:200]}", "See above")
            spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
            torch |= told.read_text() == "True"
    return {
        "median_s": round(statistics.median(walls), 4),
        "cpu_s": round(statistics.median(spent), 4),
        "torch": torch,
    }
