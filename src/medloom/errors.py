"""One error family. Every message is one line: code, place, what is wrong, what to do.

The code is stable and documented in docs/errors.md; the class decides the exit status of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# What --accept may name: the audit's refusals (of files: to train without them), D124, and a changed recipe (T411).
GATES = (
    *("D101", "D102", "D103", "D105", "D106", "D107", "D109", "D110", "D111", "D112", "D114", "D115"),
    *("M202", "M203", "M204", "M205", "M206", "M207", "M208", "M209", "M210"),
    *("M211", "M212", "M213", "M214", "M215", "M216", "M217", "M218"),
    *("D117", "D118", "D119", "D120", "D121", "D124", "T411"),
)


class MedloomError(Exception):
    """A refusal that a person can act on.

    Args:
        code: stable identifier, e.g. ``"D103"``.
        place: file, key, column, split ... where it was found.
        problem: what is wrong, with the figures.
        remedy: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, code: str, place: object, problem: str, remedy: str) -> None:
        self.code = code
        self.place = _one_line(str(place))
        self.problem = _one_line(problem).rstrip(".")
        self.remedy = _one_line(remedy).rstrip(".")
        self._end = "" if self.remedy.endswith("?") else "."
        super().__init__(code, self.place, self.problem, self.remedy)

    def __str__(self) -> str:
        return f"error[{self.code}] {self.place}: {self.problem}. {self.remedy}{self._end}"

    def as_dict(self) -> dict[str, object]:
        """The same content for ``--json``."""
        return {
            "error": self.code,
            "place": self.place,
            "problem": self.problem,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class UsageError(MedloomError):
    """The command or the recipe cannot be carried out as written (exit 2)."""

    exit_code = 2


class DataError(MedloomError):
    """The data are refused (exit 3)."""

    exit_code = 3


class ModelError(MedloomError):
    """A model, checkpoint or bundle is refused (exit 4)."""

    exit_code = 4


class ExportError(MedloomError):
    """Export or its parity check failed (exit 5)."""

    exit_code = 5


class GateError(MedloomError):
    """A quality gate failed (exit 6)."""

    exit_code = 6


class ResourceError(MedloomError):
    """Disk, memory or a worker process gave out (exit 7)."""

    exit_code = 7


def check_accept(codes: Sequence[str]) -> tuple[str, ...]:
    """The codes, if each is of a gate that can be passed.

    Raises:
        UsageError: U204 with the codes that can.
    """
    if unknown := [code for code in codes if code not in GATES]:
        raise UsageError("U204", "accept", f"{unknown[0]} is no gate", f"Gates that can be passed: {', '.join(GATES)}")
    return tuple(codes)


def again(told: dict[str, Any]) -> MedloomError:
    """The error that another process told as ``as_dict``, to be raised here."""
    kinds = (UsageError, DataError, ModelError, ExportError, GateError, ResourceError)
    kind = next((kind for kind in kinds if kind.exit_code == told["exit_code"]), MedloomError)
    return kind(told["error"], told["place"], told["problem"], told["remedy"])


def plain_words(messages: Sequence[str]) -> str:
    """What pydantic says of one value, without the names of its types: ``should be a valid integer or a list``."""
    start = "Input should be "
    told = [re.sub(r"a valid dictionary or instance of \w+", "a section with keys", m) for m in messages]
    told = [m.replace("a valid dictionary", "a mapping").replace("a valid tuple", "a list") for m in told]
    unique = list(dict.fromkeys(told))
    return " or ".join(unique[:1] + [m.removeprefix(start) for m in unique[1:]])


def _one_line(text: str) -> str:
    """Control characters in file names must not break the one-line promise (or forge a log line)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
