"""Ten ways to spoil a bundle while all its hashes fit, in each runtime: every one is refused when it is opened.

Also the ways in which an IR itself can be wrong: cut off, altered, of another network, pointing outside of itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoilt_bundle import Forge, document
from tiny_bundle import parts, tiny_model, tiny_weights

import medloom
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle import write_bundle
from medloom.deployment.bundle_folder import open_folder
from medloom.deployment.bundle_rewrite import rewrite
from medloom.deployment.bundle_runtimes import refuse_foreign_ir
from medloom.deployment.openvino_ir import ir_of
from medloom.deployment.runtime import Pipeline, Runtime, open_image
from medloom.errors import ModelError

COLOUR = Preprocess(size=(32, 24), channels="rgb", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
RUNTIMES = ("onnx", "openvino")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for coloured images with ONNX and an IR; nobody writes to it."""
    root = tmp_path_factory.mktemp("whole")
    made = parts(COLOUR, weights=tiny_weights(in_chans=3))
    grey = golden_images(9, 64, 7)
    golden = [np.stack(grey[k : k + 3], axis=2)[:, :50] for k in (0, 3, 6)]
    pipeline = Pipeline(made["classes"], "multi_label", COLOUR, 1.0, {}, Runtime(made["onnx"]))
    pixels = np.stack([COLOUR.to_uint8(open_image(image, "golden")) for image in golden])
    made |= {"golden_images": golden, "golden_logits": pipeline.logits(pixels)}
    opened = open_folder(write_bundle(root / "plain", **made))
    ir = ir_of(opened.content["model.onnx"])
    said = {name: {"precision": "float32", "tolerance": 1e-4} for name in RUNTIMES}
    files = {"model.xml": ir.xml, "model.bin": ir.weights}
    return rewrite(opened, root / "bundle", files=files, changes={"runtimes": said})


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def network(name: str, weights: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files of a runtime for a network with these weights; those of the other runtime stay right."""
    onnx = tiny_model(weights, COLOUR.size).SerializeToString()
    return {"model.onnx": onnx} if name == "onnx" else dict(zip(("model.xml", "model.bin"), ir_of(onnx)))


def spoilt(what: str, name: str, bundle: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and parts of model.json that a sabotage changes."""
    said, weights = document(bundle), tiny_weights(in_chans=3)
    preprocess = said["preprocess"]
    if what == "mean and std swapped":
        return {}, {"preprocess": {**preprocess, "mean": preprocess["std"], "std": preprocess["mean"]}}
    if what == "resize rule":
        return {}, {"preprocess": {**preprocess, "resize": "pad" if preprocess["resize"] != "pad" else "stretch"}}
    if what == "size":
        return {}, {"preprocess": {**preprocess, "size": [24, 32]}}
    if what == "class order":
        return {}, {"classes": said["classes"][::-1]}
    if what == "threshold":
        point = json.loads(json.dumps(said["operating_point"]))
        point["points"][0]["threshold"] = 0.123
        return {}, {"operating_point": point}
    if what == "channel order":
        weights["conv.weight"] = weights["conv.weight"][:, ::-1].copy()
    elif what == "inverted input":
        weights["conv.weight"] = -weights["conv.weight"]
    elif what == "dtype":
        weights = {key: value.astype(np.float16).astype(np.float32) for key, value in weights.items()}
    elif what == "one layer changed":
        weights["head.bias"] = weights["head.bias"] + np.float32(0.01)
    elif what == "wrong file":
        weights = tiny_weights(in_chans=3, seed=1)
    return network(name, weights), {}


SABOTAGES = {
    "mean and std swapped": "C507",
    "channel order": "C507",
    "class order": "C506",
    "inverted input": "C507",
    "resize rule": "C507",
    "size": "C505",
    "threshold": "C510",
    "dtype": "C507",
    "one layer changed": "C507",
    "wrong file": "C507",
}


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("what", SABOTAGES)
def test_C505_C506_C507_C510_ten_sabotages_with_fitting_hashes(
    bundle: Path, forge: Forge, what: str, name: str
) -> None:
    medloom.load(bundle, runtime=name)  # whole before
    files, changes = spoilt(what, name, bundle)
    forge(bundle, files, **changes)
    with pytest.raises(ModelError) as caught:
        medloom.load(bundle, runtime=name)
    assert caught.value.code == SABOTAGES[what]


@pytest.mark.parametrize("what", SABOTAGES)
def test_C503_and_without_forged_hashes_before_any_network_runs(whole: Path, tmp_path: Path, what: str) -> None:
    bundle = Path(shutil.copytree(whole, tmp_path / "bundle"))
    files, changes = spoilt(what, "openvino", bundle)
    for name, data in files.items():
        (bundle / name).write_bytes(data)
    if changes:
        text = json.dumps({**document(bundle), **changes}, indent=2, ensure_ascii=False) + "\n"
        (bundle / "model.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        medloom.load(bundle, runtime="onnx")
    assert caught.value.code in ("C502", "C503", "C506", "C507", "C510")


def refused(bundle: Path, code: str, runtime: str = "openvino") -> str:
    with pytest.raises(ModelError) as caught:
        medloom.load(bundle, runtime=runtime)
    assert caught.value.code == code, caught.value
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_C502_C503_a_truncated_or_altered_ir(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: len(data) // 2])
    refused(bundle, "C502")
    (bundle / name).write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    refused(bundle, "C503")
    (bundle / name).unlink()
    refused(bundle, "C502")


def test_C502_C505_with_hashes_that_fit(bundle: Path, forge: Forge) -> None:
    xml, weights = (bundle / "model.xml").read_bytes(), (bundle / "model.bin").read_bytes()
    forge(bundle, {"model.xml": xml[: len(xml) // 2]})
    refused(bundle, "C502")
    forge(bundle, {"model.xml": xml.replace(b'type="ReLU"', b'type="Unknown"')})
    refused(bundle, "C505")
    forge(bundle, {"model.xml": xml, "model.bin": bytes(len(weights))})
    refused(bundle, "C505")  # axes are constants too: it answers in another shape than it declares


def test_C505_an_ir_of_another_architecture(bundle: Path, forge: Forge) -> None:
    forge(bundle, network("openvino", tiny_weights(classes=3, in_chans=3)))
    assert "(3, 3, (32, 24))" in refused(bundle, "C505")


@pytest.mark.parametrize(
    "swap",
    [
        (b'offset="0"', b'offset="../../etc/passwd"'),
        (b'offset="0"', b'offset="-64"'),
        (b'offset="0"', b'offset="99999999999"'),
        (b'<?xml version="1.0"?>', b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
    ],
)
def test_X606_an_ir_that_reaches_outside_of_itself(bundle: Path, forge: Forge, swap: tuple[bytes, bytes]) -> None:
    xml = (bundle / "model.xml").read_bytes()
    assert swap[0] in xml
    forge(bundle, {"model.xml": xml.replace(swap[0], swap[1], 1)})
    refused(bundle, "X606")
    refused(bundle, "X606", "onnx")  # whichever runtime is wanted


@pytest.mark.parametrize(
    "spelled",
    [
        b"<data offset='%d' size='32' />",
        b'<data offset = "%d"\n size\t= "32"/>',
        b'<data size="32" note=">" offset="%d"></data>',
        b'<data note="offset=\'0\' size=\'32\'" size="32" offset="%d"/>',
        b'<data offset="&#48;%d" size="32"/>',
    ],
)
def test_X606_a_constant_is_found_however_it_is_spelled(spelled: bytes) -> None:
    xml = b'<?xml version="1.0"?>\n<net><layers><layer type="Const">%s</layer></layers></net>\n'
    refuse_foreign_ir("model.xml", xml % (spelled % 32), 64)
    with pytest.raises(ModelError, match="X606"):
        refuse_foreign_ir("model.xml", xml % (spelled % 33), 64)


@pytest.mark.parametrize(
    ("xml", "code"),
    [
        (b'<net><data offset="0" size="8" offset="999"/></net>', "C502"),
        (b'<net><data offset="0" size="8"/>', "C502"),
        (b'<net><data offset="0" size="8"/></net><net/>', "C502"),
        ('<!DOCTYPE net><net><data offset="0" size="8"/></net>'.encode("utf-16"), "C502"),
        ('<!DOCTYPE net><net><data offset="0" size="8"/></net>'.encode("utf-16-le"), "C502"),
        (b'<net><data offset="+0" size="8"/></net>', "X606"),
        (b'<net><data offset="0x0" size="8"/></net>', "X606"),
        (b'<net><data offset="" size="8"/></net>', "X606"),
        ('<net><data offset="\u0663" size="8"/></net>'.encode(), "X606"),
        (b'<net><data offset="18446744073709551615" size="8"/></net>', "X606"),
        (b'<!DOCTYPE net [<!ENTITY far "999">]><net><data offset="&far;" size="8"/></net>', "X606"),
        (b'<net><![CDATA[</net>]]><data offset="999" size="8"/></net>', "X606"),
        (b'<net><!-- > --><data offset="999" size="8"/></net>', "X606"),
    ],
)
def test_X606_C502_what_two_readers_could_read_differently(xml: bytes, code: str) -> None:
    with pytest.raises(ModelError, match=code):
        refuse_foreign_ir("model.xml", xml, 64)


def test_a_size_or_an_offset_alone_is_an_operations_own() -> None:
    refuse_foreign_ir("model.xml", b'<net><data size="5" alpha="1"/><!-- - --><data offset="0.5"/></net>', 4)


def test_C503_one_file_of_an_ir_alone_is_no_ir(bundle: Path) -> None:
    said = document(bundle)
    del said["files"]["model.bin"]
    (bundle / "model.json").write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    refused(bundle, "C503")


@pytest.mark.parametrize(
    "said",
    [
        {"onnx": {"precision": "float32", "tolerance": 1e-4}},
        {"onnx": {"precision": "float32", "tolerance": 0.1}, "openvino": {"precision": "float32", "tolerance": 1e-4}},
        {"onnx": {"precision": "float32", "tolerance": 1e-4}, "openvino": {"precision": "int8", "tolerance": 3}},
        {"onnx": {"precision": "float32", "tolerance": 1e-4}, "openvino": {"precision": "int4", "tolerance": 0.01}},
        {"onnx": {"precision": "float32", "tolerance": 1e-4}, "abacus": {"precision": "int8", "tolerance": 0.01}},
        {"onnx": 1, "openvino": 2},
    ],
)
def test_C505_runtimes_that_do_not_fit_their_files_or_prove_nothing(
    bundle: Path, forge: Forge, said: dict[str, Any]
) -> None:
    forge(bundle, runtimes=said)
    refused(bundle, "C505", "onnx")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), cut=st.integers(0, 40), put=st.binary(max_size=40))
def test_X606_C502_no_spoilt_xml_does_anything_but_refuse_or_pass(whole: Path, at: int, cut: int, put: bytes) -> None:
    xml = (whole / "model.xml").read_bytes()
    at %= len(xml)
    code = None
    try:
        refuse_foreign_ir("model.xml", xml[:at] + put + xml[at + cut :], (whole / "model.bin").stat().st_size)
    except ModelError as problem:
        code = problem.code
    assert code in (None, "X606", "C502")
