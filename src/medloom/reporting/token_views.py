"""Token maps drawn beside their image: for the report, for the page of ``medloom explain``, and as one picture file.

One colour scale per kind of weight over all images that are shown together, so that they compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medloom.reporting.page import picture
from medloom.reporting.pictures import Picture, dimmed, drawn_range, overlay, scale_bar, weight_range

Range = tuple[float, float]
NO_EXPLANATION = "they have not been tested as an explanation"
_GAP = 4
_PANEL_SIDE = 256


def drawn_scales(shown: Sequence[Picture]) -> dict[str, Range]:
    """The ends of the colour scale of each kind of weight."""
    return {name: drawn_range(*weight_range(shown, name)) for name in _names(shown)}


def colour_bars(shown: Sequence[Picture]) -> list[dict[str, str]]:
    """One legend per kind of weight, with its ends in words."""
    names, scales = _names(shown), drawn_scales(shown)
    bars = []
    for name in names:
        low, high = weight_range(shown, name)
        told = f"the same scale for every image; the weights run from {low:.3g} to {high:.3g}"
        bars.append(
            {
                "name": _scale_name(name, names, shown),
                "low": f"{scales[name][0]:.3g}",
                "high": f"{scales[name][1]:.3g}",
                "image": picture(scale_bar()),
                "note": told + ("" if scales[name] == (low, high) else ": nearly equal, so they choose little"),
            }
        )
    return bars


def drawn(p: Picture, scales: Mapping[str, Range]) -> list[tuple[str, np.ndarray]]:
    """What each view is, and its uint8 pixels: the image, what was rebuilt of it, kept tokens, then the weights."""
    views = [(f"{p.id}, {p.label}" if p.label else p.id, p.image)]
    if p.rebuilt is not None:
        views.append((f"{p.id} as the model rebuilt it", p.rebuilt))
    if p.kept is not None:
        views.append((f"kept tokens of {p.id}", dimmed(p.image, p.kept)))
    views += [(f"token weights {name} of {p.id}", overlay(p.image, w, *scales[name])) for name, w in p.weights.items()]
    return views


def panel(p: Picture, scales: Mapping[str, Range]) -> np.ndarray:
    """All views side by side, uint8 ``(H, W, 3)``, small images magnified by a whole number without smoothing."""
    height = p.image.shape[0]
    times = max(1, _PANEL_SIDE // height)
    columns: list[np.ndarray] = []
    for _, view in drawn(p, scales):
        colour = view if view.ndim == 3 else np.repeat(view[:, :, None], 3, axis=2)
        columns += [np.zeros((height * times, _GAP, 3), np.uint8), colour.repeat(times, axis=0).repeat(times, axis=1)]
    return np.concatenate(columns[1:], axis=1)


def told(shown: Sequence[Picture]) -> str:
    """Sentences that say what is drawn beside the images, and what it does not mean."""
    text = ""
    kept = [float(p.kept.mean()) for p in shown if p.kept is not None]
    if kept:
        shares = f"{100 * min(kept):.0f} to {100 * max(kept):.0f}" if min(kept) < max(kept) else f"{100 * kept[0]:.0f}"
        text += (
            f" Beside each, the tokens that the model kept ({shares} percent of them); the others are darkened, and "
            "behind the cut they reach the answer as one mean at most."
        )
    names = _names(shown)
    if not names:
        return f"{text} This model gives no weight to its tokens, so none are drawn."
    by_score = names == ["token_score"]
    what = "the score by which the tokens were chosen" if by_score else "the weight that the model gave to each token"
    return (
        f"{text} {'Last' if kept else 'Beside each'}, {what}, one flat cell per token. "
        f"{'Scores' if by_score else 'Weights'} say what was passed on, not why the answer was given; {NO_EXPLANATION}."
    )


def _names(shown: Sequence[Picture]) -> list[str]:
    return list(dict.fromkeys(name for p in shown for name in p.weights))


def _scale_name(name: str, names: Sequence[str], shown: Sequence[Picture]) -> str:
    first = next(p.weights[name] for p in shown if name in p.weights)
    part = f"Scale {names.index(name) + 1} of {len(names)}, " if len(names) > 1 else ""
    what = ", score before the choice" if name == "token_score" else ""
    return f"{part}{first.shape[0]} × {first.shape[1]} tokens{what}"
