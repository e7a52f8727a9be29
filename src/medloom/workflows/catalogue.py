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
    lines = [f"{'name':{wide}}  {'parameters':>12}  {'GMACs':>6}  what; where from"]
    for row, before in zip(rows, [None, *rows]):
        if before is None or (before["task"], before["spatial_dims"]) != (row["task"], row["spatial_dims"]):
            lines += [f"{row['task']} of {'volumes' if row['spatial_dims'] == 3 else 'images'}"]
        start = f"{row['name']:{wide}}  {row['parameters']:>12,}  {_giga(row):>6}  "
        lines += [f"{start}{row['summary']}", f"{'':{len(start)}}{row['source']}"]
    lines += [
        "Counts for 2 classes, 3 channels, 224 px; volumes: 1 channel, 96 cubed; another size stands on the card.",
        "GMACs are the multiply-adds of one image or volume.",
        "any other timm trunk as timm/NAME; one model's card: medloom models NAME",
    ]
    return Outcome({"models": rows}, tuple(lines))


def _giga(card: dict[str, Any]) -> str:
    return f"{card['macs'] / 1e9:.2f}" if "macs" in card else "?"
