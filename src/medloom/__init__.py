"""MedLoom: hybrid CNN-Transformer models for medical images, from a folder of scans to one small bundle.

Names are imported on first use, so that ``import medloom`` stays instant and a bundle needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "create_model": "medloom.models.registry",
    "list_models": "medloom.models.registry",
    "load_recipe": "medloom.config",
    "Recipe": "medloom.config",
    "train": "medloom.workflows.train",
    "evaluate": "medloom.workflows.evaluate",
    "audit": "medloom.workflows.audit",
    "compare": "medloom.workflows.compare",
    "explain": "medloom.workflows.explain",
    "load": "medloom.deployment.bundle",
    "MedloomError": "medloom.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from medloom.config import Recipe as Recipe
    from medloom.config import load_recipe as load_recipe
    from medloom.deployment.bundle import load as load
    from medloom.errors import MedloomError as MedloomError
    from medloom.models.registry import create_model as create_model
    from medloom.models.registry import list_models as list_models
    from medloom.workflows.audit import audit as audit
    from medloom.workflows.compare import compare as compare
    from medloom.workflows.evaluate import evaluate as evaluate
    from medloom.workflows.explain import explain as explain
    from medloom.workflows.train import train as train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medloom' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
