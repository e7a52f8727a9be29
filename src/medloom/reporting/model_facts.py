"""model.json of a bundle in a reader's words; what it holds beyond the known keys is told under its own name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medloom.reporting.wording import grouped, plural

_LATENCY = ("milliseconds_per_image_at_batch", "threads", "machine", "runtime")
_PARITY = ("images", "batches", "max_probability_difference", "mean_probability_difference", "max_logit_difference",
           "flips")  # fmt: skip
_MOST_CLASSES = 40


def model_facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Terms and texts; a part that is absent is left out."""
    origin = dict(document.get("provenance") or {})
    rows = [("Network", _network(dict(document.get("architecture") or {})))]
    if isinstance(origin.get("parameters"), int):
        rows.append(("Parameters", grouped(origin.pop("parameters"))))
    classes = [str(c) for c in document.get("classes") or []]
    if classes:
        more = f" and {len(classes) - _MOST_CLASSES} more" if len(classes) > _MOST_CLASSES else ""
        rows.append((f"Answers ({len(classes)})", ", ".join(classes[:_MOST_CLASSES]) + more))
    expected = document.get("expected_input") or {}
    rows += [(f"Expects: {_plain(k)}", _text(v)) for k, v in expected.items()]
    rows.append(("Speed", _latency(dict(document.get("latency") or {}))))
    rows.append(("Exported model", _parity(dict(document.get("parity") or {}))))
    licences = document.get("licences") or {}
    rows += [(f"Licence: {_plain(k)}", _text(v)) for k, v in licences.items()]
    rows += _origin(origin)
    name = (document.get("hashes") or {}).get("document")
    rows.append(("Bundle (SHA-256)", str(name or "")))
    return [(term, text) for term, text in rows if text]


def _network(made: dict[str, Any]) -> str:
    if not made:
        return ""
    name, classes, channels = (made.pop(k, None) for k in ("name", "num_classes", "in_chans"))
    size, plan = made.pop("image_size", None), made.pop("pruned", None)
    side = " × ".join(map(str, size)) if isinstance(size, list) else f"{size} × {size}"
    cells = "voxels" if made.get("spatial_dims") == 3 else "pixels"
    what = f"{name}, {side} {cells}, {plural(int(channels or 0), 'channel')}, {plural(int(classes or 0), 'answer')}"
    options = "; ".join(f"{_plain(k)}: {_text(v)}" for k, v in made.items())
    if plan:
        what += (
            f"; pruned: {plural(len(plan['widths']), 'layer')} narrowed, {plural(len(plan['dropped']), 'block')} out"
        )
    return f"{what}{'; ' + options if options else ''}"


def _latency(measured: dict[str, Any]) -> str:
    if not all(k in measured for k in _LATENCY):
        return _text(measured)
    times = ", ".join(
        f"{ms:.1f} ms per image in batches of {batch}" if batch != "1" else f"{ms:.1f} ms for one image"
        for batch, ms in measured["milliseconds_per_image_at_batch"].items()
    )
    threads = plural(int(measured["threads"]), "thread")
    return f"{times} ({threads}, {measured['machine']}, {measured['runtime']})"


def _parity(found: dict[str, Any]) -> str:
    if not all(k in found for k in _PARITY):
        return _text(found)
    flips = plural(int(found["flips"]), "answer") if found["flips"] else "no answer"
    return (
        f"answers as the trained one: over {plural(int(found['images']), 'image')}, in batches of "
        f"{', '.join(map(str, found['batches']))}, probabilities differ by at most "
        f"{found['max_probability_difference']:.1e}, and {flips} changed"
    )


def _origin(origin: dict[str, Any]) -> list[tuple[str, str]]:
    images, data, recipe = (origin.pop(k, None) for k in ("training images", "data", "recipe"))
    accepted = origin.pop("accepted", None)
    rows = [("Trained on", plural(images, "image") if isinstance(images, int) else "")]
    rows += [("Data (hash)", str(data or "")), ("Recipe (hash)", str(recipe or ""))]
    rows.append(("Gates passed by hand", ", ".join(map(str, accepted or []))))
    return rows + [(_plain(k).capitalize(), _text(v)) for k, v in origin.items()]


def _plain(key: Any) -> str:
    return str(key).replace("_", " ")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(k)} {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value)
