"""Matplotlib figures as inline SVG: one look, no outside reference, the same bytes every time.

Text stays text (selectable, small, in the page's typeface). Class names and file names reach a figure unchanged, so
nothing in them is read as mathematics, and the page's escaping rules hold: matplotlib escapes markup in text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medloom.reporting.page import visible

if TYPE_CHECKING:
    from markupsafe import Markup

INK = "#1d2a35"
MUTED = "#5f6f7d"
RULE = "#d5dce2"
BLUE = "#1b6ca8"
ORANGE = "#c4560f"
# Okabe and Ito's order, darkened where thin lines need it: told apart by readers with any colour vision.
CYCLE = (BLUE, ORANGE, "#00795c", "#8a5a9e", "#8c7a00", "#4aa3d0", "#6b6b6b", "#b0306a")

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medloom",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "grid.color": "#e7ebef",
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
}


def inline_svg(
    name: str,
    alt: str,
    paint: Callable[[list[Any]], None],
    *,
    size: tuple[float, float],
    panels: tuple[int, int] = (1, 1),
    ratios: tuple[float, ...] | None = None,
    share_x: bool = False,
) -> Markup:
    """Let ``paint`` draw on fresh axes and return the figure as an ``<svg>`` element.

    Args:
        name: prefix of every id inside, unique on its page.
        alt: what the figure shows, for those who do not see it.
        paint: gets the axes, row by row.
        size: width and height in inches; the page shows 10.4 inches across its full measure.
        panels: rows and columns.
        ratios: heights of the rows.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A class name may be in a script that the measuring font lacks; the reader's own font will have it.
        warnings.filterwarnings("ignore", message=".*Glyph.*")
        warnings.filterwarnings("ignore", message=".*Matplotlib currently does not support.*")
        figure = Figure(figsize=size)
        grid = {"height_ratios": ratios} if ratios else None
        axes = figure.subplots(*panels, squeeze=False, gridspec_kw=grid, sharex=share_x)
        paint(list(axes.ravel()))
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _embed(buffer.getvalue(), name, alt)


def colours(count: int) -> list[str]:
    """One colour per class; the last of two is the positive one."""
    return [CYCLE[k % len(CYCLE)] for k in range(count)]


def _embed(svg: str, name: str, alt: str) -> Markup:
    from markupsafe import Markup

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"""font-family: [^;"]*""", "font-family: var(--sans)", svg)
    svg = re.sub(r'(<[^>]*?\s)id="([^"]+)"', rf'\1id="{name}-\2"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    view = re.search(r'viewBox="([^"]+)"', svg)
    box = view.group(1) if view else "0 0 100 100"
    head = Markup('<svg class="figure" viewBox="{}" role="img" aria-label="{}">').format(box, visible(alt))
    return head + Markup(svg[svg.index(">") + 1 :].strip())
