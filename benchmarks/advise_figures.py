"""Latency of the classifiers that ``medloom advise`` proposes, for machines on which nothing was measured.

    python benchmarks/advise_figures.py

Each is built untrained, exported, and timed alone through ONNX Runtime, in a process of its own, at 224 pixels and one
channel, on one thread, by the time that the processor spent: on a machine that others use too that is the latency which
an idle one would show. The result goes to ``benchmarks/results/advise_figures.json`` and, as package data, to
``src/medloom/deployment/figures.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from medloom.deployment.advise import CANDIDATES
from medloom.files import write_json
from medloom.workflows.environment import cpu_name

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "src" / "medloom" / "deployment" / "figures.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CANDIDATES))
    arguments = parser.parse_args()
    out = HERE / "results" / "advise_figures.json"
    before = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    rows: dict[str, Any] = before["rows"]
    for name in arguments.models:
        architecture = {"name": name, "num_classes": 2, "in_chans": 1, "image_size": 224}
        request = json.dumps({"architecture": architecture, "threads": 1, "clock": "cpu"})
        command = [sys.executable, "-m", "medloom.workflows.child", "bare_speed", request]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(name, done.stderr.strip()[-300:], flush=True)
            continue
        rows[name] = json.loads(done.stdout)
        print(name, rows[name], flush=True)
        found = {
            "machine": f"{cpu_name()}, 1 thread, time of the processor",
            "runtime": "ONNX Runtime, CPU, float32",
            "threads": 1,
            "size": 224,
            "rows": rows,
        }
        write_json(out, found)
        write_json(PACKAGE, found)


if __name__ == "__main__":
    main()
