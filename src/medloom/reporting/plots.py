"""The figures of a report. Each takes plain numbers and returns an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medloom.reporting.curves import Bin, Curve
from medloom.reporting.svg import BLUE, INK, MUTED, ORANGE, colours, inline_svg

FULL, HALF = 10.4, 5.1


def counts(counts: dict[str, dict[str, int]], classes: Sequence[str]) -> str:
    """Images per class, one panel per split (figure 3 of the HATR paper)."""
    splits = [s for s in counts if sum(counts[s].values())]
    ink = colours(len(classes))

    def paint(axes: list[Any]) -> None:
        for axis, split in zip(axes, splits):
            values = [int(counts[split].get(c, 0)) for c in classes]
            total = max(sum(values), 1)
            rows = np.arange(len(classes))
            axis.barh(rows, values, color=ink, height=0.62)
            axis.set_title(f"{split or 'no split'}   {sum(values):,}".replace(",", "\u202f"))
            axis.set_xlim(0, max(*values, 1) * 1.42)
            axis.set_yticks(rows, [_short(c) for c in classes] if axis is axes[0] else [""] * len(classes))
            axis.set_ylim(len(classes) - 0.4, -0.6)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
            axis.locator_params(axis="x", nbins=4, integer=True)
            for row, value in enumerate(values):
                text = f"{value:,}".replace(",", "\u202f") + f"  ({100 * value / total:.0f}\u202f%)"
                place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
                axis.annotate(text, (value, row), fontsize=9, color=INK, **place)

    told = "; ".join(f"{s}: " + ", ".join(f"{n} {c}" for c, n in counts[s].items()) for s in splits)
    height = 0.85 + 0.36 * len(classes)
    return inline_svg("counts", f"Images per class. {told}", paint, size=(FULL, height), panels=(1, max(len(splits), 1)))


def training(epochs: Sequence[dict[str, Any]], best: int | None) -> str:
    """Loss, accuracy, validation AUC and learning rate over epochs (figure 5 of the HATR paper)."""
    x = [e["epoch"] for e in epochs]

    def line(axis: Any, key: str, colour: str, label: str, dash: str = "-") -> None:
        points = [(e["epoch"], e[key]) for e in epochs if e.get(key) is not None]
        if points:
            mark = {"marker": "o", "markersize": 2.6} if len(points) <= 60 else {}
            axis.plot(*zip(*points), dash, color=colour, label=label, **mark)

    def paint(axes: list[Any]) -> None:
        loss, accuracy, auc, rate = axes
        for axis, part, title in ((loss, "loss", "Loss"), (accuracy, "accuracy", "Accuracy")):
            line(axis, f"train_{part}", MUTED, "training", "--")
            line(axis, f"val_{part}", BLUE, "validation")
            axis.set_title(title)
            if axis.lines:
                axis.legend(loc="best")
        line(auc, "val_auc", BLUE, "validation")
        auc.set_title("AUC on validation")
        line(rate, "learning_rate", MUTED, "learning rate")
        rate.set_title("Learning rate")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rate.set_ylim(bottom=0)
        for axis in axes:
            axis.locator_params(axis="x", nbins=8, integer=True)
            axis.set_xlim(min(x) - 0.4, max(x) + 0.4)
            if best is not None:
                axis.axvline(best, color=ORANGE, linewidth=1, zorder=0.6)
        for axis in axes[2:]:
            axis.set_xlabel("epoch")
        if best is not None:
            auc.annotate(
                f"kept: epoch {best}",
                (best, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if best > np.mean(x) else 4, 0),
                textcoords="offset points",
                ha="right" if best > np.mean(x) else "left",
                color=ORANGE,
                fontsize=9,
            )

    return inline_svg(
        "training", "Loss, accuracy, AUC and learning rate per epoch", paint, size=(FULL, 5.4), panels=(2, 2)
    )


def curve_panels(name: str, panels: Sequence[dict[str, Any]]) -> str:
    """ROC (``kind: roc``) or precision-recall (``kind: pr``) panels.

    Each panel: ``kind``, ``title``, ``curve``, and optionally ``reference`` (curve of validation), ``point`` (x, y of
    the operating point) and ``chance`` (share of positives, for precision-recall).
    """
    columns = 2 if len(panels) <= 2 else 4
    rows = -(-len(panels) // columns)
    side = FULL / columns

    def paint(axes: list[Any]) -> None:
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes, panels):
            curve: Curve | None = panel["curve"]
            roc = panel["kind"] == "roc"
            axis.set_title(_short(panel["title"], 40))
            axis.set_xlim(-0.01, 1.01)
            axis.set_ylim(-0.01, 1.015)
            axis.set_aspect("equal")
            axis.set_xlabel("1 − specificity" if roc else "sensitivity (recall)")
            axis.set_ylabel("sensitivity" if roc else "precision (PPV)")
            axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], minor=False)
            axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], minor=False)
            if curve is None:
                axis.text(0.5, 0.5, "not estimable:\none class only", ha="center", va="center", color=MUTED)
                continue
            chance = ([0, 1], [0, 1]) if roc else ([0, 1], [panel["chance"]] * 2)
            axis.plot(*chance, ":", color=MUTED, linewidth=1.1, label="no skill")
            axis.fill_between(curve.x_G, curve.low_G, curve.high_G, color=BLUE, alpha=0.17, linewidth=0)
            if panel.get("reference") is not None:
                reference: Curve = panel["reference"]
                axis.plot(reference.x_G, reference.y_G, "--", color=MUTED, linewidth=1.1, label="validation")
            axis.plot(curve.x_G, curve.y_G, color=BLUE, label=f"test, with {panel['confidence']:.0%} band")
            if panel.get("point") is not None:
                axis.plot(*panel["point"], "o", color=ORANGE, markersize=6, label="operating point", zorder=5)
            if len(panels) <= 2:
                axis.legend(loc="lower right" if roc else "lower left")

    kind = {"roc": "ROC", "pr": "precision-recall"}
    alt = "; ".join(f"{kind[p['kind']]} curve, {p['title']}" for p in panels)
    return inline_svg(name, alt, paint, size=(FULL, rows * side * 0.93), panels=(rows, columns))


def reliability(before: Sequence[Bin], after: Sequence[Bin], what: str) -> str:
    """Observed share over forecast, before and after calibration."""

    def paint(axes: list[Any]) -> None:
        axis = axes[0]
        axis.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1.1, label="perfect")
        for bins, colour, mark, label in ((before, MUTED, "s", "before"), (after, BLUE, "o", "after calibration")):
            if bins:
                x, y = [b.forecast for b in bins], [b.observed for b in bins]
                low = [max(0.0, b.observed - b.low) for b in bins]
                high = [max(0.0, b.high - b.observed) for b in bins]
                axis.errorbar(x, y, (low, high), fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.55)
                axis.plot(x, y, marker=mark, markersize=4.2, color=colour, linewidth=1.3, label=label)
        axis.set_xlim(-0.01, 1.01)
        axis.set_ylim(-0.01, 1.015)
        axis.set_aspect("equal")
        axis.set_xlabel(what)
        axis.set_ylabel("observed share")
        axis.set_title("Reliability")
        axis.legend(loc="upper left")

    return inline_svg("reliability", "Reliability diagram before and after calibration", paint, size=(HALF, 4.75))


def scores(values: dict[str, np.ndarray], thresholds: Sequence[float], what: str) -> str:
    """Histogram of the positive class's score: the last group upwards, the others downwards."""
    names = list(values)
    edges = np.linspace(0, 1, 41)
    ink = colours(len(names))

    def paint(axes: list[Any]) -> None:
        axis = axes[0]
        for k, name in enumerate(names):
            height, _ = np.histogram(values[name], edges)
            sign = 1 if k == len(names) - 1 else -1
            axis.bar(edges[:-1], sign * height, np.diff(edges), align="edge", color=ink[k], label=_short(name), alpha=0.9)
        axis.axhline(0, color=INK, linewidth=0.8)
        for threshold in thresholds:
            axis.axvline(threshold, color=INK, linewidth=1.1, linestyle="--", label=f"threshold {threshold:.3f}")
        axis.yaxis.set_major_formatter(lambda v, _: f"{abs(v):.0f}")
        axis.locator_params(axis="y", integer=True)
        axis.set_xlim(-0.01, 1.01)
        axis.margins(y=0.14)
        axis.set_xlabel(what)
        axis.set_ylabel("images")
        axis.set_title("Scores of the test images")
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[::-1], labels[::-1], loc="upper center")

    alt = "Scores of " + " and ".join(f"{len(values[n])} images of {n}" for n in names)
    return inline_svg("scores", alt, paint, size=(HALF, 4.75))


def prevalence(rows: Sequence[dict[str, Any]]) -> str:
    """PPV and NPV over prevalence with intervals; each row ``prevalence``, ``ppv`` and ``npv`` entries."""

    def paint(axes: list[Any]) -> None:
        axis = axes[0]
        x = [r["prevalence"] for r in rows]
        for key, colour, mark in (("ppv", ORANGE, "o"), ("npv", BLUE, "s")):
            entries = [r[key] for r in rows]
            if all(e.get("value") is not None for e in entries):
                axis.plot(x, [e["value"] for e in entries], marker=mark, markersize=4, color=colour, label=key.upper())
            if all(e.get("low") is not None for e in entries):
                band = ([e["low"] for e in entries], [e["high"] for e in entries])
                axis.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)
        axis.set_xscale("logit")
        axis.set_xticks(x, [f"{100 * v:g} %" for v in x])
        axis.minorticks_off()
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("prevalence")
        axis.set_title("Predictive values")
        axis.legend(loc="best")

    return inline_svg("prevalence", "Predictive values over prevalence", paint, size=(HALF, 3.2))


def _short(text: str, limit: int = 28) -> str:
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return visible if len(visible) <= limit else visible[: limit - 1] + "…"
