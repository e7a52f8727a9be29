"""The shape of what an audit says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["refuse", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("refuse", "warn", "note")
MOST_EXAMPLES = 20


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        code: stable identifier, as in errors.
        severity: ``refuse`` stops training unless accepted, ``warn`` goes on and stands in the report, ``note``
            informs.
        title: one sentence with the figures.
        count: images, pairs or patients, as the title says.
        examples: the first few, as text.
        remedy: what the reader can do about it.
    """

    code: str
    severity: Severity
    title: str
    count: int
    examples: tuple[str, ...]
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {**asdict(self), "examples": list(self.examples)}
