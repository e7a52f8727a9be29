"""The rows C500, C502, C503 and C509 of docs/errors.md: absent, cut, altered, of another version."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from spoilt_bundle import Forge, document, edit, refused

from medloom.deployment.bundle import load
from medloom.deployment.bundle_document import FILES
from medloom.errors import ModelError

ALL = (*FILES, "model.json")


@pytest.mark.parametrize("name", ALL)
def test_C502_truncated_at_every_percent(bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    for percent in range(100):
        (bundle / name).write_bytes(whole[: len(whole) * percent // 100])
        refused(bundle, "C502")
    (bundle / name).unlink()
    refused(bundle, "C500" if name == "model.json" else "C502")


def test_C502_truncated_with_hashes_that_fit(bundle: Path, forge: Forge) -> None:
    for name in ("model.safetensors", "model.onnx", "golden.npz"):
        whole = (bundle / name).read_bytes()
        for share in (0.1, 0.5, 0.9):
            forge(bundle, {name: whole[: int(len(whole) * share)]})
            with pytest.raises(ModelError):
                load(bundle)
        forge(bundle, {name: whole})
    load(bundle)


def test_C503_a_thousand_single_bit_flips(bundle: Path) -> None:
    draw = random.Random(0)
    codes = set()
    for name in ALL:
        whole = (bundle / name).read_bytes()
        for _ in range(200):
            spoilt = bytearray(whole)
            spoilt[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            (bundle / name).write_bytes(spoilt)
            with pytest.raises(ModelError) as caught:
                load(bundle)
            codes.add((name, caught.value.code))
        (bundle / name).write_bytes(whole)
    assert {("model.onnx", "C503"), ("model.safetensors", "C503"), ("CARD.md", "C503")} <= codes
    load(bundle)


def test_C503_unknown_and_missing_keys(bundle: Path, forge: Forge) -> None:
    edit(bundle, surprise=1)
    assert "surprise" in str(refused(bundle, "C503"))
    body = {k: v for k, v in document(bundle).items() if k not in ("surprise", "temperature")}
    (bundle / "model.json").write_text(json.dumps(body))
    assert "temperature" in str(refused(bundle, "C503"))


@pytest.mark.parametrize(
    "files",
    [None, [], {"../../etc/passwd": {}}, dict.fromkeys(FILES), {n: {"bytes": "x"} for n in FILES}],
)
def test_C503_a_file_list_that_names_anything_else(bundle: Path, files: Any) -> None:
    edit(bundle, files=files)
    refused(bundle, "C503")


def test_C503_another_spelling_of_equal_values(bundle: Path) -> None:
    (bundle / "model.json").write_text(json.dumps(document(bundle)))
    refused(bundle, "C503")


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, True, 1.5, [1]])
def test_C509_other_format_versions_are_named(bundle: Path, forge: Forge, version: Any) -> None:
    edit(bundle, format=version)
    text = str(refused(bundle, "C509"))
    assert repr(version) in text
    assert "reads 1" in text
    assert ("Update medloom" in text) == (version in (2, 99))


def test_C509_a_newer_bundle_is_named_before_its_new_keys_are(bundle: Path) -> None:
    (bundle / "model.json").write_text('{"format": 2, "everything": "else"}')
    refused(bundle, "C509")


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}"])
def test_C509_json_that_is_no_document(bundle: Path, text: str) -> None:
    (bundle / "model.json").write_text(text)
    refused(bundle, "C509")


@pytest.mark.parametrize("text", ["", "{", "\xff", '{"format": NaN}', "[" * 100_000])
def test_C502_text_that_is_no_json(bundle: Path, text: str) -> None:
    (bundle / "model.json").write_text(text, encoding="latin-1")
    refused(bundle, "C502")


def test_C500_no_bundle_there(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "C500")
    refused(tmp_path, "C500")
    (tmp_path / "a.txt").write_text("hello")
    refused(tmp_path / "a.txt", "C500")
