"""DICOM series as volumes: place, order, spacing and values, against SimpleITK (USERS 18; M204, M218-M222)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage
from scipy.spatial.transform import Rotation

from dicom_files import ROOT, dataset, picture, written
from medloom.data.dicom_series import group_series, read_series
from medloom.data.volumes import canonical, write_nifti
from medloom.errors import DataError

AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])
SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1]])
CORONAL = np.array([[1.0, 0, 0], [0, 0, -1]])


def planes(
    count: int = 6,
    *,
    along: np.ndarray = AXIAL,
    spacing: tuple[float, float] = (0.7, 0.5),
    step: float = 2.5,
    origin: tuple[float, float, float] = (-30.0, -20.0, 100.0),
    series: int = 1,
    **tags: Any,
) -> list[Dataset]:
    normal = np.cross(along[0], along[1])
    made = []
    for k in range(count):
        values = (picture(12, 16, seed=k) // 2).astype(np.int16)
        one = dataset(values, number=100 * series + k, SOPClassUID=CTImageStorage, Modality="CT", **tags)
        one.SeriesInstanceUID = f"{ROOT}9{series}"
        one.ImagePositionPatient = [f"{v:.6f}" for v in np.array(origin) + k * step * normal]
        one.ImageOrientationPatient = [f"{v:.6f}" for v in along.reshape(-1)]
        one.PixelSpacing = list(spacing)
        one.RescaleSlope, one.RescaleIntercept = "1", "-1024"
        one.SliceThickness = "9"
        made.append(one)
    return made


def save(folder: Path, made: list[Dataset], *, shuffle: bool = True) -> Path:
    """Names and instance numbers in an order that has nothing to do with where the slices lie."""
    folder.mkdir(parents=True, exist_ok=True)
    order = random.Random(4).sample(range(len(made)), len(made)) if shuffle else range(len(made))
    for name, k in enumerate(order):
        made[k].InstanceNumber = name + 1
        (folder / f"IM{name:04d}").write_bytes(written(made[k]))
    return folder


def refused(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_series(folder)
    return caught.value


def assert_as_by_simpleitk(folder: Path) -> None:
    """The same value at the same place in the patient, for every voxel."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other = reader.Execute()
    mine = read_series(folder)
    values = SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0)
    assert values.shape == mine.array.shape
    index = np.array([[0, 0, 0], [values.shape[0] - 1, 0, 0], [0, values.shape[1] - 1, 0], [3, 4, values.shape[2] - 1]])
    for at in index:
        world = np.array(other.TransformIndexToPhysicalPoint([int(v) for v in at])) * (-1, -1, 1)
        found = np.linalg.inv(mine.affine) @ (*world, 1)
        assert np.abs(found[:3] - np.rint(found[:3])).max() < 1e-3
        x, y, z = np.rint(found[:3]).astype(int)
        assert mine.array[x, y, z] == values[tuple(at)]
    if np.allclose(
        mine.affine[:3, 2] * (-1, -1, 1), np.array(other.GetDirection()).reshape(3, 3)[:, 2] * other.GetSpacing()[2]
    ):
        assert (mine.array == values).all()
    else:
        assert (mine.array[:, :, ::-1] == values).all()


@pytest.mark.parametrize("along", [AXIAL, SAGITTAL, CORONAL, -AXIAL], ids=["axial", "sagittal", "coronal", "turned"])
def test_a_series_lies_where_a_second_reader_puts_it(tmp_path: Path, along: np.ndarray) -> None:
    assert_as_by_simpleitk(save(tmp_path / "s", planes(along=along)))


@given(turn=st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)), step=st.floats(0.3, 6))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_oblique_series_lie_where_a_second_reader_puts_them(
    tmp_path_factory: pytest.TempPathFactory, turn: tuple[float, float, float], step: float
) -> None:
    along = AXIAL @ Rotation.from_rotvec(turn).as_matrix().T
    assert_as_by_simpleitk(save(tmp_path_factory.mktemp("s"), planes(along=along, step=step)))


@pytest.mark.parametrize("along", [AXIAL, SAGITTAL, CORONAL], ids=["axial", "sagittal", "coronal"])
def test_a_mask_of_a_series_lies_on_it_for_a_second_reader(tmp_path: Path, along: np.ndarray) -> None:
    folder = save(tmp_path / "s", planes(along=along))
    volume = canonical(read_series(folder))
    mask = (volume.array > 0).astype(np.uint8)
    write_nifti(tmp_path / "mask.nii.gz", volume.to_stored(mask), volume)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, drawn = reader.Execute(), SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))
    laid = SimpleITK.Resample(drawn, image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 9)
    values = SimpleITK.GetArrayFromImage(image)
    assert 0.1 < (values > 0).mean() < 0.9
    assert (SimpleITK.GetArrayFromImage(laid) == (values > 0)).all()


def test_values_are_rescaled_and_order_is_by_position(tmp_path: Path) -> None:
    made = planes()
    volume = read_series(save(tmp_path / "s", made))
    assert volume.kind == "dicom"
    assert volume.array.dtype == np.int16
    assert volume.codes == "LPS"
    assert volume.spacing == pytest.approx((0.5, 0.7, 2.5))
    for k, one in enumerate(made):
        stored = np.frombuffer(one.PixelData, "<i2").reshape(12, 16)
        assert (volume.array[:, :, k] == stored.T - 1024).all()
    assert volume.affine[:3, 3] == pytest.approx([30, 20, 100])
    turned = canonical(volume)
    assert turned.codes == "RAS"
    assert (turned.array[::-1, ::-1] == volume.array).all()


def test_M204_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    made = planes()
    for k, one in enumerate(made):
        one.RescaleSlope = f"{0.5 + k}"
    volume = read_series(save(tmp_path / "s", made))
    assert volume.array.dtype == np.float32
    for k, one in enumerate(made):
        stored = np.frombuffer(one.PixelData, "<i2").reshape(12, 16)
        assert volume.array[:, :, k] == pytest.approx(stored.T * (0.5 + k) - 1024)


def test_positions_that_were_rounded_are_even_enough(tmp_path: Path) -> None:
    made = planes(20, step=0.625)
    for one in made:
        one.ImagePositionPatient = [f"{float(v):.1f}" for v in one.ImagePositionPatient]
    assert read_series(save(tmp_path / "s", made)).spacing[2] == pytest.approx(0.625, abs=0.01)


@pytest.mark.parametrize("gone", [1, 3, 4])
def test_M221_a_missing_slice(tmp_path: Path, gone: int) -> None:
    made = planes()
    del made[gone]
    problem = refused(save(tmp_path / "s", made))
    assert problem.code == "M221"
    assert "1 slices are missing" in problem.problem


def test_M221_a_slice_twice_and_uneven_slices(tmp_path: Path) -> None:
    made = planes()
    copy = planes()[2]
    copy.SOPInstanceUID = f"{ROOT}4321"
    assert "lie where another lies" in refused(save(tmp_path / "a", [*made, copy])).problem
    made[3].ImagePositionPatient = [*made[3].ImagePositionPatient[:2], "108.4"]
    problem = refused(save(tmp_path / "b", made))
    assert (problem.code, "evenly" in problem.problem) == ("M221", True)


def test_M221_one_slice_needs_a_thickness(tmp_path: Path) -> None:
    (one,) = planes(1)
    assert read_series(save(tmp_path / "a", [one])).spacing[2] == 9
    del one.SliceThickness
    assert refused(save(tmp_path / "b", [one])).code == "M221"


def test_M222_a_tilted_gantry(tmp_path: Path) -> None:
    made = planes()
    for k, one in enumerate(made):
        x, y, z = (float(v) for v in one.ImagePositionPatient)
        one.ImagePositionPatient = [f"{x:.4f}", f"{y + 0.6 * k:.4f}", f"{z:.4f}"]
    problem = refused(save(tmp_path / "s", made))
    assert problem.code == "M222"
    assert "13.5 degrees" in problem.problem


def test_M220_several_series_are_refused_and_can_be_parted(tmp_path: Path) -> None:
    folder = save(tmp_path / "s", [*planes(4), *planes(3, series=2, along=SAGITTAL)])
    assert refused(folder).code == "M220"
    groups, damaged = group_series(folder)
    assert damaged == []
    assert sorted(len(paths) for paths in groups.values()) == [3, 4]
    assert sorted(read_series(paths).shape[2] for paths in groups.values()) == [3, 4]


@pytest.mark.parametrize("what", ["direction", "spacing", "size", "no position", "colour", "skewed"])
def test_M220_slices_that_do_not_belong_together(tmp_path: Path, what: str) -> None:
    made = planes()
    odd = made[3]
    if what == "direction":
        odd.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    elif what == "spacing":
        odd.PixelSpacing = [0.7, 0.6]
    elif what == "size":
        odd.Rows, odd.PixelData = 11, odd.PixelData[: 11 * 16 * 2]
    elif what == "no position":
        del odd.ImagePositionPatient
    elif what == "skewed":
        odd.ImageOrientationPatient = [1, 0, 0, 0.3, 0.95, 0]
    else:
        made[3] = dataset(np.zeros((12, 16, 3), np.uint8), bits=8, SeriesInstanceUID=f"{ROOT}91")
    assert refused(save(tmp_path / "s", made)).code == "M220"


def test_M218_one_uid_for_two_different_slices(tmp_path: Path) -> None:
    made = planes()
    made[4].SOPInstanceUID = made[1].SOPInstanceUID
    assert refused(save(tmp_path / "s", made)).code == "M218"


def test_N307_a_spacing_that_cannot_be(tmp_path: Path) -> None:
    assert refused(save(tmp_path / "s", planes(step=80))).code == "N307"


def test_D115_and_other_files_beside_a_series(tmp_path: Path) -> None:
    folder = save(tmp_path / "s", planes())
    (folder / "notes.txt").write_text("hello")
    (folder / "SR").write_bytes(
        written(dataset(picture(), PixelData=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    )
    assert read_series(folder).shape == (16, 12, 6)
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").code == "D115"


def test_M215_a_series_of_another_modality(tmp_path: Path) -> None:
    folder = save(tmp_path / "s", planes())
    with pytest.raises(DataError, match="M215"):
        read_series(folder, expect={"modality": ("MR",)})


def enhanced(count: int = 5, *, drop: bool = False) -> Dataset:
    values = np.stack([(picture(12, 16, seed=k) // 2).astype(np.int16) for k in range(count)])
    made = dataset(values, SOPClassUID=EnhancedCTImageStorage, Modality="CT")

    def wrap(name: str, **tags: Any) -> Dataset:
        item, outer = Dataset(), Dataset()
        for key, value in tags.items():
            setattr(item, key, value)
        setattr(outer, name, Sequence([item]))
        return outer

    shared = wrap("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = wrap("PixelMeasuresSequence", PixelSpacing=[0.7, 0.5]).PixelMeasuresSequence
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for k in (3, 0, 4, 1, 2)[:count]:
        group = wrap("PlanePositionSequence", ImagePositionPatient=[-30, -20, 100 + 2.5 * k])
        rescale = wrap("PixelValueTransformationSequence", RescaleIntercept="-1024", RescaleSlope="1", RescaleType="HU")
        group.PixelValueTransformationSequence = rescale.PixelValueTransformationSequence
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = Sequence(groups[: count - drop])
    return made


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "deflated"])
def test_one_file_of_many_frames(tmp_path: Path, syntax: str) -> None:
    made = enhanced()
    stored = np.frombuffer(made.PixelData, "<i2").reshape(5, 12, 16)
    (tmp_path / "many.dcm").write_bytes(written(made, syntax))
    volume = read_series(tmp_path / "many.dcm")
    assert volume.shape == (16, 12, 5)
    assert volume.spacing == pytest.approx((0.5, 0.7, 2.5))
    for place, frame in enumerate((1, 3, 4, 0, 2)):
        assert (volume.array[:, :, place] == stored[frame].T - 1024).all()


def test_M209_M220_frames_without_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(written(enhanced(drop=True)))
    assert refused(tmp_path / "a.dcm").code == "M209"
    film = dataset(np.stack([picture(seed=k) for k in range(3)]))
    (tmp_path / "b.dcm").write_bytes(written(film))
    assert refused(tmp_path / "b.dcm").code == "M220"
