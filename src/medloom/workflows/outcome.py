"""What a workflow hands back: values for programs, lines for people, an exit code for the shell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Result of one verb. The last line names the file that a person should open."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    exit_code: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Values with paths as text."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in self.values.items()}

    def text(self) -> str:
        """What is printed."""
        return "\n".join(self.lines)
