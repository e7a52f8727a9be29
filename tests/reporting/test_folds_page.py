"""The page of cross-validation: by site where sites are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from masks_run import make_masks_run
from test_report import lookup

from medloom.files import RunDirectory
from medloom.reporting.folds_page import write_folds_page


def folds(root: Path, run: RunDirectory) -> dict[str, Any]:
    """The test cases of one run as those of both folds together, as ``medloom train --folds`` leaves them."""
    together = json.loads(run.metrics.read_text(encoding="utf-8"))
    dice = together["splits"]["test"]["metrics"]["dice"]
    (root / "cases_test.csv").write_bytes(run.cases("test").read_bytes())
    return {
        "recipe": "brains",
        "model": "unet_3d",
        "folds": [{"fold": k, "n": 20, "metrics": {"dice": dice}} for k in range(2)],
        "over_folds": {"dice": {"mean": 0.9, "sd": 0.01}},
        "together": together,
    }


@pytest.mark.parametrize("deep", [True, False])
def test_every_site_stands_there_with_its_own_numbers(tmp_path: Path, deep: bool) -> None:
    values = folds(tmp_path, make_masks_run(tmp_path / "run", deep=deep))
    page = Page(write_folds_page(tmp_path, values).read_text(encoding="utf-8"))
    assert "By site" in page.text
    rows = values["together"]["splits"]["test"]["sites"]
    shown = {place.split(": ", 1)[1].split(" = ")[0]: value for place, value in page.numbers}
    wanted = {k for k, row in enumerate(rows) if deep or row["structure"] != "all"}
    assert {int(place.split(".sites[")[1].split("]")[0]) for place in shown if ".sites[" in place} == wanted
    assert {place.split(": ")[0] for place, _ in page.numbers} == {"folds.json"}
    for place, value in shown.items():
        assert value == lookup(values, place)["value"]
    assert {row["site"] for row in rows} == {"Kyiv", "Lviv"}
    for row in rows:
        assert row["site"] in page.text


def test_without_sites_there_is_no_such_part(tmp_path: Path) -> None:
    values = folds(tmp_path, make_masks_run(tmp_path / "run", deep=False, sites=(None,)))
    page = Page(write_folds_page(tmp_path, values).read_text(encoding="utf-8"))
    assert "All cases together" in page.text
    assert "By site" not in page.text
    assert "fairness" not in page.text


def test_folds_of_a_classifier_have_no_such_part(tmp_path: Path) -> None:
    values = folds(tmp_path, make_masks_run(tmp_path / "run", deep=False))
    del values["together"]
    page = Page(write_folds_page(tmp_path, values).read_text(encoding="utf-8"))
    assert "By site" not in page.text
