"""The card of a model that draws masks: what a person must know before using the bundle, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.deployment.card import HEAD, SPLITS, exactness, laid_out, pairs, row, section

_DEFAULT_USE = (
    "Research on image segmentation: comparing methods, measuring structures, planning a study. A person who is "
    "qualified to read such images looks at every mask."
)
_LIMITS = (
    "It was evaluated on the data named above only; another hospital, device, protocol or age group can change every "
    "number, so evaluate it on your own cases before you believe it there.",
    "It draws in any image, also in one that is not of the expected kind.",
    "Sizes are counted from the mask: where the mask is wrong, so is the size.",
    "It knows the structures named above and nothing else; what it never saw is background or one of them.",
)
_UNITS = {"hd95": "distance_unit", "assd": "distance_unit", "size_bias": "size_unit"}


def render_segmenter_card(
    document: Mapping[str, Any], metrics: Mapping[str, Any] | None, intended_use: str | None
) -> str:
    """The card of a bundle, from its model.json content and the run's metrics.json content.

    Every number stands with its interval, its count and the trivial baseline, or says why it is not estimable.
    """
    return laid_out(
        document,
        facts=_facts(document),
        use=intended_use or _DEFAULT_USE,
        answering=section("From file to mask", _masks(document)),
        results=_results(metrics),
        limits=_LIMITS,
        measured=exactness(document, "file to mask", "window"),
    )


def _facts(document: Mapping[str, Any]) -> list[str]:
    architecture = document["architecture"]
    stored = (f"{name} = {value}" for name, value in zip(document["classes"], document["label_values"]))
    return pairs(
        {
            "architecture": architecture.get("name"),
            "options": {key: value for key, value in architecture.items() if key != "name"} or None,
            "task": document["task"],
            "numbers in a mask": ", ".join(stored),
            "preprocessing": document["preprocess"],
            "written by": f"medloom {document['medloom']}, format {document['format']}",
        }
    )


def _masks(document: Mapping[str, Any]) -> list[str]:
    said = document["segmentation"]
    if said["patch"] is None:
        lines = ["The whole image is resized, answered at once, and the answer resized back before classes compete."]
        mirror = "Logits are the mean over the image and its mirror."
    else:
        size = " x ".join(map(str, said["patch"]))
        lines = [f"Windows of {size} voxels that overlap by {said['overlap']:.0%} are answered and blended."]
        mirror = "Logits are the mean over each window and its mirror images along every axis."
    if said["mirror"]:
        lines.append(mirror)
    if said["keep_largest"]:
        lines.append("Of each structure only the largest connected piece is kept.")
    lines.append("The mask has the pixels or voxels of the file, at the same place in the patient.")
    return [" ".join(lines)]


def _results(metrics: Mapping[str, Any] | None) -> list[str]:
    lines: list[str] = []
    units = (metrics or {}).get("segmentation") or {}
    head = (HEAD[0].replace("images", "cases"), HEAD[1])
    for key, part in ((metrics or {}).get("splits") or {}).items():
        lines += [f"### {SPLITS.get(key, key)}: {part['n']} cases of {part['patients']} patients", "", *head]
        lines += [row(_named(name, units), entry) for name, entry in part["metrics"].items()]
        structures = part.get("structures") or {}
        if len(structures) > 1:
            lines += [
                row(f"{_named(name, units)} of {structure}", entry)
                for structure, values in structures.items()
                for name, entry in values["metrics"].items()
            ]
        lines.append("")
    if lines:
        lines.append("Validation chose the epoch, so its numbers are a little too good.")
    return lines or ["No metrics were recorded with this bundle."]


def _named(measure: str, units: Mapping[str, Any]) -> str:
    unit = units.get(_UNITS.get(measure, ""))
    return f"{measure} ({unit})" if unit else measure
