"""Sections of the report about the run itself: what was asked, the data, the training, the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medloom.reporting import plots
from medloom.reporting.model_facts import model_facts
from medloom.reporting.page import clock
from medloom.reporting.recorded import Recorded
from medloom.reporting.wording import SPLITS, asked_of, grouped, plural

TEST_SCORED = "test scored"  # the ledger's event
_EXAMPLES = 5


def asked(found: Recorded) -> dict[str, Any]:
    """What the recipe asked for, and what model came of it."""
    return {
        "facts": [*asked_of(found.recipe), *changed(found)] if found.recipe else [],
        "bundle": model_facts(found.model) if found.model else [],
    }


def data(found: Recorded) -> dict[str, Any]:
    """Counts, splits, audit findings, exclusions."""
    split, audit = found.split or {}, found.audit
    counts = split.get("classes") or (audit or {}).get("counts") or {}
    counts = {SPLITS.get(s, s): dict(classes) for s, classes in counts.items() if sum(classes.values())}
    names = list(dict.fromkeys(name for classes in counts.values() for name in classes))
    images = split.get("images") or ((audit or {}).get("summary") or {}).get("splits") or {}
    images = {SPLITS.get(s, s): n for s, n in images.items()}
    return {
        "plot": plots.counts(counts, names, images) if names else "",
        "plot_note": " after splitting" if split.get("classes") else ", as found by the audit",
        "splits": [
            {"split": SPLITS.get(s, s), "images": n, "patients": (split.get("patients") or {}).get(s)}
            for s, n in (split.get("images") or {}).items()
        ],
        "split_hash": split.get("hash", ""),
        "seed": split.get("seed"),
        "notices": split.get("notices") or [],
        "records": found.records,
        "findings": None if audit is None else findings(audit),
        "accepted": accepted(found),
        "exclusions": exclusions(audit or {}),
    }


def findings(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Findings of audit.json, the gravest first, with few examples."""
    order = {"refuse": 0, "warn": 1, "note": 2}
    rows = [
        {
            "code": str(f.get("code", "")),
            "severity": str(f.get("severity", "")),
            "title": str(f.get("title", "")),
            "count": f.get("count"),
            "remedy": str(f.get("remedy") or "").rstrip("."),
            "examples": [_example(e) for e in (f.get("examples") or [])[:_EXAMPLES]],
        }
        for f in audit.get("findings") or []
    ]
    return sorted(rows, key=lambda row: order.get(row["severity"], 3))


def exclusions(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Images left out, counted by code."""
    by_code: dict[str, list[str]] = {}
    for row in audit.get("excluded") or (audit.get("summary") or {}).get("excluded") or []:
        if isinstance(row, dict):
            by_code.setdefault(str(row.get("code", "")), []).append(str(row.get("id", "")))
    return [{"code": c, "count": len(ids), "examples": ids[:_EXAMPLES]} for c, ids in sorted(by_code.items())]


def accepted(found: Recorded) -> list[str]:
    """Codes of gates that a person let pass, from the recipe and the ledger."""
    codes = set(((found.recipe or {}).get("data") or {}).get("accept") or [])
    codes |= {
        str(line["code"]) for line in found.ledger or () if "accept" in str(line.get("event")) and line.get("code")
    }
    return sorted(codes)


def changed(found: Recorded) -> list[tuple[str, str]]:
    """What a resume was allowed to change (T411), with the epoch from which it held."""
    rows = []
    for line in found.ledger or ():
        if line.get("code") == "T411" and "accept" in str(line.get("event")):
            what = line.get("what") or []
            told = [str(w) for w in (what if isinstance(what, list) else [what])]
            told = [w.removeprefix("recipe.").removeprefix("train.").replace(": ", " ", 1) for w in told]
            rows.append(("Changed on resume", f"from epoch {line.get('epoch', '?')}: {'; '.join(told)}"))
    return list(dict.fromkeys(rows))


def interruptions(sessions: Sequence[Mapping[str, Any]] | None) -> str:
    """How often training was resumed; resumes of a run that was over (only its evaluation was left) do not count."""
    if sessions is None:
        return "not recorded"
    times = sum(line.get("event") == "resume" and not line.get("over") for line in sessions)
    return f"resumed {plural(times, 'time')}" if times else "none"


def scorings(found: Recorded) -> int | None:
    """How often the test split was scored; None where nobody counted."""
    if found.ledger is None:
        return None
    return sum(line.get("event") == TEST_SCORED for line in found.ledger)


def own_test_images(evaluation: Mapping[str, Any]) -> int:
    """How many images of a later evaluation are the run's own test images: with any, it is not external."""
    return int((evaluation.get("evaluation") or {}).get("own_test_images") or 0)


def seen_images(evaluation: Mapping[str, Any]) -> int:
    """How many images of a later evaluation the run had learnt from: with any, it is not external."""
    return int((evaluation.get("evaluation") or {}).get("seen_images") or 0)


def external(found: Recorded) -> list[str]:
    """Names of the evaluations on images that the run had never seen."""
    return [name for name, c in found.evaluations.items() if not own_test_images(c) and not seen_images(c)]


def overridden(found: Recorded) -> list[str]:
    """A sentence for each gate that a person let pass in a later evaluation."""
    out = []
    for name, content in found.evaluations.items():
        for code in (content.get("evaluation") or {}).get("accepted") or []:
            seen = seen_images(content) if code == "D117" else 0
            why = f": {plural(seen, 'image')} of training or validation" if seen else ""
            out.append(f"Evaluation {name}: gate {code} passed by hand{why}")
    return out


def training(found: Recorded) -> dict[str, Any]:
    """Curves, their fluctuation, and how the run went."""
    epochs = epochs_of(found.log)
    if not epochs:
        return {"plot": "", "fluctuation": [], "facts": [], "resolution": ""}
    best = best_epoch(found)
    n = (((found.split or {}).get("images")) or {}).get("val") or (len(found.validation) if found.validation else 0)
    labels = (("val_loss", "validation loss"), ("val_accuracy", "validation accuracy"), ("val_auc", "validation AUC"))
    return {
        "plot": plots.training(epochs, best),
        "fluctuation": [
            {"label": label, "all": fluctuation(epochs, key), "half": fluctuation(epochs[len(epochs) // 2 :], key)}
            for key, label in labels
        ],
        "resolution": f"Validation has {plural(n, 'image')}: one image moves its accuracy by {1 / n:.4f}." if n else "",
        "facts": course(found, epochs, best),
    }


def course(found: Recorded, epochs: Sequence[Mapping[str, Any]], best: int | None) -> list[tuple[str, str]]:
    """How long training took, how fast it was, what interrupted and what ended it."""
    seconds = [e["seconds"] for e in epochs if e.get("seconds") is not None]
    rate = [e["images_per_second"] for e in epochs if e.get("images_per_second") is not None]
    facts = [("Epochs", f"{len(epochs)}, kept: {best if best is not None else 'not recorded'}")]
    if seconds:
        facts.append(
            ("Time per epoch", f"{np.median(seconds):.1f} s (median; {min(seconds):.1f} to {max(seconds):.1f})")
        )
        facts.append(("All epochs", f"{sum(seconds) / 60:.1f} min"))
    if rate:
        facts.append(("Speed", f"{np.median(rate):.{0 if np.median(rate) >= 10 else 2}f} images per second (median)"))
    if epochs[-1].get("reconstruction") is not None:
        weight = ((found.recipe or {}).get("loss") or {}).get("reconstruction")
        facts.append(("Reconstruction", f"mean squared error, weight {weight} beside the loss that is drawn"))
    facts.append(("Interruptions", interruptions(found.sessions)))
    for key, term in (("peak_memory", "Most memory"), ("peak_device_memory", "Most device memory")):
        peaks = [line[key] for line in found.sessions or () if isinstance(line.get(key), int)]
        if peaks:
            facts.append((term, f"{max(peaks) / 2**30:.2f} GiB"))
    stop = next((line for line in reversed(found.log) if line.get("event") == "stop"), None)
    if stop is not None and stop.get("reason"):
        facts.append(("Ended by", str(stop["reason"])))
    return facts


def epochs_of(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per epoch: where a resumed run repeated one, the later line is what its weights came from."""
    last = {int(line["epoch"]): dict(line) for line in log if line.get("event") == "epoch" and "epoch" in line}
    return [last[e] for e in sorted(last)]


def best_epoch(found: Recorded) -> int | None:
    """The epoch whose weights were kept: the last ``best`` event."""
    for line in reversed(found.log):
        if line.get("event") == "best" and line.get("epoch") is not None:
            return int(line["epoch"])
    return None


def fluctuation(epochs: Sequence[Mapping[str, Any]], key: str) -> str:
    """Standard deviation of the change between neighbouring epochs."""
    values = [e[key] for e in epochs if e.get(key) is not None]
    return f"{np.std(np.diff(values)):.4f}" if len(values) > 2 else "–"


def machine(found: Recorded) -> dict[str, Any]:
    """Machine and versions, the ledger, and what is missing."""
    columns = list(dict.fromkeys(key for line in found.ledger or () for key in line))[:7]
    return {
        "facts": flat(found.environment) if found.environment else [],
        "ledger": None if found.ledger is None else [[_cell(line.get(c)) for c in columns] for line in found.ledger],
        "ledger_columns": columns,
        "missing": found.missing,
    }


def flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A recorded object as terms and texts."""
    return [(key.replace("_", " "), _cell(value)) for key, value in values.items() if value not in (None, "", [], {})]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{str(k).replace('_', ' ')} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(f"({_cell(v)})" if isinstance(v, list) else _cell(v) for v in value)
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return grouped(value)
    return clock(value)


def _example(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(str(v) for v in value.values())
    if isinstance(value, list | tuple):
        return " = ".join(str(v) for v in value)
    return str(value)
