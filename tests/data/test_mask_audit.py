"""What the audit of masks and volumes finds, refuses and draws."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nifti_files import save, volume_of
from PIL import Image

from medloom.config import DataConfig
from medloom.data.audit import Audit, audit, gate
from medloom.data.mask_scan import middle_slice
from medloom.data.phantom_masks import write_phantom_masks
from medloom.data.phantom_volumes import write_phantom_volumes
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.errors import DataError
from medloom.reporting.contours import COLOURS, outlined

Medloom = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_volumes(tmp_path_factory.mktemp("v") / "phantom", n_patients=12, size=24).parent


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_masks(tmp_path_factory.mktemp("m") / "phantom", n_patients=12, size=64).parent


def audited(root: Path, **config: object) -> Audit:
    settings = DataConfig(**config)  # type: ignore[arg-type]
    return audit(scan(open_dataset(root, settings), settings), settings)


def codes(found: Audit, severity: str) -> set[str]:
    return {f.code for f in found.findings if f.severity == severity}


def cases(root: Path, n: int = 4) -> Path:
    for k in range(n):
        for folder, array in (("imagesTr", volume_of(seed=k)), ("labelsTr", (volume_of(seed=k) > 100).astype("uint8"))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            save(root / folder / f"c{k}.nii.gz", array)
    return root


def test_counts_structures_grids_and_orientations(volumes: Path) -> None:
    found = audited(volumes)
    assert found.counts["train"] == {"organ": 6, "lesion": 3}
    summary = found.summary
    assert [s["name"] for s in summary["structures"]] == ["background", "organ", "lesion"]
    assert sum(s["share"] for s in summary["structures"]) == pytest.approx(1)
    assert summary["structures"][1]["cases"] == 12
    assert summary["size_unit"] == "ml"
    assert summary["orientations"] == {"RAS": 4, "LPS": 4, "PSR": 4}
    assert summary["stored"] == {"int16": 12}
    assert summary["spacing"][2] == pytest.approx({"min": 1.8, "median": 2.0, "max": 3.2})
    assert any("3 orientations" in f.title for f in found.findings)
    assert any(f.code == "N307" and f.severity == "warn" for f in found.findings)
    gate(found)


def test_volume_of_a_structure_is_in_millilitres(volumes: Path) -> None:
    settings = DataConfig()
    done = scan(open_dataset(volumes, settings), settings)
    truth = json.loads((volumes / "lesions.json").read_text())["lesions"]
    for record, case in zip(done.dataset.records, done.cases):
        assert case.spacing is not None
        told = sum(lesion["millilitres"] for lesion in truth[record.path])
        # Lesions may overlap, and then their volumes are counted twice.
        assert case.counts[2] * np.prod(case.spacing) / 1000 <= told + 1e-3
        assert bool(case.counts[2]) == bool(told)


def test_N309_one_wrong_mask_among_many_refuses(tmp_path: Path) -> None:
    root = cases(tmp_path, 5)
    save(root / "labelsTr" / "c3.nii.gz", (volume_of(seed=3) > 100).astype("uint8"), np.diag([1.5, 2.0, 3.5, 1.0]))
    found = audited(root, patient="pattern:c([0-9])", exclude_limit=0.9)
    assert codes(found, "refuse") == {"N309"}
    assert len(found.excluded) == 1
    with pytest.raises(DataError, match="N309") as caught:
        gate(found, ("D101", "D115"))
    assert "labelsTr/c3.nii.gz" in str(caught.value)


@pytest.mark.parametrize("kept", [0, 0.3, 0.99])
def test_N304_truncated_volumes_are_found_as_their_voxels_are_read(tmp_path: Path, kept: float) -> None:
    root = cases(tmp_path, 3)
    path = root / "imagesTr" / "c1.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    found = audited(root, patient="pattern:c([0-9])")
    assert [e.code for e in found.excluded] == ["N304" if kept else "D101"]
    assert ("N304" if kept else "D101") in codes(found, "refuse")


def test_N312_a_structure_that_no_training_case_has(tmp_path: Path) -> None:
    root = cases(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1, "tumour": 2}}))
    found = audited(root, patient="pattern:c([0-9])")
    assert codes(found, "refuse") == {"N312"}
    assert "tumour" in next(f.title for f in found.findings if f.code == "N312")


def test_D117_D119_D120_D121_leaks_between_splits_and_copies_with_two_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for k in range(3):
            for folder in ("images", "masks"):
                (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
            grey = rng.integers(0, 250, (24, 24)).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / split / "images" / f"p{k}.png")
            drawn = ((grey > 100) * 255).astype(np.uint8)
            Image.fromarray(drawn).save(tmp_path / split / "masks" / f"p{k}.png")
    assert {"D119"} <= codes(audited(tmp_path, patient="pattern:(p[0-9])"), "refuse")
    assert {"D120"} <= codes(audited(tmp_path), "refuse")
    copy = (tmp_path / "train" / "images" / "p0.png").read_bytes()
    (tmp_path / "test" / "images" / "p1.png").write_bytes(copy)
    found = audited(tmp_path, patient="pattern:(.*)[.]png")
    assert {"D117", "D121"} <= codes(found, "refuse")
    (tmp_path / "test" / "masks" / "p1.png").write_bytes((tmp_path / "train" / "masks" / "p0.png").read_bytes())
    found = audited(tmp_path, patient="pattern:(.*)[.]png")
    assert "D117" in codes(found, "refuse")
    assert "D121" not in codes(found, "refuse")


def test_D111_a_volume_of_one_value_is_set_aside(tmp_path: Path) -> None:
    root = cases(tmp_path, 3)
    save(root / "imagesTr" / "c1.nii.gz", np.full((9, 7, 5), 4, dtype=np.int16))
    assert [e.code for e in audited(root, patient="pattern:c([0-9])").excluded] == ["D111"]


def test_empty_masks_are_told(tmp_path: Path) -> None:
    root = cases(tmp_path)
    save(root / "labelsTr" / "c2.nii.gz", np.zeros((9, 7, 5), dtype=np.uint8))
    found = audited(root, patient="pattern:c([0-9])")
    assert found.summary["empty_masks"] == 1
    assert any("1 of 4 masks are empty" in f.title for f in found.findings)
    assert not found.refusals()


def test_validation_parts_of_masks_are_never_merged_for_being_small(masks: Path) -> None:
    found = audited(masks)
    assert not any("merged" in f.title for f in found.findings)


def test_outlines_run_inside_of_their_structure_and_nowhere_else() -> None:
    grey = np.full((40, 60), 90, dtype=np.uint8)
    positions = np.zeros((40, 60), dtype=np.uint8)
    positions[10:30, 20:40] = 1
    positions[12:16, 22:26] = 2
    drawn = outlined(grey, positions, size=60)
    assert drawn.shape == (40, 60, 3)
    first, second = ((drawn == np.array(c)).all(axis=2) for c in COLOURS[:2])
    assert first[10, 20:40].all()
    assert first[10:30, 39].all()
    assert not first[:10].any()
    assert second.sum() == 12
    assert (drawn[~first & ~second] == 90).all()


def test_slices_hang_as_radiologists_see_them() -> None:
    body = np.zeros((9, 8, 7))
    body[8, 4, 3] = 1  # at the patient's right
    body[4, 7, 3] = 2  # in front
    shown = middle_slice(body)
    assert shown.shape == (8, 9)
    assert np.argwhere(shown == 1)[0][1] == 0
    assert np.argwhere(shown == 2)[0][0] == 0


@pytest.mark.parametrize("kind", ["volumes", "masks"])
def test_the_verb_writes_a_page_with_outlines(
    kind: str, volumes: Path, masks: Path, tmp_path: Path, medloom: Medloom
) -> None:
    root = volumes if kind == "volumes" else masks
    done = medloom("data", "audit", root, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "a" / "audit.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 12
    assert "Masks that hold each structure" in page
    for word in ("organ", "lesion", "Orientations of the files") if kind == "volumes" else ("lung", "opacity"):
        assert word in page
    assert not re.search(r"\b(nan|None)\b", page)
    values = json.loads((tmp_path / "a" / "audit.json").read_text(encoding="utf-8"))
    assert values["summary"]["structures"][0]["name"] == "background"


def test_the_real_hippocampi_in_seconds(real_data: Path) -> None:
    found = audited(real_data / "hippocampus", patient="pattern:_([0-9]+)")
    assert not found.refusals()
    assert found.summary["images"] == 260
    assert [s["cases"] for s in found.summary["structures"]] == [260, 260, 260]


def test_the_real_lungs(real_data: Path) -> None:
    found = audited(
        real_data / "lung_masks", site="pattern:^([A-Z]+)_", patient="pattern:([A-Z]+_[0-9]+)",
        classes=("background", "lung"),
    )  # fmt: skip
    assert not found.refusals()
    assert found.summary["sites"] == {"CHNCXR": 566, "MCUCXR": 138}
    assert found.counts == {"no split": {"lung": 704}}
