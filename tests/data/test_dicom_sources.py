"""DICOM files as data sets and as studies to answer for (FAULTS D120, M201, M215, M216, M218, M219; PHI)."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dicom_files import ROOT, SECRETS, dataset, picture, secretive, written
from medloom.config import DataConfig
from medloom.data import dicom_archive
from medloom.data.audit import audit, gate
from medloom.data.dicom_archive import count_members, read_archive
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.errors import DataError, UsageError


def tree(root: Path, count: int = 12, **tags: Any) -> Path:
    """Two classes, two images of each patient, names without an ending."""
    for k in range(count):
        folder = root / ("ill" if k % 2 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        made = dataset(picture(40, 32, seed=k), number=1000 + k, PatientID=f"SECRETID{k // 4}", **tags)
        (folder / f"{ROOT}{k}").write_bytes(written(made))
    return root


def test_a_tree_of_dicom_files_without_an_ending(tmp_path: Path) -> None:
    found = open_dataset(tree(tmp_path / "d"), DataConfig())
    assert len(found) == 12
    assert found.classes == ("ill", "well")
    seen = scan(found, DataConfig())
    assert not seen.excluded
    assert {(facts.bits, facts.file_type) for facts in seen.images} == {(12, "dicom")}


def test_D119_patients_are_hashes_of_the_tag(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    found = open_dataset(root, DataConfig())
    patients = [record.patient for record in found.records]
    assert len(set(patients)) == 3
    assert all(patient is not None and "SECRET" not in patient for patient in patients)
    assert patients == [record.patient for record in open_dataset(root, DataConfig(patient="dicom")).records]
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef-of-this-site")
    keyed = [r.patient for r in open_dataset(root, DataConfig(patient="dicom", patient_key=str(key))).records]
    assert len(set(keyed)) == 3
    assert not set(keyed) & set(patients)
    assert [keyed.index(p) for p in keyed] == [patients.index(p) for p in patients]
    assert any("guessed" in notice for notice in found.notices)


def test_U204_a_secret_that_is_short_or_missing(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    (tmp_path / "short").write_bytes(b"secret")
    for name in ("short", "gone"):
        with pytest.raises(UsageError, match="U204"):
            open_dataset(root, DataConfig(patient="dicom", patient_key=str(tmp_path / name)))


def test_D120_a_placeholder_for_all_patients_is_nobody(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for k in range(12):
        folder = root / ("ill" if k % 2 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        made = dataset(picture(seed=k), number=k + 1, PatientID="ANON")
        (folder / f"{k}.dcm").write_bytes(written(made))
    found = open_dataset(root, DataConfig())
    assert {record.patient for record in found.records} == {None}
    assert any("one patient id" in notice for notice in found.notices)
    assert len({r.patient for r in open_dataset(root, DataConfig(patient="dicom")).records} - {None}) == 1


def test_a_table_beside_dicom_files_and_dicom_alone(tmp_path: Path) -> None:
    rows = ["image,label"]
    for k in range(6):
        (tmp_path / f"{k}.dcm").write_bytes(written(dataset(picture(seed=k), number=k + 1, PatientID=f"P{k}")))
        rows.append(f"{k}.dcm,{'ill' if k % 2 else 'well'}")
    from PIL import Image as PIL

    PIL.fromarray(picture(bits=8)).save(tmp_path / "6.png")
    rows.append("6.png,ill")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    assert len(open_dataset(tmp_path, DataConfig())) == 7
    alone = open_dataset(tmp_path, DataConfig(source="dicom"))
    assert len(alone) == 6
    assert any("not DICOM" in notice for notice in alone.notices)
    assert len(open_dataset(tmp_path / "labels.csv", DataConfig(source="dicom"))) == 6


def test_M205_all_frames_become_records(tmp_path: Path) -> None:
    import numpy as np

    for name in ("ill", "well"):
        (tmp_path / name).mkdir()
        frames = np.stack([picture(seed=k) for k in range(3)])
        (tmp_path / name / "film.dcm").write_bytes(written(dataset(frames, number=len(name))))
    found = open_dataset(tmp_path, DataConfig(frames="all"))
    assert [record.id for record in found.records][:3] == ["ill/film.dcm#0", "ill/film.dcm#1", "ill/film.dcm#2"]
    seen = scan(found, DataConfig(frames="all"))
    assert not seen.excluded
    assert not [f for f in audit(seen, DataConfig()).findings if f.code == "M218"]
    with pytest.raises(DataError, match=r"D115.*M205"):
        scan(open_dataset(tmp_path, DataConfig()), DataConfig())


def test_M215_what_the_recipe_declares(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", BodyPartExamined="CHEST")
    hand = dataset(picture(seed=99), number=7, BodyPartExamined="HAND", PatientID="P")
    (root / "ill" / "hand.dcm").write_bytes(written(hand))
    config = DataConfig(expect={"body_part": ("CHEST",)})
    seen = scan(open_dataset(root, config), config)
    assert [(e.id, e.code) for e in seen.excluded] == [("ill/hand.dcm", "M215")]
    with pytest.raises(DataError, match="M215"):
        gate(audit(seen, config))
    gate(audit(seen, config), accept=("M215", "D106", "D115", "D120", "D124"))
    with pytest.raises(ValidationError):
        DataConfig(expect={"bodypart": ("CHEST",)})  # type: ignore[dict-item]


def test_M216_text_in_the_pixels_is_kept_out_of_training(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    made = dataset(picture(seed=50), number=8, BurnedInAnnotation="YES", PatientID="P")
    (root / "ill" / "text.dcm").write_bytes(written(made))
    found = open_dataset(root, DataConfig())
    assert [e.code for e in scan(found, DataConfig()).excluded] == ["M216"]
    assert not scan(found, DataConfig(burned_in="keep")).excluded


def test_M218_one_uid_for_two_pictures_is_refused_by_the_audit(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    good = audit(scan(open_dataset(root, DataConfig()), DataConfig()), DataConfig())
    assert not [f for f in good.findings if f.code == "M218"]
    shutil.copy(root / "well" / f"{ROOT}0", root / "well" / "copy.dcm")
    (root / "ill" / "other.dcm").write_bytes(written(dataset(picture(seed=77), number=1002, PatientID="P")))
    found = audit(scan(open_dataset(root, DataConfig()), DataConfig()), DataConfig())
    (finding,) = [f for f in found.findings if f.code == "M218"]
    assert (finding.severity, finding.count) == ("refuse", 1)
    assert "other.dcm" in finding.examples[0]


def test_M218_the_real_pair_of_polarities_is_found(tmp_path: Path, real_data: Path) -> None:
    for k, name in enumerate(("ill", "well"), 1):
        (tmp_path / name).mkdir()
        shutil.copy(real_data / "dicom" / f"cr_jpeg_monochrome{k}.dcm", tmp_path / name)
    config = DataConfig(burned_in="keep")
    found = audit(scan(open_dataset(tmp_path, config), config), config)
    assert [f.severity for f in found.findings if f.code == "M218"] == ["refuse"]


def test_nothing_that_names_a_person_reaches_records_or_audit(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for k in range(8):
        folder = root / ("ill" if k % 2 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        made = secretive(dataset(picture(seed=k), number=k + 1))
        (folder / f"{k}.dcm").write_bytes(written(made)[: -9 if k == 3 else None])
    config = DataConfig(patient="dicom")
    seen = scan(open_dataset(root, config), config)
    seen.dataset.write_csv(tmp_path / "records.csv")
    text = (tmp_path / "records.csv").read_text() + json.dumps(audit(seen, config).as_dict())
    assert seen.excluded[0].code == "M211"
    for value in (*SECRETS.values(), f"{ROOT}1", "SECRET"):
        assert value not in text


def archive(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def test_M219_a_study_as_zip_is_read_in_memory_and_its_names_are_no_paths(tmp_path: Path) -> None:
    files = {
        "../../evil": written(dataset(picture())),
        "/etc/x": written(dataset(picture(seed=1))),
        "note.txt": b"hello",
    }
    path = archive(tmp_path / "study.zip", files)
    found = list(read_archive(path))
    assert [name.rsplit("/", 1)[1] for name, _ in found] == ["study.zip#1", "study.zip#2", "study.zip#3"]
    assert [data for _, data in found] == list(files.values())
    assert count_members(path) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.zip"]


def test_M219_bombs_nests_locks_and_crowds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as out:
        out.writestr("a", b"b")
    locked = bytearray(archive(tmp_path / "l.zip", {"a": b"b" * 50}, zipfile.ZIP_STORED).read_bytes())
    locked[6] |= 1
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(locked))
    damaged = bytearray(archive(tmp_path / "d.zip", {"a": bytes(range(256)) * 9}, zipfile.ZIP_STORED).read_bytes())
    damaged[100] ^= 255
    (tmp_path / "damaged.zip").write_bytes(bytes(damaged))
    (tmp_path / "none.zip").write_bytes(b"no archive")
    archive(tmp_path / "bomb.zip", {"a": bytes(50 << 20)})
    archive(tmp_path / "nest.zip", {"a": inner.getvalue()})
    monkeypatch.setattr(dicom_archive, "MOST_MEMBERS", 50)
    archive(tmp_path / "crowd.zip", {str(k): b"x" for k in range(51)})
    for name in ("locked", "damaged", "none", "bomb", "nest", "crowd"):
        with pytest.raises(DataError, match="M219"):
            list(read_archive(tmp_path / f"{name}.zip"))
