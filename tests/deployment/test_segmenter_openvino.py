"""Segmenters in OpenVINO: the same masks from file to mask in a clean process, and a network that draws otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_segmenter import a_volume
from torch import nn

from medloom.data.phantom import golden_images
from medloom.data.volumes import write_nifti
from medloom.deployment.bundle_folder import open_folder
from medloom.deployment.bundle_rewrite import rewrite
from medloom.deployment.bundle_segmenter import load_segmenter
from medloom.deployment.export_segmenter import export_segmenter
from medloom.deployment.openvino_ir import ir_of
from medloom.deployment.parity_segmenter import check_masks_clean
from medloom.errors import ExportError


@pytest.fixture(params=[2, 3])
def axes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def built(axes: int, folder: Path) -> tuple[nn.Module, Path]:
    """A network, and its bundle with an IR."""
    from test_segmenter_export import made, network

    model = network(axes)
    opened = open_folder(export_segmenter(model, folder / "plain", **made(axes)))
    ir = ir_of(opened.content["model.onnx"])
    said = {name: {"precision": "float32", "tolerance": 1e-4} for name in ("onnx", "openvino")}
    files = {"model.xml": ir.xml, "model.bin": ir.weights}
    return model, rewrite(opened, folder / "bundle", files=files, changes={"runtimes": said})


def test_X602_X603_masks_agree_from_file_to_mask_and_a_wrong_network_is_seen(axes: int, tmp_path: Path) -> None:
    model, bundle = built(axes, tmp_path)
    if axes == 2:
        cases = list(golden_images(2, 70, 21))
    else:
        volume = a_volume((20, 15, 12), 8)
        write_nifti(tmp_path / "case.nii.gz", volume.array, volume)
        cases = [tmp_path / "case.nii.gz"]
    pipeline = load_segmenter(bundle, runtime="onnx").pipeline
    assert load_segmenter(bundle, runtime="openvino").pipeline.runtime.name == "openvino"
    report, milliseconds = check_masks_clean(model, pipeline, bundle, "openvino", cases)
    assert report["max_probability_difference"] <= 1e-4
    assert report["flips"] == 0
    assert milliseconds["1"] > 0
    for weight in model.parameters():
        weight.data.mul_(1.02)
    with pytest.raises(ExportError) as caught:
        check_masks_clean(model, pipeline, bundle, "openvino", cases)
    assert caught.value.code == "X602"
