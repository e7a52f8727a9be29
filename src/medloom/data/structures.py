"""Which structures the masks of a data set hold: their names, and the number that each is stored as."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medloom.config import DataConfig
from medloom.data.label_maps import MOST_VALUES, values_in
from medloom.data.records import Dataset
from medloom.data.scan import each
from medloom.errors import DataError

BACKGROUND = "background"
_MOST_JSON = 64 << 20


def settle_structures(
    root: Path, masks: Sequence[str], config: DataConfig, others: Sequence[str]
) -> tuple[tuple[str, ...], tuple[int, ...], dict[str, tuple[int, ...]], list[str]]:
    """Names, stored numbers, the positions that each mask holds (empty until masks are read), and notices.

    ``data.label_values`` or ``dataset.json`` settle the numbers without a look at the masks; else all masks are read
    once, and every number that occurs is a structure.

    Args:
        others: files of the tree that are no pictures; ``dataset.json`` is looked for among them.

    Raises:
        DataError: D115 nothing but background; D116 a broken ``dataset.json``; N309 names and numbers that do not fit;
            N314 a ``dataset.json`` with voxels to ignore, unless the recipe says both values and names.
    """
    settled = config.label_values is not None and config.classes is not None
    listed = _listed(root, others, allow_ignored=settled)
    labels: dict[str, tuple[int, ...]] = {}
    notices: list[str] = []
    if config.label_values is not None:
        values = config.label_values
        if len(set(values)) != len(values) or len(values) < 2:
            told = f"{list(values)}: two or more different numbers are wanted, the background's first"
            raise DataError("N309", "data.label_values", told, "Correct data.label_values")
    elif listed:
        values = tuple(sorted(listed))
        notices.append("names and values of the structures are those of dataset.json")
    else:
        values, labels = _discovered(root, masks, config)
        shown = ", ".join(map(str, values))
        notices.append(f"the masks hold the values {shown}; the first is taken for the background")
    if len(values) > 256:
        raise DataError("N309", root, f"{len(values)} structures, and 256 is the limit", "Leave some out")
    if config.classes is not None:
        classes = config.classes
        if len(classes) != len(values):
            told = f"{len(classes)} names in data.classes and {len(values)} values: {', '.join(map(str, values))}"
            raise DataError("N309", root, told, "Name every value in order, the background first")
    else:
        classes = tuple(listed.get(v, f"label {v}" if k else BACKGROUND) for k, v in enumerate(values))
    if len(set(classes)) != len(classes) or any("|" in name or not name for name in classes):
        raise DataError("D126", "classes", "names must be different, not empty, without '|'", "Set data.classes")
    return tuple(classes), values, labels, notices


def require_structures(dataset: Dataset) -> None:
    """Refuse a training part without any example of some structure; after the split, as that decides.

    Raises:
        DataError: N312 with the structures that are missing.
    """
    trained = {k for r in dataset.records if r.split == "train" for k in r.labels}
    absent = [name for k, name in enumerate(dataset.classes) if k and k not in trained]
    if absent:
        told = f"no training mask holds {', '.join(absent)}"
        elsewhere = {k for r in dataset.records for k in r.labels}
        if any(dataset.classes.index(name) in elsewhere for name in absent):
            told += ", but masks of other splits do"
        remedy = "Bring such cases, draw another split, or name the structures that there are in data.classes"
        raise DataError("N312", dataset.name, told, remedy)


def _discovered(
    root: Path, masks: Sequence[str], config: DataConfig
) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    found = each(lambda mask: values_in(root, mask, config.max_megapixels), list(masks))
    count = Counter(value for values in found for value in values)
    values = (0, *sorted(count.keys() - {0}))
    if len(values) > MOST_VALUES:
        told = f"the masks hold {len(values)} different values: grey values, not structures"
        raise DataError("N309", root, told, "Give masks that are not blurred, or set data.label_values")
    if len(values) < 2:
        raise DataError("D115", root, "all masks are empty", "Check that these are the masks")
    if config.classes is not None and len(config.classes) != len(values):
        rare = min(values[1:], key=lambda v: (count[v], -v))
        example = next(mask for mask, own in zip(masks, found) if rare in own)
        told = f"the value {rare} in {count[rare]} of {len(masks)} masks; all values are {', '.join(map(str, values))},"
        told += f" and data.classes names {len(config.classes)}"
        raise DataError("N309", example, told, "Correct the mask, or name every structure, the background first")
    position = {value: k for k, value in enumerate(values)}
    return values, {m: tuple(sorted(position[v] for v in own if v)) for m, own in zip(masks, found)}


def _listed(root: Path, others: Sequence[str], *, allow_ignored: bool) -> dict[int, str]:
    """Number to name, from the ``dataset.json`` of MSD (number: name) or nnU-Net (name: number).

    nnU-Net keeps the name ``ignore`` for voxels that nobody looked at, which neither loss nor measure may see. Here
    every voxel counts, so such a set is refused and not learnt with ``ignore`` as a structure.
    """
    path = next((root / name for name in sorted(others, key=len) if name.split("/")[-1] == "dataset.json"), None)
    if path is None or not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        labels = content["labels"]
        ignored = "ignore" in {str(name).lower() for pair in labels.items() for name in pair}
        if ignored and not allow_ignored:
            told = "some voxels are to be ignored (label 'ignore'), and every voxel is learnt and judged here"
            remedy = "Finish these masks, or say what the number is in data.label_values and data.classes"
            raise DataError("N314", path, told, remedy)
        if any(isinstance(value, list) for value in labels.values()):
            return {}  # regions that overlap; the masks themselves say which numbers there are
        by_number = all(str(key).isdecimal() for key in labels)
        numbers = {int(k if by_number else v): str(v if by_number else k) for k, v in labels.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError("D116", path, "no list of labels as MSD or nnU-Net write it", "Correct or remove it") from None
    return {0: BACKGROUND, **numbers}
