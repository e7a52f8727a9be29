"""The figures of a leaderboard: intervals as a forest plot, and quality against latency with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.reporting.leaderboard import latency
from medloom.reporting.plots import FULL
from medloom.reporting.svg import BLUE, INK, MUTED, ORANGE, RULE, inline_svg

if TYPE_CHECKING:
    from markupsafe import Markup

_PLACES = (
    *(
        ((7, 0), "left", "center"),
        ((-7, 0), "right", "center"),
        ((0, 8), "center", "bottom"),
        ((0, -8), "center", "top"),
    ),
    *(((7, 9), "left", "bottom"), ((7, -9), "left", "top"), ((-7, 9), "right", "bottom"), ((-7, -9), "right", "top")),
)

MOST_NAMED = 12


def forest(rows: Sequence[Mapping[str, Any]], baseline: str, name: str) -> Markup | None:
    """AUC of each row with its interval, a dot per seed, and the baseline's value as a line down the page."""
    shown = [r for r in rows if r["auc"]["mean"] is not None]
    if not shown:
        return None
    chance = [r["auc"]["entry"] for r in shown]
    ends = [v for r, e in zip(shown, chance) for v in (e["low"], e["high"], *r["auc"]["values"]) if v is not None]
    low, high = min(ends), max(ends)
    room = max(0.04 * (high - low), 0.002)

    def paint(axes: list[Any]) -> None:
        axis = axes[0]
        for k, row in enumerate(shown):
            found, base = row["auc"]["entry"], row["label"] == baseline
            ink = ORANGE if base else BLUE
            if found["low"] is not None:
                axis.plot([found["low"], found["high"]], [k, k], color=ink, linewidth=5, alpha=0.38)
            axis.plot([found["value"]], [k], "|", color=ink, markersize=13, markeredgewidth=2.2)
            if len(row["auc"]["values"]) > 1:
                axis.plot(row["auc"]["values"], [k] * len(row["auc"]["values"]), ".", color=INK, markersize=4)
            if base:
                axis.axvline(found["value"], color=ORANGE, linewidth=1, linestyle=":", zorder=0.6)
        axis.set_yticks(np.arange(len(shown)), [_short(r["label"]) for r in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xlim(low - room, min(high + room, 1.005) if high <= 1 else high + room)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel(name)

    told = "; ".join(f"{r['label']} {r['auc']['mean']:.3f}" for r in shown)
    return inline_svg("forest", f"{name} with intervals: {told}", paint, size=(FULL, 1.0 + 0.33 * len(shown)))


def numbered(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are too many rows for each point to bear its name."""
    return len(rows) > MOST_NAMED


def trade(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Markup | None:
    """AUC and accuracy against the time of one image; rows that none beats in both are joined.

    Where rows are ``numbered`` only these bear their names, the others their position among ``rows``, from 1 on.
    """
    places = {k: r for k, r in enumerate(rows, start=1) if latency(r) is not None and r["auc"]["mean"] is not None}
    shown = list(places.values())
    if not shown:
        return None

    def paint(axes: list[Any]) -> None:
        drawn = []
        for axis, metric in zip(axes, ("auc", "accuracy")):
            x = np.array([latency(r) for r in shown], dtype=float)
            y = np.array([r[metric]["mean"] for r in shown], dtype=float)
            front = _front(x, y)
            drawn.append((axis, x, y, front))
            axis.set_xscale("log")
            axis.plot(x[front], y[front], color=ORANGE, linewidth=1.2, alpha=0.8, zorder=1.5)
            for k in range(len(shown)):
                axis.plot(x[k], y[k], "o", color=ORANGE if k in front else BLUE, markersize=6, zorder=3)
            axis.set_xlim(x.min() / 1.7, x.max() * 1.7)
            span = max(float(np.ptp(y)), 0.01)
            axis.set_ylim(y.min() - 0.18 * span, y.max() + 0.18 * span)
            axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
            axis.xaxis.set_minor_formatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "25" else "")
            axis.tick_params(axis="x", which="minor", length=2, colors=MUTED, labelcolor=INK)
            axis.grid(visible=True, which="minor", axis="x", color=RULE, linewidth=0.3)
            axis.set_xlabel("ms for one image")
            axis.set_title(names[metric])
        for axis, x, y, front in drawn:  # names last: they look for room that is left
            texts = [
                str(place) if numbered(rows) and k not in front else _short(row["label"], 26)
                for k, (place, row) in enumerate(places.items())
            ]
            # The longest first: a number finds a place anywhere.
            _name(axis, sorted(zip(x, y, texts), key=lambda point: -len(point[2])))

    told = "; ".join(f"{r['label']} {latency(r):.3g} ms, {r['auc']['mean']:.3f}" for r in shown)
    return inline_svg("trade", f"Quality against latency: {told}", paint, size=(FULL, 4.6), panels=(1, 2))


def _front(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Positions of the points that no other beats, from the fastest on."""
    order = sorted(range(len(x)), key=lambda k: (x[k], -y[k]))
    best, out = -np.inf, []
    for k in order:
        if y[k] > best:
            out.append(k)
            best = y[k]
    return out


def _name(axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name where it covers no other name or point, trying eight places around its point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axis.get_figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # settles the layout, or the places below would be those of another one
    frame = axis.get_window_extent(renderer)
    dots = [axis.transData.transform((x, y)) for x, y, _ in points]
    taken: list[Any] = []
    for x, y, text in points:
        best, least = None, np.inf
        for offset, across, up in _PLACES:
            label = axis.annotate(
                text, (x, y), xytext=offset, textcoords="offset points", ha=across, va=up, fontsize=8.5, color=INK
            )
            label.set_in_layout(False)
            box = label.get_window_extent(renderer)
            hits = sum(box.overlaps(other) for other in taken) + sum(box.contains(*dot) for dot in dots)
            hits += 3 * (box.x0 < frame.x0 - 4 or box.x1 > frame.x1 + 12)
            if hits < least:
                if best is not None:
                    best.remove()
                best, least = label, hits
            else:
                label.remove()
            if least == 0:
                break
        if best is not None:
            taken.append(best.get_window_extent(renderer))


def _short(text: str, limit: int = 34) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
