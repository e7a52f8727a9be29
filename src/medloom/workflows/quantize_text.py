"""What ``medloom quantize`` writes down and prints of the networks that it made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medloom.workflows.outcome import Outcome
from medloom.workflows.quantize_steps import Candidate


def layers(each: Candidate) -> dict[str, Any]:
    """How many layers could be quantised, and which stayed float."""
    if each.quantised is None:
        return {"layers": None, "float_layers": []}
    return {"layers": each.quantised.layers, "float_layers": list(each.quantised.float_layers)}


def recorded(candidates: Sequence[Candidate], taken: Sequence[Candidate], kind: str, images: int) -> dict[str, Any]:
    """``quantisation`` of model.json: figures without ids, and sentences for the card.

    Args:
        images: how many calibrated; 0 in bfloat16, which asks for none.
    """
    networks: dict[str, Any] = {}
    for each in taken:
        figures = {
            split: {
                "images": report["n"],
                "auc_loss": report["auc"]["loss"],
                "mean_shift": report["shift"]["mean"],
                "flips": report["flips"]["count"],
                "decisions": report["flips"]["decisions"],
            }
            for split, report in each.reports.items()
        }
        parts = layers(each)
        networks[each.name] = {**figures, "layers": parts["layers"], "layers_in_float": len(parts["float_layers"])}
    lines = [line for each in taken for line in _sentences(each)]
    refused = [each.name for each in candidates if not each.passed]
    lines += [f"- {name}: stayed float32, as its {kind} network did not hold." for name in refused]
    return {"precision": kind, "calibration_images": images, "networks": networks, "told": lines}


def _sentences(each: Candidate) -> list[str]:
    lines = []
    for split, report in each.reports.items():
        loss = report["auc"]["loss"]
        auc = "AUC not estimable" if loss is None else f"AUC {report['auc']['after']:.4f} (loss {loss:+.4f})"
        flips = report["flips"]
        lines.append(
            f"- {each.name}, {split}, {report['n']} images: {auc}, probabilities moved by "
            f"{report['shift']['mean']:.4f} on average, {flips['count']} of {flips['decisions']} decisions turned over"
        )
    return lines


def told(
    place: Path,
    report: Path,
    candidates: Sequence[Candidate],
    taken: Sequence[Candidate],
    said: dict[str, dict[str, Any]],
) -> Outcome:
    """The result of the verb."""
    lines = [line.removeprefix("- ") for each in taken for line in _sentences(each)]
    for each in candidates:
        left = len(layers(each)["float_layers"])
        if each.passed and left:
            lines.append(f"{each.name}: {left} of {layers(each)['layers']} layers stayed float")
        if not each.passed:
            lines.append(f"{each.name} stays float32: {'; '.join(each.reports['val']['reasons'])}")
    for name, values in said.items():
        lines.append(f"{name}: {values['precision']}, {values['milliseconds_per_image_at_batch']['1']:.3g} ms alone")
    networks = {each.name: dict(each.reports) for each in taken}
    return Outcome(
        {"bundle": place, "report": report, "runtimes": said, "networks": networks}, (*lines, f"open {report}")
    )
