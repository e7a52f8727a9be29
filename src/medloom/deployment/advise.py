"""Which system, how large, how compressed, for a task, a machine and a budget: the founding decision tree made real.

The tree is the one of "Hybrid models: best of both worlds" (DOI 10.5281/zenodo.14828792, section "Deployment
considerations"): segmentation or classification, volume or image, edge or not. Where a measurement speaks against a
leaf, the measurement wins and the answer says so: its edge leaf is a ConvNeXt-Base, which is the slowest classifier
here. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_FIGURES = Path(__file__).with_name("figures.json")

FEW_LABELS = 2000
"""Below so many labelled images a transformer that starts from nothing has less to learn from than it has weights."""

MEASURED_SIZE, LEAST_SIZE = 224, 64
"""Pixels per side at which candidates are measured, and the least that is proposed."""

INT8_GAIN = 2.0
"""How many times as fast int8 is taken to be as ONNX Runtime in float32: an assumption, and the answer says so."""

BASE_BYTES, BYTES_PER_PARAMETER = 0.2e9, 20.0
"""Memory of answering, estimated: interpreter, packages and one image; the weights as stored, checked, in the network's
file and in the runtime, which holds them in its own order too. HATR-Conv2D (15 million) took 0.4 GB; this says 0.5."""

HERE = "measured on this machine"

CANDIDATES = (
    "conv2d",
    "efficientnet_b0",
    "resnet18",
    "resnet50",
    "densenet121",
    "hatr_conv2d",
    "hatr_resnet50",
    "token_pruned",
    "convnext_deit_atto",
    "vit_small",
    "convnext_deit_tiny",
    "coatnet_0",
    "convnext_base",
    "convnext_deit",
)
"""Classifiers that are proposed, each at 224 pixels, from the smallest to the largest."""

PREFERENCE = {
    "edge": ("hatr_conv2d", "efficientnet_b0", "resnet18", "convnext_deit_atto", "conv2d", "hatr_resnet50"),
    "server": ("coatnet_0", "hatr_resnet50", "convnext_deit_tiny", "densenet121", "hatr_conv2d", "resnet18", "conv2d"),
}
"""In which order leaves are taken when several fit: hybrids first, as the tree has them, small ones where labels are
few."""


@dataclass(frozen=True)
class Asked:
    """What is known of the place.

    Attributes:
        task: ``classification`` or ``segmentation``.
        volume: whether the images have three axes.
        cores: of the machine that answers; figures that were measured here are those of so many threads.
        memory: gigabytes that it has, 0 where nobody knows.
        gpu_memory: gigabytes of its GPU, 0 without one.
        latency: milliseconds that one image may take; of a classifier alone.
        labels: labelled images (or cases) to train on; None where nobody said.
        size: pixels per side that the network is to see; of a classifier alone.
    """

    task: str
    volume: bool
    cores: int
    memory: float
    gpu_memory: float
    latency: float
    labels: int | None
    size: int = 224


@dataclass(frozen=True)
class Advice:
    """What is proposed, and why.

    Attributes:
        model: name for a recipe.
        compression: steps in the order in which they are tried, names of verbs with their reason.
        branch: the questions of the tree with the answers that were taken.
        reasons, contradicts: sentences; the second where the founding text says otherwise.
        expected_ms: of the proposal by the figures, None where there are none.
        figures: rows that back it.
    """

    model: str
    compression: list[str]
    branch: list[str]
    reasons: list[str]
    contradicts: list[str]
    expected_ms: float | None
    figures: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def committed_figures() -> dict[str, Any]:
    """``{machine, runtime, threads, rows: {model: {"batch 1": ms, ...}}}`` that came with the package."""
    found: dict[str, Any] = json.loads(_FIGURES.read_text(encoding="utf-8"))
    return found


def advise(asked: Asked, elsewhere: Mapping[str, Any], here: Mapping[str, Any] | None = None) -> Advice:
    """Walk the tree.

    Args:
        elsewhere: as of :func:`committed_figures`.
        here: the same of this machine. Model by model it goes before the other.
    """
    if asked.task == "segmentation":
        return _segmentation(asked)
    away = f"measured elsewhere on {elsewhere['machine']}"
    rows = {**_at_size(elsewhere, asked.size, away), **(_at_size(here, asked.size, HERE) if here else {})}
    measured_at = int(elsewhere.get("size", MEASURED_SIZE))
    return _classification(asked, rows, measured_at)


def _segmentation(asked: Asked) -> Advice:
    branch = ["Task? segmentation", f"Volume or image? {'volume' if asked.volume else 'image'}"]
    wanted = 8.0 if asked.volume else 4.0
    claim = f"{wanted:g} GB of GPU memory"
    contradicts, reasons = [], []
    branch.append(f"GPU of {wanted:g} GB? {'yes' if asked.gpu_memory >= wanted else 'no'}")
    if asked.volume:
        model = "maxvit_unet_3d_small" if asked.gpu_memory >= wanted else "maxvit_unet_3d_tiny"
        if asked.labels is not None and asked.labels < 100:
            model = "unet_3d"
            reasons.append(f"{asked.labels} labelled volumes are few: start from the plain U-Net, and let it be beaten")
    else:
        model = "transunet_small" if asked.gpu_memory >= wanted else "maxvit_unet_mini"
    if asked.gpu_memory < wanted:
        contradicts.append(
            f"The tree asks for {claim}; without it a small network is proposed, which answers on the CPU window by "
            "window (no figure of ours says how long: run medloom benchmark on its bundle)"
        )
    else:
        reasons.append(f"The tree's own leaf; its {claim} was not measured here")
    reasons.append("Not used for masks, of which no times are at hand: cores, memory, latency and size")
    compression = ["export: OpenVINO beside ONNX"]
    return Advice(model, compression, branch, reasons, contradicts, None)


def _classification(asked: Asked, rows: Mapping[str, Mapping[str, Any]], measured_at: int) -> Advice:
    edge = asked.gpu_memory < 4
    branch = ["Task? classification", f"Edge (no GPU of 4 GB)? {'yes' if edge else 'no'}"]
    reasons: list[str] = []
    contradicts: list[str] = []
    few = asked.labels is not None and asked.labels < FEW_LABELS
    if asked.labels is not None:
        branch.append(f"Fewer than {FEW_LABELS} labelled images? {'yes' if few else 'no'} ({asked.labels})")
    branch.append(f"Budget per image? {asked.latency:g} ms on {asked.cores} cores, {asked.size} pixels")
    if asked.size != measured_at:
        reasons.append(f"times are those of {measured_at} pixels, scaled by the area: measure before you rely on them")
    preferred = PREFERENCE["edge" if edge else "server"]
    order = [m for m in preferred if m in rows]
    if not order:
        reasons.append("no figure is at hand for any candidate: the first of the tree stands, run advise --measure")
        return Advice(preferred[0], ["export: OpenVINO beside ONNX"], branch, reasons, [], None)
    if few:
        order = sorted(order, key=lambda name: float(rows[name]["parameters"]))
        reasons.append(f"{asked.labels} labelled images are few: small networks first, and published weights help most")
    order = _within_memory(order, rows, asked.memory, reasons)
    fits = [m for m in order if rows[m]["batch 1"] <= asked.latency]
    with_int8 = [m for m in order if rows[m]["batch 1"] / INT8_GAIN <= asked.latency]
    compression = ["export: OpenVINO beside ONNX"]
    if fits:
        model = fits[0]
        reasons.append(f"{model} takes {rows[model]['batch 1']:g} ms in float32, within the budget as it is")
        if model != order[0]:
            reasons.append(f"{order[0]}, which comes before it, takes {rows[order[0]]['batch 1']:g} ms")
        if edge:
            compression.append("quantize: int8, if it passes the gate; medloom benchmark tells what it brings")
    elif with_int8:
        model = with_int8[0]
        reasons.append(f"{model} takes {rows[model]['batch 1']:g} ms in float32: it fits only when quantised")
        reasons.append(_INT8)
        compression.append(f"quantize: int8 must bring {rows[model]['batch 1'] / asked.latency:.1f} times")
    else:
        model = min(order, key=lambda name: float(rows[name]["batch 1"]))
        took = rows[model]["batch 1"]
        reasons.append(f"Nothing here answers within {asked.latency:g} ms; {model}, with {took:g} ms, comes nearest")
        reasons.append(_INT8)
        compression += ["prune: 1.8 times", "quantize: int8"]
        smaller = int(asked.size * (INT8_GAIN * asked.latency / took) ** 0.5) // 16 * 16
        if smaller >= LEAST_SIZE:
            compression.append(f"preprocess.size {smaller}: by the area it fits then, in int8")
        else:
            compression.append("a smaller preprocess.size is worth more than both")
    larger = next((m for m in ("hatr_resnet50", "convnext_deit_tiny") if m in rows and m != model), None)
    if edge and larger:
        compression.append(f"distill: let {larger}, or the best model that you can train, teach it")
    contradicts += _against_the_text(edge, rows, asked, model)
    if any(row["where"] != HERE for row in rows.values()):
        reasons.append(
            f"times from elsewhere are of one thread of that processor: not scaled to {asked.cores} cores, and no "
            "promise for another processor"
        )
    shown = sorted(rows, key=lambda name: (rows[name]["where"] != HERE, float(rows[name]["batch 1"])))
    table = [{"model": n, **rows[n], "size": asked.size, "fits": rows[n]["batch 1"] <= asked.latency} for n in shown]
    return Advice(model, compression, branch, reasons, contradicts, float(rows[model]["batch 1"]), table)


_INT8 = (
    f"that int8 is {INT8_GAIN:g} times as fast is an assumption: medloom benchmark on the quantised bundle measures it"
)


def _at_size(figures: Mapping[str, Any], size: int, where: str) -> dict[str, dict[str, Any]]:
    """Rows with the time of another size: that of convolutions and of windows goes with the area."""
    scale = (size / int(figures.get("size", MEASURED_SIZE))) ** 2
    return {
        name: {
            **row,
            "batch 1": round(row["batch 1"] * scale, 3),
            "where": where,
            "memory_estimate": round((BASE_BYTES + BYTES_PER_PARAMETER * row["parameters"]) / 1e9, 2),
        }
        for name, row in figures["rows"].items()
    }


def _within_memory(
    order: list[str], rows: Mapping[str, Mapping[str, Any]], memory: float, reasons: list[str]
) -> list[str]:
    """Those that the machine's memory holds, by an estimate from their parameters; of none, the smallest."""
    if not memory:
        reasons.append("not used: memory, of which nothing is known")
        return order
    kept = [name for name in order if rows[name]["memory_estimate"] <= memory]
    left = [f"{name} {rows[name]['memory_estimate']:g} GB" for name in order if name not in kept]
    if left:
        reasons.append(f"more than {memory:g} GB of memory, as estimated from parameters: {', '.join(left)}")
    if not kept:
        reasons.append("nothing here fits into this memory; the smallest is proposed")
        kept = [min(order, key=lambda name: float(rows[name]["memory_estimate"]))]
    return kept


def _against_the_text(edge: bool, rows: Mapping[str, Any], asked: Asked, model: str) -> list[str]:
    """Where the founding text names a leaf that the figures do not bear out."""
    out = []
    if edge and {"convnext_base", "efficientnet_b0"} <= rows.keys():
        large, small = rows["convnext_base"]["batch 1"], rows["efficientnet_b0"]["batch 1"]
        if large > 2 * small:
            out.append(
                f"The tree's edge leaf is ConvNeXt with a light head, and its recipe starts from ConvNeXt-Base: that "
                f"is no edge model, {large:g} ms against {small:g} ms of EfficientNet-B0"
            )
    if edge and asked.cores < 8 and rows[model]["batch 1"] <= asked.latency:
        out.append(f"The tree asks for 8 cores at the edge: {asked.cores} are enough for {model} within this budget")
    if not edge and model != "coatnet_0":
        why = (
            "it does not fit the budget or the memory, or labels are few" if "coatnet_0" in rows else "it was not timed"
        )
        out.append(f"The tree's leaf is CoAtNet; {why}")
    return out


def summary(advice: Advice, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is printed."""
    lines = ["branch taken:", *(f"  {text}" for text in advice.branch), f"proposed: {advice.model}"]
    lines += [f"  {text}" for text in advice.reasons]
    lines += ["then:", *(f"  {text}" for text in advice.compression)]
    lines += [f"against the founding text: {text}" for text in advice.contradicts]
    where = None
    for row in rows:
        if row["where"] != where:
            where = row["where"]
            lines.append(f"figures, network alone, one image of {row['size']} pixels ({where}):")
        mark = "fits" if row["fits"] else "too slow"
        lines.append(
            f"  {row['model']:20} {row['batch 1']:8.1f} ms  {row['parameters'] / 1e6:7.1f} M parameters  {mark}"
        )
    return lines
