"""How large pixels are: from headers, from the recipe, of some files alone; and measures in millimetres by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_reading import read
from mask_trees import mask, opened, pairs
from PIL import Image as PillowImage
from pydicom import Dataset as Header
from pydicom.sequence import Sequence

from dicom_files import picture as samples
from dicom_files import radiograph
from medloom.config import DataConfig, load_recipe
from medloom.data.audit import audit
from medloom.data.images import Image, decode
from medloom.data.pixel_spacing import picture_spacing
from medloom.data.records import Dataset
from medloom.data.scan import Scan, scan
from medloom.data.sources import open_dataset
from medloom.errors import UsageError
from medloom.evaluation.case_table import case_table
from medloom.workflows.segment_truth import judged, stored_case


def scanned(root: Path, **config: Any) -> Scan:
    return scan(opened(root, **config), DataConfig(**config), workers=1)


def told(done: Scan, code: str, **config: Any) -> list[tuple[str, str, int, tuple[str, ...]]]:
    found = audit(done, DataConfig(**config)).findings
    return [(f.severity, f.title, f.count, f.examples) for f in found if f.code == code and "pixels" in f.title]


def films(root: Path, n: int = 2, **tags: Any) -> Path:
    for k in range(n):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "images" / f"x{k}.dcm").write_bytes(radiograph(samples(24, 32, seed=k), number=k + 1, **tags))
        mask(root / "masks" / f"x{k}.png")
    return root


@pytest.mark.parametrize(
    ("tags", "spacing", "source"),
    [
        ({}, None, ""),
        ({"PixelSpacing": [0.143, 0.143]}, (0.143, 0.143), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.15, 0.15]}, (0.15, 0.15), "ImagerPixelSpacing"),
        ({"ImagerPixelSpacing": [0.15, 0.15], "PixelSpacing": [0.12, 0.12]}, (0.12, 0.12), "PixelSpacing"),
        ({"NominalScannedPixelSpacing": [0.175, 0.175]}, (0.175, 0.175), "NominalScannedPixelSpacing"),
        ({"PixelSpacing": [0.143, 0.1435]}, (0.143, 0.1435), "PixelSpacing"),
        ({"PixelAspectRatio": [2, 1]}, None, ""),
        ({"PixelSpacing": [1000, 1000]}, None, ""),
        ({"PixelSpacing": [0.001, 0.001], "ImagerPixelSpacing": [0.15, 0.15]}, (0.15, 0.15), "ImagerPixelSpacing"),
    ],
)
def test_a_header_says_how_large_pixels_are(tags: dict[str, Any], spacing: tuple[float, float], source: str) -> None:
    image = read(radiograph(**tags))
    assert (image.spacing, image.spacing_from) == (spacing, source)


@pytest.mark.parametrize(
    ("tags", "shape", "spacing"),
    [
        ({"PixelSpacing": [0.3, 0.2]}, (60, 32), (0.2, 0.2)),  # 40 rows of 0.3 mm are 12 mm, and so are 60 of 0.2
        ({"PixelSpacing": [0.1, 0.2]}, (40, 64), (0.1, 0.1)),
        ({"PixelSpacing": [0.143, 0.1]}, (57, 32), (0.143 * 40 / 57, 0.1)),  # 57.2 rows would be square
    ],
)
def test_pixels_that_were_made_square_cover_what_they_covered(
    tags: dict[str, Any], shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    image = read(radiograph(**tags))
    assert image.pixels.shape == shape
    assert image.spacing == pytest.approx(spacing)


@pytest.mark.parametrize("shared", [True, False])
def test_a_frame_of_an_enhanced_object_has_the_size_that_its_groups_say(shared: bool) -> None:
    def measures(*spacing: float) -> Header:
        inner, outer = Header(), Header()
        inner.PixelSpacing = list(spacing)
        outer.PixelMeasuresSequence = Sequence([inner])
        return outer

    said = {"SharedFunctionalGroupsSequence": Sequence([measures(0.4, 0.2)])}
    if not shared:
        said["PerFrameFunctionalGroupsSequence"] = Sequence([measures(0.4, 0.2), measures(0.3, 0.3)])
    many = np.stack([samples(20, 16, seed=k) for k in range(2)])
    data = radiograph(many, PixelSpacing=[9, 9], **said)
    first, second = (read(data, frames="all", frame=k) for k in range(2))
    assert (first.pixels.shape, first.spacing) == ((40, 16), (0.2, 0.2))
    assert (second.pixels.shape, second.spacing) == (((40, 16), (0.2, 0.2)) if shared else ((20, 16), (0.3, 0.3)))


@pytest.mark.parametrize(("given", "spacing"), [("0.2", (0.2, 0.2)), ("[0.5, 0.25]", (0.5, 0.25)), ("1", (1.0, 1.0))])
def test_the_recipe_says_it_of_files_that_do_not(given: str, spacing: tuple[float, float]) -> None:
    config = load_recipe({}, [f"data.pixel_spacing={given}"]).data
    plain = Image(np.zeros((9, 9), np.uint8), 8, "L", "png", 81)
    assert picture_spacing(plain, config) == (spacing, "data.pixel_spacing")
    stated = replace(plain, spacing=(0.1, 0.1), spacing_from="PixelSpacing")
    assert picture_spacing(stated, config) == ((0.1, 0.1), "PixelSpacing")
    assert picture_spacing(plain, DataConfig()) == (None, "")


@pytest.mark.parametrize("given", ["0", "-0.2", "51", "[0.2]", "[0.2, 0.2, 0.2]", "[0.2, 0]", "fine", ".inf"])
def test_U204_a_spacing_that_no_pixel_has(given: str) -> None:
    with pytest.raises(UsageError, match="U204") as caught:
        load_recipe({}, [f"data.pixel_spacing={given}"])
    assert "data.pixel_spacing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_word_pixels_are_counted_and_nothing_is_told(tmp_path: Path) -> None:
    done = scanned(pairs(tmp_path))
    assert {r.spacing for r in done.dataset.records} == {None}
    assert not told(done, "D100")
    assert not told(done, "N307")


def test_records_have_what_the_header_says_and_the_audit_tells_which_element(tmp_path: Path) -> None:
    films(tmp_path / "a", PixelSpacing=[0.2, 0.1])
    for k in range(2):  # the mask of a picture with oblong pixels lies on the square ones
        mask(tmp_path / "a" / "masks" / f"x{k}.png", size=(48, 32))
    done = scanned(tmp_path / "a")
    assert [r.spacing for r in done.dataset.records] == [pytest.approx((0.1, 0.1))] * 2
    assert done.cases[0].spacing is None
    ((severity, title, count, _),) = told(done, "D100")
    assert (severity, count) == ("note", 2)
    assert title == "the size of pixels in mm is from PixelSpacing (2 images)"
    done = scanned(films(tmp_path / "b", ImagerPixelSpacing=[0.15, 0.15]))
    assert "ImagerPixelSpacing (2 images)" in told(done, "D100")[0][1]


def test_N307_a_size_that_is_known_of_some_counts_for_none_and_is_told(tmp_path: Path) -> None:
    films(tmp_path, 2, PixelSpacing=[0.2, 0.2])
    pairs(tmp_path, 3)
    done = scanned(tmp_path)
    assert {r.spacing for r in done.dataset.records} == {None}
    ((severity, title, count, examples),) = told(done, "N307")
    assert (severity, count) == ("warn", 3)
    assert "known from PixelSpacing (2 images), and unknown of 3 images: all are measured in pixels" in title
    assert examples == ("images/0.png", "images/1.png", "images/2.png")


def test_N307_the_recipe_fills_what_headers_leave_out(tmp_path: Path) -> None:
    films(tmp_path, 2, PixelSpacing=[0.2, 0.2])
    pairs(tmp_path, 3)
    done = scanned(tmp_path, pixel_spacing=(0.5, 0.25))
    spacings = {r.path.rsplit(".", 1)[1]: r.spacing for r in done.dataset.records}
    assert spacings == {"dcm": (0.2, 0.2), "png": (0.5, 0.25)}
    assert not told(done, "N307", pixel_spacing=(0.5, 0.25))
    assert "data.pixel_spacing (3 images), PixelSpacing (2 images)" in told(done, "D100")[0][1]


def one_case(root: Path, config: DataConfig) -> tuple[Dataset, np.ndarray]:
    """A square of 10 x 10 in 24 x 32, and an answer that is as large and one row lower."""
    truth, answer = (np.zeros((24, 32), dtype=np.uint8) for _ in range(2))
    truth[4:14, 6:16] = answer[5:15, 6:16] = 1
    pairs(root, 1)
    PillowImage.fromarray(truth).save(root / "masks" / "0.png")
    return scan(open_dataset(root, config), config, workers=1).dataset, answer


# Either outline has 36 pixels. Of each, the 10 of one end row are a row off and 18 lie on the other outline. The 8
# between the corners of the other end row are a row off too, but where a column is shorter than a row: there the outer
# two are a column off.
@pytest.mark.parametrize(
    ("spacing", "row", "column", "assd", "on", "pixel", "units"),
    [
        ((0.5, 0.25), 0.5, 0.25, (16 * 0.5 + 2 * 0.25) / 36, 20 / 36, 0.125 / 100, ("mm", "cm²")),
        (0.2, 0.2, 0.2, 18 * 0.2 / 36, 18 / 36, 0.04 / 100, ("mm", "cm²")),
        (None, 1.0, 1.0, 18 / 36, 18 / 36, 1.0, ("pixels", "pixels")),
    ],
)
def test_measures_of_a_picture_by_hand(
    tmp_path: Path,
    spacing: Any,
    row: float,
    column: float,
    assd: float,
    on: float,
    pixel: float,
    units: tuple[str, str],
) -> None:
    config = DataConfig(pixel_spacing=spacing)
    dataset, answer = one_case(tmp_path, config)
    record = dataset.records[0]
    case = stored_case(dataset, record, decode(dataset, record, config), prefer="refuse", max_megapixels=64.0)

    def scored(drawn: np.ndarray, tolerance: float) -> dict[str, float]:
        table = case_table([judged(record, case, drawn, 1, tolerance)], ("box",), tolerance=tolerance)
        assert (table.distance_unit, table.size_unit) == units
        return {name: float(v[0, 0]) for name, v in table.values.items()}

    got = scored(answer, 0.99 * row)
    assert (got["hd95"], got["dice"]) == (pytest.approx(row), pytest.approx(0.9))
    assert (got["assd"], got["nsd"]) == (pytest.approx(assd), pytest.approx(on))
    assert got["size_truth"] == got["size_answer"] == pytest.approx(100 * pixel)
    assert scored(answer, row)["nsd"] == 1.0
    assert scored(np.roll(answer, -1, axis=0), row)["hd95"] == 0.0
    aside = scored(np.roll(answer, (-1, 1), axis=(0, 1)), row)
    assert aside["hd95"] == pytest.approx(column)
    answer[15, 6:16] = 1
    assert scored(answer, row)["size_error"] == pytest.approx(10 * pixel)
    assert scored(answer, row)["hd95"] == pytest.approx(2 * row)
    assert scored(0 * answer, row)["hd95"] == pytest.approx(math.hypot(24 * row, 32 * column))
