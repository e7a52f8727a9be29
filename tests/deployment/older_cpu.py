"""Ask a bundle in a process in which oneDNN, which does OpenVINO's work on x86, keeps to older instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medloom.machine import cpu_flags

# Of each: the processor's flag for it, the flag of the next, and how kernels of the next are called.
KNOWN = {"AVX2": ("avx2", "avx512f", "avx512"), "SSE41": ("sse4_1", "avx2", "avx")}

_ANSWERS = """
import json, sys, medloom
from medloom.data.phantom import golden_images
model = medloom.load(sys.argv[1], runtime="openvino", threads=1)
answers = model.predict(golden_images(3, int(sys.argv[2]), 1))
kernels = []
for compiled in model.pipeline.runtime._engine._compiled.values():
    for op in compiled.get_runtime_model().get_ordered_ops():
        said = op.get_rt_info()
        if said["layerType"].astype(str) in ("Convolution", "FullyConnected"):
            kernels.append(said["primitiveType"].astype(str))
print(json.dumps([[a.probabilities["PNEUMONIA"] for a in answers], kernels]))
"""


def answers_of_an_older_cpu(bundle: Path, instructions: str, size: int) -> list[float]:
    """Probabilities of three golden images; skips where this processor is itself no newer, or of another kind."""
    flag, newer, name = KNOWN[instructions]
    if not {flag, newer} <= cpu_flags():
        pytest.skip(f"this CPU has no instructions newer than {instructions} to do without")
    command = [sys.executable, "-c", _ANSWERS, str(bundle), str(size)]

    def ask(**environment: str) -> tuple[list[float], list[str]]:
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers, kernels = json.loads(done.stdout)
        return answers, kernels

    answers, kernels = ask(ONEDNN_MAX_CPU_ISA=instructions)
    assert any(name in kernel for kernel in ask()[1]), "this CPU does not use the newer instructions by itself"
    assert kernels
    assert not [kernel for kernel in kernels if name in kernel], "the older instructions were not in effect"
    return answers
