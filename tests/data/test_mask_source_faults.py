"""Images with masks as a data set: what is wrong with one, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_trees import mask, opened, pairs, picture, refused, volumes
from nifti_files import save, volume_of
from PIL import Image

from medloom.config import DataConfig
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.data.splits import make_splits
from medloom.data.structures import require_structures
from medloom.errors import DataError


def test_D116_a_dataset_json_without_labels(tmp_path: Path) -> None:
    root = volumes(tmp_path)
    for text in ("{", '{"labels": 3}', '{"labels": {"a": "b"}}', "[]"):
        (root / "dataset.json").write_text(text)
        assert refused(root).code == "D116"


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "a": 1, "ignore": 2},
        {"background": 0, "whole": [1, 2], "ignore": 3},
        {"0": "background", "1": "a", "2": "ignore"},
    ],
)
def test_N314_voxels_to_ignore_are_no_structure(tmp_path: Path, labels: dict[str, Any]) -> None:
    root = volumes(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    problem = refused(root)
    assert problem.code == "N314"
    assert "ignore" in problem.problem
    assert refused(root, label_values=(0, 1, 2)).code == "N314", "its name would be ignore"
    assert opened(root, label_values=(0, 1, 2), classes=("none", "a", "unsure")).classes[2] == "unsure"


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
