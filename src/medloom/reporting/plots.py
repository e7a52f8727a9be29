"""The figures of a report. Each takes plain numbers and returns an inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medloom.reporting.page import visible
from medloom.reporting.svg import BLUE, CYCLE, INK, MUTED, ORANGE, colours, inline_svg

if TYPE_CHECKING:
    from markupsafe import Markup

FULL, HALF = 10.4, 5.1
_FAR = 8.0  # log odds of 0.99966, beyond which all scores share the last bar
TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1]


def counts(counts: dict[str, dict[str, int]], classes: Sequence[str], images: dict[str, int] | None = None) -> Markup:
    """Images per class, one panel per split (figure 3 of the HATR paper).

    Args:
        images: images per split, where an image may be of several classes or of none.
    """
    splits = [s for s in counts if sum(counts[s].values())]
    # Beyond the colours that can be told apart they would only repeat.
    ink = colours(len(classes)) if len(classes) <= len(CYCLE) else [BLUE] * len(classes)

    def paint(axes: list[Any]) -> None:
        for axis, split in zip(axes, splits):
            values = [int(counts[split].get(c, 0)) for c in classes]
            total = max((images or {}).get(split, sum(values)), 1)
            rows = np.arange(len(classes))
            axis.barh(rows, values, color=ink, height=0.62)
            axis.set_title(f"{split or 'no split'}   {total:,}".replace(",", "\u202f"))
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
    return inline_svg(
        "counts", f"Images per class. {told}", paint, size=(FULL, height), panels=(1, max(len(splits), 1))
    )


def training(epochs: Sequence[dict[str, Any]], best: int | None) -> Markup:
    """Loss, accuracy, validation AUC and learning rate over epochs (figure 5 of the HATR paper).

    Of a model that rebuilds its input also the error of that.
    """
    rebuilt = any(e.get("reconstruction") is not None for e in epochs)
    x = [e["epoch"] for e in epochs]

    def line(axis: Any, key: str, colour: str, label: str, dash: str = "-") -> None:
        points = [(e["epoch"], e[key]) for e in epochs if e.get(key) is not None]
        if points:
            mark = {"marker": "o", "markersize": 2.6} if len(points) <= 60 else {}
            axis.plot(*zip(*points), dash, color=colour, label=label, **mark)

    def paint(axes: list[Any]) -> None:
        loss, accuracy, auc, rate = axes[:4]
        for axis, part, title in ((loss, "loss", "Loss"), (accuracy, "accuracy", "Accuracy")):
            line(axis, f"train_{part}", MUTED, "training", "--")
            line(axis, f"val_{part}", BLUE, "validation")
            axis.set_title(title)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(loc="best")
        line(auc, "val_auc", BLUE, "validation")
        auc.set_title("AUC on validation")
        line(rate, "learning_rate", MUTED, "learning rate")
        rate.set_title("Learning rate")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rate.set_ylim(bottom=0)
        if rebuilt:
            line(axes[4], "reconstruction", MUTED, "training", "--")
            axes[4].set_title("Reconstruction error")
            axes[4].set_ylim(bottom=0)
            axes[5].set_visible(False)
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

    told = "Loss, accuracy, AUC and learning rate per epoch" + (", and reconstruction error" if rebuilt else "")
    return inline_svg("training", told, paint, size=(FULL, 5.4), panels=(2, 3 if rebuilt else 2))


def curve_panels(name: str, panels: Sequence[dict[str, Any]], confidence: float) -> Markup:
    """ROC and precision-recall curves with their bands.

    Each panel: ``kind`` (``roc`` or ``pr``), ``title``, ``curve`` ({x, y, low, high, chance} of metrics.json, or None),
    ``reference`` (the same of validation, or None) and ``point`` (x, y of the operating point, or None).
    """
    columns = 2 if len(panels) <= 2 else 4
    rows = -(-len(panels) // columns)

    def paint(axes: list[Any]) -> None:
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes, panels):
            _curve(axis, panel, confidence)
            if len(panels) <= 2 and panel["curve"] is not None:
                axis.legend(loc="lower right" if panel["kind"] == "roc" else "lower left")

    kind = {"roc": "ROC", "pr": "Precision-recall"}
    alt = "; ".join(f"{kind[p['kind']]} curve, {p['title']}" for p in panels)
    return inline_svg(name, alt, paint, size=(FULL, rows * FULL / columns * 0.93), panels=(rows, columns))


def _curve(axis: Any, panel: dict[str, Any], confidence: float) -> None:
    curve, roc = panel["curve"], panel["kind"] == "roc"
    axis.set_title(_short(panel["title"], 40))
    _unit_square(axis)
    axis.set_xlabel("1 − specificity" if roc else "sensitivity (recall)")
    axis.set_ylabel("sensitivity" if roc else "precision (PPV)")
    if curve is None:
        axis.text(0.5, 0.5, "not estimable", ha="center", va="center", color=MUTED)
        return
    chance = ([0, 1], [0, 1]) if roc else ([0, 1], [curve["chance"]] * 2)
    axis.plot(*chance, ":", color=MUTED, linewidth=1.1, label="no skill")
    x, y, low, high = (_numbers(curve[key]) for key in ("x", "y", "low", "high"))
    axis.fill_between(x, low, high, color=BLUE, alpha=0.17, linewidth=0)
    reference = panel["reference"]
    if reference is not None:
        axis.plot(
            _numbers(reference["x"]), _numbers(reference["y"]), "--", color=MUTED, linewidth=1.1, label="validation"
        )
    # The grid's first point stands above the origin when some positives outscore every negative.
    start = [0.0] if roc else []
    axis.plot([*start, *x], [*start, *y], color=BLUE, label=f"test, with {100 * confidence:g}\u202f% band")
    if panel["point"] is not None:
        axis.plot(*panel["point"], "o", color=ORANGE, markersize=6, label="operating point", zorder=5)


def reliability(panels: Sequence[dict[str, Any]]) -> Markup:
    """Observed share over forecast; each panel ``title``, ``x``, ``before`` and ``after`` (reliability rows)."""

    def paint(axes: list[Any]) -> None:
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes, panels):
            axis.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1.1, label="perfect")
            for key, colour, mark in (("before", MUTED, "s"), ("after", BLUE, "o")):
                bins = panel[key]
                if not bins:
                    continue
                x, y = [b["mean_probability"] for b in bins], [b["observed"] for b in bins]
                low = [max(0.0, b["observed"] - b["low"]) for b in bins]
                high = [max(0.0, b["high"] - b["observed"]) for b in bins]
                axis.errorbar(x, y, (low, high), fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.55)
                label = f"{key} calibration"
                axis.plot(x, y, marker=mark, markersize=4.2, color=colour, linewidth=1.3, label=label)
            _unit_square(axis)
            axis.set_xlabel(_short(panel["x"], 44))
            axis.set_ylabel("observed share")
            axis.set_title(_short(panel["title"], 40))
        axes[0].legend(loc="upper left")

    return _half_panels("reliability", "Reliability before and after calibration", paint, len(panels))


def scores(panels: Sequence[dict[str, Any]]) -> Markup:
    """Histograms over log odds; panels: ``title``, ``x``, ``threshold`` and ``values`` (last group upwards)."""
    # Probabilities pile up at both ends; log odds spread them, and the ticks still read as probabilities.
    edges = np.linspace(-_FAR, _FAR, 49)
    shown = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)

    def paint(axes: list[Any]) -> None:
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes, panels):
            for k, (name, values) in enumerate(panel["values"].items()):
                height, _ = np.histogram(_log_odds(values), edges)
                up = k == len(panel["values"]) - 1
                sign, colour = (1, ORANGE) if up else (-1, BLUE)
                label = _short(name)
                axis.bar(edges[:-1], sign * height, np.diff(edges), align="edge", color=colour, label=label, alpha=0.9)
            axis.axhline(0, color=INK, linewidth=0.8)
            if panel["threshold"] is not None:
                label = f"threshold {panel['threshold']:.3f}"
                at = float(_log_odds(np.array([panel["threshold"]]))[0])
                axis.axvline(at, color=INK, linewidth=1.1, linestyle="--", label=label)
            axis.yaxis.set_major_formatter(lambda v, _: f"{abs(v):.0f}")
            axis.locator_params(axis="y", integer=True)
            ticks = shown if len(panels) == 1 else shown[1::2]
            axis.set_xticks(_log_odds(np.array(ticks)), [f"{v:g}" for v in ticks])
            axis.set_xlim(-_FAR * 1.02, _FAR * 1.02)
            axis.margins(y=0.2)
            axis.set_xlabel(_short(panel["x"], 44))
            axis.set_ylabel("images")
            axis.set_title(_short(panel["title"], 40))
            if len(panels) == 1:
                handles, labels = axis.get_legend_handles_labels()
                axis.legend(handles[::-1], labels[::-1], loc="upper left")

    return _half_panels("scores", "Histograms of scores, upwards the positive ones", paint, len(panels))


def prevalence(rows: Sequence[dict[str, Any]]) -> Markup:
    """PPV and NPV over prevalence with intervals; rows of ``predictive_values`` in metrics.json."""

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


def _unit_square(axis: Any) -> None:
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.015)
    axis.set_xticks(TICKS)
    axis.set_yticks(TICKS)
    axis.set_aspect("equal")


def _half_panels(name: str, alt: str, paint: Callable[[list[Any]], None], count: int) -> Markup:
    """One panel at half the page's width, more in rows of four across the page."""
    if count == 1:
        return inline_svg(name, alt, paint, size=(HALF, 4.75))
    rows = -(-count // 4)
    return inline_svg(name, alt, paint, size=(FULL, 2.75 * rows), panels=(rows, 4))


def _log_odds(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability, 1e-9, 1 - 1e-9)
    return np.clip(np.log(p) - np.log1p(-p), -_FAR, _FAR)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _short(text: str, limit: int = 28) -> str:
    line = visible(text)
    return line if len(line) <= limit else line[: limit - 1] + "…"
