"""The essentials of a recipe whose answers are masks, one line each."""

from __future__ import annotations

from typing import Any

from medloom.reporting.wording import asked_of, brief

_LOSSES = {
    "dice_ce": "Dice and cross-entropy",
    "dice": "Dice",
    "cross_entropy": "cross-entropy",
    "tversky": "Tversky",
    "focal_tversky": "focal Tversky",
    "generalized_dice": "generalised Dice",
    "dice_topk": "Dice and the worst pixels' cross-entropy",
    "dice_boundary": "Dice and distance to the boundary",
    "dice_cldice": "Dice and centreline Dice",
}


def asked_of_masks(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """As ``wording.asked_of``; what only classifiers know is left out, what only masks know is said."""
    part, volume = recipe.get("segmentation") or {}, recipe.get("volume") or {}
    deep = len(part.get("patch") or ()) == 3
    own = {
        "Input": _volume(volume) if deep else None,
        "Loss": _loss(part),
        "Imbalance": "",
        "Kept epoch": "highest Dice on validation"
        if (recipe.get("train") or {}).get("monitor") != "val_loss"
        else "lowest loss on validation",
        "Evaluation": f"surfaces agree within {brief(part.get('tolerance'))} mm (pixels where no spacing is known); "
        f"{(recipe.get('evaluation') or {}).get('resamples')} resamples for the intervals",
    }
    rows: list[tuple[str, str]] = []
    for term, text in asked_of(recipe):
        told = own.get(term)
        if told is None:
            rows.append((term, text))
        elif told:
            rows.append((term, told))
        if term == "Model":
            rows += [("Patches", _patches(part)), ("Answering", _answering(part))]
    return rows


def _volume(volume: dict[str, Any]) -> str:
    spacing = volume.get("spacing")
    grid = f"{_by(spacing)} mm" if spacing else "each case on its own grid"
    kind = str(volume.get("intensity"))
    limits = {"percentile": volume.get("percentiles"), "window": volume.get("window")}.get(kind)
    return f"volumes, {grid}, intensity: {kind}{f' {brief(limits)}' if limits else ''}"


def _loss(part: dict[str, Any]) -> str:
    name = str(part.get("loss"))
    told = _LOSSES.get(name, name.replace("_", " "))
    if name.startswith("dice_"):
        told += f", weights {brief(part.get('dice_weight'))} and {brief(part.get('other_weight'))}"
    if "tversky" in name:
        told += f", weights of false positives and negatives {brief(part.get('tversky'))}"
    told += ", background included" if part.get("include_background") else ""
    told += ", over the batch" if part.get("batch_dice") else ""
    return told + (", also at coarser resolutions where the model has them" if part.get("deep_supervision") else "")


def _patches(part: dict[str, Any]) -> str:
    patch = part.get("patch")
    if not patch:
        return "whole images"
    told = f"{_by(patch)}, {brief(part.get('patches_per_case'))} per case and epoch"
    return f"{told}, {100 * float(part.get('foreground') or 0):.0f}\u202f% centred in a structure"


def _answering(part: dict[str, Any]) -> str:
    told = [f"windows that overlap by {100 * float(part.get('overlap') or 0):.0f}\u202f%"] if part.get("patch") else []
    told += ["mean over mirror images"] if part.get("mirror") else []
    kept = {"on": "only the largest piece of each structure", "auto": "largest piece alone where validation gains"}
    told += [kept[str(part["keep_largest"])]] if part.get("keep_largest") in kept else []
    return ", ".join(told) or "whole images, most probable class"


def _by(values: Any) -> str:
    return " × ".join(brief(v) for v in values)
