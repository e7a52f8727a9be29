"""The bundle of a segmenter answers from file to mask."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL
from tiny_segmenter import CLASSES, DEEP, KINDS, VALUES, a_volume, segmenter_parts, segmenter_weights

import medloom
from dicom_files import picture, radiograph
from medloom.data.largest_piece import keep_largest
from medloom.data.phantom import golden_images
from medloom.data.volumes import canonical, write_nifti
from medloom.deployment.bundle import load
from medloom.deployment.bundle_golden import thinned
from medloom.deployment.bundle_segmenter import SegmenterBundle, load_segmenter, write_segmenter


def test_images_get_masks_of_their_own_size(segmenters: dict[str, Path], tmp_path: Path) -> None:
    bundle = medloom.load(segmenters["flat"])
    assert isinstance(bundle, SegmenterBundle)
    assert bundle.label_values == VALUES
    array = golden_images(1, 71, 2)[0][:, :53]
    PIL.fromarray(array).save(tmp_path / "a.png")
    from_file, from_array = bundle.segment([tmp_path / "a.png", array])
    assert from_file.id == str(tmp_path / "a.png")
    assert from_array.id == "image 1"
    assert from_file.mask is not None
    assert from_file.mask.shape == (71, 53)
    assert set(np.unique(from_file.mask)) <= set(VALUES)
    np.testing.assert_array_equal(from_file.mask, from_array.mask)
    assert from_file.unit == "pixels"
    assert from_file.structures == {n: float((from_file.mask == v).sum()) for n, v in zip(CLASSES[1:], VALUES[1:])}


@pytest.mark.parametrize(("tag", "told"), [("PixelSpacing", None), ("ImagerPixelSpacing", "on the detector")])
def test_sizes_are_areas_where_a_header_says_how_large_a_pixel_is(
    segmenters: dict[str, Path], tmp_path: Path, tag: str, told: str | None
) -> None:
    (tmp_path / "a.dcm").write_bytes(radiograph(picture(71, 53), **{tag: [0.5, 0.5]}))
    answer = load_segmenter(segmenters["flat"]).segment([tmp_path / "a.dcm"])[0]
    assert answer.mask is not None
    assert answer.unit == "cm²"
    area = {n: (answer.mask == v).sum() * 0.25 / 100 for n, v in zip(CLASSES[1:], VALUES[1:])}
    assert sum(area.values()) > 0
    assert answer.structures == pytest.approx(area)
    assert (told in (answer.notice or "")) if told else answer.notice is None


def test_volumes_get_masks_in_the_order_of_their_file_and_millilitres(
    segmenters: dict[str, Path], tmp_path: Path
) -> None:
    bundle = load_segmenter(segmenters["deep"])
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


def test_what_is_served_is_what_training_judges(segmenters: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    from medloom.config_segmentation import SegmentationConfig
    from medloom.training.predict_cases import case_logits

    bundle, volume = load_segmenter(segmenters["deep"]), a_volume((30, 15, 22), 8)
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


def test_probabilities_are_on_the_grid_of_the_file(segmenters: dict[str, Path]) -> None:
    for kind, source in (("flat", golden_images(1, 60, 2)[0]), ("deep", a_volume())):
        bundle = load_segmenter(segmenters[kind])
        answer = bundle.segment(source, probabilities=True)[0]
        assert answer.mask is not None
        assert answer.probabilities is not None
        assert answer.probabilities.shape == (3, *answer.mask.shape)
        np.testing.assert_allclose(answer.probabilities.sum(axis=0), 1, atol=1e-5)
        most = np.array(VALUES)[answer.probabilities.argmax(axis=0)]
        assert (most != answer.mask).mean() < 1e-3
        np.testing.assert_array_equal(bundle.segment(source)[0].mask, answer.mask)


def test_keep_largest_when_the_bundle_says_so(tmp_path: Path, segmenters: dict[str, Path]) -> None:
    keeps = write_segmenter(tmp_path / "b", **segmenter_parts(2, segmentation={"keep_largest": True}))
    noise = np.random.default_rng(0).integers(0, 255, size=(60, 50)).astype(np.uint8)
    free, kept = (load_segmenter(b).segment(noise)[0].mask for b in (segmenters["flat"], keeps))
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


def test_a_bad_file_is_a_refusal_and_the_rest_goes_on(segmenters: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.nii").write_bytes(b"\0" * 400)
    good = golden_images(1, 60, 2)[0]
    flat, deep = (load_segmenter(segmenters[kind]) for kind in KINDS)
    answers = flat.segment([tmp_path / "empty.png", good, a_volume()])
    assert [a.error for a in answers] == ["D101", None, "D102"]
    assert answers[0].mask is None
    codes = [a.error for a in deep.segment([tmp_path / "cut.nii", good, b"xx", tmp_path / "no.nii"])]
    assert codes[1:3] == ["D102", "D102"]
    assert all(codes)


def test_progress_tells_case_and_window(segmenters: dict[str, Path]) -> None:
    seen: list[tuple[int, int, int]] = []
    load_segmenter(segmenters["deep"]).segment([a_volume(), a_volume()], progress=lambda *told: seen.append(told))
    assert {place for place, _, _ in seen} == {0, 1}
    assert all(done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2] > 1


def test_it_loads_in_less_than_two_seconds(segmenters: dict[str, Path]) -> None:
    for kind in KINDS:
        started = time.process_time()
        load(segmenters[kind])
        assert time.process_time() - started < 2


def test_the_card_says_what_masks_mean(segmenters: dict[str, Path]) -> None:
    card = (segmenters["deep"] / "CARD.md").read_text()
    assert "lung = 255" in card
    assert "not a medical device" in card
    assert "12 x 10 x 8" in card


def test_golden_logits_of_large_inputs_are_thinned() -> None:
    assert thinned(np.zeros((3, 40, 32), dtype=np.float32)).shape == (3, 40, 32)
    small = thinned(np.zeros((9, 120, 96, 96), dtype=np.float32))
    assert small.size <= 100_000
    assert small.size > 30_000


def test_a_mask_of_a_bundle_is_written_where_its_image_lies(segmenters: dict[str, Path], tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = a_volume((16, 12, 14), 4)
    write_nifti(tmp_path / "image.nii.gz", image.array.clip(0, 65535).astype(np.uint16), image)
    answer = load_segmenter(segmenters["deep"]).segment(tmp_path / "image.nii.gz")[0]
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
