"""``leaderboard.html``, ``.json``, ``.csv`` and ``.md``: one table of models, with what it does and does not show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloom.files import write_json, write_text
from medloom.reporting.leaderboard_plots import forest, numbered, trade
from medloom.reporting.leaderboard_tables import as_csv, as_markdown, memory_words, names_of, reading_notes, shown
from medloom.reporting.page import interval, number, render
from medloom.reporting.wording import NOT_A_DEVICE, per_cent, plural

Content = Mapping[str, Any]


def write_leaderboard(content: dict[str, Any], folder: Path, *, title: str) -> Path:
    """Write the four files, each atomically; returns the page.

    Raises:
        ResourceError: T404, T405.
    """
    write_json(folder / "leaderboard.json", content)
    write_text(folder / "leaderboard.csv", as_csv(content))
    write_text(folder / "leaderboard.md", as_markdown(content))
    page = folder / "leaderboard.html"
    write_text(page, as_html(content, title))
    return page


def as_html(content: Content, title: str) -> str:
    """The page."""
    names = names_of(content)
    return render(
        "leaderboard.html",
        title=f"{title}: MedLoom leaderboard",
        made_by=f"MedLoom {content['environment'].get('medloom') or ''}".strip(),
        name=title,
        content=content,
        names=names,
        flags=flags(content),
        sentence=sentence(content),
        rows=[shown(row, content) for row in content["rows"]],
        forest=forest(content["rows"], content["baseline"], names["auc"]),
        trade=trade(content["rows"], names),
        numbered=numbered(content["rows"]),
        notes=reading_notes(content),
        memory=memory_words(content),
        machine=_machine(content),
        departures=[(row["label"], row["departures"]) for row in content["rows"] if row["departures"]],
        failed=[(row["label"], f) for row in content["rows"] for f in row["failed"]],
        published=[_published(table) for table in content["published"]],
    )


def sentence(content: Content) -> str:
    """What the table says, in words."""
    done = [r for r in content["rows"] if r["auc"]["mean"] is not None]
    if not done:
        return "No model has an AUC on these test images."
    best, level = done[0], per_cent(content["confidence"])
    text = f"On {plural(sum(_test_images(content)), 'test image')}, the highest {names_of(content)['auc']} is "
    text += f"{number(best['auc']['mean'])} ({level} interval {interval(best['auc']['entry'])}), of {best['label']}"
    others = [r for r in done if r["verdict"]]
    if others:
        count = {w: sum(r["verdict"]["auc"] == w for r in others) for w in ("better", "worse", "not told apart")}
        text += f". Against {content['baseline']}: {count['better']} better, {count['worse']} worse, "
        text += f"{count['not told apart']} not told apart from it, of {plural(len(others), 'other model')}"
    return text + "."


def flags(content: Content) -> list[dict[str, str]]:
    """What a reader must know before the numbers."""
    out = [{"text": NOT_A_DEVICE, "tone": ""}]
    runs, seeds = len(content["runs"]), {len(r["seeds"]) for r in content["rows"] if r["seeds"]}
    out.append(
        {"text": f"Test set scored {plural(content['test_scorings'], 'time')}, by {plural(runs, 'run')}", "tone": ""}
    )
    if min(seeds, default=0) < 3:
        out.append({"text": "Fewer than 3 seeds for some models: luck of the seed is hardly known", "tone": "amber"})
    if content["data"]["unit"] == "image":
        out.append({"text": "Patients unknown: intervals take every image for a patient", "tone": "amber"})
    failed = sum(len(r["failed"]) for r in content["rows"])
    waiting = sum(len(r["waiting"]) for r in content["rows"])
    apart = sum(bool(r["departures"]) for r in content["rows"])
    if failed:
        out.append({"text": f"{plural(failed, 'run')} failed", "tone": "red"})
    if waiting:
        out.append({"text": f"Not finished: {plural(waiting, 'run')} to go", "tone": "amber"})
    if apart:
        out.append({"text": f"{plural(apart, 'model')} had another budget: marked †", "tone": "red"})
    gates = dict(map(tuple, content["protocol"])).get("Gates passed by hand")
    if gates:
        out.append({"text": f"Gates passed by hand: {gates}", "tone": "red"})
    return out


def _published(table: Content) -> dict[str, Any]:
    rows = []
    for r in table["rows"]:
        ours = r["ours"] or [None]
        for k, o in enumerate(ours):
            rows.append(
                {
                    "model": r["model"] if k == 0 else "",
                    "auc": number(r["auc"]) if k == 0 else "",
                    "auc_range": _pair(r["auc_interval"], "auc") if k == 0 else "",
                    "accuracy": number(r["accuracy"], "accuracy") if k == 0 else "",
                    "millions": f"{r['millions']:.2f}" if r["millions"] and k == 0 else ("–" if k == 0 else ""),
                    "ours": None if o is None else o["label"],
                    "our_auc": "" if o is None else number(o["auc"]["value"]),
                    "our_range": "" if o is None else interval(o["auc"]),
                    "our_accuracy": "" if o is None else number(o["accuracy"]["value"], "accuracy"),
                    "our_millions": "" if o is None or o["parameters"] is None else f"{o['parameters'] / 1e6:.2f}",
                    "stands": "" if o is None else o["stands"],
                }
            )
    bounds = any(r["auc_interval"] for r in table["rows"])
    return {"title": table["title"], "size": table["size"], "rows": rows, "notes": table["notes"], "bounds": bounds}


def _pair(bounds: Any, name: str) -> str:
    return "" if not bounds else interval({"low": bounds[0], "high": bounds[1]}, name)


def _machine(content: Content) -> str:
    env = content["environment"]
    threads = sorted({r["inference"]["threads"] for r in content["rows"] if r["inference"]})
    load = [r["inference"]["load"] for r in content["rows"] if r["inference"]]
    cpu = f"{env.get('cpu', 'unknown CPU')} ({env.get('instructions', 'instructions not told')})"
    text = f"{cpu}, {env.get('cores', '?')} cores, {env.get('memory_gib', '?')} GiB memory"
    if env.get("accelerator"):
        text += f", {env['accelerator']}"
    if threads:
        count = f"{' or '.join(map(str, threads))} thread{'' if threads == [1] else 's'}"
        text += f". Inference: ONNX Runtime on the CPU, float32, {count}, each model alone in its process, median"
        if max(load) > env.get("cores", 1) * 0.5:
            text += f"; load {min(load):.1f} to {max(load):.1f}, of other work or of the measuring itself"
            text += ": times may be too long"
    return text + "."


def _test_images(content: Content) -> list[int]:
    return [content["data"]["images"]["test"]]
