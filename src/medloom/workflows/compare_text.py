"""What ``medloom compare`` prints: the cost before anything runs, and the standings at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medloom.workflows.compare_plan import Planned
from medloom.workflows.environment import environment
from medloom.workflows.progress import duration, number


def estimates_table(planned: Sequence[Planned], costs: Mapping[str, Mapping[str, Any]], done: set[str]) -> list[str]:
    """One line per model: runs to do, time, memory; and the whole."""
    memory = environment()["memory_gib"]
    rows = [("model", "to run", "of", "parameters", "s/step", "each", "together", "peak GiB")]
    notes, whole, unknown = [], 0.0, False
    for label in dict.fromkeys(p.label for p in planned):
        mine = [p for p in planned if p.label == label]
        todo = [p for p in mine if p.name not in done]
        found = next((costs[p.setting] for p in todo if p.setting in costs), None)
        start = (label, str(len(todo)), str(len(mine)))
        if not todo:
            rows.append((*start, "", "", "finished", "", ""))
        elif found is None:
            unknown = True
            rows.append((*start, "", "", "not tried", "", ""))
        elif "error" in found:
            rows.append((*start, "", "", "fails", "", ""))
            notes.append(f"{label}: {found['error']}")
        else:
            together = len(todo) * found["seconds"]
            whole += together
            peak = found.get("peak_device_memory", found["peak_memory"]) / 2**30
            each = (f"{found['parameters']:,}", f"{found['seconds_per_step']:.3f}", duration(found["seconds"]))
            rows.append((*start, *each, duration(together), f"{peak:.2f}"))
            if memory and found["peak_memory"] / 2**30 > memory:
                notes.append(f"{label}: needs more memory than the {memory} GiB of this machine")
    wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:{'<' if k == 0 else '>'}{wide[k]}}" for k, cell in enumerate(row)).rstrip() for row in rows
    ]
    total = f"estimated {'at least ' if unknown else ''}{duration(whole)} in all, from a few steps of each"
    return [*lines, *notes, total + "; start, audit, export and report of a run taken as 20 s"]


def standings_table(content: Mapping[str, Any]) -> list[str]:
    """AUC, accuracy and the verdict of each row; what failed."""
    lines = []
    wide = max(len(r["label"]) for r in content["rows"])
    for row in content["rows"]:
        if row["auc"]["mean"] is None and row["failed"]:
            lines.append(f"{row['label']:{wide}}  failed: {row['failed'][0]['error']}")
        elif not row["seeds"]:
            lines.append(f"{row['label']:{wide}}  not run yet")
        else:
            text = (
                f"{row['label']:{wide}}  AUC {number(row['auc']['entry'])}, accuracy {number(row['accuracy']['entry'])}"
            )
            if row["verdict"]:
                text += (
                    f"; {row['verdict']['auc']} than {content['baseline']}"
                    if row["verdict"]["auc"] in ("better", "worse")
                    else f"; {row['verdict']['auc']}"
                )
            lines.append(text + (" (another budget)" if row["departures"] else ""))
    return lines
