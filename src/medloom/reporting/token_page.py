"""The page of ``medloom explain``: what a network passed on of each image, and what that does not mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medloom.reporting.page import render
from medloom.reporting.pictures import Picture
from medloom.reporting.sections_context import example
from medloom.reporting.token_views import NO_EXPLANATION, colour_bars, drawn_scales, told
from medloom.reporting.wording import NOT_A_DEVICE, plural

MEANING = (
    "This shows what the network passed on, not why it answered as it did: a token that was kept, or weighed heavily, "
    "may have changed nothing, and one that was dropped may still reach the answer, through the mean of the rest "
    "or through tokens that saw it before the cut. Such "
    f"maps are no explanation: {NO_EXPLANATION}."
)

BOTH = "Each answer is the mean of the image and its mirror; the maps are of the image as it is."


def token_html(
    name: str,
    shown: Sequence[Picture],
    refused: Sequence[Mapping[str, str]],
    facts: Sequence[tuple[str, str]],
    *,
    notes: Sequence[Sequence[str]],
    warnings: Sequence[str] = (),
    flip_average: bool = False,
) -> str:
    """One self-contained HTML page as text.

    Args:
        name: of the bundle.
        shown: images with their maps; an empty ``label`` stands for an unknown truth.
        refused: ``id``, ``error`` (the code) and ``problem`` of images without an answer.
        facts: term and text, told at the top.
        notes: further lines below each image, in the order of ``shown``.
        warnings: what a reader must know first.
        flip_average: the answers are of each image and its mirror, the maps of the image alone.
    """
    scales = drawn_scales(shown)
    pictures = [{**example(p, scales), "notes": list(lines)} for p, lines in zip(shown, notes, strict=True)]
    without = f"; {len(refused)} refused" if refused else ""
    meaning = f"{BOTH} {MEANING}" if flip_average else MEANING
    flags = [{"text": text, "tone": "red"} for text in warnings]
    flags += [{"text": "Token maps, not an explanation", "tone": "amber"}, {"text": NOT_A_DEVICE, "tone": ""}]
    return render(
        "tokens.html",
        title=f"{name}: MedLoom token maps",
        made_by="MedLoom explain",
        name=name,
        flags=flags,
        sentence=f"{plural(len(shown), 'image')} with answer and tokens{without}. {meaning}",
        rows=facts,
        pictures={
            "groups": [{"title": "", "pictures": pictures}] if pictures else [],
            "bars": colour_bars(shown),
            "lead": f"Images as the model received them.{told(shown)}",
        },
        absent={"pictures.json": "No image could be used."},
        refused=refused,
    )
