"""The page of a segmenter: outlines that lie where the masks lie, recorded numbers, and nothing of classifiers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from html_page import OUTWARD, Page, report
from markupsafe import Markup
from masks_run import make_masks_run
from test_report import lookup

from medloom.evaluation.case_table import read_cases
from medloom.files import RunDirectory, write_json
from medloom.reporting.overlays import (
    ANSWER,
    BOTH,
    TRUTH,
    CasePicture,
    case_views,
    drawn_case,
    outlined,
    read_case_pictures,
    write_case_pictures,
)
from medloom.reporting.report import MASK_SECTIONS, SECTIONS, write_report


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Do not change it."""
    return make_masks_run(tmp_path_factory.mktemp("runs") / "hippocampus")


@pytest.fixture(scope="module")
def page(volumes: RunDirectory) -> Page:
    return report(volumes)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a page's time; tests that do not look at them leave them out."""
    for module in ("plots", "plots_masks"):
        monkeypatch.setattr(f"medloom.reporting.{module}.inline_svg", lambda *args, **kwargs: Markup("<svg></svg>"))


@pytest.fixture
def run(volumes: RunDirectory, tmp_path: Path, unpainted: None) -> RunDirectory:
    """A copy that a test may change."""
    return RunDirectory(shutil.copytree(volumes.root, tmp_path / "hippocampus"))


def test_the_page_has_the_sections_of_masks_and_none_of_classifiers(page: Page) -> None:
    assert all(title in page.text for title in MASK_SECTIONS.values())
    gone = set(SECTIONS.values()) - set(MASK_SECTIONS.values())
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert len(links) == len(MASK_SECTIONS)
    assert not [title for title in gone if f"#{title.lower().replace(' ', '-')}" in links]
    for word in ("AUC", "threshold", "ROC", "specificity"):
        shown = page.text.split("The whole recipe")[0]
        assert word not in shown, word


def test_the_page_fetches_nothing_and_runs_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "foreignobject")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in OUTWARD:
                assert re.match(r"#|data:image/(jpeg|png);base64,", str(value)), (tag, name)


def test_H3_every_number_on_the_page_is_the_recorded_one(page: Page, volumes: RunDirectory) -> None:
    metrics = json.loads(volumes.metrics.read_text())
    assert len(page.numbers) > 40
    for title, value in page.numbers:
        path, _, shown = title.removeprefix("metrics.json: ").partition(" = ")
        assert lookup(metrics, path)["value"] == value == float(shown), title


def test_the_sentence_on_top_is_the_recorded_result(page: Page, volumes: RunDirectory) -> None:
    part = json.loads(volumes.metrics.read_text())["splits"]["test"]
    dice, outcomes = part["metrics"]["dice"], part["outcomes"]
    assert f"mean Dice over 2 structures is {dice['value']:.3f} (95 % interval {dice['low']:.3f}–" in page.text
    assert f"the mean shape of the training masks reaches {dice['baseline']:.3f}" in page.text
    assert f"{outcomes['missed']} structures were missed and {outcomes['invented']} invented." in page.text


def test_the_script_on_the_page_makes_the_numbers_again(page: Page, volumes: RunDirectory) -> None:
    start = page.text.index("import csv")
    text = (volumes.root / "report.html").read_text(encoding="utf-8")
    script = re.search(r"<pre>(import csv.*?)</pre>", text, re.DOTALL)
    assert script
    assert start > 0
    source = script[1].replace("&#34;", '"').replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">")
    printed, here = io.StringIO(), Path.cwd()
    os.chdir(volumes.root)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "recompute", "exec"), {})
    finally:
        os.chdir(here)
    said = {tuple(line.split()[:2]): line.split()[2:] for line in printed.getvalue().splitlines()}
    part = json.loads(volumes.metrics.read_text())["splits"]["test"]
    assert float(said["all", "dice"][0]) == pytest.approx(part["metrics"]["dice"]["value"])
    for name, values in part["structures"].items():
        for measure in ("dice", "hd95", "nsd", "assd"):
            mean, median, n = said[name, measure]
            assert float(mean) == pytest.approx(values["metrics"][measure]["value"])
            assert float(median) == pytest.approx(values["medians"][measure]["value"])
            assert int(n) == values["metrics"][measure]["n"]
        assert int(said[name, "missed"][0]) == values["outcomes"]["missed"]


def test_worst_cases_are_shown_with_three_planes_and_what_was_missed(page: Page, volumes: RunDirectory) -> None:
    images = [a for tag, a in page.tags if tag == "img" and "outlined" in str(a.get("alt"))]
    assert len(images) == 3 * 8
    table = read_cases(volumes.cases("test"))
    worst = table.ids[int(np.nanargmin(table.per_case("dice")))]
    assert page.text.index(worst) < page.text.index("In the middle") < page.text.rindex("Sites")
    assert "missed" in page.text.split("Worst by Dice")[1].split("In the middle")[0]


def test_images_have_one_view_one_structure_and_pixels(tmp_path: Path) -> None:
    films = make_masks_run(tmp_path / "lungs", deep=False, name="lungs", cases=36, sites=("east", "west", None))
    shown = report(films)
    images = [a for tag, a in shown.tags if tag == "img" and "outlined" in str(a.get("alt"))]
    assert len(images) == 8
    assert "NSD at 1 pixel " in shown.text
    assert "HD95, pixels" in shown.text
    assert "all structures" not in shown.text
    assert "light box" not in shown.text
    assert all(site in shown.text for site in ("east", "west"))


def test_without_sites_the_page_says_that_nobody_knows(tmp_path: Path, unpainted: None) -> None:
    shown = report(make_masks_run(tmp_path / "lungs", deep=False, cases=12, sites=(None,)))
    assert "do not say where they were made" in shown.text


def test_no_better_than_a_mean_shape_is_a_red_flag(run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    assert "Not shown to be better" not in report(run).text
    metrics["splits"]["test"]["metrics"]["dice"]["baseline"] = 0.9
    write_json(run.metrics, metrics)
    assert "Not shown to be better than the trivial answer" in report(run).text


def test_other_data_sets_stand_beside(run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    (run.root / "evaluations" / "elsewhere").mkdir(parents=True)
    own = {"evaluation": {"own_test_images": 3}}
    write_json(run.root / "evaluations" / "elsewhere" / "metrics.json", metrics | own)
    shown = report(run).text
    assert "not external: 3 are this run's own test images" in shown
    assert "No other data set" not in shown


@pytest.mark.parametrize(
    "file",
    ["metrics.json", "cases_test.csv", "cases_val.csv", "pictures.json", "pictures.npz", "recipe.yaml", "log.jsonl"],
)
@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_what_is_missing_is_named_and_the_rest_is_shown(file: str, damage: str, run: RunDirectory) -> None:
    path = run.root / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 20])
    shown = report(run).text
    named = "pictures.json" if file == "pictures.npz" else file
    # Half a log, and half a recipe that ends with a line, are still a log and a recipe.
    if not (file in ("log.jsonl", "recipe.yaml") and damage == "cut off"):
        assert named in shown.split("Not in this report")[1]
    assert all(title in shown for title in MASK_SECTIONS.values())


def test_a_run_without_test_cases_shows_validation_and_says_so(run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    del metrics["splits"]["test"]
    write_json(run.metrics, metrics)
    run.cases("test").unlink()
    shown = report(run).text
    assert "On 13 validation cases" in shown
    assert "Validation, 13 cases" in shown


def test_names_of_any_spelling_are_escaped(tmp_path: Path) -> None:
    odd = "<b>&amp;\u202e{i}"
    shown = make_masks_run(
        tmp_path / "odd", deep=False, cases=12, structures=("<i>lung</i>",), id_pattern=odd, sites=("<script>",)
    )
    text = write_report(shown).read_text(encoding="utf-8")
    assert "<i>lung" not in text
    assert "<script>" not in text
    assert "\u202e" not in text
    Page(text)


def test_equal_files_give_equal_pages(page: Page, volumes: RunDirectory) -> None:
    first = volumes.report.read_bytes()
    assert write_report(volumes).read_bytes() == first


def test_views_are_as_on_a_light_box() -> None:
    """A mark to the patient's right, in front and on top is up and left in the axial and the coronal plane."""
    image = np.zeros((20, 30, 40), dtype=np.float32)
    truth = np.zeros(image.shape, dtype=np.uint8)
    truth[8:12, 10:20, 15:25] = 1
    image[15, :, :] = 1  # a wall to the right
    image[:, 25, :] = 2  # a wall in front
    image[:, :, 35] = 3  # a wall on top
    axial, coronal, sagittal = case_views(image, truth, truth, (1.0, 2.0, 3.0))
    assert [v.plane for v in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert axial.image.shape == (30, 20)
    assert axial.image[29 - 25].min() > 0  # front is near the top
    assert axial.image[:, 19 - 15].min() > 0  # right is near the left
    assert coronal.image[39 - 35].min() > 0
    assert sagittal.image[:, 29 - 25].min() > 0  # front is near the left
    assert axial.pixel == (2.0, 1.0)
    assert coronal.pixel == (3.0, 1.0)
    assert sagittal.pixel == (3.0, 2.0)
    assert truth[:, :, int(axial.at.split()[1]) - 1].sum() == 40


def test_the_slice_is_the_one_with_the_largest_area_and_an_empty_reference_shows_the_answer() -> None:
    mask = np.zeros((10, 12, 14), dtype=np.uint8)
    mask[4:6, 4:6, 3], mask[2:8, 2:9, 9] = 1, 2
    empty = np.zeros_like(mask)
    assert case_views(mask, mask, empty, None)[0].at == "slice 10 of 14"
    assert case_views(mask, empty, mask, None)[0].at == "slice 10 of 14"
    assert case_views(mask, empty, empty, None)[0].at == "slice 8 of 14"


def test_outlines_lie_on_the_masks() -> None:
    image = np.full((30, 40), 100, dtype=np.uint8)
    truth, answer = np.zeros_like(image), np.zeros_like(image)
    truth[5:20, 5:20] = 1
    answer[5:20, 12:35] = 1
    (view,) = case_views(image, truth, answer, (2.0, 1.0))
    drawn = outlined(view, 8.0)
    assert drawn.shape == (30 * 16, 40 * 8, 3)
    blue, orange, both = ((drawn == np.array(colour)).all(axis=-1) for colour in (TRUTH, ANSWER, BOTH))
    rows, columns = np.nonzero(blue | both)
    assert (rows.min(), rows.max() + 1) == (5 * 16, 20 * 16)
    assert columns.min() == 5 * 8
    assert np.nonzero(orange | both)[1].max() + 1 == 35 * 8
    assert both[5 * 16, 15 * 8]
    assert not (blue | orange | both)[10 * 16, 15 * 8]


def test_a_structure_at_the_border_of_the_image_has_no_line_there() -> None:
    truth = np.zeros((20, 20), dtype=np.uint8)
    truth[:10] = 1
    (view,) = case_views(np.zeros((20, 20), np.uint8), truth, np.zeros_like(truth), None)
    drawn = outlined(view, 10.0)
    assert not drawn[0].any()
    assert (drawn[99, 50] == TRUTH).all()


def test_views_of_a_case_share_one_scale() -> None:
    volume = np.zeros((20, 40, 10), dtype=np.uint8)
    volume[5:10, 10:20, 2:5] = 1
    views = case_views(volume, volume, volume, (1.0, 1.0, 4.0))
    drawn = drawn_case(CasePicture("a", "worst", None, 1.0, 0.0, {}, views), width=500, height=400)
    axial, coronal, sagittal = drawn
    assert axial.shape[1] == coronal.shape[1] == sagittal.shape[1] // 2
    assert len({d.shape[0] for d in drawn}) == 1
    assert sum(d.shape[1] for d in drawn) == pytest.approx(500, abs=2)


def test_large_images_are_thinned_and_keep_their_size() -> None:
    image = np.zeros((3000, 1000, 3), dtype=np.uint8)
    mask = np.zeros((3000, 1000), dtype=np.uint8)
    mask[1000:2000, 250:750] = 1
    (view,) = case_views(image, mask, mask, (0.1, 0.1))
    assert max(view.truth.shape) <= 640
    assert view.truth.mean() == pytest.approx(mask.mean(), rel=0.02)
    assert view.truth.shape[0] * view.pixel[0] == pytest.approx(300, rel=0.01)


def test_pictures_come_back_as_they_were(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (12, 14, 3)).astype(np.uint8)
    mask = (colour[..., 0] > 120).astype(np.uint8)
    values = {"lung": {"dice": None, "hd95": 3.5, "outcome": "missed"}}
    case = CasePicture("a/b", "best", "Kyiv", None, 3.5, values, case_views(colour, mask, 1 - mask, None))
    write_case_pictures(RunDirectory(tmp_path), [case])
    (back,) = read_case_pictures(RunDirectory(tmp_path))
    assert (back.id, back.group, back.site, back.dice, back.structures) == ("a/b", "best", "Kyiv", None, values)
    np.testing.assert_array_equal(back.views[0].image, colour)
    np.testing.assert_array_equal(back.views[0].answer, 1 - mask)
