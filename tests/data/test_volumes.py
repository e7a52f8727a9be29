"""Volumes turned, and masks written back: every voxel on its place, for us and for a second reader."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import save, spoil, volume_of

from medloom.data.geometry import Orientation, axis_codes, canonical_affine, orientation_of, stored_affine
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import Volume, canonical, read_nifti, require_same_grid, write_nifti
from medloom.errors import DataError

CODES = ["".join(c) for p in permutations(("RL", "AP", "SI")) for c in product(*p)]


def oriented(codes: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One body stored in another order: voxels, affine, and the same voxels to the right, anterior and superior."""
    body = volume_of((9, 7, 5)).astype(np.float32)
    affine = np.array([[1.5, 0, 0, -20], [0, 2.0, 0, 30], [0, 0, 3.0, -7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(body, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine, body


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_N308_every_orientation_gives_the_same_model_input_and_the_way_back(tmp_path: Path, codes: str) -> None:
    voxels, affine, body = oriented(codes)
    volume = read_nifti(save(tmp_path / "a.nii.gz", voxels, affine))
    assert volume.codes == codes == axis_codes(affine)
    upright = canonical(volume)
    assert upright.codes == "RAS"
    np.testing.assert_array_equal(upright.array, body)
    np.testing.assert_allclose(upright.affine, oriented("RAS")[1], atol=1e-5)
    np.testing.assert_array_equal(upright.to_stored(upright.array), voxels)
    np.testing.assert_allclose(upright.stored_affine, affine, atol=1e-5)
    grid = VolumePreprocess(spacing=(1.2, 2.5, 2.0), mean=(0.5,), std=(0.25,))
    reference = Volume(body, oriented("RAS")[1])
    assert np.abs(grid(volume) - grid(reference)).max() <= 1e-5
    # Left and right: a single voxel at the patient's right comes back as the voxel that it was.
    right = np.zeros(upright.shape, dtype=np.uint8)
    right[-1, 2, 1] = 1
    write_nifti(tmp_path / "m.nii.gz", upright.to_stored(right), volume)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    place = mask.affine @ [*np.argwhere(np.asarray(mask.dataobj) == 1)[0], 1]
    np.testing.assert_allclose(place[:3], (reference.affine @ [8, 2, 1, 1])[:3], atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    st.tuples(*[st.floats(0.2, 6.0)] * 3),
    st.booleans(),
    st.tuples(*[st.integers(2, 6)] * 3),
)
def test_N308_oblique_volumes_turn_and_turn_back(
    angles: tuple[float, float, float],
    spacing: tuple[float, float, float],
    left_handed: bool,
    shape: tuple[int, int, int],
) -> None:
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() * spacing * ([-1, 1, 1] if left_handed else 1)
    affine[:3, 3] = (5, -7, 11)
    array = np.arange(np.prod(shape)).reshape(shape)
    upright = canonical(Volume(array, affine))
    # Each voxel keeps its place in the patient, and each axis points more along its own direction than against it.
    orientation = orientation_of(affine)
    assert sorted(orientation.axes) == [0, 1, 2]
    assert (np.diag(upright.affine)[:3] >= 0).all()
    for index in ((0, 0, 0), (1, 0, 1), tuple(n - 1 for n in shape)):
        at = np.argwhere(upright.array == array[index])[0]
        np.testing.assert_allclose(upright.affine @ [*at, 1], affine @ [*index, 1], atol=1e-6)
    np.testing.assert_array_equal(upright.to_stored(upright.array), array)
    np.testing.assert_allclose(upright.stored_affine, affine, atol=1e-6)


@given(st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3), st.tuples(*[st.integers(1, 5)] * 3))
def test_N308_turning_is_undone_exactly_with_leading_axes_too(
    axes: list[int], flips: tuple[bool, bool, bool], shape: tuple[int, int, int]
) -> None:
    orientation = Orientation((axes[0], axes[1], axes[2]), flips)
    array = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    np.testing.assert_array_equal(orientation.to_stored(orientation.to_canonical(array)), array)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    turned = canonical_affine(affine, shape, orientation)
    np.testing.assert_allclose(stored_affine(turned, shape, orientation), affine, atol=1e-9)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_N308_a_second_reader_lays_the_mask_on_its_image(tmp_path: Path, codes: str, name: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    voxels, affine, _ = oriented(codes)
    image_path = save(tmp_path / "a.nii.gz", voxels, affine)
    volume = canonical(read_nifti(image_path))
    labels = (volume.array > 100).astype(np.uint8) + (volume.array > 150)
    write_nifti(tmp_path / name, volume.to_stored(labels), volume)
    image, mask = sitk.ReadImage(str(image_path)), sitk.ReadImage(str(tmp_path / name))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == image.GetSize()
    assert mask.GetSpacing() == image.GetSpacing()
    assert mask.GetOrigin() == image.GetOrigin()
    assert mask.GetDirection() == image.GetDirection()
    theirs = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), (theirs > 100).astype(int) + (theirs > 150))


def test_N303_the_mask_of_a_file_with_two_places_has_both(tmp_path: Path) -> None:
    path = spoil(save(tmp_path / "a.nii", volume_of()), srow=(1.5, 0, 0, 4, 0, 2, 0, 0, 0, 0, 3, 0))
    write_nifti(tmp_path / "m.nii", np.ones((9, 7, 5), dtype=bool), read_nifti(path, prefer="sform"))
    image, mask = nibabel.load(path), nibabel.load(tmp_path / "m.nii")
    np.testing.assert_array_equal(mask.get_sform(), image.get_sform())
    np.testing.assert_array_equal(mask.get_qform(), image.get_qform())


def test_a_mask_carries_no_text_of_its_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", volume_of(), descrip=b"DOE JANE 1950", aux_file=b"jane.txt", cal_max=99)
    write_nifti(tmp_path / "m.nii.gz", np.ones((9, 7, 5), dtype=np.uint8), read_nifti(path))
    header = nibabel.load(tmp_path / "m.nii.gz").header
    assert header["descrip"] == b""
    assert header["aux_file"] == b""
    assert header["cal_max"] == 0


def test_a_mask_of_a_volume_from_elsewhere_says_its_place_twice(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    voxels, affine, _ = oriented("PIR")
    write_nifti(tmp_path / "m.nii.gz", (voxels > 99).astype(np.uint8), Volume(voxels, affine, "dicom"))
    mask = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(mask.get_sform(), affine, atol=1e-4)
    np.testing.assert_allclose(mask.get_qform(), affine, atol=1e-4)
    assert sitk.ReadImage(str(tmp_path / "m.nii.gz")).GetSize() == voxels.shape


def test_labels_above_255_take_16_bits_and_nothing_else_is_written(tmp_path: Path) -> None:
    volume = Volume(volume_of(), np.eye(4))
    labels = np.full((9, 7, 5), 300)
    write_nifti(tmp_path / "m.nii", labels, volume)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "m.nii").dataobj), labels)
    for wrong in (labels.astype(np.float32), labels - 301, labels * 300, labels[1:]):
        with pytest.raises(ValueError):
            write_nifti(tmp_path / "n.nii", wrong, volume)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.nii"]


def test_N309_a_mask_beside_its_image() -> None:
    image = Volume(volume_of(), np.diag([1.0, 1.0, 2.0, 1.0]))
    require_same_grid(image, canonical(image), "m")
    shifted = image.affine.copy()
    shifted[0, 3] = 1.0
    for other, word in ((Volume(image.array, shifted), "1 mm"), (Volume(image.array[1:], image.affine), "8 x 7 x 5")):
        with pytest.raises(DataError, match="N309") as caught:
            require_same_grid(image, other, "m")
        assert word in caught.value.problem


def test_real_volumes_go_out_and_come_back(real_data: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = sorted((real_data / "hippocampus" / "labelsTr").glob("*.nii.gz"))[3]
    volume = read_nifti(path)
    write_nifti(tmp_path / "m.nii.gz", volume.array.astype(np.uint8), volume)
    ours, theirs = sitk.ReadImage(str(tmp_path / "m.nii.gz")), sitk.ReadImage(str(path))
    assert ours.GetOrigin() == theirs.GetOrigin()
    assert ours.GetDirection() == theirs.GetDirection()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
