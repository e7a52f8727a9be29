"""``medloom predict`` lays each mask where its image lies: NIfTI, DICOM series, turned and oblong pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL
from segmenter_files import rows, store
from tiny_segmenter import a_volume

from medloom.data.phantom import golden_images
from medloom.data.volumes import Volume
from medloom.deployment.bundle_segmenter import load_segmenter
from medloom.workflows.predict import predict
from medloom.workflows.segment_cases import find_cases
from series_files import write_series


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_second_reader_lays_the_mask_on_its_volume(deep: Path, tmp_path: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    upright = Volume(a_volume().array, np.diag([2.0, 2.5, 3.0, 1.0]))
    flipped = np.array([[0, 0, -2.4, 9], [-1.3, 0, 0, 5], [0, 1.9, 0, -3], [0, 0, 0, 1.0]])
    cases = {"oblique": a_volume((17, 12, 15)), "upright": upright, "turned": Volume(a_volume().array, flipped)}
    for name, volume in cases.items():
        store(tmp_path / "in" / f"{name}{ending}", volume)
    predict(deep, [tmp_path / "in"], out=tmp_path / "out")
    bundle = load_segmenter(deep)
    for name in cases:
        image = sitk.ReadImage(str(tmp_path / "in" / f"{name}{ending}"))
        mask = sitk.ReadImage(str(tmp_path / "out" / f"{name}_mask.nii.gz"))
        assert mask.GetSize() == image.GetSize()
        for corner in np.ndindex(2, 2, 2):
            index = [int(i * (n - 1)) for i, n in zip(corner, image.GetSize())]
            one, two = (v.TransformIndexToPhysicalPoint(index) for v in (image, mask))
            np.testing.assert_allclose(one, two, atol=1e-4)
        read = sitk.GetArrayFromImage(mask).T
        answer = bundle.segment(tmp_path / "in" / f"{name}{ending}")[0]
        np.testing.assert_array_equal(read, answer.mask)
        # A resampler that knows only headers finds the bright middle of the image under the mask's own voxels.
        placed = sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(placed).T, read)
        assert len(np.unique(read)) > 1


def test_a_dicom_series_gets_a_nifti_on_its_own_grid(deep: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    volume = a_volume()
    for name in ("ct", "again"):
        write_series(tmp_path / "study" / name, volume)
    done = predict(deep, [tmp_path / "study"], out=tmp_path / "out")
    assert sorted(row["mask"] for row in rows(tmp_path / "out")) == ["again_mask.nii.gz", "ct_mask.nii.gz"]
    assert done.values["passed_over"] == 0
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "study" / "ct")))
    image, mask = reader.Execute(), sitk.ReadImage(str(tmp_path / "out" / "ct_mask.nii.gz"))
    placed = sitk.GetArrayFromImage(sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor, 99)).T
    expected = load_segmenter(deep).segment(volume)[0].mask
    assert expected is not None
    if not np.array_equal(sitk.GetArrayFromImage(image).T, volume.array):  # the reader may run the other way
        expected = expected[:, :, ::-1]
    np.testing.assert_array_equal(placed, expected)
    alone = predict(deep, [tmp_path / "study" / "ct"], out=tmp_path / "one")
    assert alone.values["images"] == 1


@pytest.mark.parametrize("spoilt", ["a", "b"])
def test_a_damaged_slice_refuses_its_folder_and_not_the_rest(deep: Path, tmp_path: Path, spoilt: str) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / "in" / name, a_volume())
    store(tmp_path / "in" / "v.nii.gz", a_volume())
    broken = tmp_path / "in" / spoilt / "007.dcm"
    broken.write_bytes(broken.read_bytes()[:-60])
    done = predict(deep, [tmp_path / "in"], out=tmp_path / "out")
    found = {Path(row["id"]).name: row for row in done.values["predictions"]}
    assert found.keys() == {"a", "b", "v.nii.gz"}
    refused = found.pop(spoilt)
    assert refused["error"] in ("M211", "M212", "M213")
    assert all(row["error"] is None for row in found.values())
    assert done.values["passed_over"] == 0


def test_a_damaged_file_beside_two_series_refuses_both_and_no_folder_below(deep: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "in", a_volume(), name="one", ending="_1.dcm")
    write_series(tmp_path / "in", a_volume(), name="two", ending="_2.dcm")
    write_series(tmp_path / "in" / "below", a_volume())
    broken = tmp_path / "in" / "007_1.dcm"
    broken.write_bytes(broken.read_bytes()[:-60])
    cases, others = find_cases([tmp_path / "in"], tmp_path / "out", lambda p: sorted(p.rglob("*.dcm")), volumes=True)
    assert [(case.name, str(case.place)) for case in cases] == [
        (str(tmp_path / "in"), "in"),
        (str(tmp_path / "in" / "below"), "below"),
    ]
    assert cases[0].files[0] == broken
    assert others == 0


def test_a_turned_photograph_gets_a_mask_as_it_is_seen(flat: Path, tmp_path: Path) -> None:
    pixels = golden_images(1, 60, 3)[0][:, :44]
    sideways = PIL.fromarray(np.rot90(pixels))
    exif = PIL.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    sideways.save(tmp_path / "turned.png", exif=exif)
    PIL.fromarray(pixels).save(tmp_path / "upright.png")
    one, two = load_segmenter(flat).segment([tmp_path / "turned.png", tmp_path / "upright.png"])
    assert one.mask is not None
    assert one.mask.shape == (60, 44)
    np.testing.assert_array_equal(one.mask, two.mask)


def test_M217_a_radiograph_of_oblong_pixels_says_where_its_mask_lies(flat: Path, tmp_path: Path) -> None:
    write_series(
        tmp_path / "xr", Volume(golden_images(1, 60, 3)[0].T[:, :, None].astype(np.int16), np.diag([1.0, 2, 1, 1]))
    )
    answer = load_segmenter(flat).segment(tmp_path / "xr" / "000.dcm")[0]
    assert answer.mask is not None
    assert answer.mask.shape == (120, 60)
    assert answer.notice is not None
    assert "not square" in answer.notice
    done = predict(flat, [tmp_path / "xr"], out=tmp_path / "out")
    assert any("not square" in line for line in done.lines)
    assert (tmp_path / "out" / "000_mask.png").is_file()
