"""What a reader of a distilled or pruned model must know first: what it was made from, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.reporting.wording import grouped


def compression_lines(found: Mapping[str, Any] | None) -> list[str]:
    """Sentences for the head of the report; none for a run that is neither."""
    if not found:
        return []
    if found.get("what") == "distilled":
        return _distilled(found)
    if found.get("what") == "pruned":
        return _pruned(found)
    return []


def _distilled(found: Mapping[str, Any]) -> list[str]:
    teacher, student = found["teacher"], found["student"]
    size = ""
    if teacher.get("parameters") and student.get("parameters"):
        size = f", {grouped(teacher['parameters'])} parameters; this model has {grouped(student['parameters'])}"
    lines = [f"Taught by {teacher['name']} ({teacher['model']}{size})"]
    pairs = (("the teacher", found.get("against_teacher")), ("the same model without a teacher", found.get("beside")))
    for title, part in pairs:
        if part:
            lines.append(f"Test AUC less that of {title}: {_gap(part['auc']['difference'])}")
    if not found.get("against_teacher"):
        lines.append("Not compared with its teacher: there is no test split")
    return lines


def _pruned(found: Mapping[str, Any]) -> list[str]:
    before, after, one = found["before"], found["after"], found["speed"]["batch 1"]
    lines = [
        f"Pruned from {before['name']}: {grouped(before['parameters'])} to {grouped(after['parameters'])} parameters, "
        f"{one['faster']:.2f} times as fast at batch 1 ({one['before_ms']:.2f} to {one['after_ms']:.2f} ms, "
        f"{found['speed']['runtime']}, threads: {found['speed']['threads']})"
    ]
    for title, part in (("validation", found.get("gate")), ("test", found.get("test"))):
        if part:
            lines.append(
                f"Against the model before, on {title}: AUC {_gap(part['auc']['difference'])}, probabilities move by "
                f"{part['shift']['mean']:.4f}, {part['flips']['count']} of {part['flips']['decisions']} decisions turn"
            )
    return lines


def _gap(entry: Mapping[str, Any]) -> str:
    if entry.get("value") is None:
        return str(entry.get("note") or "not estimable")
    bounds = f" ({entry['low']:+.4f} to {entry['high']:+.4f})" if entry.get("low") is not None else ""
    return f"{entry['value']:+.4f}{bounds}"
