"""``medloom demo``: the whole way on synthetic data, so that a newcomer sees every part work on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from medloom.errors import UsageError
from medloom.files import make_folder, write_text
from medloom.workflows.outcome import Outcome
from medloom.workflows.train import TrainedRun, train

# Small enough for two CPU cores in two to four minutes, large enough that the token weights mean something.
DEMO_RECIPE = {
    "name": "demo",
    "notes": "Synthetic radiographs: these numbers say that the software works, nothing about patients.",
    "data": {"patient": "column:patient", "site": "column:site"},
    "preprocess": {"size": 96, "channels": "grey", "statistics": "half"},
    "model": {
        "name": "hatr",
        "options": {
            "trunk": "resnet10t",
            "trunk_stride": 16,
            "embed_dim": 128,
            "depth": 2,
            "num_heads": 4,
            "scales": [[2, 1], [3, 2]],
        },
    },
    "augment": {"flip": 0.5, "rotate": 5, "translate": 0.05, "brightness": 0.1, "contrast": 0.2},
    "imbalance": {"method": "none"},
    "train": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "batch_size": 32,
        "epochs": 10,
    },
}
PATIENTS, SIZE = 700, 96

# Cases and patches are one grid, so a case is one window. No flips: the organ lies on one side, as a liver does. In so
# few steps the organ is learnt and lesions are not, which the report says; docs/phantom.md has the figures.
VOLUMES_RECIPE = {
    "name": "demo-volumes",
    "notes": "Synthetic volumes: these numbers say that the software works, nothing about patients.",
    "data": {"patient": "column:patient", "site": "column:site"},
    "volume": {"spacing": [2.0, 2.0, 2.0]},
    "model": {"name": "maxvit_unet_3d_tiny"},
    "augment": {"flip": 0.0, "rotate": 10, "brightness": 0.1, "contrast": 0.2},
    "segmentation": {"patch": [48, 48, 48]},
    "train": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "batch_size": 2,
        "epochs": 12,
    },
}
VOLUME_PATIENTS, VOLUME_SIZE = 30, 48


def demo(out: str | Path = "runs/demo", *, quiet: bool = False) -> TrainedRun:
    """Write phantom radiographs, train HATR on them, test, report and bundle, all below ``out``.

    A finished demo in ``out`` is made anew; any other run there is refused.

    Raises:
        UsageError: U212, ``out`` holds something that no demo wrote.
        ResourceError: T405, ``out`` is no folder or not writable.
    """
    out = _anew(out)
    write_phantom_folder(out / "phantom", patients=PATIENTS, size=SIZE, seed=0)
    return train(DEMO_RECIPE, data=out / "phantom" / "table.csv", out=out, quiet=quiet)


def demo_volumes(out: str | Path = "runs/demo-volumes", *, quiet: bool = False) -> TrainedRun:
    """The same with masks: phantom volumes of 48 voxels a side, and MaxViT-UNet-3D tiny, which learns them whole.

    Raises:
        UsageError, ResourceError: as ``demo``.
    """
    out = _anew(out)
    write_phantom_folder(out / "phantom", kind="volumes", patients=VOLUME_PATIENTS, size=VOLUME_SIZE, seed=0)
    return train(VOLUMES_RECIPE, data=out / "phantom" / "table.csv", out=out, quiet=quiet)


def write_phantom_folder(
    out: str | Path,
    *,
    kind: Literal["images", "masks", "volumes"] = "images",
    patients: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> Outcome:
    """Write a synthetic data set with a table, to try anything on; raises what the writer of its kind raises."""
    from medloom.data.phantom import write_phantom
    from medloom.data.phantom_masks import write_phantom_masks
    from medloom.data.phantom_volumes import write_phantom_volumes

    writers = {
        "images": (write_phantom, 400, 128),
        "masks": (write_phantom_masks, 60, 128),
        "volumes": (write_phantom_volumes, 60, 48),
    }
    write, most, side = writers[kind]
    table = write(out, n_patients=patients or most, size=size or side, seed=seed)
    return Outcome({"table": table}, (f"wrote {table}", f"try: medloom data audit {table} --out {out}-audit"))


def _anew(out: str | Path) -> Path:
    """The folder of a demo, empty but for the mark by which the next demo knows it; raises what ``demo`` raises."""
    out = Path(out)
    mark = out / "demo.txt"
    if any(make_folder(out).iterdir()):
        if not mark.exists():
            raise UsageError("U212", out, "the directory is not empty and holds no demo", "Choose another with --out")
        shutil.rmtree(out)
        make_folder(out)
    write_text(mark, "Written by medloom demo, which may replace this whole folder.\n")
    return out
