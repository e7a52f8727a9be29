"""The audit page, example pictures, figures, and the published table."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page, report
from PIL import Image

from medloom.files import RunDirectory
from medloom.reporting import plots
from medloom.reporting.audit_page import write_audit_page
from medloom.reporting.page import number, picture, strip, visible
from medloom.reporting.pictures import Picture, drawn_range, overlay, read_pictures, weight_range, write_pictures
from medloom.reporting.published import TABLE_2, hanley

AUDIT: dict[str, Any] = {
    "name": "chest_xray",
    "counts": {"train": {"NORMAL": 1341, "PNEUMONIA": 3875}, "test": {"NORMAL": 234, "PNEUMONIA": 390}},
    "findings": [
        {"code": "D124", "severity": "note", "title": "no validation split", "count": 0, "examples": [], "remedy": ""},
        {
            "code": "D117",
            "severity": "refuse",
            "title": "8 images in train and val",
            "count": 8,
            "examples": ["<b>a</b> = b"],
            "remedy": "Leave them out",
        },
    ],
    "summary": {
        "images": 5840,
        "patients": 4082,
        "patients_per_split": {"train": 3654, "test": 428},
        "sizes": [[224, 200, 5840]],
        "distinct_sizes": 1,
        "bits": {"8": 5840},
        "brightness": {"NORMAL": {"mean": 0.48, "std": 0.23}},
    },
    "excluded": [{"id": "train/x.jpg", "code": "D103", "problem": "ends early"}],
}


def test_the_audit_page_shows_counts_findings_and_samples(tmp_path: Path) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    path = write_audit_page(AUDIT, [("NORMAL: a.png", pixels), ("PNEUMONIA: <i>.png", pixels)], tmp_path / "a.html")
    raw = path.read_text(encoding="utf-8")
    page = Page(raw)
    for text in (
        "3 875",
        "1 341",
        "5 840 images of 2 classes",
        "200 × 224 (5 840)",
        "4 082 (training 3 654, test 428)",
    ):
        assert text in page.text, text
    assert "Training would refuse these data for 1 reason: D117." in page.text
    assert page.text.index("8 images in train and val") < page.text.index("no validation split")
    assert "<b>a</b> = b" in page.text
    assert "<i>.png" in page.text
    assert "train/x.jpg" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    assert "http" not in raw.replace('http-equiv="Content-Security-Policy"', "")
    again = write_audit_page(AUDIT, [("NORMAL: a.png", pixels), ("PNEUMONIA: <i>.png", pixels)], tmp_path / "b.html")
    assert again.read_text(encoding="utf-8") == raw


def test_an_audit_of_nothing_has_a_page(tmp_path: Path) -> None:
    page = Page(write_audit_page({}, [], tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "The audit found nothing." in page.text
    assert "No samples were given." in page.text


def test_pictures_come_back_as_they_were_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    kept = (generator.random((3, 4)) < 0.5).astype(np.uint8)
    entries = [
        Picture(
            f"id\n{i}",
            "A",
            "B",
            i == 0,
            0.25,
            "B",
            generator.integers(0, 256, shape).astype(np.uint8),
            {"token_weight.0": generator.random((3, 4)).astype(np.float32)} if i else {},
            generator.integers(0, 256, shape).astype(np.uint8) if i else None,
            0.0125 if i else None,
            kept if i else None,
        )
        for i, shape in enumerate([(9, 7), (8, 8, 3)])
    ]
    run = RunDirectory(tmp_path)
    write_pictures(run, entries)
    for before, after in zip(entries, read_pictures(run)):
        assert (before.id, before.label, before.predicted, before.correct, before.probability, before.of) == (
            after.id,
            after.label,
            after.predicted,
            after.correct,
            after.probability,
            after.of,
        )
        assert np.array_equal(before.image, after.image)
        assert before.rebuilt_error == after.rebuilt_error
        assert (before.rebuilt is None) == (after.rebuilt is None)
        assert before.rebuilt is None or np.array_equal(before.rebuilt, after.rebuilt)
        assert (before.kept is None) == (after.kept is None)
        assert before.kept is None or np.array_equal(before.kept, after.kept)
        assert before.weights.keys() == after.weights.keys()
        assert all(np.array_equal(before.weights[k], after.weights[k]) for k in before.weights)
    first = (tmp_path / "pictures.npz").read_bytes()
    write_pictures(run, entries)
    assert (tmp_path / "pictures.npz").read_bytes() == first
    assert {f["id"] for f in json.loads((tmp_path / "pictures.json").read_text())} == {"id\n0", "id\n1"}


@pytest.mark.usefixtures("unpainted")
def test_the_kept_tokens_of_a_run_are_on_its_report(run: RunDirectory) -> None:
    kept = np.zeros((4, 4), np.uint8)
    kept[1, 2] = kept[3, 0] = kept[0, 0] = kept[2, 3] = 1
    image = np.full((32, 32), 200, np.uint8)
    score = {"token_score": np.linspace(0, 1, 16).reshape(4, 4)}
    names = ("a.png", "b.png")
    write_pictures(run, [Picture(n, "A", "A", True, 0.5, "A", image, score, kept=kept) for n in names])
    page = report(run)
    shown = {values["alt"]: str(values["src"]) for tag, values in page.tags if tag == "img"}
    for name in names:
        drawn = Image.open(io.BytesIO(base64.b64decode(shown[f"kept tokens of {name}"].partition(",")[2])))
        cells = np.asarray(drawn.convert("L")).reshape(4, 8, 4, 8).mean((1, 3))
        assert np.array_equal(cells > 130, kept > 0)  # between 200 and its 0.3
    assert "the tokens that the model kept (25 percent of them)" in page.text
    assert "score by which the tokens were chosen" in page.text


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    entry = Picture("a", "A", "A", True, 0.5, "A", np.zeros((4, 4), np.uint8), {"w": np.array([[math.nan]])})
    with pytest.raises(ValueError, match="not finite"):
        write_pictures(RunDirectory(tmp_path), [entry])
    assert list(tmp_path.iterdir()) == []


def test_an_overlay_marks_the_token_and_nothing_else() -> None:
    image = np.full((28, 28), 100, dtype=np.uint8)
    weight = np.zeros((4, 4))
    weight[1, 2] = 1.0
    mixed = overlay(image, weight, 0.0, 1.0)
    changed = (mixed != 100).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 13, 14, 20)
    assert changed.sum() == 49
    assert mixed[10, 17, 0] > mixed[10, 17, 2]


def test_equal_weights_give_an_even_tint_not_a_pattern() -> None:
    mixed = overlay(np.full((12, 12, 3), 90, np.uint8), np.full((3, 3), 0.7), 0.7, 0.7)
    assert len(np.unique(mixed.reshape(-1, 3), axis=0)) == 1


def test_nearly_equal_weights_are_not_stretched_into_a_pattern() -> None:
    low, high = drawn_range(0.501, 0.517)
    assert high - low == pytest.approx(0.509 / 4)
    assert low < 0.501 < 0.517 < high
    assert drawn_range(0.2, 0.9) == pytest.approx((0.2, 0.9))
    weight = np.array([[0.501, 0.517]])
    mixed = overlay(np.zeros((4, 4), np.uint8), weight, low, high).astype(int)
    assert abs(mixed[0, 0] - mixed[0, 3]).max() < 30


def test_the_colour_scale_is_common_to_all_pictures() -> None:
    image = np.zeros((4, 4), np.uint8)
    shown = [Picture(str(w), "A", "A", True, 0.5, "A", image, {"w": np.array([[w, w / 2]])}) for w in (0.2, 0.8)]
    assert weight_range(shown, "w") == (0.1, 0.8)


def test_pictures_are_embedded_whole() -> None:
    pixels = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    head, _, data = picture(pixels).partition(",")
    assert head == "data:image/jpeg;base64"
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.abs(again.astype(int) - pixels).max() < 12


def test_figures_have_ids_of_their_own_and_no_outside_reference() -> None:
    counts = {"train": {"a": 1, "b": 2}}
    one = str(plots.counts(counts, ["a", "b"]))
    epochs = [{"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "learning_rate": 0.1, "val_auc": None}]
    two = str(plots.training(epochs, None))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((one, two), ids):
        used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
        assert used <= own
        assert "http" not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg


def test_D126_names_in_any_script_or_markup_are_drawn_as_text() -> None:
    names = ["$\\frac{1}$", "肺炎 🫁", "<script>x</script>", "a\nb\x00", "\u202eabc"]
    svg = str(plots.counts({"train": dict.fromkeys(names, 3)}, names))
    assert "<script" not in svg
    assert "$\\frac{1}$" in svg
    assert "肺炎" in svg
    assert "\x00" not in svg
    assert "\u202e" not in svg


@pytest.mark.parametrize(
    ("value", "name", "shown"),
    [
        (0.9142, "accuracy", "91.4\u202f%"),
        (0.9142, "auc", "0.914"),
        (None, "auc", "–"),
        (0.05, "average_precision", "0.050"),
    ],
)
def test_numbers_are_written_as_readers_expect(value: float | None, name: str, shown: str) -> None:
    assert number(value, name) == shown


def test_a_strip_stays_inside_its_box() -> None:
    drawn = str(strip({"value": 2.0, "low": -1.0, "high": 9.0, "baseline": 0.5}, width=100))
    places = [float(x) for x in re.findall(r"M([\d.]+) ", drawn)]
    assert all(0 <= x <= 100 for x in places)
    assert str(strip({"value": None})) == ""


def test_visible_writes_out_what_cannot_be_seen() -> None:
    assert visible("a\tb\u202e\ud800 é\u00a0") == "a\\tb\\u202e\\ud800 é\u00a0"


def test_the_published_intervals_are_those_of_the_evidence_notes() -> None:
    hatr, resnet = TABLE_2[3], TABLE_2[0]
    assert [round(100 * x, 1) for x in hatr.accuracy_interval] == [88.9, 93.4]
    assert [round(100 * x, 1) for x in resnet.accuracy_interval] == [84.5, 89.7]
    assert 1.96 * hanley(0.960, 390, 234) == pytest.approx(0.0149, abs=6e-4)
    assert 1.96 * hanley(0.945, 390, 234) == pytest.approx(0.0172, abs=6e-4)
