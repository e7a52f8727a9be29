"""What ``medloom prune`` says of its steps and of what came out."""

from __future__ import annotations

from typing import Any


def step_line(step: dict[str, Any], base: dict[str, int]) -> str:
    """One step in a sentence."""
    area = "not estimable" if step["validation_auc"] is None else f"{step['validation_auc']:.4f}"
    left = (
        f"{step['parameters'] / base['parameters']:.0%} of the parameters and {step['macs'] / base['macs']:.0%} of the"
    )
    return (
        f"step {step['step']}: {step['share']:.0%} of each width gone, {left} work left, {step['faster']:.2f} times as "
        f"fast, validation AUC {area}"
    )


def lines_of(report: dict[str, Any]) -> list[str]:
    """What is printed."""
    one, sixteen, gate = report["speed"]["batch 1"], report["speed"]["batch 16"], report["gate"]
    base = report["before"]
    lines = [step_line(step, base) for step in report["steps"]]
    lines.append(
        f"{one['faster']:.2f} times as fast at batch 1 ({one['before_ms']:.2f} to {one['after_ms']:.2f} ms), "
        f"{sixteen['faster']:.2f} times at batch 16 ({report['speed']['threads']} threads)"
    )
    for title, part in (("validation", gate), ("test", report["test"])):
        if part and part["auc"]["loss"] is not None:
            lines.append(
                f"{title}: AUC {part['auc']['before']:.4f} to {part['auc']['after']:.4f}, probabilities move by "
                f"{part['shift']['mean']:.4f}, {part['flips']['count']} of {part['flips']['decisions']} decisions turn"
            )
    return lines
