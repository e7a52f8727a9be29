"""What the processor can do, and how much memory this process has held, as the system tells it. No torch."""

from __future__ import annotations

import sys
from pathlib import Path

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Of x86 and of Arm. Without one of them a product in bfloat16 is emulated and takes many times as long."""


def cpu_flags() -> frozenset[str]:
    """Names of the processor's instruction sets; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16 itself."""
    return bool(BFLOAT16_FLAGS & cpu_flags())


def instructions() -> str:
    """The widest instruction sets that count for speed; processors of one name may differ in them."""
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX", "sve": "SVE"}
    found = [name for flag, name in known.items() if flag in cpu_flags()]
    return ", ".join(found[-2:]) or "not told"


def peak_memory() -> int:
    """Most memory that this process has held, in bytes; 0 where the system does not tell."""
    try:
        # Linux hands a child the other figure of its parent; this one begins with the program.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
