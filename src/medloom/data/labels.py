"""From the words that a source uses to positions in the list of classes; what is not settled is refused by place."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medloom.data.records import SPLITS
from medloom.errors import DataError

if TYPE_CHECKING:
    from medloom.config import DataConfig

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
# NIH's official list holds training and validation images in one; a validation part is carved out of it later.
TRAIN_AND_VAL = frozenset(("train_val", "trainval", "train+val", "train/val"))
NO_FINDING = frozenset(("no finding", "no findings"))
UNCERTAIN = frozenset(("-1", "uncertain", "u", "?"))
_NEGATIVE_WORDS = NO_FINDING | {"normal", "healthy", "negative", "benign", "no", "none", "absent", "control"}
_RENAME = "Add it to data.classes, or say in data.rename what it is (evaluate: --map THEIRS=OURS)"

Words = tuple[str, ...]


def settle(
    rows: Sequence[tuple[str, Words]], config: DataConfig, several: bool
) -> tuple[tuple[str, ...], list[tuple[int, ...] | None]]:
    """Class names, and for each row its positions in them (None: the row is left out by policy).

    Args:
        rows: the place of a row (``labels.csv:17``), for errors, and its words.
        several: whether a row may hold any number of labels, none included.

    Raises:
        DataError: D116 no label, several labels, label outside the classes, uncertain label; D115 a single class.
    """
    named = [(place, _renamed(words, config, several)) for place, words in rows]
    if several:
        absent = NO_FINDING - {name.casefold() for name in config.classes or ()}
        named = [(p, w and tuple(word for word in w if word.casefold() not in absent)) for p, w in named]
    seen = {word for _, words in named if words for word in words}
    certain = {word for word in seen if word.casefold() not in UNCERTAIN}
    classes = config.classes or _in_order(certain)
    if "" in classes or len(set(classes)) != len(classes) or any("|" in name for name in classes):
        raise DataError("D126", "classes", "names must be different, not empty, without '|'", "Use data.rename")
    _refuse_case_clash(classes)
    look_up = _positions(classes, certain)
    positions = [
        None if words is None else _row_positions(place, words, look_up, classes, config, several)
        for place, words in named
    ]
    if len(classes) < (1 if config.classes else 2) - several:
        raise DataError("D115", rows[0][0] if rows else "labels", f"only one class, {', '.join(classes)}", "Give two")
    return classes, positions


def split_of(word: str, place: str) -> str | None:
    """``train``, ``val`` or ``test`` for the usual spellings; None for an empty cell.

    Raises:
        DataError: D116 for another word.
    """
    key = word.strip().casefold()
    if key in TRAIN_AND_VAL:
        return "train"
    if key and key not in SPLIT_NAMES:
        raise DataError("D116", place, f"unknown split {word!r}", f"Write one of {', '.join(SPLITS)}")
    return SPLIT_NAMES.get(key)


def tidy(word: str) -> str:
    """Outer blanks off, one spelling per letter (NFC), ``1.0`` as pandas writes an integer with gaps becomes ``1``."""
    word = unicodedata.normalize("NFC", word.strip())
    return word.split(".")[0] if re.fullmatch(r"-?\d+\.0+", word) else word


def class_notices(classes: Sequence[str], several: bool) -> tuple[str, ...]:
    """A sentence when the class that counts as positive sounds like the negative one."""
    if not several and len(classes) == 2 and classes[1].casefold() in _NEGATIVE_WORDS:
        return (f"the positive class is {classes[1]!r}; if that is the wrong way round, set data.classes",)
    return ()


def _renamed(words: Iterable[str], config: DataConfig, several: bool) -> Words | None:
    tidied = [t for t in map(tidy, words) if t]
    if not config.rename:
        return tuple(tidied)
    table = {tidy(old).casefold(): new for old, new in config.rename.items()}
    rest = table.get("*")
    renamed = [table.get(word.casefold(), word if rest is None else rest) for word in tidied]
    kept = tuple(dict.fromkeys(word for word in renamed if word))
    return None if tidied and not kept and not several else kept


def _in_order(words: Iterable[str]) -> tuple[str, ...]:
    words = set(words)
    if all(re.fullmatch(r"\d+", word) for word in words):
        return tuple(sorted(words, key=int))
    return tuple(sorted(words))


def _positions(classes: Sequence[str], words: Iterable[str]) -> dict[str, int]:
    """Exact names, then other letter case; numbers stand for positions where no class is named by a number."""
    exact = {name: k for k, name in enumerate(classes)}
    folded = {name.casefold(): k for k, name in enumerate(classes)}
    table = {word: exact.get(word, folded.get(word.casefold())) for word in words}
    if all(found is None for found in table.values()) and all(word.isdecimal() for word in words):
        table = {word: int(word) if int(word) < len(classes) else None for word in words}
    return {word: found for word, found in table.items() if found is not None}


def _row_positions(
    place: str, words: Words, look_up: dict[str, int], classes: Sequence[str], config: DataConfig, several: bool
) -> tuple[int, ...] | None:
    unsure = [word for word in words if word not in look_up and word.casefold() in UNCERTAIN]
    if unsure:
        if config.uncertain == "drop":
            return None
        if config.uncertain == "refuse" or several or len(classes) != 2:
            raise DataError(
                "D116",
                place,
                f"uncertain label {unsure[0]!r}",
                "Set data.uncertain to drop, negative or positive; or name it in data.classes if it is a class",
            )
        return (0,) if config.uncertain == "negative" else (1,)
    for word in words:
        if word not in look_up:
            near = difflib.get_close_matches(word, classes, n=1)
            raise DataError(
                "D116",
                place,
                f"label {word!r} is outside the classes {', '.join(classes)}",
                f"Did you mean {near[0]!r}" if near else _RENAME,
            )
    if not several and len(words) != 1:
        raise DataError(
            "D116",
            place,
            f"{len(words)} labels where one is wanted" if words else "no label",
            "Set data.multi_label=true, or say in data.rename which count"
            if words
            else "Fill it in, or take the row out",
        )
    return tuple(sorted({look_up[word] for word in words}))


def _refuse_case_clash(classes: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in classes:
        if first.setdefault(name.casefold(), name) != name:
            raise DataError(
                "D126",
                "classes",
                f"{first[name.casefold()]!r} and {name!r} differ only in letter case",
                "Make them one by data.rename",
            )
