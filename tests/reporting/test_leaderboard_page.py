"""What a leaderboard says of recorded runs, what it refuses, and what it marks."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_runs import change, copy_of, made, several

from medloom.errors import DataError, UsageError
from medloom.evaluation.metrics import auc, rank
from medloom.files import append_line
from medloom.reporting.compared import Run, protocol, read, refuse_mixtures
from medloom.reporting.leaderboard import Measured, build
from medloom.reporting.leaderboard_page import as_html, write_leaderboard
from medloom.reporting.leaderboard_plots import MOST_NAMED
from medloom.reporting.leaderboard_tables import as_csv, as_markdown
from medloom.reporting.published_tables import tables_for


def _speed(ms: float) -> dict[str, Any]:
    both = {f"batch {b}": {"median_ms": ms * b, "images_per_second": 1000 / ms} for b in (1, 16)}
    return {"threads": 1, "load": 0.1, **both}


MEASURED = Measured(
    cost={"conv2d": {"parameters": 370_626, "macs": 9_000_000}},
    speed={"conv2d": _speed(1.0), "resnet18": _speed(4.0), "vit_tiny": _speed(2.0)},
    failed={
        "vit_tiny": [{"seed": 2, "error": "error[T406] loss: not finite."}],
        "medvit": [{"seed": 0, "error": "error[T407] memory: gone."}],
    },
    waiting={"resnet50": [0, 1]},
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return several(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def content(runs: list[Run]) -> dict[str, Any]:
    return build(runs, MEASURED, baseline="resnet18", resamples=100, environment={"cores": 2})


def test_the_numbers_are_those_of_the_predictions(runs: list[Run], content: dict[str, Any]) -> None:
    row = next(r for r in content["rows"] if r["label"] == "vit_tiny")
    for run, value in zip([r for r in runs if r.label == "vit_tiny"], row["auc"]["values"]):
        table = run.test
        ranking = rank(table.labels == 1, table.probabilities[:, 1])
        assert value == pytest.approx(float(auc(ranking, np.ones((1, len(table))))[0]))
    assert row["difference"]["auc"]["seeds"] == [0, 1]
    assert content["test_scorings"] == 6
    assert content["comparisons"] == 2


def test_rows_are_sorted_and_those_without_a_result_come_last(content: dict[str, Any]) -> None:
    means = [r["auc"]["mean"] for r in content["rows"]]
    known = [m for m in means if m is not None]
    assert known == sorted(known, reverse=True)
    assert [r["label"] for r in content["rows"][3:]] == ["medvit", "resnet50"]


def test_the_front_holds_what_no_row_beats_in_both(content: dict[str, Any]) -> None:
    rows = {r["label"]: r for r in content["rows"] if r["auc"]["mean"] is not None}
    ms = {"conv2d": 1.0, "resnet18": 4.0, "vit_tiny": 2.0}
    for label, row in rows.items():
        beaten = any(ms[o] < ms[label] and rows[o]["auc"]["mean"] >= row["auc"]["mean"] for o in rows)
        assert row["pareto"] is not beaten
    assert rows["conv2d"]["pareto"]


def test_the_page_shows_every_row_and_needs_nothing_else(content: dict[str, Any]) -> None:
    page = as_html(content, "three models")
    for text in ("conv2d", "resnet18", "vit_tiny", "error[T406]", "error[T407]", "resnet50", "Test set scored 6 times"):
        assert text in page
    assert "2 runs failed" in page
    assert "Not finished: 2 runs to go" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert as_html(content, "three models") == page
    value = content["rows"][0]["auc"]["entry"]["value"]
    assert f'<data value="{value}">' in page


def test_many_points_bear_numbers_that_the_table_explains(content: dict[str, Any]) -> None:
    first = content["rows"][0]
    slower = [
        {**first, "label": f"slow_{k}", "pareto": False, "inference": _speed(10.0 + k)}
        for k in range(2, MOST_NAMED + 2)
    ]
    named = as_html({**content, "rows": [first, *slower[: MOST_NAMED - 1]]}, "few")
    numbered = as_html({**content, "rows": [first, *slower]}, "many")
    for page, few in ((named, True), (numbered, False)):
        drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page.split("What each costs")[1])
        assert first["label"] in drawn
        assert ("slow_3" in drawn) is few
        assert ("rows of the table below" in page) is not few
    assert "13" in drawn
    assert '<span class="note">13</span> slow_13' in numbered


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    run = read("<script>alert(1)</script>|x", 0, made(tmp_path, "conv2d"))
    found = build([run], Measured(), resamples=20)
    assert "<script>" not in as_html(found, "<b>")
    assert "\\|x" in as_markdown(found)


def test_the_four_files_hold_the_same(content: dict[str, Any], tmp_path: Path) -> None:
    page = write_leaderboard(content, tmp_path, title="t")
    assert page == tmp_path / "leaderboard.html"
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == json.loads(json.dumps(content))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    assert [r["model"] for r in rows] == [r["label"] for r in content["rows"]]
    assert float(rows[0]["auc"]) == content["rows"][0]["auc"]["entry"]["value"]
    assert rows[-2]["failed"].startswith("seed 0: error[T407]")
    table = [line for line in (tmp_path / "leaderboard.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(content["rows"])
    assert {line.count("|") for line in table} == {12}


def test_D133_other_test_images_are_refused(runs: list[Run], tmp_path: Path) -> None:
    sizes = {"train": (40, 60), "val": (30, 30), "test": (60, 79)}
    other = read("conv2d", 5, made(tmp_path, "conv2d", 5, sizes=sizes))
    with pytest.raises(DataError) as caught:
        refuse_mixtures([*runs, other])
    assert caught.value.code == "D133"
    assert "139 images" in caught.value.problem


def test_D133_the_same_names_with_other_patients_are_refused(runs: list[Run], tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    run.records.write_text(run.records.read_text().replace("test-0-3", "test-0-4"))
    with pytest.raises(DataError) as caught:
        build([runs[1], read("x", 0, run)], Measured(), resamples=20)
    assert caught.value.code == "D133"


def test_D133_other_classes_are_refused(runs: list[Run], tmp_path: Path) -> None:
    other = read("x", 0, made(tmp_path, "conv2d", classes=("HEALTHY", "SICK")))
    with pytest.raises(DataError, match="D133"):
        refuse_mixtures([runs[0], other])


def test_D133_a_run_without_test_images_has_no_place_in_it(runs: list[Run], tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    run.predictions("test").unlink()
    with pytest.raises(DataError, match="D133"):
        read("x", 0, run)


def test_U232_a_baseline_that_is_no_row(runs: list[Run]) -> None:
    with pytest.raises(UsageError, match="U232"):
        build(runs, Measured(), baseline="resnet19", resamples=20)


def test_a_run_with_another_budget_is_marked_with_what_differs(runs: list[Run], tmp_path: Path) -> None:
    longer, split, altered = (copy_of(runs[k], tmp_path) for k in (0, 2, 4))
    change(longer, **{"train.batch_size": 64})
    text = split.records.read_text()
    split.records.write_text(text.replace(",val,val-1-7,", ",train,val-1-7,"))
    assert split.records.read_text() != text
    with altered.ledger.open("a") as handle:
        handle.write(json.dumps({"event": "accepted", "code": "T411", "what": ["epochs: 20 -> 40"]}) + "\n")
    whole = [*runs, read("a", 0, longer), read("b", 0, split), read("c", 0, altered)]
    found = protocol(whole)["departures"]
    assert found[longer.root.name] == ["train.batch_size: 64 (others 32)"]
    assert "division into training and validation" in found[split.root.name][0]
    assert "epochs: 20 -> 40" in found[altered.root.name][0]
    assert len(found) == 3
    page = as_html(build(whole, Measured(), resamples=20), "t")
    assert "3 models had another budget: marked †" in page
    assert "train.batch_size: 64 (others 32)" in page


def test_fewer_steps_under_the_same_recipe_are_marked(runs: list[Run], tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    lines = run.log.read_text().splitlines()
    run.log.write_text("\n".join(lines[:6]) + "\n")
    found = protocol([*runs, read("short", 0, run)])["departures"]
    assert found == {run.root.name: ["735 steps (others 2940)"]}


def test_model_options_and_threads_are_no_departure(runs: list[Run], tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    change(run, **{"train.threads": 2, "model.options": {"dropout": 0.1}, "notes": "x"})
    assert protocol([*runs, read("x", 0, run)])["departures"] == {}


def test_published_weights_are_a_departure(runs: list[Run], tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    change(run, **{"model.pretrained": True})
    assert "model.pretrained" in protocol([*runs, read("x", 0, run)])["departures"][run.root.name][0]


def test_enlarged_images_are_said_to_be_enlarged(runs: list[Run], tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    audit = json.loads(run.audit.read_text())
    audit["summary"]["sizes"] = [[28, 28, 340]]
    run.audit.write_text(json.dumps(audit))
    assert "28 × 28 pixels, enlarged" in dict(protocol([read("x", 0, run)])["shown"])["Input"]


def test_many_labels_have_their_own_names_and_baseline(tmp_path: Path) -> None:
    classes = tuple(f"finding {k}" for k in range(4))
    sizes = {"train": (20,) * 4, "val": (20,) * 4, "test": (30, 30, 30, 1)}
    more = {"classes": classes, "sizes": sizes, "multi_label": True}
    found = [read(n, 0, made(tmp_path, n, draw=0, **more)) for n in ("conv2d", "resnet18")]
    content = build(found, Measured(), resamples=30)
    page = as_html(content, "many")
    assert "Label-wise accuracy" in page
    assert "Answering &#39;none&#39; to everything reaches" in page
    assert content["data"]["trivial"]["accuracy"] > 0.5


def test_peak_memory_is_that_of_the_gpu_where_there_was_one(runs: list[Run], tmp_path: Path) -> None:
    def told(chosen: list[Run]) -> tuple[dict[str, Any], dict[str, str], str]:
        made = build(chosen, Measured(), resamples=50)
        table = next(csv.DictReader(io.StringIO(as_csv(made))))
        return made["rows"][0], table, as_html(made, "x")

    row, table, page = told(runs[:1])
    assert (row["peak_memory"], row["memory_of"]) == (3 << 29, "host")
    assert (table["peak_memory_bytes"], table["peak_memory_of"]) == (str(3 << 29), "host")
    assert "peak GiB, process</th>" in page
    directory = copy_of(runs[0], tmp_path)
    end = {"event": "end", "stopped": "epochs", "peak_memory": 7 << 30, "peak_device_memory": 5 << 28}
    append_line(directory.sessions, json.dumps(end))
    on_gpu = read("conv2d", 0, directory)
    row, table, page = told([on_gpu])
    assert (row["peak_memory"], table["peak_memory_of"]) == (5 << 28, "device")
    assert "peak GiB, GPU</th>" in page
    assert "memory of the GPU" in page
    both = as_html(build([on_gpu, runs[2]], Measured(), resamples=50), "x")
    assert "1.25 GPU<" in both
    assert "1.50 process<" in both


def test_D133_seeds_that_keep_different_labels_may_stand_in_one_row(runs: list[Run], tmp_path: Path) -> None:
    directory = copy_of(runs[0], tmp_path)
    lines = directory.records.read_text().splitlines(keepends=True)
    first = next(k for k, line in enumerate(lines) if ",train," in line)
    directory.records.write_text("".join(lines[:first] + lines[first + 1 :]))
    with pytest.raises(DataError, match="D133"):
        refuse_mixtures([runs[0], read("conv2d", 1, directory)])
    change(directory, **{"data.label_fraction": 0.5})
    refuse_mixtures([runs[0], read("conv2d", 1, directory)])


def test_published_tables_stand_beside_their_own_data_only(runs: list[Run]) -> None:
    counts = {"0": 234, "1": 390}
    titles = [t.title for t in tables_for("pneumoniamnist", ("0", "1"), counts, 624)]
    assert titles == ["MedMNIST v2, table 3", "MedViT"]
    found = tables_for("chest_xray", ("NORMAL", "PNEUMONIA"), {"PNEUMONIA": 390}, 624)
    assert [t.title for t in found] == ["HATR paper, table 2"]
    assert len(tables_for("chestmnist_64", tuple("abc"), {}, 22433)) == 5
    assert tables_for("ours", ("a", "b"), {"a": 1, "b": 2}, 3) == ()
    assert build(runs, Measured(), against="published", resamples=20)["published"] == []


def test_published_numbers_come_with_what_they_mean(tmp_path: Path) -> None:
    sizes = {"train": (40, 60), "val": (30, 30), "test": (234, 390)}
    found = [read(n, 0, made(tmp_path, n, draw=k, sizes=sizes)) for k, n in enumerate(("resnet50", "conv2d"))]
    content = build(found, Measured(), against="published", resamples=30)
    table = content["published"][0]
    assert table["title"] == "HATR paper, table 2"
    row = next(r for r in table["rows"] if r["model"] == "ResNet-50")
    assert row["accuracy_interval"] == pytest.approx([0.845, 0.897], abs=1e-3)
    assert [o["label"] for o in row["ours"]] == ["resnet50"]
    assert row["ours"][0]["stands"] in ("ours is higher", "ours is lower", "within our interval")
    page = as_html(content, "t")
    assert "Their validation part had 16 images" in page
    slides = tables_for("chestmnist", tuple("ab"), {}, 22433)[2]
    assert "label-wise" in slides.notes[0]
    assert next(r for r in slides.rows if r.model == "Hybrid RR-ViT").auc == 0.755
