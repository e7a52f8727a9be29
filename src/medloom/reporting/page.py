"""From values to one HTML file: everything inline, everything escaped, numbers that carry where they come from."""

from __future__ import annotations

import base64
import functools
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# Shown as per cent, as clinicians read them; the others as decimals.
PERCENT = frozenset(
    {
        "accuracy",
        "balanced_accuracy",
        "precision",
        "recall",
        "f1",
        "sensitivity",
        "specificity",
        "ppv",
        "npv",
        "exact_match",
        "prevalence",
        "size_error_relative",
    }
)


def render(template: str, **values: Any) -> str:
    """Fill ``templates/<template>``. Undefined names are errors, so that no figure can vanish unseen."""
    return _environment().get_template(template).render(**values)


def visible(text: str) -> str:
    """Text on one line: control, bidirectional and other unprintable characters are written out, not obeyed."""
    return "".join(c if c.isprintable() or c in "\u00a0\u202f" else _escape(c) for c in text)


def picture(pixels: np.ndarray) -> str:
    """``(H, W)`` or ``(H, W, 3)`` uint8 as a ``data:`` address (JPEG, no loss of colour resolution)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def is_percent(name: str) -> bool:
    """Whether a metric of this name (``recall``, ``sensitivity`` ...) is shown as per cent."""
    return name in PERCENT


def number(value: float | None, name: str = "") -> str:
    """A value as the page writes it: ``96.0 %`` for shares, three decimals otherwise, a dash where there is none."""
    if value is None:
        return "–"
    if is_percent(name):
        return f"{100 * value:.1f}\u202f%"
    return _decimal(value)


def interval(entry: dict[str, Any], name: str = "") -> str:
    """``95.1–97.3 %``; empty where no interval was recorded."""
    low, high = entry.get("low"), entry.get("high")
    if low is None or high is None:
        return ""
    if is_percent(name):
        return f"{100 * low:.1f}–{100 * high:.1f}\u202f%"
    # A dash between negative numbers reads as a sign.
    return f"{_decimal(low)} to {_decimal(high)}" if low < 0 else f"{low:.3f}–{high:.3f}"


def figure(entry: dict[str, Any] | None, name: str, path: str) -> Markup:
    """A recorded number, readable by people (rounded) and by programs (exact, with its place).

    Args:
        path: in metrics.json, or ``folds.json: ...``.
    """
    from markupsafe import Markup

    if not entry or entry.get("value") is None:
        why = (entry or {}).get("note") or "not recorded"
        return Markup('<span class="none">{}</span>').format(visible(str(why)))
    value = float(entry["value"])
    place = path if path.startswith("folds.json: ") else f"metrics.json: {path}"
    return Markup('<data value="{}" title="{} = {}">{}</data>').format(
        repr(value), visible(place), repr(value), number(value, name)
    )


def strip(entry: dict[str, Any] | None, *, low: float = 0.0, high: float = 1.0, width: int = 170) -> Markup:
    """A small scale with value, interval and trivial baseline, drawn to be compared down a column."""
    from markupsafe import Markup

    if not entry or entry.get("value") is None:
        return Markup("")

    def at(value: float) -> float:
        return round(3 + (width - 6) * min(max((value - low) / (high - low), 0.0), 1.0), 1)

    parts = [
        f'<svg class="strip" viewBox="0 0 {width} 14" style="width:{width}px" aria-hidden="true">'
        f'<path class="axis" d="M3 7H{width - 3}M3 5V9M{width - 3} 5V9"/>'
    ]
    if entry.get("low") is not None and entry.get("high") is not None:
        parts.append(f'<path class="range" d="M{at(float(entry["low"]))} 7H{at(float(entry["high"]))}"/>')
    if entry.get("baseline") is not None:
        x = at(float(entry["baseline"]))
        parts.append(f'<path class="base" d="M{x} 7m-3 0l3 -3.6l3 3.6l-3 3.6z"/>')
    parts.append(f'<path class="value" d="M{at(float(entry["value"]))} 1.5V12.5"/></svg>')
    return Markup("".join(parts))


def clock(value: Any) -> str:
    """An ISO time as people write it: ``2026-11-21 14:00 UTC``; other text unchanged."""
    text = str(value)
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::[\d.]+)?(?:\+00:00|Z)", text)
    return f"{match[1]} {match[2]} UTC" if match else text


def count(value: int | float | None) -> str:
    """``5 216`` with a narrow no-break space, as in print."""
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")


def anchor(text: str) -> str:
    """An id for a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _decimal(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("medloom", "reporting/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters.update(count=count, number=number, anchor=anchor, lines=_lines)
    environment.globals.update(figure=figure, interval=interval, strip=strip, is_percent=is_percent)
    return environment


def _lines(text: str) -> Markup:
    """Text of several lines for ``<pre>``: line breaks stay, all else is made visible and escaped."""
    from markupsafe import Markup, escape

    return Markup("\n").join(escape(visible(line)) for line in text.split("\n"))
