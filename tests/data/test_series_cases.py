"""DICOM series with NIfTI masks as a data set to learn from (FAULTS N309, N313, M215, M216, M220, M221)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_trees import mask as picture_mask
from mask_trees import opened, refused
from nifti_files import save, volume_of

from dicom_files import dataset as radiograph
from dicom_files import picture, written
from medloom.config import DataConfig
from medloom.data.audit import audit, gate
from medloom.data.case_cache import build_cases
from medloom.data.mask_scan import read_case
from medloom.data.records import Dataset, read_csv
from medloom.data.scan import scan
from medloom.data.volume_source import sizes_below
from medloom.data.volumes import Volume
from medloom.errors import DataError
from series_files import write_series

AFFINE = np.diag([1.5, 2.0, 3.0, 1.0])


def write_mask(path: Path, k: int, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, (volume_of(seed=k) // 70).astype(np.uint8), affine)


def write_case(folder: Path, k: int, **more: Any) -> Path:
    tags = {"PatientID": f"SECRET{k}", "name": f"series{k}", **more}
    return write_series(folder, Volume(volume_of(seed=k), AFFINE), **tags)


def tree(root: Path, n: int = 3, image: str = "images/c{}", drawn: str = "masks/c{}.nii.gz", **more: Any) -> Path:
    for k in range(n):
        write_case(root / image.format(k), k, **more)
        write_mask(root / drawn.format(k), k)
    return root


@pytest.mark.parametrize(
    ("image", "drawn", "path"),
    [
        ("images/c{}", "masks/c{}.nii.gz", "images/c{}"),
        ("images/c{}/s1", "masks/c{}.nii.gz", "images/c{}"),
        ("images/c{}/study/s1", "masks/c{}_seg.nii.gz", "images/c{}"),
        ("images/c{}/s1", "masks/c{}/s1.nii", "images/c{}/s1"),
        ("imagesTr/c{}", "labelsTr/c{}.nii.gz", "imagesTr/c{}"),
        ("imagesTr/c{}_0000", "labelsTr/c{}.nii.gz", "imagesTr/c{}_0000"),
        ("train/images/c{}", "train/masks/c{}.nii.gz", "train/images/c{}"),
    ],
)
def test_folders_of_series_are_cases(tmp_path: Path, image: str, drawn: str, path: str) -> None:
    dataset = opened(tree(tmp_path, image=image, drawn=drawn))
    assert [(r.path, r.mask) for r in dataset.records] == [(path.format(k), drawn.format(k)) for k in range(3)]
    assert dataset.label_values == (0, 1, 2)
    found = scan(dataset, DataConfig(), workers=1)
    assert not found.excluded
    assert {r.spacing for r in found.dataset.records} == {(1.5, 2.0, 3.0)}
    assert {(image.file_type, image.mode) for image in found.images} == {("dicom", "int16")}
    for k, record in enumerate(found.dataset.records):
        volume = read_case(dataset, record, DataConfig())
        assert isinstance(volume, Volume)
        np.testing.assert_array_equal(volume.array, volume_of(seed=k))


@pytest.mark.parametrize("ending", ["", ".ima", ".7"])
def test_slices_of_any_name(tmp_path: Path, ending: str) -> None:
    dataset = opened(tree(tmp_path, ending=ending))
    assert [r.path for r in dataset.records] == [f"images/c{k}" for k in range(3)]


def test_series_hash_like_the_same_volumes_in_nifti(tmp_path: Path) -> None:
    tree(tmp_path / "series")
    for k in range(3):
        write_mask(tmp_path / "nifti" / "masks" / f"c{k}.nii.gz", k)
        (tmp_path / "nifti" / "images").mkdir(exist_ok=True)
        save(tmp_path / "nifti" / "images" / f"c{k}.nii.gz", volume_of(seed=k), AFFINE)
    found = [scan(opened(tmp_path / kind), DataConfig(), workers=1).dataset for kind in ("series", "nifti")]
    hashes = [[(r.pixel_hash, r.mask_hash) for r in dataset.records] for dataset in found]
    assert hashes[0] == hashes[1]
    found[0].write_csv(tmp_path / "records.csv")
    assert read_csv(tmp_path / "records.csv", tmp_path / "series").records == found[0].records


def test_patients_are_hashes_of_the_tag_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    root = tree(tmp_path, 4)
    write_case(root / "images" / "c3", 3, PatientID="SECRET0")
    patients = [r.patient for r in opened(root).records]
    assert all(p is not None and p.startswith("dicom-") and "SECRET" not in p for p in patients)
    assert len(set(patients)) == 3
    assert patients[3] == patients[0]
    assert [r.patient for r in opened(root, patient="pattern:(c[0-9])").records] == ["c0", "c1", "c2", "c3"]
    assert {r.patient for r in opened(root, patient="none").records} == {None}


def test_a_table_names_folders(tmp_path: Path) -> None:
    tree(tmp_path, 4, image="ct/c{}/s", drawn="drawn/c{}.nii.gz")
    rows = "".join(f"ct/c{k},drawn/c{k}.nii.gz,s{k % 2},{'train' if k < 2 else 'test'}\n" for k in range(4))
    (tmp_path / "table.csv").write_text("image,mask,site,split\n" + rows)
    for config in ({}, {"source": "dicom"}):
        for path in (tmp_path, tmp_path / "table.csv"):
            dataset = opened(path, **config)
            assert [(r.path, r.site, r.split) for r in dataset.records][2] == ("ct/c2", "s0", "test")
            assert len({r.patient for r in dataset.records} - {None}) == 4
    assert not scan(dataset, DataConfig(), workers=1).excluded
    (tmp_path / "table.csv").write_text("image,label\nct/c0,a\nct/c1,b\n")
    assert refused(tmp_path / "table.csv").code == "D116"


TURNS = {"rows": np.s_[:, ::-1], "slices": np.s_[:, :, ::-1], "both": np.s_[::-1, ::-1, ::-1]}


@pytest.mark.parametrize("turn", [*TURNS, "axes"])
def test_a_mask_in_another_order_lies_where_it_lies(tmp_path: Path, turn: str) -> None:
    root = tree(tmp_path, 2)
    straight = scan(opened(root), DataConfig(), workers=1).dataset
    labels = (volume_of(seed=1) // 70).astype(np.uint8)
    step = np.eye(4)
    if turn == "axes":
        labels, step = labels.transpose(2, 0, 1), np.eye(4)[:, [2, 0, 1, 3]]
    else:
        for axis, part in enumerate(TURNS[turn]):
            if part.step == -1:
                step[axis, axis], step[axis, 3] = -1, labels.shape[axis] - 1
        labels = labels[TURNS[turn]]
    save(root / "masks" / "c1.nii.gz", labels, AFFINE @ step)
    turned = scan(opened(root), DataConfig(), workers=1)
    assert not turned.excluded
    assert turned.dataset.records == straight.records


def test_N309_a_mask_on_another_grid(tmp_path: Path) -> None:
    root = tree(tmp_path)
    write_mask(root / "masks" / "c1.nii.gz", 1, np.diag([1.5, 2.0, 3.2, 1.0]))
    problem = refused(root)
    assert (problem.code, problem.place) == ("N309", "images/c1")
    assert "masks/c1.nii.gz" in problem.problem
    save(root / "masks" / "c1.nii.gz", np.zeros((9, 7, 4), np.uint8), AFFINE)
    assert "9 x 7 x 4 and 9 x 7 x 5" in refused(root).problem


@pytest.mark.parametrize("nested", [True, False])
def test_M220_two_series_of_one_case_are_refused_by_both_their_names(tmp_path: Path, nested: bool) -> None:
    root = tree(tmp_path, 4, image="images/c{}/s1")
    if nested:
        write_case(root / "images" / "c1" / "s2", 7)
        told = ("s1/000.dcm", "s2/000.dcm")
    else:
        write_case(root / "images" / "c1" / "s1", 7, ending=".z")
        told = ("s1/000.dcm", "s1/000.z")
    problem = refused(root)
    assert (problem.code, problem.place) == ("M220", "images/c1")
    assert all(name in problem.problem for name in told)
    found = audit(scan(opened(root), DataConfig(exclude_limit=0.9), workers=1), DataConfig(exclude_limit=0.9))
    with pytest.raises(DataError, match="M220"):
        gate(found)
    config = {"exclude": ("images/c1",)}
    assert not scan(opened(root, **config), DataConfig(**config), workers=1).excluded


def test_M221_M215_M216_a_series_that_is_not_what_is_learnt(tmp_path: Path) -> None:
    root = tree(tmp_path)
    write_case(root / "images" / "c2", 2, Modality="MR")
    problem = refused(root, expect={"modality": ("CT",)})
    assert (problem.code, problem.place) == ("M215", "images/c2")
    write_case(root / "images" / "c2", 2, BurnedInAnnotation="YES")
    problem = refused(root)
    assert (problem.code, problem.place) == ("M216", "images/c2")
    assert not scan(opened(root), DataConfig(burned_in="keep"), workers=1).excluded
    write_case(root / "images" / "c2", 2, BurnedInAnnotation="NO")
    (root / "images" / "c2" / "014.dcm").unlink()
    problem = refused(root)
    assert (problem.code, problem.place) == ("M221", "images/c2")


def test_N313_a_series_without_its_mask(tmp_path: Path) -> None:
    root = tree(tmp_path)
    write_case(root / "images" / "c9", 9)
    problem = refused(root)
    assert (problem.code, problem.place) == ("N313", "images/c9")
    assert len(opened(root, exclude=("images/c9",))) == 3


def test_a_case_in_both_forms_is_one_of_them(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for k in range(3):
        save(root / "images" / f"c{k}.nii.gz", volume_of(seed=k), AFFINE)
    assert refused(root).code == "N313"
    assert [r.path for r in opened(root, source="dicom").records] == [f"images/c{k}" for k in range(3)]
    assert [r.path for r in opened(root, source="nifti").records] == [f"images/c{k}.nii.gz" for k in range(3)]


def test_radiographs_with_masks_as_pictures_stay_pictures(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / "images" / "p").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "p" / f"{k}.dcm").write_bytes(written(radiograph(picture(24, 32, seed=k), number=k + 1)))
        picture_mask(tmp_path / "masks" / "p" / f"{k}.png")
    dataset = opened(tmp_path)
    assert [r.path for r in dataset.records] == [f"images/p/{k}.dcm" for k in range(3)]
    assert not scan(dataset, DataConfig(), workers=1).excluded


def test_the_sizes_of_a_folder_tell_that_a_slice_changed(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "c", 0)
    before = sizes_below(folder)
    assert len(before) == 5
    (folder / "007.dcm").rename(folder / "x.dcm")
    assert sizes_below(folder) != before
    (folder / "x.dcm").unlink()
    assert len(sizes_below(folder)) == 4
    assert sizes_below(folder / "000.dcm") == [("000.dcm", (folder / "000.dcm").stat().st_size)]
    assert sizes_below(folder / "gone") == []


def test_equal_voxels_of_another_spacing_are_another_cache(tmp_path: Path) -> None:
    keys = []
    for name, affine in (("a", AFFINE), ("b", np.diag([1.5, 2.0, 4.0, 1.0]))):
        write_series(tmp_path / name / "images" / "c", Volume(volume_of(), affine))
        write_mask(tmp_path / name / "masks" / "c.nii.gz", 0, affine)
        dataset: Dataset = scan(opened(tmp_path / name), DataConfig(), workers=1).dataset

        def made(record: object) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((1, 2, 2, 2), np.uint16), np.zeros((2, 2, 2), np.uint8)

        keys.append(build_cases(dataset, made, {}, tmp_path / "cache").key)
    assert keys[0] != keys[1]
