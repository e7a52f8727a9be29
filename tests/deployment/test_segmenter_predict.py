"""``medloom predict`` with a bundle that draws masks: a folder of masks and their sizes, no torch."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL
from tiny_segmenter import CLASSES, VALUES, a_volume, segmenter_parts

from medloom.data.phantom import golden_images
from medloom.data.volumes import Volume, write_nifti
from medloom.deployment.bundle_segmenter import load_segmenter, write_segmenter
from medloom.errors import DataError, ResourceError, UsageError
from medloom.workflows.predict import predict
from medloom.workflows.segment_cases import Asked, mask_names


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmenter(tmp_path_factory.mktemp("flat") / "bundle", **segmenter_parts(2))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmenter(tmp_path_factory.mktemp("deep") / "bundle", **segmenter_parts(3))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    (root / "b" / "deeper").mkdir(parents=True)
    pixels = golden_images(5, 60, 3)
    for name, picture in zip(("знімок.png", "one two.jpg", "b/a.tif", "b/deeper/a.tif", "b/a.png"), pixels):
        PIL.fromarray(picture[:, :44]).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def store(path: Path, volume: Volume) -> Path:
    """A volume as a scanner's NIfTI: 16 bits, its header's two places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, volume.array.clip(0, 65535).astype(np.uint16), volume)
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    text = (folder / "volumes.csv").read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_images_to_a_folder_of_masks(flat: Path, scans: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in scans.rglob("*") if p.is_file()}
    done = predict(flat, [scans], out=tmp_path / "masks")
    found = rows(tmp_path / "masks")
    assert [row["mask"] for row in found] == [
        "one two_mask.png",
        "знімок_mask.png",
        "b/a.png_mask.png",
        "b/a.tif_mask.png",
        "b/deeper/a_mask.png",
    ]
    answers = load_segmenter(flat).segment([Path(row["id"]) for row in found])
    for row, answer in zip(found, answers):
        with PIL.open(tmp_path / "masks" / row["mask"]) as picture:
            mask = np.asarray(picture)
        assert mask.shape == (60, 44)
        np.testing.assert_array_equal(mask, answer.mask)
        assert set(np.unique(mask)) <= set(VALUES)
        assert float(row["size:lung"]) == (mask == 255).sum()
        assert row["unit"] == "pixels"
    assert {p: p.read_bytes() for p in scans.rglob("*") if p.is_file()} == before
    assert done.values["passed_over"] == 1
    assert done.exit_code == 0
    assert done.lines[-1] == f"open {tmp_path / 'masks' / 'volumes.csv'}"


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


def test_volumes_of_equal_names_keep_their_folders(deep: Path, tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        store(tmp_path / "in" / patient / "scan.nii.gz", a_volume())
    done = predict(deep, [tmp_path / "in"], out=tmp_path / "out")
    assert [row["mask"] for row in rows(tmp_path / "out")] == ["p1/scan_mask.nii.gz", "p2/scan_mask.nii.gz"]
    assert all(row["unit"] == "ml" for row in rows(tmp_path / "out"))
    named = predict(deep, [tmp_path / "in" / p / "scan.nii.gz" for p in ("p1", "p2")], out=tmp_path / "flat")
    places = [row["mask"] for row in named.values["predictions"]]
    assert len(set(places)) == 2
    assert all((tmp_path / "flat" / place).is_file() for place in places)
    assert done.values["predictions"][0]["structures"] == named.values["predictions"][1]["structures"]


def test_names_that_would_meet_are_told_apart(tmp_path: Path) -> None:
    cases = [
        Asked(Path("/x/a.png"), "/x/a.png", Path("a")),
        Asked(Path("/y/a.png"), "/y/a.png", Path("a")),
        Asked(Path("/x/A.jpg"), "/x/A.jpg", Path("A")),
        Asked(Path("/x/b.png"), "/x/b.png", Path("b")),
    ]
    names = mask_names(cases, ".png")
    assert str(names[3]) == "b_mask.png"
    assert str(names[2]) == "A.jpg_mask.png"
    assert len({str(n).casefold() for n in names}) == 4
    assert mask_names(cases, ".png") == names


def test_answers_are_not_read_as_images_again(flat: Path, scans: Path) -> None:
    first = predict(flat, [scans], out=scans / "masks").values
    again = predict(flat, [scans], out=scans / "masks").values
    assert first == again
    assert first["images"] == 5
    with pytest.raises(UsageError, match="U215"):
        predict(flat, [scans], out=scans)


def test_U234_an_input_is_never_replaced(flat: Path, scans: Path) -> None:
    PIL.fromarray(golden_images(1, 60, 3)[0]).save(scans / "знімок_mask.png")
    before = (scans / "знімок_mask.png").read_bytes()
    with pytest.raises(UsageError, match="U234"):
        predict(flat, [scans / "знімок.png", scans / "знімок_mask.png"], out=scans)
    assert (scans / "знімок_mask.png").read_bytes() == before
    assert not (scans / "volumes.csv").exists()


def test_D101_refused_cases_have_a_row_and_the_rest_is_written(flat: Path, scans: Path, tmp_path: Path) -> None:
    (scans / "empty.png").touch()
    done = predict(flat, [scans], out=tmp_path / "masks")
    bad = [row for row in rows(tmp_path / "masks") if row["error"]]
    assert [(Path(row["id"]).name, row["error"], row["mask"], row["size:lung"]) for row in bad] == [
        ("empty.png", "D101", "", "")
    ]
    assert done.exit_code == 3
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 5
    assert predict(flat, [scans], out=tmp_path / "masks", exclude_limit=0.5).exit_code == 0


def test_N304_N306_volumes_that_are_refused_have_their_code(deep: Path, tmp_path: Path) -> None:
    good = store(tmp_path / "in" / "good.nii.gz", a_volume())
    (tmp_path / "in" / "cut.nii.gz").write_bytes(good.read_bytes()[:900])
    done = predict(deep, [tmp_path / "in"], out=tmp_path / "out")
    codes = {Path(row["id"]).name: row["error"] for row in rows(tmp_path / "out")}
    assert codes == {"good.nii.gz": "", "cut.nii.gz": "N304"}
    assert done.exit_code == 3


def test_D115_D102_the_wrong_kind_of_input(flat: Path, deep: Path, scans: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"D115.*NIfTI"):
        predict(deep, [scans], out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
    codes = [r["error"] for r in predict(deep, [scans / "b" / "a.png"], out=tmp_path / "o").values["predictions"]]
    assert codes[0] is not None
    volume = store(tmp_path / "v.nii.gz", a_volume())
    assert predict(flat, [volume], out=tmp_path / "p").values["predictions"][0]["error"] == "D102"


@pytest.mark.parametrize("out", [None, "o.csv", "o.json", "o.png", "o.nii.gz"])
def test_U215_masks_need_a_folder(flat: Path, scans: Path, tmp_path: Path, out: str | None) -> None:
    with pytest.raises(UsageError, match="U215"):
        predict(flat, [scans], out=None if out is None else tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["scans"]


def test_T405_an_unwritable_place(flat: Path, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ResourceError, match="T405"):
        predict(flat, [scans], out=tmp_path / "taken" / "masks")


def series(folder: Path, volume: Volume) -> None:
    """The volume as DICOM slices, numbered backwards and named at random."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    along = lps[:3, :3] / spacing
    uid, frame = generate_uid(entropy_srcs=[folder.name]), generate_uid(entropy_srcs=["frame"])
    for k in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[folder.name, str(k)])
        made: Any = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        made.SeriesInstanceUID, made.FrameOfReferenceUID, made.StudyInstanceUID = uid, frame, frame
        made.Modality, made.PatientID, made.InstanceNumber = "CT", "x", 100 - k
        made.ImagePositionPatient = [float(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        made.ImageOrientationPatient = [float(v) for v in (*along[:, 0], *along[:, 1])]
        made.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        made.SliceThickness = float(spacing[2])
        made.Rows, made.Columns = volume.shape[1], volume.shape[0]
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 15, 1, 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.RescaleSlope, made.RescaleIntercept = 1, 0
        made.PixelData = np.ascontiguousarray(volume.array[:, :, k].T).astype("<i2").tobytes()
        made.save_as(folder / f"{(k * 7) % 100:03d}.dcm", enforce_file_format=True)
    assert pydicom is not None


def test_a_dicom_series_gets_a_nifti_on_its_own_grid(deep: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    volume = a_volume()
    for name in ("ct", "again"):
        series(tmp_path / "study" / name, volume)
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


def test_a_damaged_slice_refuses_its_folder_and_not_the_rest(deep: Path, tmp_path: Path) -> None:
    series(tmp_path / "in" / "ct", a_volume())
    store(tmp_path / "in" / "v.nii.gz", a_volume())
    broken = tmp_path / "in" / "ct" / "007.dcm"
    broken.write_bytes(broken.read_bytes()[:-60])
    found = predict(deep, [tmp_path / "in"], out=tmp_path / "out").values["predictions"]
    assert sum(row["error"] is None for row in found) == 1
    assert sum(row["error"] is not None for row in found) == 1


def test_masks_are_drawn_with_torch_not_installed(flat: Path, deep: Path, scans: Path, tmp_path: Path) -> None:
    volume = store(tmp_path / "v.nii.gz", a_volume())
    code = (
        "import sys\n"
        "for name in 'torch timm torchvision kornia cv2 onnx monai nibabel matplotlib jinja2'.split(): "
        "sys.modules[name] = None\n"
        "from medloom.workflows.predict import predict\n"
        "import medloom\n"
        "for bundle, given, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):\n"
        "    print(predict(bundle, [given], out=out).values['refused'], len(medloom.load(bundle).segment(given)))"
    )
    arguments = [flat, scans / "b" / "a.png", tmp_path / "f", deep, volume, tmp_path / "d"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1"] * 2
    assert (tmp_path / "f" / "a_mask.png").is_file()
    assert (tmp_path / "d" / "v_mask.nii.gz").is_file()


def test_the_command_writes_masks_and_prints_json(
    medloom: Callable[..., subprocess.CompletedProcess[str]], flat: Path, scans: Path, tmp_path: Path
) -> None:
    done = medloom("predict", flat, scans, "--out", tmp_path / "masks")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("volumes.csv")
    (scans / "empty.png").touch()
    said = medloom("predict", flat, scans, "--out", tmp_path / "masks", "--json")
    assert said.returncode == 3
    values = json.loads(said.stdout)
    assert values["classes"] == list(CLASSES)
    assert values["refused"] == 1
    assert said.stderr.splitlines()[-1].startswith("error[D101]")
    wrong = medloom("predict", flat, scans, "--out", tmp_path / "masks.csv")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error[U215]")


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
    series(tmp_path / "xr", Volume(golden_images(1, 60, 3)[0].T[:, :, None].astype(np.int16), np.diag([1.0, 2, 1, 1])))
    answer = load_segmenter(flat).segment(tmp_path / "xr" / "000.dcm")[0]
    assert answer.mask is not None
    assert answer.mask.shape == (120, 60)
    assert answer.notice is not None
    assert "not square" in answer.notice
    done = predict(flat, [tmp_path / "xr"], out=tmp_path / "out")
    assert any("not square" in line for line in done.lines)
    assert (tmp_path / "out" / "000_mask.png").is_file()


def test_memory_does_not_grow_with_classes_times_volume() -> None:
    import tracemalloc

    from tiny_segmenter import DEEP, PATCH, segmenter_model, segmenter_weights

    from medloom.data.case_answer import Windows
    from medloom.deployment.runtime import Runtime
    from medloom.deployment.segmenter import SegmentPipeline

    classes, volume = 24, a_volume((32, 32, 400))
    onnx = segmenter_model(segmenter_weights(3, classes=classes), PATCH).SerializeToString()
    names = ("background", *(f"part {k}" for k in range(1, classes)))
    pipeline = SegmentPipeline(names, tuple(range(classes)), DEEP, Windows(PATCH), False, Runtime(onnx, threads=1))
    tracemalloc.start()
    try:
        pipeline.positions(volume)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = 4 * classes * int(np.prod(DEEP.grid(volume)[0]))
    assert peak < whole / 2
