"""The page and the table of a search: every trial, and the front of those that no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloom.files import write_text
from medloom.reporting.page import render
from medloom.reporting.svg import inline_svg
from medloom.reporting.wording import NOT_A_DEVICE, plural

LEAD = (
    "Judged by validation alone; the test images were never scored. The best of many on the same images looks a little "
    "better than it is: train best.yaml, and believe its test result."
)


def write_search_page(place: Path, content: Mapping[str, Any]) -> Path:
    """Write ``search.html`` into the folder; its path.

    Raises:
        ResourceError: T404, T405 when it cannot be written.
    """
    path = place / "search.html"
    best = content["best"]
    told = (
        f"Best: {best['spelled']}, {best['ms']:.2f} ms, validation AUC {best['validation_auc']:.4f}. " if best else ""
    )
    write_text(
        path,
        render(
            "search.html",
            title=f"{content['recipe']}: MedLoom search",
            made_by="MedLoom search",
            name=content["recipe"],
            flags=[
                {"text": f"At most {content['budget_ms']:g} ms per image", "tone": ""},
                {"text": plural(content["trained"], "trained composition"), "tone": ""},
                {"text": NOT_A_DEVICE, "tone": ""},
            ],
            sentence=told + LEAD,
            rows=_sorted(content),
            plot=_front(content) if content["trained"] else None,
        ),
    )
    return path


def search_table(content: Mapping[str, Any]) -> str:
    """All trials in Markdown, the best first."""
    lines = ["| trial | composition | ms | parameters | validation AUC | |", "|---|---|---|---|---|---|"]
    for row in _sorted(content):
        cells = [str(row["trial"]), row["spelled"], _cell(row["ms"], "{:.2f}"), _cell(row["parameters"], "{:,}")]
        cells += [_cell(row["validation_auc"], "{:.4f}"), row["refused"] or ("front" if row["front"] else "")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", LEAD, ""])


def _sorted(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(content["trials"], key=lambda row: (-(row["validation_auc"] or -1.0), row["trial"]))


def _cell(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _front(content: Mapping[str, Any]) -> Any:
    done = [row for row in content["trials"] if row["validation_auc"] is not None]
    front = sorted((row for row in done if row["front"]), key=lambda row: float(row["ms"]))

    def paint(panels: list[Any]) -> None:
        axes = panels[0]
        axes.scatter([r["ms"] for r in done], [r["validation_auc"] for r in done], s=18, color="#7a8794")
        axes.plot([r["ms"] for r in front], [r["validation_auc"] for r in front], marker="o", color="#0b6e99")
        for row in done:
            axes.annotate(
                str(row["trial"]), (row["ms"], row["validation_auc"]), xytext=(4, 3), textcoords="offset points"
            )
        axes.axvline(content["budget_ms"], color="#b3541e", linestyle="--", linewidth=1)
        axes.set_xlabel("milliseconds for one image, ONNX Runtime")
        axes.set_ylabel("AUC on validation")

    return inline_svg("front", "Speed against validation AUC of each trained composition", paint, size=(10.4, 4.2))
