"""The page of a run: whole, self-contained, escaped, and equal to the recorded numbers."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from html_page import OUTWARD, Page, report
from run_fixture import make_run

from medloom.files import RunDirectory, append_line, write_json
from medloom.reporting.report import SECTIONS, write_report


@pytest.fixture(scope="module")
def page(whole_run: RunDirectory) -> Page:
    return report(whole_run)


def test_the_page_is_balanced_and_has_every_section(page: Page) -> None:
    assert all(title in page.text for title in SECTIONS.values())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(a["href"])[1:] for tag, a in page.tags if tag == "a"]
    assert len(links) == len(SECTIONS)
    assert set(links) <= set(ids)


def test_the_page_fetches_nothing_and_runs_nothing(page: Page, whole_run: RunDirectory) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "foreignobject")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in OUTWARD:
                assert re.match(r"#|data:image/(jpeg|png);base64,", str(value)), (tag, name, str(value)[:80])
            for url in re.findall(r"url\((.*?)\)", value or ""):
                assert url.startswith("#")
    text = whole_run.report.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text


def test_H3_every_number_on_the_page_is_the_recorded_one(page: Page, whole_run: RunDirectory) -> None:
    metrics = json.loads(whole_run.metrics.read_text())
    assert len(page.numbers) > 60
    for title, value in page.numbers:
        path, _, shown = title.removeprefix("metrics.json: ").partition(" = ")
        recorded = lookup(metrics, path)["value"]
        assert recorded == value == float(shown), title


def lookup(value: Any, path: str) -> Any:
    """``splits.test.operating_points[0].metrics.auc``; a class name may hold dots, so the longest key wins."""
    if not path:
        return value
    if isinstance(value, list):
        found = re.match(r"\[(\d+)\]\.?", path)
        assert found
        return lookup(value[int(found[1])], path[found.end() :])
    key = max((k for k in value if path == k or path.startswith((f"{k}.", f"{k}["))), key=len)
    return lookup(value[key], path[len(key) :].removeprefix("."))


def test_what_is_shown_is_the_rounded_value(page: Page, whole_run: RunDirectory) -> None:
    metrics = json.loads(whole_run.metrics.read_text())
    auc = metrics["splits"]["test"]["metrics"]["auc"]
    point = metrics["splits"]["test"]["operating_points"][0]["metrics"]["accuracy"]
    assert f"AUC is {auc['value']:.3f} (95 % interval {auc['low']:.3f}–{auc['high']:.3f})" in page.text
    assert f"accuracy is {100 * point['value']:.1f} % (95 % interval {100 * point['low']:.1f}–" in page.text
    assert "the commonest answer reaches 62.5 %" in page.text


def test_H2_H8_H10_H18_the_head_says_what_must_be_known(page: Page) -> None:
    assert "Research software, not a medical device" in page.text
    assert "NOT EXTERNALLY VALIDATED" in page.text
    assert "Test set scored 1 time" in page.text
    red = [i for i, (tag, a) in enumerate(page.tags) if tag == "li" and a.get("class") == "red"]
    assert len(red) == 1
    assert "Gate D119 passed by hand: refused by D119" in page.text


@pytest.mark.usefixtures("unpainted")
def test_H2_every_further_scoring_is_counted(run: RunDirectory) -> None:
    append_line(run.ledger, json.dumps({"event": "test scored", "what": "evaluate", "time": "x", "data": "y"}))
    append_line(run.ledger, json.dumps({"event": "other"}))
    assert "Test set scored 2 times" in report(run).text


@pytest.mark.usefixtures("unpainted")
def test_H10_an_external_evaluation_is_shown_and_the_runs_own_test_images_are_not_one(run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    place = run.root / "evaluations" / "nih"
    place.mkdir(parents=True)
    write_json(place / "metrics.json", {**metrics, "evaluation": {"own_test_images": 624}})
    text = report(run).text
    assert "NOT EXTERNALLY VALIDATED" in text
    assert "624 are this run's own test images" in text
    write_json(place / "metrics.json", {**metrics, "evaluation": {"own_test_images": 0}})
    text = report(run).text
    assert "NOT EXTERNALLY VALIDATED" not in text
    assert "Evaluated on 1 external data set: nih" in text
    write_json(place / "metrics.json", {**metrics, "evaluation": {"seen_images": 9, "accepted": ["D117"]}})
    page = report(run)
    assert "NOT EXTERNALLY VALIDATED" in page.text
    assert "9 are images that it learnt from" in page.text
    assert "Evaluation nih: gate D117 passed by hand: 9 images of training or validation" in page.text
    assert [a.get("class") for tag, a in page.tags if tag == "li"].count("red") == 2


@pytest.mark.usefixtures("unpainted")
def test_another_data_set_stands_beside_with_what_the_threshold_gives_there(run: RunDirectory) -> None:
    assert "No other data set was evaluated" in report(run).text
    metrics = json.loads(run.metrics.read_text())
    point = metrics["splits"]["test"]["operating_points"][0]
    place = run.root / "evaluations" / "nih"
    place.mkdir(parents=True)
    write_json(place / "metrics.json", metrics)
    raw = write_report(run).read_text(encoding="utf-8")
    page = Page(raw)
    recorded = dict(page.numbers)
    for name in ("sensitivity", "specificity"):
        entry = point["metrics"][name]
        path = f"evaluations/nih: splits.test.operating_points[0].metrics.{name}"
        assert recorded[f"metrics.json: {path} = {entry['value']!r}"] == entry["value"]
        assert f"{100 * entry['low']:.1f}–{100 * entry['high']:.1f}" in page.text
    row = page.text[page.text.index("data set images patients") :]
    assert f"{point['class']} {point['positives']} {point['negatives']}" in row[:300]
    assert raw.index("Later evaluations") < raw.index('<h2 id="calibration"')
    point.update(metrics=None, threshold=None, reason="too few positives")
    write_json(place / "metrics.json", metrics)
    assert "too few positives" in report(run).text


@pytest.mark.usefixtures("unpainted")
def test_what_was_asked_names_every_setting_that_is_on(run: RunDirectory) -> None:
    from medloom.config import load_recipe

    assert "20 epochs, batch 32" in report(run).text
    train = {
        "max_steps": 20,
        "warmup_epochs": 2,
        "ema_decay": 0.99,
        "patience": 5,
        "clip_norm": 3,
        "label_smoothing": 0.1,
    }
    run.recipe.write_text(load_recipe({"train": train, "evaluation": {"flip_average": True}}).as_yaml())
    text = report(run).text
    for told in (
        "20 steps (at most 20 epochs)",
        "warm-up over 2 epochs",
        "EMA of the weights 0.99",
        "patience 5 epochs",
        "clipped at norm 3",
        "label smoothing 0.1",
        "mean over an image and its mirror",
    ):
        assert told in text


@pytest.mark.usefixtures("unpainted")
def test_H8_a_model_that_does_not_beat_chance_is_called_so(run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    metrics["splits"]["test"]["metrics"]["auc"] |= {"value": 0.52, "low": 0.47, "high": 0.58}
    at = metrics["splits"]["test"]["operating_points"][0]["metrics"]["accuracy"]
    at |= {"low": at["baseline"] - 0.01}
    write_json(run.metrics, metrics)
    text = report(run).text
    assert "Not shown to be better than the trivial answer" in text
    assert "which the interval does not exclude" in text


def test_D122_a_number_that_is_not_estimable_shows_its_reason(run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    metrics["splits"]["test"]["metrics"]["auc"] |= {
        "value": None,
        "low": None,
        "high": None,
        "note": "not estimable (0 negatives)",
    }
    metrics["splits"]["test"]["curves"]["PNEUMONIA"] = {"roc": None, "pr": None, "reason": "not estimable"}
    write_json(run.metrics, metrics)
    page = report(run)
    assert "not estimable (0 negatives)" in page.text
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


def test_equal_files_give_equal_bytes(run: RunDirectory) -> None:
    first = write_report(run).read_bytes()
    for path in run.root.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    assert write_report(run).read_bytes() == first


def test_the_script_on_the_page_gives_the_numbers_on_the_page(
    page: Page, whole_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = whole_run.report.read_text(encoding="utf-8")
    script = html.unescape(raw[raw.index("<pre>") + 5 : raw.index("</pre>")])
    printed = io.StringIO()
    monkeypatch.chdir(whole_run.root)
    with contextlib.redirect_stdout(printed):
        exec(compile(script.replace("open(", "_open("), "page", "exec"), {"_open": _closing_open})
    found = {line.split()[0]: float(line.split()[1]) for line in printed.getvalue().splitlines()}
    test = json.loads(whole_run.metrics.read_text())["splits"]["test"]
    at = test["operating_points"][0]["metrics"]
    expected = {
        "auc": test["metrics"]["auc"],
        "brier": test["metrics"]["brier"],
        **{k: at[k] for k in ("accuracy", "sensitivity", "specificity")},
    }
    assert found == pytest.approx({k: e["value"] for k, e in expected.items()}, abs=1e-12)


def _closing_open(path: str, **options: Any) -> io.StringIO:
    """The script leaves closing to the interpreter's end, which warns under a test."""
    return io.StringIO(Path(path).read_text(encoding="utf-8"))


def test_the_papers_table_stands_beside_ours_only_on_the_papers_images(page: Page, tmp_path: Path) -> None:
    assert "this run, frozen threshold" in page.text
    assert "91.4 %" in page.text
    sizes = {"train": (20, 20), "val": (60, 60), "test": (60, 60)}
    other = report(make_run(tmp_path / "r", sizes=sizes, resamples=20))
    assert "this run, frozen threshold" not in other.text
    assert "was not scored on its 624 test images" in other.text


def test_more_classes_have_pages_too(tmp_path: Path) -> None:
    sizes = {"train": (9, 9, 9), "val": (60, 60, 60), "test": (30, 25, 20)}
    run = make_run(tmp_path / "r", classes=("a", "b", "c"), sizes=sizes, resamples=20, name="three")
    page = report(run)
    assert "mean AUC over the classes" in page.text
    assert page.text.count("Reliability:") >= 1
    metrics = json.loads(run.metrics.read_text())
    for title, value in page.numbers:
        path, _, _ = title.removeprefix("metrics.json: ").partition(" = ")
        assert lookup(metrics, path)["value"] == value


def test_fluctuation_is_the_deviation_of_changes(page: Page, whole_run: RunDirectory) -> None:
    import numpy as np

    epochs = [json.loads(line) for line in whole_run.log.read_text().splitlines()]
    loss = [e["val_loss"] for e in epochs if e["event"] == "epoch"]
    assert f"validation loss {np.std(np.diff(loss)):.4f} {np.std(np.diff(loss[10:])):.4f}" in page.text
    assert "20, kept: 17" in page.text


@pytest.mark.usefixtures("unpainted")
def test_resumes_are_counted_from_the_sessions_and_not_those_of_a_run_that_was_over(run: RunDirectory) -> None:
    text = report(run).text
    assert "Interruptions none" in text
    assert "Most memory 1.50 GiB" in text
    for over in (False, False, True):
        append_line(run.sessions, json.dumps({"event": "resume", "over": over}))
    append_line(run.sessions, json.dumps({"event": "end", "stopped": "epochs", "peak_memory": 5 << 29}))
    text = report(run).text
    assert "resumed 2 times" in text
    assert "Most memory 2.50 GiB" in text


@pytest.mark.usefixtures("unpainted")
def test_an_epoch_that_stands_twice_in_the_log_counts_once(run: RunDirectory) -> None:
    lines = run.log.read_text().splitlines()
    for line in [line for line in lines if '"epoch": 3' in line or '"epoch": 4' in line]:
        append_line(run.log, line)
    assert "20, kept: 17" in report(run).text


@pytest.mark.usefixtures("unpainted")
def test_T411_what_a_resume_was_made_to_accept_is_red_and_told(run: RunDirectory) -> None:
    change = "recipe.train.learning_rate: 0.0001 -> 0.001"
    line = {"event": "accepted", "code": "T411", "what": [change], "epoch": 7, "time": "x"}
    append_line(run.ledger, json.dumps(line))
    page = report(run)
    assert [a.get("class") for tag, a in page.tags if tag == "li"].count("red") == 2
    assert "Gate T411 passed by hand" in page.text
    assert "from epoch 7: learning_rate 0.0001 -> 0.001" in page.text


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.3, 0.5, "%, and is worse than that."),
        (0.6, 0.7, "which the interval does not exclude."),
        (0.7, 0.8, "reaches 62.5\u202f%."),
    ],
)
@pytest.mark.usefixtures("unpainted")
def test_the_head_says_on_which_side_of_the_trivial_answer_the_interval_lies(
    run: RunDirectory, low: float, high: float, told: str
) -> None:
    metrics = json.loads(run.metrics.read_text())
    entry = metrics["splits"]["test"]["operating_points"][0]["metrics"]["accuracy"]
    entry.update(value=(low + high) / 2, low=low, high=high)
    write_json(run.metrics, metrics)
    raw = write_report(run).read_text(encoding="utf-8")
    sentence = re.search(r'class="verdict">(.*?)</p>', raw)
    assert sentence is not None
    assert sentence[1].endswith(told)


@pytest.mark.usefixtures("unpainted")
def test_H7_a_weighted_loss_without_calibration_is_named(run: RunDirectory) -> None:
    recipe = run.recipe.read_text().replace("calibration: temperature", "calibration: none")
    run.recipe.write_text(recipe)
    assert "Probabilities are not calibrated" in report(run).text
