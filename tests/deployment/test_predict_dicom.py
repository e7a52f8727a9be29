"""``medloom predict`` on DICOM: files without endings, studies as ZIP, declared input (FAULTS M215, M216, M219)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from dicom_files import ROOT, dataset, picture, secretive, written
from medloom.deployment.bundle import load
from medloom.errors import DataError, ModelError
from medloom.workflows.predict import predict


def test_M215_a_bundle_refuses_what_it_was_not_made_for(
    bundle: Path, forge: Callable[..., None], tmp_path: Path
) -> None:
    decoding: dict[str, Any] = {"frames": "refuse", "max_megapixels": 64.0, "expect": {"modality": ["CR", "DX"]}}
    forge(bundle, decoding=decoding)
    model = load(bundle)
    good, wrong = (written(dataset(picture(64, 64), Modality=name)) for name in ("DX", "CT"))
    answers = model.predict([good, wrong])
    assert [a.error for a in answers] == [None, "M215"]
    assert "Modality is CT" in str(answers[1].problem)
    forge(bundle, decoding={**decoding, "expect": {"colour": ["red"]}})
    with pytest.raises(ModelError, match="C505"):
        load(bundle)


def test_M219_a_bad_archive_stops_before_anything_is_written(original: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="M219"):
        predict(original, [tmp_path / "bad.zip"], out=tmp_path / "a.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip"]


def test_predict_reads_dicom_folders_and_studies(
    tmp_path: Path, medloom: Callable[..., CompletedProcess[str]], original: Path
) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for k in range(4):
        (root / f"{ROOT}{k}").write_bytes(written(dataset(picture(64, 64, seed=k), number=k + 1)))
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    made = secretive(dataset(picture(seed=9), number=5, Modality="US"))
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as out:
        out.writestr("p/SECRETNAME", written(made))
        out.writestr("readme", b"hello")
    done = medloom("predict", original, root, tmp_path / "study.zip", "--out", tmp_path / "a.json")
    assert done.returncode == 3, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["error"] for row in found["predictions"]] == [None] * 5 + ["D102"]
    assert [bool(row["notice"]) for row in found["predictions"]] == [False] * 4 + [True, False]
    assert found["predictions"][4]["id"].endswith("study.zip#1")
    assert "M216" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr + (tmp_path / "a.json").read_text()
