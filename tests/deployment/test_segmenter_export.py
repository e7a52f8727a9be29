"""Export of segmenters, and the gate that keeps a network that draws otherwise out of a bundle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_segmenter import CLASSES, DEEP, FLAT, PATCH, VALUES, a_volume
from torch import Tensor, nn

import medloom
from medloom.data.case_restore import lead_at, restore_case
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.data.volumes import canonical
from medloom.deployment.bundle_golden import TIE
from medloom.deployment.bundle_segmenter import SegmenterBundle, load_segmenter
from medloom.deployment.export import onnx_bytes, restore_model
from medloom.deployment.export_segmenter import export_segmenter, golden_volume
from medloom.deployment.parity_segmenter import check_masks, reference_masks
from medloom.deployment.runtime import Runtime
from medloom.deployment.segmenter import SegmentPipeline
from medloom.errors import ExportError, UsageError
from medloom.models.registry import create_model


class Small(nn.Module):
    """Down, up, and a head; with a twist that means one thing when traced and another when run."""

    def __init__(self, axes: int, *, twist: float = 0.0) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.body, self.down, self.head = conv(1, 8, 3, padding=1), conv(8, 8, 2, stride=2), conv(16, 3, 1)
        self.up = nn.Upsample(scale_factor=2.0)
        self.twist = twist

    def forward(self, x: Tensor, taps: dict[str, Any] | None = None) -> Tensor:
        x = torch.relu(self.body(x))
        logits = self.head(torch.cat([x, self.up(self.down(x))], dim=1))
        return logits * (1 + self.twist) if self.twist and torch.compiler.is_exporting() else logits


def network(axes: int, **options: Any) -> nn.Module:
    torch.manual_seed(axes)
    model = Small(axes, **options)
    with torch.no_grad():
        model.head.weight *= 6
    return model.eval()


def made(axes: int, **changes: Any) -> dict[str, Any]:
    cases: list[Any] = list(golden_images(2, 70, 11)) if axes == 2 else [a_volume((30, 17, 15), 5)]
    values: dict[str, Any] = {
        "name": "small",
        "architecture": {"name": "small"},
        "classes": CLASSES,
        "label_values": VALUES,
        "preprocess": FLAT if axes == 2 else DEEP,
        "segmentation": {"patch": None if axes == 2 else PATCH, "overlap": 0.5},
        "cases": cases,
    }
    return values | changes


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("exported")
    found = {}
    for axes in (2, 3):
        model = network(axes).train()  # export must not depend on the mode, nor change it
        found[axes] = export_segmenter(model, root / str(axes), **made(axes))
        assert model.training
    return found


def pipeline(axes: int, bundle: Path) -> SegmentPipeline:
    return load_segmenter(bundle).pipeline


@pytest.mark.parametrize("axes", [2, 3])
def test_an_exported_bundle_draws_as_training_does(exported: dict[int, Path], axes: int) -> None:
    bundle = medloom.load(exported[axes])
    assert isinstance(bundle, SegmenterBundle)
    source = golden_images(1, 66, 2)[0] if axes == 2 else a_volume((21, 14, 18), 9)
    case = bundle.pipeline.open(source, "case")
    expected = reference_masks(network(axes), bundle.pipeline, case)
    np.testing.assert_allclose(bundle.pipeline.logits(case), expected, atol=2e-4)
    drawn = np.array(VALUES)[restore_case(expected, bundle.preprocess, case)]
    answer = bundle.segment(source)[0]
    assert len(np.unique(drawn)) > 1
    differing = drawn != answer.mask
    assert not differing.any() or (lead_at(expected, bundle.preprocess, case, differing) <= TIE).all()


@pytest.mark.parametrize("axes", [2, 3])
def test_parity_and_latency_are_recorded(exported: dict[int, Path], axes: int) -> None:
    said = medloom.load(exported[axes]).document
    assert said["parity"]["cases"] == (2 if axes == 2 else 1)
    assert said["parity"]["batches"] == ([1, 2, 7] if axes == 2 else [1, 2, 3])
    assert said["parity"]["flips"] == 0
    assert said["parity"]["max_probability_difference"] < 1e-4
    assert said["parity"]["places"] > 5000
    assert said["latency"]["milliseconds_per_window_at_batch"]["1"] > 0
    assert "file to mask" in (exported[axes] / "CARD.md").read_text()


@pytest.mark.parametrize("axes", [2, 3])
def test_X602_a_network_that_draws_otherwise_is_refused(tmp_path: Path, axes: int) -> None:
    with pytest.raises(ExportError, match=r"error\[X602\].*probabilities off by") as caught:
        export_segmenter(network(axes, twist=0.01), tmp_path / "b", **made(axes))
    assert caught.value.exit_code == 5
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axes", [2, 3])
def test_X602_a_twist_too_small_to_see_passes(tmp_path: Path, axes: int) -> None:
    """The gate's other side: what float32 does anyway is no fault."""
    export_segmenter(network(axes, twist=1e-7), tmp_path / "b", **made(axes))


def test_X602_a_place_that_flips_is_refused_and_a_tie_is_not(
    exported: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, image = pipeline(2, exported[2]), golden_images(1, 70, 11)[0]
    case = served.open(image, "case")
    logits = reference_masks(network(2), served, case)
    right = served.positions(case)
    lead = lead_at(logits, served.preprocess, case, np.ones(right.shape, dtype=bool)).reshape(right.shape)
    monkeypatch.setattr("medloom.deployment.parity_segmenter.TIE", float(np.sort(lead.reshape(-1))[5]))
    sure, tied = np.unravel_index(int(lead.argmax()), lead.shape), np.unravel_index(int(lead.argmin()), lead.shape)
    for place, fine in ((tied, True), (sure, False)):
        drawn = right.copy()
        drawn[place] = (drawn[place] + 1) % 3
        monkeypatch.setattr(SegmentPipeline, "positions", lambda self, case, drawn=drawn: drawn)
        if fine:
            assert check_masks(network(2), served, [image])["ties"] == 1
        else:
            with pytest.raises(ExportError, match=r"X602.* 1 of 4,900 places flipped"):
                check_masks(network(2), served, [image])


def test_X602_skewed_preprocessing_is_caught(exported: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    served = pipeline(3, exported[3])
    right = VolumePreprocess.normalise
    import medloom.deployment.parity_segmenter as module

    reference = module.reference_masks

    def skewed(*arguments: Any) -> np.ndarray:
        with monkeypatch.context() as inside:
            inside.setattr(VolumePreprocess, "normalise", lambda self, x: right(self, x) * np.float32(1.02))
            return reference(*arguments)

    monkeypatch.setattr(module, "reference_masks", skewed)
    with pytest.raises(ExportError, match="X602"):
        check_masks(network(3), served, [a_volume()])


@pytest.mark.parametrize("axes", [2, 3])
def test_X603_any_number_of_windows_and_no_other_size(exported: dict[int, Path], axes: int) -> None:
    runtime = Runtime((exported[axes] / "model.onnx").read_bytes())
    assert runtime.masks
    size = (40, 32) if axes == 2 else PATCH
    assert runtime.size == size
    x = torch.randn(7, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(axes)(x).numpy()
    for batch in (1, 2, 7):
        np.testing.assert_allclose(runtime.logits(x[:batch].numpy()), expected[:batch], atol=2e-4)
    with pytest.raises(medloom.MedloomError, match="X603"):
        runtime.logits(np.zeros((1, 1, *size[::-1], 1), dtype=np.float32))


def test_X607_an_older_bundle_stays_until_the_new_one_passed(exported: dict[int, Path], tmp_path: Path) -> None:
    target = export_segmenter(network(3), tmp_path / "b", **made(3))
    before = medloom.load(target).hash
    with pytest.raises(ExportError):
        export_segmenter(network(3, twist=0.01), target, **made(3))
    assert medloom.load(target).hash == before


def test_U226_a_crop_has_no_way_back(tmp_path: Path) -> None:
    cut = Preprocess(size=(40, 32), resize="crop", channels="grey", mean=(0.4,), std=(0.3,))
    with pytest.raises(UsageError, match="U226"):
        export_segmenter(network(2), tmp_path / "b", **made(2, preprocess=cut))


@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 3.5)])
@pytest.mark.parametrize("window", [None, (-160.0, 240.0)])
def test_the_golden_volume_proves_turning_resampling_and_windows(
    spacing: tuple[float, float, float] | None, window: tuple[float, float] | None
) -> None:
    grid = VolumePreprocess(spacing, "window" if window else "percentile", window=window, mean=(0.4,), std=(0.2,))
    volume = golden_volume(grid, (16, 12, 10), 0)
    assert volume.codes == "LSA"
    assert not np.allclose(volume.affine[:3, :3], np.round(volume.affine[:3, :3]))
    levels = grid.to_uint16(volume)
    assert levels.shape[1] > 16  # two windows along one axis
    assert max(levels.shape[2] - 12, levels.shape[3] - 10) < 0  # and less than one along the others
    assert (levels.shape[1:] == canonical(volume).shape) == (spacing is None)
    assert levels.std() > 5000


def test_export_is_quiet_and_leaves_no_path(
    tmp_path: Path, exported: dict[int, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onnx_bytes(network(3), in_chans=1, size=PATCH)
    said = capfd.readouterr()
    assert said.out == said.err == ""
    for entry in exported[3].iterdir():
        assert b"site-packages" not in entry.read_bytes(), entry
        assert b"test_segmenter_export" not in entry.read_bytes(), entry


@pytest.mark.long
@pytest.mark.timeout(900)  # the exporter takes a minute for a MaxViT on a quiet core
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("unet", 2),
        ("transunet_tiny", 2),
        ("maxvit_unet_mini", 2),
        ("unet_3d", 3),
        ("maxvit_unet_3d_tiny", 3),
        ("transunet_3d_small", 3),
    ],
)
def test_X602_every_kind_of_segmenter_keeps_its_masks(tmp_path: Path, real_data: Path, name: str, axes: int) -> None:
    torch.manual_seed(0)
    size = (96, 96) if axes == 2 else (32, 32, 32)
    architecture = {
        "name": name, "num_classes": 3, "in_chans": 1, "image_size": list(size), "spatial_dims": axes,
    }  # fmt: skip
    model = create_model(**architecture)
    if axes == 2:
        cases: list[Path] = sorted((real_data / "lung_masks" / "images").iterdir())[:2]
        grid: Any = Preprocess(size=size, resize="pad", channels="grey", mean=(0.5,), std=(0.25,))
    else:
        cases = sorted((real_data / "hippocampus").rglob("imagesTr/*.nii.gz"))[:2]
        grid = VolumePreprocess(spacing=(1.0, 1.0, 1.0), mean=(0.3,), std=(0.25,))
    settings = {"patch": None if axes == 2 else size}
    values = made(axes, architecture=architecture, preprocess=grid, cases=cases, segmentation=settings)
    bundle = load_segmenter(export_segmenter(model, tmp_path / "b", **values))
    assert bundle.document["parity"]["flips"] == 0
    assert bundle.document["parity"]["cases"] == 2
    restored = restore_model(bundle)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[key])
