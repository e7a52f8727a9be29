"""The synthetic radiographs of ``phantom`` with masks of lungs and opacities, for segmenters of pictures."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medloom.data.phantom import phantom_images
from medloom.data.phantom_volumes import require_free
from medloom.files import atomic_directory, write_json, write_text

CLASSES = ("background", "lung", "opacity")
LABEL_VALUES = (0, 127, 255)
"""Grey levels of the structures in the PNG masks, so that a person can look at them."""


def write_phantom_masks(
    directory: str | Path,
    *,
    n_patients: int = 60,
    size: int = 128,
    seed: int = 0,
    sites: Sequence[str] = ("north", "east", "south"),
) -> Path:
    """Write ``images/*.png``, ``masks/*.png``, ``dataset.json`` and ``table.csv``.

    The table has image, mask, patient, site, split, age, sex, view. The folder appears only when it is complete.

    Returns:
        The path of ``table.csv``.

    Raises:
        UsageError: U204 for a value that cannot be drawn, U212 when the folder is there and not empty.
        ResourceError: T404 disk full, T405 not writable.
    """
    directory = Path(directory)
    require_free(directory)
    drawn = phantom_images(n_patients, size=size, seed=seed, sites=sites)
    out = io.StringIO(newline="")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "mask", "patient", "site", "split", "age", "sex", "view"])
    takes: Counter[str] = Counter()
    with atomic_directory(directory) as temp:
        for folder in ("images", "masks"):
            (temp / folder).mkdir()
        for k in range(len(drawn)):
            patient = str(drawn.patients[k])
            takes[patient] += 1
            name = f"{patient}_{takes[patient]}.png"
            mask = np.where(drawn.masks[k], 2, drawn.lungs[k].astype(int))
            Image.fromarray(drawn.images[k]).save(temp / "images" / name)
            Image.fromarray(np.array(LABEL_VALUES, dtype=np.uint8)[mask]).save(temp / "masks" / name)
            covariates = drawn.ages[k], drawn.sexes[k], drawn.views[k]
            row = [f"images/{name}", f"masks/{name}", patient, drawn.sites[k], drawn.splits[k], *covariates]
            table.writerow(row)
        write_text(temp / "table.csv", out.getvalue())
        write_json(temp / "dataset.json", {"labels": dict(zip(CLASSES, LABEL_VALUES))})
    return directory / "table.csv"
