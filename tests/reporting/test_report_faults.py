"""The page of a run whose files are missing, damaged, cut short or named by an enemy."""

from __future__ import annotations

from pathlib import Path

import pytest
from html_page import report
from run_fixture import make_run

from medloom.files import RunDirectory

PARTS = (
    "recipe.yaml",
    "environment.json",
    "records.csv",
    "split.json",
    "audit.json",
    "log.jsonl",
    "sessions.jsonl",
    "ledger.jsonl",
    "metrics.json",
    "operating_point.json",
    "predictions_val.csv",
    "predictions_test.csv",
    "pictures.json",
    "bundle/model.json",
)


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(run: RunDirectory, part: str) -> None:
    (run.root / part).unlink()
    page = report(run)
    assert f"1 part missing: {part}" in page.text
    assert "not recorded" in page.text


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("part", [p for p in PARTS if p != "records.csv"])
@pytest.mark.parametrize("damage", [b"\xff\xfe{]", b"", b"[1]"])
def test_a_damaged_part_is_named_and_breaks_nothing(run: RunDirectory, part: str, damage: bytes) -> None:
    (run.root / part).write_bytes(damage)
    page = report(run)
    empty_log = part.endswith(".jsonl") and damage in (b"", b"[1]")
    assert empty_log or f"1 part missing: {part}" in page.text


def test_an_empty_run_directory_gives_a_page_that_names_everything(tmp_path: Path) -> None:
    page = report(RunDirectory(tmp_path))
    assert f"{len(PARTS)} parts missing" in page.text
    assert all(part in page.text for part in PARTS)


@pytest.mark.usefixtures("unpainted")
def test_T401_a_log_cut_short_by_a_kill_is_read_up_to_there(run: RunDirectory) -> None:
    run.log.write_bytes(run.log.read_bytes()[:-9])
    assert "20, kept: 17" in report(run).text


HOSTILE = "<img src=x onerror=alert(1)>\"&'$\\frac{ "


def test_D126_hostile_names_are_text(tmp_path: Path) -> None:
    classes = (f"A {HOSTILE}", "Б \u202e}} {{ 7*7 }} 肺 {% raw %}")
    pattern = "{split}/-rf\n\x1b[31m" + HOSTILE.replace("{", "(") + "/{label}/{k}-{j}.png"
    sizes = {"train": (20, 20), "val": (60, 60), "test": (60, 60)}
    run = make_run(tmp_path / "r", classes=classes, sizes=sizes, id_pattern=pattern, resamples=20)
    page = report(run)
    raw = run.report.read_text(encoding="utf-8")
    for tag, attributes in page.tags:
        assert tag != "script"
        assert not any(name.startswith("on") for name in attributes)
        assert not (tag == "img" and attributes.get("src") == "x")
    assert f"A {HOSTILE.strip()}" in page.text
    assert "肺" in page.text
    assert "7*7" in page.text
    assert "\\x1b[31m" in page.text
    assert "\u202e" not in raw
    assert "\x1b" not in raw
    assert "<img src=x" not in raw
