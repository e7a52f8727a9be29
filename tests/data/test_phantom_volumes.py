"""Phantom volumes and phantom masks: what is written is what was drawn, and it can be learnt from."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medloom.config import DataConfig
from medloom.data.phantom import phantom_images
from medloom.data.phantom_masks import CLASSES as MASK_CLASSES
from medloom.data.phantom_masks import LABEL_VALUES, write_phantom_masks
from medloom.data.phantom_volumes import CLASSES, SCANNERS, phantom_volumes, write_phantom_volumes
from medloom.data.sources import open_dataset
from medloom.data.volumes import canonical
from medloom.errors import UsageError

Medloom = Callable[..., subprocess.CompletedProcess[str]]


def test_every_site_has_its_own_grid_contrast_and_splits() -> None:
    cases = list(phantom_volumes(24, size=24))
    assert {c.site for c in cases} == {"north", "east", "south"}
    assert {(c.site, c.image.codes) for c in cases} == {("north", "RAS"), ("east", "LPS"), ("south", "PSR")}
    for case in cases:
        assert canonical(case.image).spacing == SCANNERS[case.site].spacing
        assert case.image.array.dtype == np.int16
        assert case.labels.shape == case.image.array.shape
    sites = ("north", "south")
    by_site = {site: np.median([c.image.array.max() for c in cases if c.site == site]) for site in sites}
    assert by_site["south"] > 2 * by_site["north"]
    for split in ("train", "val", "test"):
        assert {c.site for c in cases if c.split == split} == {"north", "east", "south"}
    for site in ("north", "east", "south"):
        ill = [bool(c.lesions) for c in cases if c.site == site]
        assert sum(ill) == len(ill) / 2


def test_lesions_lie_where_the_list_says_in_the_organ_on_the_right() -> None:
    for case in phantom_volumes(12, size=32, seed=4):
        labels = canonical(replace(case.image, array=case.labels))
        organ = np.argwhere(labels.array > 0)
        assert (labels.affine @ [*organ.mean(axis=0), 1])[0] > 5, "the organ is on the patient's right"
        assert bool(case.lesions) == bool((case.labels == 2).any())
        for lesion in case.lesions:
            index = np.rint(np.linalg.inv(labels.affine) @ [*lesion.centre, 1])[:3].astype(int)
            assert labels.array[tuple(index)] == 2
            assert lesion.millilitres > 0.05
        volume = (case.labels == 2).sum() * np.prod(labels.spacing) / 1000
        assert volume <= sum(lesion.millilitres for lesion in case.lesions) + 1e-9
        assert volume >= max((lesion.millilitres for lesion in case.lesions), default=0) - 1e-9


def test_the_same_seed_is_the_same_body_on_every_grid() -> None:
    (small,), (large,) = (list(phantom_volumes(1, size=size, seed=7)) for size in (24, 48))
    for k in (1, 2):
        shares = [(case.labels == k).mean() for case in (small, large)]
        assert shares[0] == pytest.approx(shares[1], rel=0.25)
    again = next(iter(phantom_volumes(1, size=24, seed=7)))
    np.testing.assert_array_equal(again.image.array, small.image.array)


def test_what_is_written_is_what_was_drawn(tmp_path: Path) -> None:
    table = write_phantom_volumes(tmp_path / "p", n_patients=10, size=16, seed=2)
    dataset = open_dataset(table, DataConfig())
    assert dataset.classes == CLASSES
    assert dataset.label_values == (0, 1, 2)
    assert {r.site for r in dataset.records} == {"north", "east", "south"}
    assert open_dataset(tmp_path / "p", DataConfig(source="nifti")).records == dataset.records
    truth = json.loads((tmp_path / "p" / "lesions.json").read_text())["lesions"]
    for record, case in zip(dataset.records, phantom_volumes(10, size=16, seed=2)):
        assert (record.patient, record.site, record.split) == (case.patient, case.site, case.split)
        image, mask = nibabel.load(tmp_path / "p" / record.path), nibabel.load(tmp_path / "p" / str(record.mask))
        np.testing.assert_array_equal(np.asarray(image.dataobj), case.image.array)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), case.labels)
        np.testing.assert_allclose(image.affine, mask.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        assert len(truth[record.path]) == len(case.lesions)


def test_pictures_with_masks_of_lungs_and_opacities(tmp_path: Path) -> None:
    table = write_phantom_masks(tmp_path / "p", n_patients=10, size=64, seed=3)
    dataset = open_dataset(table, DataConfig())
    assert dataset.classes == MASK_CLASSES
    assert dataset.label_values == LABEL_VALUES
    drawn = phantom_images(10, size=64, seed=3)
    for k, record in enumerate(dataset.records):
        mask = np.asarray(Image.open(tmp_path / "p" / str(record.mask)))
        assert ((mask == 255) == drawn.masks[k]).all()
        assert 0.1 < (mask > 0).mean() < 0.6
        assert record.patient == drawn.patients[k]
    # Lungs are the dark part of the chest.
    inside, outside = drawn.images[drawn.lungs & ~drawn.masks], drawn.images[~drawn.lungs]
    assert inside.mean() < outside[outside > 0].mean()


@pytest.mark.parametrize(
    "options",
    [{"size": 8}, {"size": 999}, {"seed": -1}, {"sites": ()}, {"sites": ("nowhere",)}, {"fractions": (0.7, 0.7)}],
)
def test_U204_what_cannot_be_drawn(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="U204"):
        next(iter(phantom_volumes(4, **options)))  # type: ignore[arg-type]


def test_U212_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for write in (write_phantom_volumes, write_phantom_masks):
        with pytest.raises(UsageError, match="U212"):
            write(tmp_path, n_patients=10)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("kind", "size"), [("volumes", 16), ("masks", 32), ("images", 32)])
def test_the_verb_writes_every_kind(kind: str, size: int, tmp_path: Path, medloom: Medloom) -> None:
    done = medloom("data", "phantom", tmp_path / "p", "--kind", kind, "--patients", 10, "--size", size)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p" / "table.csv").exists()
    assert bool(open_dataset(tmp_path / "p", DataConfig()).label_values) == (kind != "images")
