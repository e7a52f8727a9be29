"""What a segmenter is told of its data: how large pixels are, and copies on both sides of a split that it made."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medloom
from medloom.config import load_recipe
from medloom.data.phantom_masks import write_phantom_masks
from medloom.data.phantom_volumes import write_phantom_volumes
from medloom.data.records import read_csv
from medloom.errors import UsageError
from medloom.evaluation.case_table import read_cases
from medloom.evaluation.segmentation import score_case
from medloom.files import RunDirectory
from medloom.workflows.evaluate import evaluate
from medloom.workflows.segment_prepare import prepare_cases
from medloom.workflows.train import TrainedRun, train

MASKS: dict[str, Any] = {
    "name": "masks",
    "data": {"pixel_spacing": [0.5, 0.25]},
    "preprocess": {"size": 48, "channels": "grey", "statistics": "train"},
    "model": {"name": "unet", "options": {"dims": [8, 16]}},
    "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.003, "optimizer": "adamw", "threads": 1},
    "evaluation": {"resamples": 100},
}


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_masks(tmp_path_factory.mktemp("data") / "masks", n_patients=18, size=48, seed=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, masks: Path) -> TrainedRun:
    return train(MASKS, data=masks, out=tmp_path_factory.mktemp("runs") / "run")


def test_a_run_on_pictures_of_known_pixels_is_judged_in_millimetres(finished: TrainedRun, masks: Path) -> None:
    table = read_cases(finished.directory.cases("test"))
    assert (table.distance_unit, table.size_unit) == ("mm", "cm²")
    records = {r.id: r for r in read_csv(finished.directory.records, masks).records}
    bundle = medloom.load(finished.bundle)
    for row, name in enumerate(table.ids):
        assert records[name].spacing == (0.5, 0.25)
        truth = np.asarray(Image.open(masks.parent / str(records[name].mask)))
        opacity = (truth == 255).sum()
        assert table.values["size_truth"][row, 1] == pytest.approx(opacity * 0.5 * 0.25 / 100)
        (answer,) = bundle.segment([masks.parent / name])  # type: ignore[union-attr]
        drawn = [np.searchsorted((0, 127, 255), values).astype(np.uint8) for values in (truth, answer.mask)]
        wanted = score_case(*drawn, 2, (0.5, 0.25), tolerance=2.0)
        for measure in ("dice", "hd95", "nsd", "assd", "size_answer", "size_error"):
            np.testing.assert_allclose(table.values[measure][row], wanted[measure], err_msg=measure)


def test_the_page_names_millimetres_in_its_heads_and_pixels_as_what_distances_run_between(finished: TrainedRun) -> None:
    page = finished.report.read_text(encoding="utf-8")
    assert "HD95, mm" in page
    assert "HD95, pixels" not in page
    assert "between the outermost pixels of both masks" in page
    assert "the size of pixels in mm is from data.pixel_spacing" in page


def test_another_data_set_has_pixels_of_its_own(finished: TrainedRun, tmp_path: Path) -> None:
    other = write_phantom_masks(tmp_path / "elsewhere", n_patients=12, size=48, seed=9)
    units = {}
    for name, overrides in (("unknown", ()), ("known", ("data.pixel_spacing=0.2",))):
        evaluate(finished.directory.root, data=other, name=name, overrides=overrides)
        table = read_cases(finished.directory.root / "evaluations" / name / "cases.csv")
        units[name] = table.distance_unit, table.values["hd95"]
    assert (units["unknown"][0], units["known"][0]) == ("pixels", "mm")
    np.testing.assert_allclose(units["known"][1], 0.2 * units["unknown"][1])


def test_U226_volumes_state_their_own_spacing(tmp_path: Path) -> None:
    table = write_phantom_volumes(tmp_path / "v", n_patients=16, size=16, seed=1)
    recipe = {"model": {"name": "unet_3d", "options": {"dims": [8, 16]}}, "segmentation": {"patch": [16, 16, 16]}}
    with pytest.raises(UsageError, match="U226") as refused:
        train(recipe | {"data": {"pixel_spacing": 0.5}}, data=table, out=tmp_path / "run")
    assert "data.pixel_spacing" in str(refused.value)


@pytest.mark.parametrize("accept", [[], ["D118"]])
def test_D118_copies_between_parts_that_the_run_made_stand_in_its_audit(
    accept: list[str], masks: Path, tmp_path: Path
) -> None:
    """A warning, as between parts of the source: whether it was accepted or not, the run goes on."""
    with masks.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    table = masks.parent / f"carved{len(accept)}.csv"
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["image", "mask", "patient"], extrasaction="ignore")
        writer.writeheader()
        for k, row in enumerate(rows):
            writer.writerow(row)
            if k % 3 == 0:
                copy = f"images/{k}-copy{len(accept)}.jpg"
                Image.open(masks.parent / row["image"]).save(masks.parent / copy, quality=60)
                writer.writerow(row | {"image": copy, "patient": f"{row['patient']}-again"})
    values = MASKS | {"data": {"path": str(table), "val_fraction": 0.3, "test_fraction": 0.3, "accept": accept}}
    run = RunDirectory(tmp_path / "run")
    prepared = prepare_cases(load_recipe(values), run, resume=False, quiet=True)
    part = {r.path: r.split for r in prepared.dataset.records}
    copies = {rows[k]["image"]: f"images/{k}-copy{len(accept)}.jpg" for k in range(0, len(rows), 3)}
    apart = sum(part[image] != part[copy] for image, copy in copies.items())
    assert apart
    findings = [f for f in json.loads(run.audit.read_text(encoding="utf-8"))["findings"] if f["code"] == "D118"]
    assert [(f["severity"], f["count"]) for f in findings] == [("warn", apart)]
    assert findings[0]["title"] == f"{apart} pairs of images in different splits look alike"
    assert "look alike" in (run.root / "audit.html").read_text(encoding="utf-8")
