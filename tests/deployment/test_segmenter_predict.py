"""``medloom predict`` with a bundle that draws masks: a folder of masks and their sizes, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL
from segmenter_files import rows, store
from tiny_segmenter import CLASSES, VALUES, a_volume

from medloom.data.phantom import golden_images
from medloom.data.volumes import Volume
from medloom.deployment.bundle_segmenter import load_segmenter
from medloom.errors import DataError, ResourceError, UsageError
from medloom.workflows.predict import predict
from medloom.workflows.segment_cases import Asked, mask_names


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


def test_N307_a_header_that_asks_for_a_huge_grid_refuses_its_case_and_not_the_rest(deep: Path, tmp_path: Path) -> None:
    store(tmp_path / "in" / "good.nii.gz", a_volume())
    store(tmp_path / "in" / "huge.nii.gz", Volume(a_volume((64, 64, 64)).array, np.diag([50.0, 50.0, 50.0, 1.0])))
    done = predict(deep, [tmp_path / "in"], out=tmp_path / "out")
    found = {Path(row["id"]).name: row for row in done.values["predictions"]}
    assert found["good.nii.gz"]["error"] is None
    assert found["huge.nii.gz"]["error"] == "N307"
    assert "1600 x 1600 x 1067 voxels" in found["huge.nii.gz"]["problem"]


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
