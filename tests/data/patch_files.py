"""Small files as PatchCamelyon has them, and the refusal to read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from source_files import opened

from medloom.errors import MedloomError

STEM = "camelyonpatch_level_2_split"


def write(root: Path, split: str = "train", n: int = 6, *, size: int = 24, slides: bool = True, **arrays: Any) -> Path:
    """One split as the published set has it; ``x`` and ``y`` replace the arrays, None leaves the file out."""
    rng = np.random.default_rng(len(split))
    made = {"x": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)}
    made["y"] = (np.arange(n) % 2).astype(np.uint8).reshape(n, 1, 1, 1)
    for key, value in {**made, **arrays}.items():
        if value is not None:
            with h5py.File(root / f"{STEM}_{split}_{key}.h5", "w") as file:
                file.create_dataset(key, data=value)
    if slides:
        lines = [",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"]
        lines += [f"{k},{100 * k},7,{bool(k % 2)},{bool(k % 2)},camelyon16_{split}_{k // 2:03d}" for k in range(n)]
        (root / f"{STEM}_{split}_meta.csv").write_text("\n".join(lines) + "\n")
    return root


def refused(path: Path, **config: Any) -> MedloomError:
    with pytest.raises(MedloomError) as caught:
        opened(path, **config)
    assert "\n" not in str(caught.value)
    return caught.value
