"""Figures of a run with many labels: small multiples, one panel per label, five to a row, read across and down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.reporting.page import visible
from medloom.reporting.svg import BLUE, INK, MUTED, ORANGE, inline_svg

if TYPE_CHECKING:
    from markupsafe import Markup

COLUMNS, WIDTH, ROW = 5, 10.4, 2.25
_HALVES = [0, 0.5, 1]
_FAR = 8.0


def curve_grid(name: str, panels: Sequence[dict[str, Any]]) -> Markup:
    """ROC or precision-recall curves of all labels that can be judged.

    Each panel: ``kind`` (``roc`` or ``pr``), ``label``, ``value`` (text beside the title), ``curve`` and ``reference``
    ({x, y, low, high, chance} of metrics.json; the second of validation, or None), ``point`` (x, y, or None).
    """

    def paint(axis: Any, panel: dict[str, Any]) -> None:
        curve, roc = panel["curve"], panel["kind"] == "roc"
        chance = ([0, 1], [0, 1]) if roc else ([0, 1], [curve["chance"]] * 2)
        axis.plot(*chance, ":", color=MUTED, linewidth=1)
        x, y, low, high = (_numbers(curve[key]) for key in ("x", "y", "low", "high"))
        axis.fill_between(x, low, high, color=BLUE, alpha=0.17, linewidth=0)
        if panel["reference"] is not None:
            other = panel["reference"]
            axis.plot(_numbers(other["x"]), _numbers(other["y"]), "--", color=MUTED, linewidth=0.9)
        start = [0.0] if roc else []
        axis.plot([*start, *x], [*start, *y], color=BLUE, linewidth=1.5)
        if panel["point"] is not None:
            axis.plot(*panel["point"], "o", color=ORANGE, markersize=4.5, zorder=5)
        axis.set_xlim(-0.01, 1.01)
        axis.set_ylim(-0.01, 1.02)
        axis.set_xticks(_HALVES)
        axis.set_yticks(_HALVES)

    roc = bool(panels) and panels[0]["kind"] == "roc"
    told = "; ".join(f"{p['label']} {p['value']}" for p in panels)
    alt = f"{'ROC' if roc else 'Precision-recall'} curves of the labels: {told}"
    x, y = ("1 − specificity", "sensitivity") if roc else ("sensitivity (recall)", "precision (PPV)")
    return _grid(name, alt, panels, paint, x, y)


def reliability_grid(panels: Sequence[dict[str, Any]]) -> Markup:
    """Observed share over forecast; each panel ``label``, ``value``, ``before`` and ``after`` (reliability rows).

    Each panel has the scale of its own label: probabilities of rare findings would all lie in one corner.
    """

    def paint(axis: Any, panel: dict[str, Any]) -> None:
        after = panel["after"]
        highest = max((max(b["mean_probability"], b["observed"]) for b in after), default=1.0)
        end = next(limit for limit in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if highest <= limit or limit == 1.0)
        axis.plot([0, end], [0, end], ":", color=MUTED, linewidth=1)
        for key, colour, mark in (("before", MUTED, "s"), ("after", BLUE, "o")):
            bins = panel[key] or []
            x, y = [b["mean_probability"] for b in bins], [b["observed"] for b in bins]
            if key == "after":
                low = [max(0.0, b["observed"] - b["low"]) for b in bins]
                high = [max(0.0, b["high"] - b["observed"]) for b in bins]
                axis.errorbar(x, y, (low, high), fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.5)
            axis.plot(x, y, marker=mark, markersize=3, color=colour, linewidth=1)
        axis.set_xlim(-0.02 * end, end * 1.02)
        axis.set_ylim(-0.02 * end, end * 1.02)
        axis.set_xticks([0, end / 2, end])
        axis.set_yticks([0, end / 2, end])
        axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")

    return _grid("reliability", "Reliability of each label", panels, paint, "probability", "observed share")


def score_grid(panels: Sequence[dict[str, Any]]) -> Markup:
    """Where the scores of images with and without each finding lie; each bar is a share of its own side.

    Each panel: ``label``, ``value``, ``threshold`` (or None), ``with`` and ``without`` (arrays of probabilities).
    """
    edges = np.linspace(-_FAR, _FAR, 41)

    def paint(axis: Any, panel: dict[str, Any]) -> None:
        for values, sign, colour in ((panel["with"], 1, ORANGE), (panel["without"], -1, BLUE)):
            height, _ = np.histogram(_log_odds(values), edges)
            share = sign * height / max(len(values), 1)
            axis.bar(edges[:-1], share, np.diff(edges), align="edge", color=colour, alpha=0.9)
        axis.axhline(0, color=INK, linewidth=0.7)
        if panel["threshold"] is not None:
            at = float(_log_odds(np.array([panel["threshold"]]))[0])
            axis.axvline(at, color=INK, linewidth=1, linestyle="--")
        axis.set_xticks(_log_odds(np.array([0.01, 0.5, 0.99])), ["0.01", "0.5", "0.99"])
        axis.set_xlim(-_FAR, _FAR)
        axis.yaxis.set_major_formatter(lambda v, _: f"{100 * abs(v):.0f}\u202f%")
        axis.locator_params(axis="y", nbins=4)
        axis.margins(y=0.15)

    alt = "Histograms of scores of each label, upwards images with the finding, downwards those without"
    return _grid("scores", alt, panels, paint, "probability", "share of images")


def _grid(
    name: str,
    alt: str,
    panels: Sequence[dict[str, Any]],
    paint: Callable[[Any, dict[str, Any]], None],
    x_label: str,
    y_label: str,
) -> Markup:
    """Panels with their label as title and a figure on the right; axes are named at the left and below alone."""
    rows = -(-len(panels) // COLUMNS)

    def draw(axes: list[Any]) -> None:
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for k, (axis, panel) in enumerate(zip(axes, panels)):
            paint(axis, panel)
            axis.set_title(_fitting(panel["label"], panel["value"]), fontsize=9, pad=5)
            if panel["value"]:
                axis.set_title(panel["value"], fontsize=9, loc="right", color=MUTED, pad=5)
            axis.tick_params(labelsize=8)
            if k % COLUMNS == 0:
                axis.set_ylabel(y_label, fontsize=8.5)
            if k + COLUMNS >= len(panels):
                axis.set_xlabel(x_label, fontsize=8.5)

    return inline_svg(name, alt, draw, size=(WIDTH, ROW * rows + 0.2), panels=(rows, COLUMNS))


def _fitting(label: str, value: str) -> str:
    """As much of a label as its panel holds beside the figure on the right."""
    line, room = visible(label.replace("_", " ")), 24 - len(value)
    return line if len(line) <= room else line[: room - 1] + "…"


def _log_odds(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability, 1e-9, 1 - 1e-9)
    return np.clip(np.log(p) - np.log1p(-p), -_FAR, _FAR)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)
