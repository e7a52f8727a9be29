"""``medloom models``: what can be built, how large it is, and where it comes from."""

from __future__ import annotations

from typing import Any

from medloom.workflows.outcome import Outcome


def catalogue(name: str | None = None) -> Outcome:
    """List all models, or show the card of one."""
    from medloom.models.registry import list_models, model_card

    if name is not None:
        card = model_card(name)
        return Outcome(
            {"name": name, **card}, tuple(f"{key}: {value}" for key, value in {"name": name, **card}.items())
        )
    rows: list[dict[str, Any]] = [{"name": n, **model_card(n)} for n in list_models()]
    wide = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:{wide}}  {row['parameters']:>12,}  {row['summary']}" for row in rows]
    lines.append("any other timm trunk as timm/NAME; one model's card: medloom models NAME")
    return Outcome({"models": rows}, (f"{'name':{wide}}  {'parameters':>12}  what", *lines))
