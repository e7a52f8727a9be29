"""The report where an image may bear many labels: a row per label, rare ones named once, calling nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from tests.reporting.run_fixture import make_run
from tests.reporting.test_report import Page, lookup, report

from medloom.files import RunDirectory
from medloom.reporting.audit_page import audit_html
from medloom.reporting.model_facts import model_facts

CLASSES = ("Effusion", "Pleural_Thickening", "Mass", "Hernia")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Three labels that can be judged and one with a handful of positives."""
    sizes = {"train": (9, 9, 9, 1), "val": (90, 90, 60, 0), "test": (60, 50, 40, 0)}
    run = make_run(
        tmp_path_factory.mktemp("many") / "r", classes=CLASSES, sizes=sizes, multi_label=True, resamples=30, name="many"
    )
    return _rare(run)


def _rare(run: RunDirectory) -> RunDirectory:
    """Take most of the last label's positives away, and make every number anew."""
    from medloom.config import EvaluationConfig
    from medloom.evaluation.operating_point import choose_operating_points
    from medloom.evaluation.predictions import read_csv
    from medloom.evaluation.summary import summarise
    from medloom.files import write_json

    tables = {}
    for split in ("val", "test"):
        table = read_csv(run.predictions(split), multi_label=True)
        table.labels[4:, 3] = 0
        table.write_csv(run.predictions(split))
        tables[split] = table
    config = EvaluationConfig(resamples=30)
    points = choose_operating_points(tables["val"], config, timestamp="2026-11-21T14:00:00+00:00")
    write_json(run.operating_point, points)
    metrics = summarise(tables["test"], validation=tables["val"], operating_points=points, config=config)
    write_json(run.metrics, {**metrics, "test_scorings": 1})
    return run


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a page's second; tests that do not look at them leave them out."""
    for module in ("plots", "plots_labels"):
        monkeypatch.setattr(f"medloom.reporting.{module}.inline_svg", lambda *_, **__: Markup("<svg></svg>"))


@pytest.fixture(scope="module")
def page(many: RunDirectory) -> Page:
    return report(many)


def test_the_numbers_are_the_recorded_ones(page: Page, many: RunDirectory) -> None:
    metrics = json.loads(many.metrics.read_text())
    assert len(page.numbers) > 60
    for title, value in page.numbers:
        path, _, _ = title.removeprefix("metrics.json: ").partition(" = ")
        assert lookup(metrics, path)["value"] == value, title


def test_H8_the_head_says_what_calling_nothing_reaches(page: Page, many: RunDirectory) -> None:
    whole = json.loads(many.metrics.read_text())["splits"]["test"]["metrics"]
    assert "mean AUC over 3 of 4 labels is" in page.text
    assert f"where calling no finding at all reaches {100 * whole['accuracy']['baseline']:.1f} %" in page.text
    assert "Label-wise accuracy" in page.text
    assert "Exact match of all labels" in page.text
    assert "Calling no finding in any image is right for" in page.text


def test_D122_D123_a_rare_label_is_named_and_has_no_panel(page: Page) -> None:
    assert "too few patients to judge: Hernia." in page.text
    assert "mean of 3 of 4 labels" in page.text
    assert "Pleural Thickening" in page.text  # a panel's title
    assert "Too few images in validation to choose a threshold on (D124" in page.text
    assert "not belong in the table" not in page.text  # another paper's table


@pytest.mark.usefixtures("unpainted")
def test_D124_a_run_without_any_threshold_has_a_page(many: RunDirectory, tmp_path: Path) -> None:
    import shutil

    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(many.root, copy.root)
    metrics = json.loads(copy.metrics.read_text())
    for p in metrics["splits"]["test"]["operating_points"]:
        p |= {"threshold": None, "reason": "no operating point: 3 positives, 10 needed", "counts": None,
              "confusion": None, "metrics": None, "predictive_values": None}  # fmt: skip
    copy.metrics.write_text(json.dumps(metrics))
    text = report(copy).text
    assert "No label has a threshold" in text
    assert "Too few images in validation: Effusion (3 positives), " in text


@pytest.mark.usefixtures("unpainted")
def test_a_gate_that_was_passed_is_not_told_with_the_title_of_a_note(many: RunDirectory, tmp_path: Path) -> None:
    import shutil

    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(many.root, copy.root)
    copy.recipe.write_text(copy.recipe.read_text().replace("accept: []", "accept: [D124]"))
    audit = json.loads(copy.audit.read_text())
    audit["findings"].append({"code": "D124", "severity": "note", "title": "no validation split"})
    copy.audit.write_text(json.dumps(audit))
    text = report(copy).text
    assert "Gate D124 passed by hand" in text
    assert "Gate D124 passed by hand: no validation split" not in text


def test_many_labels_stand_below_each_other_on_the_audit_page() -> None:
    names = [f"label {k}" for k in range(14)]
    audit: dict[str, Any] = {
        "name": "x",
        "counts": {"train": dict.fromkeys(names, 3)},
        "summary": {"images": 90, "multi_label": True, "unlabelled": 48, "splits": {"train": 90}},
    }
    page = Page(audit_html(audit, []))
    assert "90 images, 14 labels; 48 images have none of them." in page.text
    heads = [a for tag, a in page.tags if tag == "th" and a.get("class") == "n"]
    assert len(heads) < 5
    wide = {**audit, "counts": {"train": {"a": 2, "b": 3}}}
    assert len([a for tag, a in Page(audit_html(wide, [])).tags if tag == "th" and a.get("class") == "n"]) == 3


def test_the_model_is_told_in_words_not_keys() -> None:
    document = {
        "architecture": {"name": "resnet18", "num_classes": 14, "in_chans": 1, "image_size": [64, 64],
                         "small_input": True},
        "classes": ["a", "b"],
        "expected_input": {"depth": "8 bits"},
        "latency": {"milliseconds_per_image_at_batch": {"1": 9.81, "8": 4.2}, "threads": 2, "machine": "x86_64",
                    "runtime": "ONNX Runtime"},
        "parity": {"images": 64, "batches": [1, 2], "max_probability_difference": 7e-10,
                   "mean_probability_difference": 1e-10, "max_logit_difference": 6e-8, "flips": 0},
        "licences": {"software": "Apache-2.0"},
        "provenance": {"parameters": 11174862, "training images": 523, "data": "7f6e", "recipe": "ce8c",
                       "accepted": []},
        "hashes": {"document": "13d4"},
    }  # fmt: skip
    told = dict(model_facts(document))
    assert told["Network"] == "resnet18, 64 × 64 pixels, 1 channel, 14 answers; small input: yes"
    assert told["Speed"] == "9.8 ms for one image, 4.2 ms per image in batches of 8 (2 threads, x86_64, ONNX Runtime)"
    assert "no answer changed" in told["Exported model"]
    assert told["Trained on"] == "523 images"
    assert not any("_" in term for term in told)
    assert model_facts({}) == []
