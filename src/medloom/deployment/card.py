"""The model card: what a person must know before using the bundle, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SPLITS = {"val": "Validation", "test": "Test"}
_HEAD = ("| metric | value | interval | images | patients | trivial baseline |", "|---|---|---|---|---|---|")
_DEFAULT_USE = (
    "Research on image classification: comparing methods, studying errors, planning a study. A person who is qualified "
    "to read such images looks at every image."
)
_LIMITS = (
    "It was evaluated on the data named above only; another hospital, device, age group or projection can change every "
    "number, so evaluate it on your own images before you believe it there (`medloom evaluate`).",
    "It answers for any picture, also for one that is not of the expected kind.",
    "A probability is calibrated on the validation images and holds for their mix of classes only.",
    "It knows the classes named above and nothing else; another disease is answered as one of them.",
)


def render_card(document: Mapping[str, Any], metrics: Mapping[str, Any] | None, intended_use: str | None) -> str:
    """The card of a bundle, from its model.json content and the run's metrics.json content.

    Every number stands with its interval, its count and the trivial baseline, or says why it is not estimable.
    """
    parts = [
        f"# {_plain(document['name'])}",
        "**Research software, not a medical device.** It must not be used to diagnose, to treat, or to decide that a "
        "person needs no care.",
        _section("What it is", _facts(document)),
        _section("Intended use", [_plain(intended_use or _DEFAULT_USE)]),
        _section("Expected input", _pairs(document["expected_input"]) or ["Not stated."]),
        _section("Decision", _decision(document)),
        _section("Results", _results(metrics)),
        _section("Data and provenance", _pairs(document["provenance"]) or ["Not recorded."]),
        _section("Limits", [f"- {limit}" for limit in _LIMITS]),
        _section("Exactness and speed", _exactness(document)),
        _section("Licences", _pairs(document["licences"]) or ["Not recorded."]),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(document: Mapping[str, Any]) -> list[str]:
    architecture = document["architecture"]
    return _pairs(
        {
            "architecture": architecture.get("name"),
            "options": {key: value for key, value in architecture.items() if key != "name"} or None,
            "task": document["task"],
            "classes, in order": ", ".join(document["classes"]),
            "preprocessing": document["preprocess"],
            "written by": f"medloom {document['medloom']}, format {document['format']}",
        }
    )


def _decision(document: Mapping[str, Any]) -> list[str]:
    lines = [f"Probabilities are computed from the logits divided by the temperature {document['temperature']:.4g}."]
    if document["flip_average"]:
        lines.append("Logits are the mean over the image and its mirror.")
    if document["task"] == "multi_class":
        return [*lines, "The most probable class is the answer."]
    point = document["operating_point"]
    if point is None:
        return [*lines, "No operating point was chosen: there is a probability, and no decision."]
    lines += ["", f"Chosen on validation by the rule `{_plain(point.get('rule'))}`:", ""]
    lines += ["| class | positive from probability | sensitivity | specificity |", "|---|---|---|---|"]
    for each in point.get("points", []):
        cut = each.get("threshold")
        cells = [each.get("class"), each.get("reason") if cut is None else f"{cut:.6g}"]
        cells += [_entry(each.get("sensitivity")), _entry(each.get("specificity"))]
        lines.append("| " + " | ".join(_plain(c) for c in cells) + " |")
    return lines


def _entry(entry: Mapping[str, Any] | None) -> str:
    """A metric entry in one cell: value, interval and count."""
    if not entry or entry.get("value") is None:
        return "not estimable"
    interval = f" ({_number(entry['low'])} to {_number(entry['high'])})" if entry.get("low") is not None else ""
    return f"{_number(entry['value'])}{interval}, n = {entry.get('n')}"


def _results(metrics: Mapping[str, Any] | None) -> list[str]:
    lines: list[str] = []
    for key, part in ((metrics or {}).get("splits") or {}).items():
        lines += [f"### {_SPLITS.get(key, key)}: {part['n']} images of {part['patients']} patients", "", *_HEAD]
        rows = dict(part["metrics"])
        for point in part.get("operating_points") or ():
            rows |= {f"{name} of {point['class']} at the threshold": e for name, e in (point["metrics"] or {}).items()}
        lines += [_row(name, entry) for name, entry in rows.items()]
        lines.append("")
    if lines:
        lines.append("Validation chose the threshold and the temperature, so its numbers are a little too good.")
    return lines or ["No metrics were recorded with this bundle."]


def _row(name: str, entry: Mapping[str, Any]) -> str:
    value = entry.get("value")
    if value is None:
        cells = [str(entry.get("note") or "not estimable"), "-"]
    else:
        low, high = entry.get("low"), entry.get("high")
        cells = [_number(value), f"{_number(low)} to {_number(high)}" if low is not None else "not estimable"]
    cells += [_number(entry.get(key)) for key in ("n", "patients", "baseline")]
    return f"| {_plain(name)} | " + " | ".join(_plain(c) for c in cells) + " |"


def _exactness(document: Mapping[str, Any]) -> list[str]:
    lines = []
    if document["parity"]:
        lines += ["The exported network against the trained one, image to decision, on validation images:"]
        lines += _pairs(document["parity"])
    if document["latency"]:
        lines += ["", "Time per image where it was exported:", *_pairs(document["latency"])]
    return lines or ["Not measured."]


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"- {_plain(key)}: {_plain(_value(value))}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(inner) for inner in value)
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines).strip()


def _plain(text: object) -> str:
    """Names come from data: they must not become Markdown tables, links or HTML."""
    one_line = " ".join(str(text).split())
    for sign in "\\|<>`[]*":
        one_line = one_line.replace(sign, f"\\{sign}")
    return one_line
