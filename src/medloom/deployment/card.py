"""The model card: what a person must know before using the bundle, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SPLITS = {"val": "Validation", "test": "Test"}
HEAD = ("| metric | value | interval | images | patients | trivial baseline |", "|---|---|---|---|---|---|")
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
    return laid_out(
        document,
        facts=_facts(document),
        use=intended_use or _DEFAULT_USE,
        answering=section("Decision", _decision(document)),
        results=_results(metrics),
        limits=_LIMITS,
        measured=exactness(document),
    )


def laid_out(
    document: Mapping[str, Any],
    *,
    facts: list[str],
    use: str,
    answering: str,
    results: list[str],
    limits: Sequence[str],
    measured: list[str],
) -> str:
    """The sections of a card, in order; ``answering`` is the one on how an answer comes about."""
    parts = [
        f"# {plain(document['name'])}",
        "**Research software, not a medical device.** It must not be used to diagnose, to treat, or to decide that a "
        "person needs no care.",
        section("What it is", facts),
        section("Intended use", [plain(use)]),
        section("Expected input", pairs(document["expected_input"]) or ["Not stated."]),
        answering,
        section("Results", results),
        section("Data and provenance", pairs(document["provenance"]) or ["Not recorded."]),
        section("Limits", [f"- {limit}" for limit in limits]),
        section("Exactness and speed", measured),
        section("Licences", pairs(document["licences"]) or ["Not recorded."]),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(document: Mapping[str, Any]) -> list[str]:
    architecture = document["architecture"]
    return pairs(
        {
            "architecture": architecture.get("name"),
            "options": {key: value for key, value in architecture.items() if key not in ("name", "pruned")} or None,
            "pruned": _pruned(architecture.get("pruned")),
            "task": document["task"],
            "classes, in order": ", ".join(document["classes"]),
            "preprocessing": document["preprocess"],
            "written by": f"medloom {document['medloom']}, format {document['format']}",
        }
    )


def _pruned(plan: Mapping[str, Any] | None) -> str | None:
    if plan is None:
        return None
    return f"{len(plan['widths'])} layers narrowed, {len(plan['dropped'])} blocks taken out; model.json has them"


def _decision(document: Mapping[str, Any]) -> list[str]:
    lines = [f"Probabilities are computed from the logits divided by the temperature {document['temperature']:.4g}."]
    if document["flip_average"]:
        lines.append("Logits are the mean over the image and its mirror.")
    if document["task"] == "multi_class":
        return [*lines, "The most probable class is the answer."]
    point = document["operating_point"]
    if point is None:
        return [*lines, "No operating point was chosen: there is a probability, and no decision."]
    lines += ["", f"Chosen on validation by the rule `{plain(point.get('rule'))}`:", ""]
    lines += ["| class | positive from probability | sensitivity | specificity |", "|---|---|---|---|"]
    for each in point.get("points", []):
        cut = each.get("threshold")
        cells = [each.get("class"), each.get("reason") if cut is None else f"{cut:.6g}"]
        cells += [_entry(each.get("sensitivity")), _entry(each.get("specificity"))]
        lines.append("| " + " | ".join(plain(c) for c in cells) + " |")
    return lines


def _entry(entry: Mapping[str, Any] | None) -> str:
    """A metric entry in one cell: value, interval and count."""
    if not entry or entry.get("value") is None:
        return "not estimable"
    interval = f" ({number(entry['low'])} to {number(entry['high'])})" if entry.get("low") is not None else ""
    return f"{number(entry['value'])}{interval}, n = {entry.get('n')}"


def _results(metrics: Mapping[str, Any] | None) -> list[str]:
    lines: list[str] = []
    for key, part in ((metrics or {}).get("splits") or {}).items():
        lines += [f"### {SPLITS.get(key, key)}: {part['n']} images of {part['patients']} patients", "", *HEAD]
        rows = dict(part["metrics"])
        for point in part.get("operating_points") or ():
            rows |= {f"{name} of {point['class']} at the threshold": e for name, e in (point["metrics"] or {}).items()}
        lines += [row(name, entry) for name, entry in rows.items()]
        lines.append("")
    if lines:
        lines.append("Validation chose the threshold and the temperature, so its numbers are a little too good.")
    return lines or ["No metrics were recorded with this bundle."]


def row(name: str, entry: Mapping[str, Any]) -> str:
    """A metric entry as a row under ``HEAD``."""
    value = entry.get("value")
    if value is None:
        cells = [str(entry.get("note") or "not estimable"), "-"]
    else:
        low, high = entry.get("low"), entry.get("high")
        cells = [number(value), f"{number(low)} to {number(high)}" if low is not None else "not estimable"]
    cells += [number(entry.get(key)) for key in ("n", "patients", "baseline")]
    return f"| {plain(name)} | " + " | ".join(plain(c) for c in cells) + " |"


def exactness(document: Mapping[str, Any], path: str = "image to decision", unit: str = "image") -> list[str]:
    """What export found: ``path`` is what was compared, ``unit`` what was timed."""
    lines = []
    if document["parity"]:
        lines += [f"The exported network against the trained one, {path}, on validation images:"]
        lines += pairs(document["parity"])
    if document["latency"]:
        lines += ["", f"Time per {unit} where it was exported:", *pairs(document["latency"])]
    return lines or ["Not measured."]


def pairs(values: Mapping[str, Any]) -> list[str]:
    """A list of what is known."""
    return [f"- {plain(key)}: {plain(_value(value))}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(inner) for inner in value)
    return number(value) if isinstance(value, float) else str(value)


def number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def section(title: str, lines: list[str]) -> str:
    """A heading and what stands under it."""
    return f"## {title}\n\n" + "\n".join(lines).strip()


def plain(text: object) -> str:
    """Names come from data: they must not become Markdown tables, links or HTML."""
    one_line = " ".join(str(text).split())
    for sign in "\\|<>`[]*":
        one_line = one_line.replace(sign, f"\\{sign}")
    return one_line
