"""The leaderboard as text: one row per model for the page, CSV and Markdown, and how its numbers are to be read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from medloom.reporting.leaderboard import latency
from medloom.reporting.page import interval, number
from medloom.reporting.wording import grouped, per_cent, plural

Content = Mapping[str, Any]
_MARKS = {"better": "▲", "worse": "▼", "not told apart": "·", "not comparable": ""}


def names_of(content: Content) -> dict[str, str]:
    """What the three metrics are called on these data."""
    many, classes = content["data"]["multi_label"], len(content["data"]["classes"])
    macro = many or classes > 2
    left = len(content["data"]["left_out"])
    of = f", {classes - left} of {classes} {'labels' if many else 'classes'}" if left and macro else ""
    return {
        "auc": f"Macro AUC{of}" if macro else "AUC",
        "accuracy": "Label-wise accuracy" if many else "Accuracy",
        "f1": f"Macro F1{of}",
    }


def reading_notes(content: Content) -> list[str]:
    """How the numbers came about."""
    data, level = content["data"], per_cent(content["confidence"])
    unit = data["unit"]
    trivial, many = data["trivial"], plural(content["comparisons"], "comparison")
    notes = [
        f"Values are means over the seeds. Intervals: {level}, {grouped(content['resamples'])} resamples of {unit}s, "
        "for these very runs on other patients; ± is the standard deviation between seeds.",
        f"Differences to {content['baseline']} are paired: same {unit}s, same seeds. Their intervals also cover the "
        f"spread between seeds, where there are several. p values are corrected for {many} after Holm, each metric for "
        "itself; below 0.05 a model is called better or worse, else not told apart.",
    ]
    commonest = number(trivial["accuracy"], "accuracy")
    if data["multi_label"]:
        notes.append(
            "Accuracy is the share of right answers over all labels, at probability 0.5. Answering 'none' to "
            f"everything reaches {commonest}: read the AUC."
        )
        if data["left_out"]:
            notes.append(f"Too few positives to be judged, left out of the means: {', '.join(data['left_out'])}.")
    else:
        notes.append(
            "Accuracy and F1 are those of the most probable class. Always giving the commonest class reaches an "
            f"accuracy of {commonest} and a macro F1 of {number(trivial['f1'], 'f1')}; an AUC of 0.5 is no skill."
        )
    notes.append(
        f"All models were scored on one test split, {plural(content['test_scorings'], 'time')} in all. The best of "
        "many rows looks better than it is; confirm it on other data."
    )
    return notes


def memory_words(content: Content) -> tuple[str, str]:
    """Whose memory the peaks are: for the column's title, and for the note."""
    whose = {row["memory_of"] for row in content["rows"]} - {None}
    if whose == {"device"}:
        return "peak GiB, GPU", "memory of the GPU, as allocated for tensors"
    if whose == {"device", "host"}:
        return "peak GiB", "memory of the GPU (as allocated for tensors) or of the process (without), as marked"
    return "peak GiB, process", "main memory of the process"


def as_csv(content: Content) -> str:
    """One row per model, plain numbers; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["model", "seeds"]
    for m in ("auc", "accuracy", "f1"):
        head += [m, f"{m}_low", f"{m}_high", f"{m}_sd"]
    head += [f"auc_minus_{content['baseline']}", "difference_low", "difference_high", "p_holm", "verdict"]
    head += ["parameters", "macs", "training_images_per_second", "training_minutes"]
    head += ["peak_memory_bytes", "peak_memory_of"]
    head += ["latency_batch1_ms", "latency_batch16_ms", "images_per_second_batch16", "threads", "departures", "failed"]
    writer.writerow(head)
    for r in content["rows"]:
        cells: list[Any] = [r["label"], " ".join(map(str, r["seeds"]))]
        for m in ("auc", "accuracy", "f1"):
            e = r[m]["entry"]
            cells += [e.get("value"), e.get("low"), e.get("high"), r[m]["sd"]]
        d = (r["difference"] or {}).get("auc")
        cells += [d["difference"][k] for k in ("value", "low", "high")] + [d["p_holm"]] if d else [None] * 4
        cells.append(r["verdict"]["auc"] if r["verdict"] else None)
        cells += [r[k] for k in ("parameters", "macs", "training_images_per_second", "training_minutes")]
        cells += [r["peak_memory"], r["memory_of"]]
        fast = r["inference"] or {}
        cells += [fast.get("batch 1", {}).get("median_ms"), fast.get("batch 16", {}).get("median_ms")]
        cells += [fast.get("batch 16", {}).get("images_per_second"), fast.get("threads")]
        cells += ["; ".join(r["departures"]), "; ".join(f"seed {f['seed']}: {f['error']}" for f in r["failed"])]
        writer.writerow(["" if c is None else c for c in cells])
    return out.getvalue()


def as_markdown(content: Content) -> str:
    """A table to paste, with the protocol in one line above and the reading below."""
    names, base = names_of(content), content["baseline"]
    told = dict(map(tuple, content["protocol"]))
    lines = [f"{told['Data']}. {told['Budget']}; {told['Input']}.", ""]
    heads = ["model", "seeds", names["auc"], names["accuracy"], names["f1"], f"AUC − {base}", "p (Holm)"]
    heads += ["parameters", "GMACs", "ms, 1 image", "images/s, batch 16"]
    lines.append(f"| {' | '.join(heads)} |")
    lines.append("|---|---:|---|---|---|---|---:|---:|---:|---:|---:|")
    for row in content["rows"]:
        s = shown(row, content)
        cells = [s["label"] + (" †" if row["departures"] else ""), str(len(row["seeds"]))]
        cells += [
            " ".join(p for p in (s[m]["value"], s[m]["range"] and f"({s[m]['range']})", s[m]["sd"]) if p)
            for m in ("auc", "accuracy", "f1")
        ]
        cells += [
            " ".join(p for p in (s["gap"]["value"], s["gap"]["range"] and f"({s['gap']['range']})") if p),
            s["gap"]["p"],
        ]
        cells += [s["parameters"], s["gmacs"], s["ms"], s["fast"]]
        if row["auc"]["mean"] is None and row["failed"]:
            cells[2] = f"failed: {row['failed'][0]['error']}"
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    lines += ["", *(f"{note}" for note in reading_notes(content)[:2])]
    lines += [f"† {row['label']}: {'; '.join(row['departures'])}." for row in content["rows"] if row["departures"]]
    return "\n".join(lines) + "\n"


def shown(row: Content, content: Content) -> dict[str, Any]:
    """One row as text."""
    out: dict[str, Any] = {"label": row["label"], "base": row["label"] == content["baseline"], "row": row}
    for m in ("auc", "accuracy", "f1"):
        e = row[m]["entry"]
        sd = row[m]["sd"]
        value = number(e["value"], m) if e.get("value") is not None else "–"
        spread = "" if sd is None else (f"± {100 * sd:.1f}" if m != "auc" else f"± {sd:.3f}")
        out[m] = {"value": value, "range": interval(e, m), "sd": spread, "entry": e}
    d = (row["difference"] or {}).get("auc")
    out["gap"] = {"value": "", "range": "", "p": "", "word": "baseline" if out["base"] else "", "mark": "", "seeds": 0}
    if d is not None:
        e, word = d["difference"], row["verdict"]["auc"]
        value = "–" if e["value"] is None else f"{e['value']:+.3f}".replace("-", "−")
        bounds = "" if e["low"] is None else f"{e['low']:+.3f} to {e['high']:+.3f}".replace("-", "−")
        p = "" if d["p_holm"] is None else ("< 0.001" if d["p_holm"] < 0.001 else f"{d['p_holm']:.3f}")
        out["gap"] = {
            "value": value,
            "range": bounds,
            "p": p,
            "word": word,
            "mark": _MARKS[word],
            "seeds": len(d["seeds"]),
        }
    fast, ms = row["inference"] or {}, latency(row)
    out |= {
        "parameters": "–" if row["parameters"] is None else grouped(row["parameters"]),
        "gmacs": "–" if row["macs"] is None else _three(row["macs"] / 1e9),
        "train": "–" if row["training_images_per_second"] is None else _three(row["training_images_per_second"]),
        "minutes": "–" if row["training_minutes"] is None else f"{row['training_minutes']:.1f}",
        "memory": "–" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.2f}{_whose(row, content)}",
        "ms": "–" if ms is None else _three(ms),
        "fast": "–" if "batch 16" not in fast else _three(fast["batch 16"]["images_per_second"]),
    }
    return out


def _whose(row: Content, content: Content) -> str:
    """A mark, where a table holds both kinds."""
    both = len({r["memory_of"] for r in content["rows"]} - {None}) > 1
    return {"device": " GPU", "host": " process"}[row["memory_of"]] if both else ""


def _three(value: float) -> str:
    """Three figures, as a person writes them."""
    if value >= 100:
        return grouped(round(value))
    if value >= 1:
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.3f}" if value >= 0.01 else f"{value:.1g}"
