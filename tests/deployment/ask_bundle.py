"""Ask a bundle about a folder of images and the ZIP in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medloom.workflows.predict import predict


def ask(bundle: Path, many: Path, out: Path, **how: Any) -> Any:
    return predict(bundle, [many, many / "study.zip"], out=out, exclude_limit=1.0, **how)
