"""Images with masks as a data set: the layouts that people have, and what is wrong with them in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nifti_files import save, volume_of
from PIL import Image

from medloom.config import DataConfig
from medloom.data.records import Dataset, Record, read_csv
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.data.splits import make_splits
from medloom.data.structures import require_structures
from medloom.errors import DataError


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 250, size).astype(np.uint8)).save(path)
    return path


def mask(path: Path, values: Sequence[int] = (0, 255), size: tuple[int, int] = (24, 32), mode: str = "L") -> Path:
    """Stripes of the given values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.repeat(np.array(values), -(-size[0] // len(values)))[: size[0], None] * np.ones(
        (1, size[1]), dtype=int
    )
    picture = Image.fromarray(stripes.astype(np.uint8))
    if mode == "P":
        picture = Image.fromarray(stripes.astype(np.uint8), "L").convert("P")
        picture.putdata(stripes.reshape(-1).tolist())
        picture.putpalette([250, 10, 10, 10, 250, 10, 10, 10, 250])
    picture.save(path)
    return path


def pairs(root: Path, n: int = 4, image: str = "images/{}.png", drawn: str = "masks/{}.png", **options: Any) -> Path:
    for k in range(n):
        picture(root / image.format(k), k)
        mask(root / drawn.format(k), **options)
    return root


def volumes(root: Path, n: int = 3, image: str = "imagesTr/c{}.nii.gz", label: str = "labelsTr/c{}.nii.gz") -> Path:
    for k in range(n):
        for name, array in ((image, volume_of(seed=k)), (label, volume_of(seed=k) // 70)):
            path = root / name.format(k)
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, array.astype(np.int16))
    return root


def opened(root: Path, **config: Any) -> Dataset:
    return open_dataset(root, DataConfig(**config))


def refused(root: Path, **config: Any) -> DataError:
    """The error of opening, or of the first case that a scan sets aside."""

    def read() -> None:
        excluded = scan(opened(root, **config), DataConfig(**config), workers=1).excluded
        if excluded:
            raise DataError(excluded[0].code, excluded[0].id, excluded[0].problem, "")

    with pytest.raises(DataError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return caught.value


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


def test_D116_a_dataset_json_without_labels(tmp_path: Path) -> None:
    root = volumes(tmp_path)
    for text in ("{", '{"labels": 3}', '{"labels": {"a": "b"}}', "[]"):
        (root / "dataset.json").write_text(text)
        assert refused(root).code == "D116"


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


def test_N313_an_image_without_its_mask_and_a_mask_without_its_image(tmp_path: Path) -> None:
    pairs(tmp_path)
    picture(tmp_path / "images" / "new.png")
    problem = refused(tmp_path)
    assert (problem.code, problem.place) == ("N313", "images/new.png")
    assert len(opened(tmp_path, exclude=("images/new.png",))) == 4
    (tmp_path / "images" / "new.png").unlink()
    mask(tmp_path / "masks" / "old.png")
    problem = refused(tmp_path)
    assert (problem.code, problem.place) == ("N313", "masks/old.png")


def test_N313_two_images_of_one_mask_and_two_masks_of_one_image(tmp_path: Path) -> None:
    pairs(tmp_path / "a")
    picture(tmp_path / "a" / "images" / "0.jpg")
    assert refused(tmp_path / "a").code == "N313"
    pairs(tmp_path / "b")
    mask(tmp_path / "b" / "masks" / "0_mask.png")
    assert refused(tmp_path / "b").code == "N313"


def test_N313_a_row_of_a_table_without_a_mask_has_its_line(tmp_path: Path) -> None:
    pairs(tmp_path)
    (tmp_path / "t.csv").write_text("image,mask\nimages/0.png,masks/0.png\nimages/1.png,\n")
    problem = refused(tmp_path / "t.csv")
    assert (problem.code, problem.place) == ("N313", "t.csv:3")
    (tmp_path / "t.csv").write_text("image,mask\nimages/0.png,masks/0.png\nimages/1.png,masks/gone.png\n")
    assert refused(tmp_path / "t.csv").code == "D116"


def test_N306_several_channels_of_one_case(tmp_path: Path) -> None:
    volumes(tmp_path, image="imagesTr/c{}_0000.nii.gz")
    save(tmp_path / "imagesTr" / "c1_0001.nii.gz", volume_of())
    problem = refused(tmp_path)
    assert problem.code == "N306"
    assert "channels" in problem.problem


def test_N309_a_mask_on_another_grid(tmp_path: Path) -> None:
    pairs(tmp_path / "a")
    mask(tmp_path / "a" / "masks" / "1.png", size=(24, 30))
    problem = refused(tmp_path / "a")
    assert problem.code == "N309"
    assert "24 x 30 and 24 x 32" in problem.problem
    volumes(tmp_path / "b")
    save(tmp_path / "b" / "labelsTr" / "c1.nii.gz", volume_of() // 70, np.diag([1.5, 2.0, 3.1, 1.0]))
    problem = refused(tmp_path / "b")
    assert (problem.code, problem.place) == ("N309", "imagesTr/c1.nii.gz")
    assert "labelsTr/c1.nii.gz" in problem.problem


def test_N309_labels_with_fractions_and_whole_floats(tmp_path: Path) -> None:
    root = volumes(tmp_path)
    save(root / "labelsTr" / "c1.nii.gz", (volume_of() // 70).astype(np.float32))
    assert opened(root).label_values == (0, 1, 2)
    save(root / "labelsTr" / "c1.nii.gz", (volume_of() // 140).astype(np.float32) * np.float32(0.9999))
    problem = refused(root)
    assert (problem.code, problem.place) == ("N309", "labelsTr/c1.nii.gz")
    assert "0.9999" in problem.problem


def test_N309_an_unknown_value(tmp_path: Path) -> None:
    root = pairs(tmp_path)
    mask(root / "masks" / "2.png", values=(0, 255, 9))
    problem = refused(root, classes=("background", "lung"))
    assert (problem.code, problem.place) == ("N309", "masks/2.png")
    assert "the value 9 in 1 of 4 masks" in problem.problem
    problem = refused(root, classes=("background", "lung"), label_values=(0, 255))
    assert (problem.code, problem.place) == ("N309", "images/2.png")
    assert "the value 9 in" in problem.problem
    for config in ({"label_values": (0, 0)}, {"label_values": (5,)}, {"label_values": (0, 255), "classes": ("a",)}):
        assert refused(root, **config).code == "N309"


def test_N309_masks_in_JPEG_ring(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        picture(tmp_path / "images" / f"{k}.png", k)
        (tmp_path / "masks").mkdir(exist_ok=True)
        blob = np.kron(rng.integers(0, 2, (6, 8)), np.ones((4, 4))) * 255
        Image.fromarray(blob.astype(np.uint8)).save(tmp_path / "masks" / f"{k}.jpg", quality=80)
    for config in ({}, {"classes": ("background", "lung"), "label_values": (0, 255)}):
        problem = refused(tmp_path, **config)
        assert problem.code == "N309"
        assert "JPEG" in problem.problem
    with pytest.raises(DataError, match="JPEG changes values"):
        opened(tmp_path)


def test_N309_grey_and_coloured_pictures_are_no_masks(tmp_path: Path) -> None:
    pairs(tmp_path / "a", values=range(0, 240, 2), size=(240, 32))
    assert "no numbers of structures" in refused(tmp_path / "a").problem
    pairs(tmp_path / "b")
    noise = np.random.default_rng(0).integers(0, 2, (24, 32, 3)) * 255
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "b" / "masks" / "0.png")
    assert "colour" in refused(tmp_path / "b").problem


def test_N312_a_structure_that_training_never_sees(tmp_path: Path) -> None:
    for split, values in (("train", (0, 1)), ("val", (0, 1)), ("test", (0, 1, 2))):
        pairs(tmp_path, image=f"{split}/images/{{}}.png", drawn=f"{split}/masks/{{}}.png", values=values)
    config = DataConfig(classes=("background", "lung", "heart"))
    split = make_splits(scan(open_dataset(tmp_path, config), config, workers=1).dataset, config, 0)
    with pytest.raises(DataError, match="N312") as caught:
        require_structures(split.dataset)
    assert "heart" in caught.value.problem
    assert "other splits" in caught.value.problem


def test_D115_nothing_to_learn(tmp_path: Path) -> None:
    pairs(tmp_path / "a", values=(0,))
    assert refused(tmp_path / "a").code == "D115"
    picture(tmp_path / "b" / "images" / "0.png")
    assert refused(tmp_path / "b", source="masks").code == "D115"
    pairs(tmp_path / "c")
    assert refused(tmp_path / "c", source="nifti").code == "D115"


def test_D116_volumes_and_pictures_together(tmp_path: Path) -> None:
    pairs(tmp_path)
    volumes(tmp_path)
    assert refused(tmp_path).code == "D116"
    assert opened(tmp_path, source="masks").label_values == (0, 255)
    assert opened(tmp_path, source="nifti").label_values == (0, 1, 2)


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
