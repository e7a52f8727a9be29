"""The figures of a report about masks. Each takes plain numbers and returns an inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.evaluation.case_table import CaseTable
from medloom.reporting.page import visible
from medloom.reporting.svg import BLUE, CYCLE, INK, MUTED, ORANGE, colours, inline_svg

if TYPE_CHECKING:
    from markupsafe import Markup

FULL = 10.4
_LINES = (("val_dice", BLUE, "validation", "-"), ("train_dice", MUTED, "training", "--"))


def distribution(table: CaseTable, trivial: Mapping[str, float | None]) -> Markup:
    """Dice and distance of every case, one row per structure: box of the quartiles, and a point per case by site.

    Args:
        trivial: structure to the mean Dice of the trivial answer.
    """
    sites = sorted({s for s in table.sites if s is not None})
    known = 1 < len(sites) <= len(CYCLE)
    ink = dict(zip(sites, colours(len(sites)))) if known else {}
    point = np.array([ink.get(str(s), BLUE) for s in table.sites])
    rows = len(table.structures)
    # The same places for equal tables: a spread that is drawn at random would change the page's bytes.
    offset = (np.arange(len(table)) * 0.618034 % 1 - 0.5) * 0.52

    def paint(axes: list[Any]) -> None:
        for axis, measure, title in (
            (axes[0], "dice", "Dice"),
            (axes[1], "hd95", f"HD95, {table.distance_unit}"),
        ):
            for k, name in enumerate(table.structures):
                values = table.values[measure][:, k]
                there = np.isfinite(values)
                if not there.any():
                    continue
                axis.scatter(values[there], k + offset[there], s=9, c=point[there], alpha=0.6, linewidths=0, zorder=2)
                _box(axis, values[there], k)
                if measure == "dice" and trivial.get(name) is not None:
                    axis.plot(trivial[name], k, "D", mfc="white", mec=ORANGE, markersize=6, zorder=5)
            axis.set_title(title)
            names = [_short(n) for n in table.structures] if axis is axes[0] else [""] * rows
            axis.set_yticks(np.arange(rows), names)
            axis.set_ylim(rows - 0.45, -0.55)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        axes[0].set_xlim(right=1.005)
        far = table.values["hd95"][np.isfinite(table.values["hd95"])]
        if len(far) and far.max() > 8 * max(float(np.percentile(far, 75)), 1.0):
            # What was missed lies a diagonal away, and would press all others into the first millimetres.
            axes[1].set_xscale("symlog", linthresh=1.0)
            axes[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes[1].set_xlim(0, 1.15 * float(far.max()) if len(far) and far.max() > 0 else 1.0)
        if known:
            for site in sites:
                axes[1].scatter([], [], s=16, c=ink[site], label=_short(site))
            axes[1].legend(loc="best")

    told = f"Dice and HD95 of {len(table)} cases, per structure"
    return inline_svg("distribution", told, paint, size=(FULL, max(2.2, 1.0 + 0.85 * rows)), panels=(1, 2))


def sizes(table: CaseTable) -> Markup:
    """Size answered over true size, one panel per structure; on the line both agree."""
    shown = table.structures[:8]
    columns = 4
    rows = -(-len(shown) // columns)

    def paint(axes: list[Any]) -> None:
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        for k, (axis, name) in enumerate(zip(axes, shown)):
            truth, answer = (table.values[f"size_{w}"][:, k] for w in ("truth", "answer"))
            end = 1.05 * float(max(truth.max(), answer.max(), 1e-9))
            axis.plot([0, end], [0, end], ":", color=MUTED, linewidth=1.1)
            axis.scatter(truth, answer, s=11, color=BLUE, alpha=0.6, linewidths=0)
            axis.set_xlim(-0.03 * end, end)
            axis.set_ylim(-0.03 * end, end)
            axis.set_aspect("equal")
            axis.locator_params(nbins=5)
            axis.set_title(_short(name))
            axis.set_xlabel(f"truth, {table.size_unit}")
            if k % columns == 0:
                axis.set_ylabel(f"answer, {table.size_unit}")

    return inline_svg(
        "sizes",
        "Size answered over true size",
        paint,
        size=(FULL, rows * FULL / columns * 0.98),
        panels=(rows, columns),
    )


def training(epochs: Sequence[Mapping[str, Any]], best: int | None) -> Markup:
    """Loss, Dice and learning rate over epochs."""
    x = [e["epoch"] for e in epochs]

    def line(axis: Any, key: str, colour: str, label: str, dash: str) -> None:
        points = [(e["epoch"], e[key]) for e in epochs if e.get(key) is not None]
        if points:
            mark = {"marker": "o", "markersize": 2.6} if len(points) <= 60 else {}
            axis.plot(*zip(*points), dash, color=colour, label=label, **mark)

    def paint(axes: list[Any]) -> None:
        loss, dice, rate = axes
        line(loss, "train_loss", MUTED, "training", "--")
        line(loss, "val_loss", BLUE, "validation", "-")
        loss.set_title("Loss")
        for key, colour, label, dash in _LINES:
            line(dice, key, colour, label, dash)
        dice.set_title("Dice")
        line(rate, "learning_rate", MUTED, "learning rate", "-")
        rate.set_title("Learning rate")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rate.set_ylim(bottom=0)
        for axis in axes:
            axis.locator_params(axis="x", nbins=6, integer=True)
            axis.set_xlim(min(x) - 0.4, max(x) + 0.4)
            axis.set_xlabel("epoch")
            if best is not None:
                axis.axvline(best, color=ORANGE, linewidth=1, zorder=0.6)
        for axis in (loss, dice):
            if axis.get_legend_handles_labels()[0]:
                axis.legend(loc="best")
        if best is not None:
            left = best > np.mean(x)
            dice.annotate(
                f"kept: epoch {best}",
                (best, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if left else 4, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                color=ORANGE,
                fontsize=9,
            )

    told = "Loss, Dice and learning rate per epoch"
    return inline_svg("training", told, paint, size=(FULL, 3.0), panels=(1, 3))


def _box(axis: Any, values: np.ndarray, row: float) -> None:
    """Quartiles, median, and whiskers to the last value within one and a half boxes."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (high - low)
    ends = values[values >= low - reach].min(), values[values <= high + reach].max()
    axis.plot([ends[0], low], [row, row], color=INK, linewidth=1, zorder=3)
    axis.plot([high, ends[1]], [row, row], color=INK, linewidth=1, zorder=3)
    box = {"height": 0.34, "left": low, "facecolor": "none", "edgecolor": INK, "linewidth": 1, "zorder": 3}
    axis.barh(row, high - low, **box)
    axis.plot([middle, middle], [row - 0.17, row + 0.17], color=INK, linewidth=2, zorder=4)


def _short(text: str, limit: int = 28) -> str:
    line = visible(text)
    return line if len(line) <= limit else line[: limit - 1] + "…"
