"""Images with masks as a data set: the layouts that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_trees import mask, opened, pairs, picture, volumes
from nifti_files import save, volume_of

from medloom.config import DataConfig
from medloom.data.label_maps import volume_labels
from medloom.data.records import Dataset, Record, read_csv
from medloom.data.scan import scan
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volume_source import read_case_volume
from medloom.data.volumes import canonical
from medloom.errors import DataError
from medloom.workflows.segment_prepare import open_case


@pytest.mark.parametrize(
    ("image", "drawn", "split"),
    [
        ("images/{}.png", "masks/{}.png", None),
        ("images/{}.jpg", "masks/{}_mask.png", None),
        ("Images/{}.tif", "Masks/{}.tiff", None),
        ("images/a b {}.png", "segmentations/a b {}-seg.png", None),
        ("set/images/{}.png", "set/labels/{}.png", None),
        ("train/images/{}.png", "train/masks/{}.png", None),
        ("images/val/{}.png", "masks/val/{}.png", None),
    ],
)
def test_folders_of_images_and_masks(tmp_path: Path, image: str, drawn: str, split: str | None) -> None:
    dataset = opened(pairs(tmp_path, image=image, drawn=drawn))
    assert [(r.path, r.mask) for r in dataset.records] == [(image.format(k), drawn.format(k)) for k in range(4)]
    assert dataset.classes == ("background", "label 255")
    assert dataset.label_values == (0, 255)
    assert dataset.multi_label
    assert {r.labels for r in dataset.records} == {(1,)}
    assert {r.split for r in dataset.records} == {split}


def test_split_folders_are_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        pairs(tmp_path, image=f"{split}/images/{{}}.png", drawn=f"{split}/masks/{{}}.png")
    dataset = opened(tmp_path)
    assert {split: len(dataset.select(split)) for split in dataset.splits} == {"train": 4, "val": 4, "test": 4}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("imagesTr/c{}.nii.gz", "labelsTr/c{}.nii.gz"),
        ("imagesTr/c{}_0000.nii.gz", "labelsTr/c{}.nii.gz"),
        ("imagesTr/c_000{}.nii.gz", "labelsTr/c_000{}.nii.gz"),
        ("images/c{}.nii", "masks/c{}.nii"),
        ("Task04/imagesTr/c{}.nii.gz", "Task04/labelsTr/c{}.nii.gz"),
    ],
)
def test_trees_of_volumes(tmp_path: Path, image: str, label: str) -> None:
    dataset = opened(volumes(tmp_path, image=image, label=label))
    assert [(r.path, r.mask) for r in dataset.records] == [(image.format(k), label.format(k)) for k in range(3)]
    assert dataset.label_values == (0, 1, 2)
    found = scan(dataset, DataConfig(), workers=1)
    assert {r.spacing for r in found.dataset.records} == {(1.5, 2.0, 3.0)}
    assert all(r.pixel_hash and r.mask_hash for r in found.dataset.records)


def test_N309_a_mask_whose_header_rounds_otherwise_gets_the_grid_of_its_image(tmp_path: Path) -> None:
    root, grid = volumes(tmp_path), VolumePreprocess(spacing=(1.0, 1.0, 1.0))
    shape, turned = (9, 7, 65), [[0, -2.0, 0, 5], [1.5, 0, 0, 5], [0, 0, 2.5, 0], [0, 0, 0, 1]]
    for affine in (np.diag([1.5, 2.0, 2.5, 1.0]), np.array(turned)):
        save(root / "imagesTr" / "c0.nii.gz", volume_of(shape), affine)
        near = affine.copy()
        near[2, 2] += 5e-7  # 65 slices: 162.5 mm become 162 voxels, and 162.50003 become 163
        save(root / "labelsTr" / "c0.nii.gz", (volume_of(shape) // 70).astype(np.uint8), near)
        dataset = opened(root)
        image = read_case_volume(dataset, dataset.records[0], DataConfig())
        mask = volume_labels(dataset, dataset.records[0], image)
        assert grid.labels(mask, (0, 1, 2)).shape == grid.to_uint16(image).shape[1:]
        again = volume_labels(dataset, dataset.records[0], canonical(image))
        np.testing.assert_array_equal(again.affine, image.affine)
        np.testing.assert_array_equal(again.array, mask.array)


def test_N307_a_case_to_learn_from_that_is_too_large_on_the_models_grid_is_named(tmp_path: Path) -> None:
    dataset = opened(volumes(tmp_path))
    with pytest.raises(DataError, match="N307") as refused:
        open_case(dataset, dataset.records[0], VolumePreprocess(spacing=(0.01, 0.01, 0.01)), DataConfig())
    assert refused.value.place == "imagesTr/c0.nii.gz"


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "anterior", "2": "posterior"},
        {"background": 0, "anterior": 1, "posterior": 2},
        {"1": "anterior", "2": "posterior"},
    ],
)
def test_dataset_json_names_the_structures(tmp_path: Path, labels: dict[str, Any]) -> None:
    root = volumes(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"name": "x", "labels": labels}))
    assert opened(root).classes == ("background", "anterior", "posterior")
    assert opened(root, classes=("none", "a", "b")).classes == ("none", "a", "b")


def test_regions_of_dataset_json_are_left_to_the_masks(tmp_path: Path) -> None:
    root = volumes(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2], "core": [2]}}))
    assert opened(root).classes == ("background", "label 1", "label 2")


def test_test_images_without_labels_are_told_and_left_out(tmp_path: Path) -> None:
    root = volumes(tmp_path)
    (root / "imagesTs").mkdir()
    save(root / "imagesTs" / "t1.nii.gz", volume_of())
    dataset = opened(root)
    assert len(dataset) == 3
    assert any("1 test images have no masks" in notice for notice in dataset.notices)
    (root / "labelsTs").mkdir()
    save(root / "labelsTs" / "t1.nii.gz", np.zeros((9, 7, 5), dtype=np.uint8))
    dataset = opened(root)
    assert {s: len(dataset.select(s)) for s in dataset.splits} == {"train": 3, "test": 1}


def test_a_table_of_images_and_masks_with_patients_and_sites(tmp_path: Path) -> None:
    pairs(tmp_path, image="a/{}.png", drawn="b/{}.png")
    rows = "".join(
        f"a/{k}.png,b/{k}.png,p{k // 2},s{k % 2},{'train' if k < 2 else 'test'},{40 + k}\n" for k in range(4)
    )
    (tmp_path / "table.csv").write_text("image,mask,patient,site,split,age\n" + rows)
    for path in (tmp_path, tmp_path / "table.csv"):
        dataset = opened(path)
        assert [(r.mask, r.patient, r.site, r.split) for r in dataset.records][2] == ("b/2.png", "p1", "s0", "test")
        assert dataset.records[3].covariates == {"age": "43"}
        assert dataset.label_values == (0, 255)


def test_a_table_of_volumes(tmp_path: Path) -> None:
    volumes(tmp_path, image="x/c{}.nii.gz", label="y/c{}.nii.gz")
    (tmp_path / "t.csv").write_text("image,mask\n" + "".join(f"x/c{k}.nii.gz,y/c{k}.nii.gz\n" for k in range(3)))
    assert opened(tmp_path / "t.csv").label_values == (0, 1, 2)


def test_a_table_with_labels_stays_a_table_of_labels_unless_the_recipe_says_masks(tmp_path: Path) -> None:
    pairs(tmp_path)
    rows = "".join(f"images/{k}.png,masks/{k}.png,{'ab'[k % 2]}\n" for k in range(4))
    (tmp_path / "table.csv").write_text("image,mask,label\n" + rows)
    assert opened(tmp_path).label_values == ()
    dataset = opened(tmp_path, source="masks")
    assert dataset.label_values == (0, 255)
    assert dataset.records[0].covariates == {"label": "a"}


def test_site_and_patient_by_pattern_of_the_name(tmp_path: Path) -> None:
    for name in ("CHNCXR_0001_0", "MCUCXR_0001_1"):
        picture(tmp_path / "images" / f"{name}.jpg")
        mask(tmp_path / "masks" / f"{name}.png")
    records = opened(tmp_path, site="pattern:^([A-Z]+)_", patient="pattern:([A-Z]+_[0-9]+)").records
    assert [(r.site, r.patient) for r in records] == [("CHNCXR", "CHNCXR_0001"), ("MCUCXR", "MCUCXR_0001")]


def test_palettes_count_by_index_and_not_by_colour(tmp_path: Path) -> None:
    pairs(tmp_path, values=(0, 1, 2), mode="P")
    dataset = opened(tmp_path)
    assert dataset.label_values == (0, 1, 2)
    assert not scan(dataset, DataConfig(), workers=1).excluded


def test_class_folders_and_other_sources_are_read_as_before(tmp_path: Path) -> None:
    for name in ("normal", "ill"):
        picture(tmp_path / name / "images" / "0.png")
    assert opened(tmp_path).classes == ("ill", "normal")
    assert opened(tmp_path).label_values == ()


def test_the_table_of_records_keeps_masks_and_old_hashes_stay(tmp_path: Path) -> None:
    dataset = scan(opened(volumes(tmp_path)), DataConfig(), workers=1).dataset
    dataset.write_csv(tmp_path / "records.csv")
    again = read_csv(tmp_path / "records.csv", tmp_path)
    assert again.label_values == (0, 1, 2)
    assert again.records == dataset.records
    assert again.hash() == dataset.hash()
    other = [Record(**{**{f: getattr(r, f) for f in r.__slots__}, "mask_hash": "x"}) for r in dataset.records]
    assert dataset.with_records(other).hash() != dataset.hash()
    plain = Dataset("d", tmp_path, ("a", "b"), (Record("1", "1.png", labels=(0,), split="train", pixel_hash="x"),))
    assert plain.hash() == "e30fc8c94c37e5bf229bbdc2e2eb9804b2b90e2810d9f59a22b1ced3af2fd20b"
    plain.write_csv(tmp_path / "plain.csv")
    assert "mask_hash" not in (tmp_path / "plain.csv").read_text()
    assert "label_values" not in (tmp_path / "plain.csv").read_text()


def test_the_real_lungs_and_hippocampi(real_data: Path) -> None:
    lungs = opened(real_data / "lung_masks", classes=("background", "lung"), site="pattern:^([A-Z]+)_")
    assert len(lungs) == 704
    assert lungs.label_values == (0, 255)
    assert {r.site for r in lungs.records} == {"CHNCXR", "MCUCXR"}
    brains = opened(real_data / "hippocampus")
    assert len(brains) == 260
    assert brains.classes == ("background", "label 1", "label 2")
