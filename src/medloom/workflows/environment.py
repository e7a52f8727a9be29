"""The machine and its packages: recorded with every run, and shown by ``medloom doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from medloom.machine import has_bfloat16, instructions
from medloom.workflows.outcome import Outcome

_EXTRAS = {
    "train": ("torch", "timm", "kornia", "matplotlib", "jinja2", "onnx", "onnxscript", "psutil"),
    "fast": ("cv2",),
    "volumes": ("monai", "nibabel"),
    "dicom": ("pydicom", "highdicom"),
    "deploy": ("openvino", "nncf", "torch_pruning"),
    "serve": ("fastapi", "uvicorn"),
    "search": ("optuna",),
    "slides": ("tifffile", "openslide"),
    "track": ("tensorboard",),
}
_RECORDED = ("numpy", "scipy", "scikit-learn", "Pillow", "onnxruntime", "torch", "timm", "opencv-python-headless")


def environment() -> dict[str, Any]:
    """Machine, versions and threads, without host name, user or paths."""
    import medloom

    found: dict[str, Any] = {
        "medloom": medloom.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_gib(),
        "packages": {name: v for name in _RECORDED if (v := _version(name))},
    }
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["threads"] = torch.get_num_threads()
        found["accelerator"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return found


def doctor() -> Outcome:
    """Examine the machine; exit 0 also when extras are missing, for a bundle needs none of them."""
    missing = {extra: [m for m in modules if importlib.util.find_spec(m) is None] for extra, modules in _EXTRAS.items()}
    advice = []
    if not missing["train"]:
        import torch  # noqa: F401 - so that threads and accelerator are told
    found = environment()
    lines = [
        f"medloom {found['medloom']}, Python {found['python']}, {found['system']}",
        f"{found['cpu']} ({found['instructions']}), {found['cores']} cores, {found['memory_gib']} GiB memory",
        "packages: " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()),
    ]
    if "threads" in found:
        bf16 = has_bfloat16()
        lines.append(
            f"torch: {found['threads']} threads, accelerator: {found['accelerator'] or 'none'}, "
            f"bf16 in the CPU: {'yes' if bf16 else 'no'}"
        )
        if not bf16 and not found["accelerator"]:
            advice.append("this CPU has no bf16 instructions: training takes float32, at about half the speed")
    for extra, modules in missing.items():
        state = "ready" if not modules else f"missing {', '.join(modules)}: pip install 'medloom[{extra}]'"
        lines.append(f"  {extra:8} {state}")
    values = {**found, "missing": {k: v for k, v in missing.items() if v}, "advice": advice}
    return Outcome(values, tuple(lines + [f"advice: {a}" for a in advice]))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Name of the processor, where the system tells it."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown CPU"


def memory_gib() -> float:
    """Memory of the machine, 0 where the system does not tell."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal"):
            return round(int(line.split()[1]) / 2**20, 1)
    return 0.0


def gpu_memory_gib() -> float | None:
    """Memory of the first GPU, 0 without one; None where torch is not installed, which would tell."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
