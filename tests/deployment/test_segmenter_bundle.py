"""The bundle of a segmenter: it answers from file to mask, and refuses to be mixed, edited or damaged."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL
from safetensors.numpy import save
from tiny_bundle import npz
from tiny_segmenter import (
    CLASSES,
    DEEP,
    VALUES,
    a_volume,
    segmenter_model,
    segmenter_parts,
    segmenter_weights,
)

import medloom
from medloom.data.largest_piece import keep_largest
from medloom.data.phantom import golden_images
from medloom.data.volumes import canonical, write_nifti
from medloom.deployment.bundle import load, load_classifier
from medloom.deployment.bundle_document import FILES
from medloom.deployment.bundle_golden import thinned
from medloom.deployment.bundle_segmenter import SegmenterBundle, load_segmenter, write_segmenter
from medloom.errors import ModelError, UsageError

Forge = Callable[..., None]
KINDS = ("flat", "deep")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("segmenters")
    return {kind: write_segmenter(root / kind, **segmenter_parts(axes)) for kind, axes in zip(KINDS, (2, 3))}


@pytest.fixture(params=KINDS)
def spoilt(request: pytest.FixtureRequest, whole: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to spoil, of images and of volumes."""
    return Path(shutil.copytree(whole[request.param], tmp_path / str(request.param)))


@pytest.fixture
def deep(whole: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole["deep"], tmp_path / "deep"))


def document(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "model.json").read_text())


def edit(bundle: Path, **changes: Any) -> None:
    (bundle / "model.json").write_text(json.dumps({**document(bundle), **changes}, indent=2, ensure_ascii=False) + "\n")


def refused(bundle: Path, code: str) -> str:
    with pytest.raises(ModelError) as caught:
        load(bundle)
    assert caught.value.code == code, str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_get_masks_of_their_own_size(whole: dict[str, Path], tmp_path: Path) -> None:
    bundle = medloom.load(whole["flat"])
    assert isinstance(bundle, SegmenterBundle)
    assert bundle.label_values == VALUES
    picture = golden_images(1, 71, 2)[0][:, :53]
    PIL.fromarray(picture).save(tmp_path / "a.png")
    from_file, from_array = bundle.segment([tmp_path / "a.png", picture])
    assert from_file.id == str(tmp_path / "a.png")
    assert from_array.id == "image 1"
    assert from_file.mask is not None
    assert from_file.mask.shape == (71, 53)
    assert set(np.unique(from_file.mask)) <= set(VALUES)
    np.testing.assert_array_equal(from_file.mask, from_array.mask)
    assert from_file.unit == "pixels"
    assert from_file.structures == {n: float((from_file.mask == v).sum()) for n, v in zip(CLASSES[1:], VALUES[1:])}


def test_volumes_get_masks_in_the_order_of_their_file_and_millilitres(whole: dict[str, Path], tmp_path: Path) -> None:
    bundle = load_segmenter(whole["deep"])
    volume = a_volume((19, 15, 22), 8)
    answer = bundle.segment(volume)[0]
    assert answer.mask is not None
    assert answer.mask.shape == (19, 15, 22)
    assert answer.volume is volume
    assert answer.unit == "ml"
    voxel = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    assert answer.structures["heart"] == pytest.approx((answer.mask == 7).sum() * voxel)
    # The same patient stored upright: the same mask, turned.
    upright = canonical(volume)
    turned = bundle.segment(replace(upright, orientation=type(upright.orientation)()))[0]
    assert turned.mask is not None
    np.testing.assert_array_equal(upright.orientation.to_canonical(answer.mask), turned.mask)


def test_what_is_served_is_what_training_judges(whole: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    from medloom.config_segmentation import SegmentationConfig
    from medloom.training.predict_cases import case_logits

    bundle, volume = load_segmenter(whole["deep"]), a_volume((30, 15, 22), 8)
    weights = {name: torch.from_numpy(w) for name, w in segmenter_weights(3).items()}

    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            hidden = torch.relu(torch.nn.functional.conv3d(x, weights["body.weight"], padding=1))
            return torch.nn.functional.conv3d(hidden, weights["head.weight"], weights["head.bias"])

    config = SegmentationConfig(patch=(12, 10, 8))
    pixels = DEEP.to_uint16(volume)
    expected = case_logits(Net(), pixels, DEEP, config, 3, torch.device("cpu"))
    np.testing.assert_allclose(bundle.pipeline.logits(volume), expected, atol=1e-4)
    mask = np.array(VALUES)[DEEP.restore(expected, volume)]
    assert (mask != bundle.segment(volume)[0].mask).mean() < 1e-3


def test_probabilities_are_on_the_grid_of_the_file(whole: dict[str, Path]) -> None:
    for kind, source in (("flat", golden_images(1, 60, 2)[0]), ("deep", a_volume())):
        bundle = load_segmenter(whole[kind])
        answer = bundle.segment(source, probabilities=True)[0]
        assert answer.mask is not None
        assert answer.probabilities is not None
        assert answer.probabilities.shape == (3, *answer.mask.shape)
        np.testing.assert_allclose(answer.probabilities.sum(axis=0), 1, atol=1e-5)
        most = np.array(VALUES)[answer.probabilities.argmax(axis=0)]
        assert (most != answer.mask).mean() < 1e-3
        np.testing.assert_array_equal(bundle.segment(source)[0].mask, answer.mask)


def test_keep_largest_when_the_bundle_says_so(tmp_path: Path, whole: dict[str, Path]) -> None:
    keeps = write_segmenter(tmp_path / "b", **segmenter_parts(2, segmentation={"keep_largest": True}))
    noise = np.random.default_rng(0).integers(0, 255, size=(60, 50)).astype(np.uint8)
    free, kept = (load_segmenter(b).segment(noise)[0].mask for b in (whole["flat"], keeps))
    assert free is not None
    order = np.array([0, 255, 7])
    positions = np.select([free == v for v in order], range(3)).astype(np.uint8)
    np.testing.assert_array_equal(kept, order[keep_largest(positions)])
    assert (kept != free).any()


def test_values_above_255_make_16_bit_masks(tmp_path: Path) -> None:
    wide = write_segmenter(tmp_path / "b", **segmenter_parts(2, label_values=(0, 500, 7)))
    mask = load_segmenter(wide).segment(golden_images(1, 60, 2)[0])[0].mask
    assert mask is not None
    assert mask.dtype == np.uint16
    assert 500 in mask


def test_a_bad_file_is_a_refusal_and_the_rest_goes_on(whole: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.nii").write_bytes(b"\0" * 400)
    good = golden_images(1, 60, 2)[0]
    flat, deep = (load_segmenter(whole[kind]) for kind in KINDS)
    answers = flat.segment([tmp_path / "empty.png", good, a_volume()])
    assert [a.error for a in answers] == ["D101", None, "D102"]
    assert answers[0].mask is None
    codes = [a.error for a in deep.segment([tmp_path / "cut.nii", good, b"xx", tmp_path / "no.nii"])]
    assert codes[1:3] == ["D102", "D102"]
    assert all(codes)


def test_progress_tells_case_and_window(whole: dict[str, Path]) -> None:
    seen: list[tuple[int, int, int]] = []
    load_segmenter(whole["deep"]).segment([a_volume(), a_volume()], progress=lambda *told: seen.append(told))
    assert {place for place, _, _ in seen} == {0, 1}
    assert all(done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2] > 1


def test_it_loads_in_less_than_two_seconds(whole: dict[str, Path]) -> None:
    for kind in KINDS:
        started = time.process_time()
        load(whole[kind])
        assert time.process_time() - started < 2


def test_the_card_says_what_masks_mean(whole: dict[str, Path]) -> None:
    card = (whole["deep"] / "CARD.md").read_text()
    assert "lung = 255" in card
    assert "not a medical device" in card
    assert "12 x 10 x 8" in card


def test_golden_logits_of_large_inputs_are_thinned() -> None:
    assert thinned(np.zeros((3, 40, 32), dtype=np.float32)).shape == (3, 40, 32)
    small = thinned(np.zeros((9, 120, 96, 96), dtype=np.float32))
    assert small.size <= 100_000
    assert small.size > 30_000


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
    assert "temperature" in refused(spoilt, "C503")


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
def test_C507_swapped_preprocessing_of_volumes(deep: Path, forge: Forge, swap: dict[str, Any]) -> None:
    changed = {**document(deep)["preprocess"], **swap}
    edit(deep, preprocess=changed)
    refused(deep, "C507")
    forge(deep, preprocess=changed)
    assert "golden" in refused(deep, "C507")


@pytest.mark.parametrize("swap", _FLAT, ids=str)
def test_C507_swapped_preprocessing_of_images(
    whole: dict[str, Path], tmp_path: Path, forge: Forge, swap: dict[str, Any]
) -> None:
    flat = Path(shutil.copytree(whole["flat"], tmp_path / "flat"))
    changed = {**document(flat)["preprocess"], **swap}
    edit(flat, preprocess=changed)
    refused(flat, "C507")
    forge(flat, preprocess=changed)
    assert "golden" in refused(flat, "C507")


@pytest.mark.parametrize("swap", [{"overlap": 0.25}, {"mirror": True}])
def test_C507_other_windows(deep: Path, forge: Forge, swap: dict[str, Any]) -> None:
    changed = {**document(deep)["segmentation"], **swap}
    edit(deep, segmentation=changed)
    refused(deep, "C507")
    forge(deep, segmentation=changed)
    assert "golden" in refused(deep, "C507")


def test_C507_another_orientation_of_the_golden_volume(deep: Path, forge: Forge) -> None:
    with np.load(deep / "golden.npz") as golden:
        arrays = dict(golden)
    for column in range(3):
        turned = arrays["affine"].copy()
        turned[:3, column] *= -1
        forge(deep, {"golden.npz": npz(**{**arrays, "affine": turned})})
        refused(deep, "C507")


def test_C507_edited_golden_masks(spoilt: Path, forge: Forge) -> None:
    with np.load(spoilt / "golden.npz") as golden:
        arrays = dict(golden)
    flipped = arrays["masks"][..., ::-1].copy()
    forge(spoilt, {"golden.npz": npz(**{**arrays, "masks": flipped})})
    assert "masks differ" in refused(spoilt, "C507")


def test_C507_another_network_of_equal_shapes(spoilt: Path, forge: Forge) -> None:
    size = (40, 32) if spoilt.name == "flat" else (12, 10, 8)
    other = segmenter_model(segmenter_weights(len(size), seed=1), size).SerializeToString()
    forge(spoilt, {"model.onnx": other})
    assert "golden" in refused(spoilt, "C507")


def test_C505_another_patch_or_size_than_the_networks(spoilt: Path, forge: Forge) -> None:
    if spoilt.name == "flat":
        forge(spoilt, preprocess={**document(spoilt)["preprocess"], "size": [32, 40]})
    else:
        forge(spoilt, segmentation={**document(spoilt)["segmentation"], "patch": [12, 8, 10]})
    assert "the network has" in refused(spoilt, "C505")


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
    whole: dict[str, Path], original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="C515"):
        load_classifier(whole["flat"])
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


def test_a_mask_of_a_bundle_is_written_where_its_image_lies(whole: dict[str, Path], tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = a_volume((16, 12, 14), 4)
    write_nifti(tmp_path / "image.nii.gz", image.array.clip(0, 65535).astype(np.uint16), image)
    answer = load_segmenter(whole["deep"]).segment(tmp_path / "image.nii.gz")[0]
    assert answer.mask is not None
    assert answer.volume is not None
    write_nifti(tmp_path / "mask.nii.gz", answer.mask, answer.volume)
    one, two = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("image", "mask"))
    for index in np.ndindex(2, 2, 2):
        corner = [int(i * (n - 1)) for i, n in zip(index, one.GetSize())]
        np.testing.assert_allclose(
            one.TransformIndexToPhysicalPoint(corner), two.TransformIndexToPhysicalPoint(corner), atol=1e-4
        )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(two).T, answer.mask)
