"""The bundle of a segmenter refuses to be mixed, edited or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from spoilt_bundle import Forge, document, edit, refused, refused_swap
from tiny_bundle import npz
from tiny_segmenter import CLASSES, KINDS, VALUES, segmenter_model, segmenter_parts, segmenter_weights

from medloom.deployment.bundle import load, load_classifier
from medloom.deployment.bundle_document import FILES
from medloom.deployment.bundle_segmenter import load_segmenter, write_segmenter
from medloom.errors import ModelError, UsageError


@pytest.fixture(params=KINDS)
def spoilt(request: pytest.FixtureRequest, segmenters: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to spoil, of images and of volumes."""
    return Path(shutil.copytree(segmenters[request.param], tmp_path / str(request.param)))


@pytest.fixture
def spoilt_deep(segmenters: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(segmenters["deep"], tmp_path / "deep"))


@pytest.mark.parametrize("name", [*FILES, "model.json"])
def test_C502_C503_damage_in_any_file(spoilt: Path, name: str) -> None:
    content = (spoilt / name).read_bytes()
    (spoilt / name).write_bytes(content[: len(content) // 2])
    refused(spoilt, "C502")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    (spoilt / name).write_bytes(flipped)
    with pytest.raises(ModelError):
        load(spoilt)


def test_C503_keys_of_the_other_kind_of_bundle(spoilt: Path) -> None:
    edit(spoilt, temperature=1.0)
    assert "temperature" in str(refused(spoilt, "C503"))


def test_C501_a_pickle_beside_it(spoilt: Path) -> None:
    (spoilt / "model.pt").write_bytes(b"\x80\x04")
    refused(spoilt, "C501")


def test_C506_permuted_classes_and_swapped_values(spoilt: Path, forge: Forge) -> None:
    for changes in ({"classes": ["background", "heart", "lung"]}, {"label_values": [0, 7, 255]}):
        before = (spoilt / "model.json").read_bytes()
        edit(spoilt, **changes)
        refused(spoilt, "C506")
        (spoilt / "model.json").write_bytes(before)
        forge(spoilt, **changes)  # with hashes that fit: the weights' own file knows better
        refused(spoilt, "C506")
        (spoilt / "model.json").write_bytes(before)
    load(spoilt)


_DEEP = [
    {"mean": [0.31]},
    {"std": [0.3]},
    {"spacing": [2.0, 3.0, 2.0]},
    {"spacing": None},
    {"percentiles": [2.0, 98.0]},
    {"intensity": "zscore"},
]
_FLAT = [{"mean": [0.5]}, {"std": [0.2]}, {"resize": "squash"}, {"intensity": "none"}, {"percentiles": [2.0, 98.0]}]


@pytest.mark.parametrize("swap", _DEEP, ids=str)
def test_C507_swapped_preprocessing_of_volumes(spoilt_deep: Path, forge: Forge, swap: dict[str, Any]) -> None:
    refused_swap(spoilt_deep, forge, "preprocess", swap)


@pytest.mark.parametrize("swap", _FLAT, ids=str)
def test_C507_swapped_preprocessing_of_images(
    segmenters: dict[str, Path], tmp_path: Path, forge: Forge, swap: dict[str, Any]
) -> None:
    flat = Path(shutil.copytree(segmenters["flat"], tmp_path / "flat"))
    refused_swap(flat, forge, "preprocess", swap)


@pytest.mark.parametrize("swap", [{"overlap": 0.25}, {"mirror": True}])
def test_C507_other_windows(spoilt_deep: Path, forge: Forge, swap: dict[str, Any]) -> None:
    refused_swap(spoilt_deep, forge, "segmentation", swap)


def test_C507_another_orientation_of_the_golden_volume(spoilt_deep: Path, forge: Forge) -> None:
    with np.load(spoilt_deep / "golden.npz") as golden:
        arrays = dict(golden)
    for column in range(3):
        turned = arrays["affine"].copy()
        turned[:3, column] *= -1
        forge(spoilt_deep, {"golden.npz": npz(**{**arrays, "affine": turned})})
        refused(spoilt_deep, "C507")


def test_C507_edited_golden_masks(spoilt: Path, forge: Forge) -> None:
    with np.load(spoilt / "golden.npz") as golden:
        arrays = dict(golden)
    flipped = arrays["masks"][..., ::-1].copy()
    forge(spoilt, {"golden.npz": npz(**{**arrays, "masks": flipped})})
    assert "masks differ" in str(refused(spoilt, "C507"))


def test_C507_another_network_of_equal_shapes(spoilt: Path, forge: Forge) -> None:
    size = (40, 32) if spoilt.name == "flat" else (12, 10, 8)
    other = segmenter_model(segmenter_weights(len(size), seed=1), size).SerializeToString()
    forge(spoilt, {"model.onnx": other})
    assert "golden" in str(refused(spoilt, "C507"))


def test_C505_another_patch_or_size_than_the_networks(spoilt: Path, forge: Forge) -> None:
    if spoilt.name == "flat":
        forge(spoilt, preprocess={**document(spoilt)["preprocess"], "size": [32, 40]})
    else:
        forge(spoilt, segmentation={**document(spoilt)["segmentation"], "patch": [12, 8, 10]})
    assert "the network has" in str(refused(spoilt, "C505"))


@pytest.mark.parametrize(
    "changes",
    [
        {"segmentation": {}},
        {"segmentation": {"patch": "x", "overlap": 0.5, "mirror": False, "keep_largest": False}},
        {"segmentation": {"patch": None, "overlap": 0.5, "mirror": "no", "keep_largest": False}},
        {"segmentation": {"patch": None, "overlap": 1.5, "mirror": False, "keep_largest": False}},
        {"preprocess": {"kind": "film"}},
        {"preprocess": None},
        {"decoding": {"frames": "all", "max_megapixels": 64}},
    ],
    ids=str,
)
def test_C505_values_that_make_no_sense(spoilt: Path, forge: Forge, changes: dict[str, Any]) -> None:
    forge(spoilt, **changes)
    refused(spoilt, "C505")


def test_C505_a_classifier_in_the_place_of_the_network(spoilt: Path, forge: Forge) -> None:
    from tiny_bundle import tiny_model, tiny_weights

    forge(spoilt, {"model.onnx": tiny_model(tiny_weights(classes=3), (40, 32)).SerializeToString()})
    refused(spoilt, "C505")


def test_C505_golden_arrays_that_are_missing(spoilt: Path, forge: Forge) -> None:
    with np.load(spoilt / "golden.npz") as golden:
        arrays = dict(golden)
    for name in arrays:
        forge(spoilt, {"golden.npz": npz(**{k: v for k, v in arrays.items() if k != name})})
        refused(spoilt, "C505")


def test_C508_weights_that_are_no_numbers(spoilt: Path, forge: Forge) -> None:
    axes = 2 if spoilt.name == "flat" else 3
    bad = {name: np.full_like(w, np.nan) for name, w in segmenter_weights(axes).items()}
    metadata = {"classes": json.dumps(list(CLASSES)), "label_values": json.dumps(list(VALUES))}
    forge(spoilt, {"model.safetensors": save(bad, metadata=metadata)})
    refused(spoilt, "C508")


def test_C509_another_format(spoilt: Path) -> None:
    edit(spoilt, format=9)
    refused(spoilt, "C509")


def test_C515_masks_where_classes_are_wanted_and_the_other_way_round(
    segmenters: dict[str, Path], original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="C515"):
        load_classifier(segmenters["flat"])
    with pytest.raises(ModelError, match="C515"):
        load_segmenter(original)
    assert load_classifier(original).root == original


def test_a_bundle_that_does_not_prove_itself_is_never_in_place(tmp_path: Path) -> None:
    made = segmenter_parts(3)
    wrong = {**made["golden"], "logits": made["golden"]["logits"] + np.float32(0.01)}
    with pytest.raises(ModelError, match="C507"):
        write_segmenter(tmp_path / "b", **(made | {"golden": wrong}))
    with pytest.raises((ModelError, UsageError)):
        write_segmenter(tmp_path / "b", **(made | {"label_values": (0, 7, 7)}))
    assert list(tmp_path.iterdir()) == []
