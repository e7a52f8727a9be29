"""The rows C501 to C510 and X606 of docs/errors.md: damage, mixing, editing, malice."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.numpy import save
from tiny_bundle import CLASSES, npz, operating_point, parts, tiny_model, tiny_weights

from medloom.deployment.bundle import load, write_bundle
from medloom.deployment.bundle_document import FILES
from medloom.deployment.bundle_files import read_arrays, read_weights, refuse_external_data
from medloom.errors import ModelError

Forge = Callable[..., None]
ALL = (*FILES, "model.json")


def refused(path: Path, code: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.code == code, str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return caught.value


def document(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "model.json").read_text())


def edit(bundle: Path, **changes: Any) -> None:
    (bundle / "model.json").write_text(json.dumps({**document(bundle), **changes}, indent=2, ensure_ascii=False) + "\n")


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "weights.ckpt", "a.joblib", "disguised.txt", "no_suffix"])
def test_C501_a_pickle_is_refused_and_never_runs(tmp_path: Path, bundle: Path, name: str) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps(Canary(canary), protocol=4)
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, "C501")
    (bundle / name).write_bytes(data)
    refused(bundle, "C501")
    assert not canary.exists()


def test_C501_a_torch_checkpoint_is_known_by_its_content(tmp_path: Path, bundle: Path) -> None:
    canary = tmp_path / "canary"
    for target in (tmp_path / "pytorch_model.bin", bundle / "pytorch_model.bin"):
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Canary(canary)))
    refused(tmp_path / "pytorch_model.bin", "C501")
    refused(bundle, "C501")
    assert not canary.exists()


@pytest.mark.parametrize("name", [n for n in FILES if n != "model.safetensors"])
def test_C501_a_pickle_in_place_of_a_bundle_file(tmp_path: Path, bundle: Path, forge: Forge, name: str) -> None:
    canary = tmp_path / "canary"
    forge(bundle, {name: pickle.dumps(Canary(canary))})
    refused(bundle, "C501")
    assert not canary.exists()


def test_C501_a_pickle_in_place_of_the_weights(tmp_path: Path, bundle: Path, forge: Forge) -> None:
    canary = tmp_path / "canary"
    forge(bundle, {"model.safetensors": pickle.dumps(Canary(canary))})
    refused(bundle, "C502")  # its first bytes could be a header's length; it is read as safetensors, and is none
    assert not canary.exists()


def test_C501_an_array_of_objects_is_refused(tmp_path: Path, bundle: Path, forge: Forge) -> None:
    canary = tmp_path / "canary"
    forge(bundle, {"golden.npz": npz(images=np.array([Canary(canary)], dtype=object), logits=np.zeros((1, 2)))})
    refused(bundle, "C501")
    assert not canary.exists()


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


def test_C504_a_deflated_bomb_is_not_inflated(bundle: Path, forge: Forge) -> None:
    bomb = bundle.parent / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as member:
        for _ in range(64):
            member.write(bytes(2**20))
    assert bomb.stat().st_size < 2**20
    forge(bundle, {"golden.npz": bomb.read_bytes()})
    assert "compressed" in str(refused(bundle, "C504"))
    refused(bomb, "C504")


def test_C504_an_array_that_claims_more_than_it_has(bundle: Path, forge: Forge) -> None:
    good = (bundle / "golden.npz").read_bytes()
    with np.load(bundle / "golden.npz") as arrays:
        shape = str(arrays["images"].shape).encode()
    lie = b"(3, 64, 50000000), }"
    assert good.count(shape) == 1
    at = good.index(shape)
    spoilt = good[:at] + lie + good[at + len(lie) :]
    forge(bundle, {"golden.npz": spoilt})
    with pytest.raises(ModelError):
        load(bundle)
    with pytest.raises(ModelError, match="C502"):
        read_arrays(Path("x.npz"), _stored("a", b"\x93NUMPY\x01\x00v\x00" + _header("(99999, 99999, 99999)")))


def _header(shape: str) -> bytes:
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': " + shape + ", }"
    return text.ljust(117).encode() + b"\n"


def _stored(name: str, content: bytes) -> bytes:
    import io

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def test_C505_parts_that_do_not_fit_each_other(bundle: Path, forge: Forge) -> None:
    three = tiny_weights(classes=3)
    saved = save(three, metadata={"classes": json.dumps(list(CLASSES))})
    forge(bundle, {"model.onnx": tiny_model(three).SerializeToString(), "model.safetensors": saved})
    assert "classes" in str(refused(bundle, "C505"))
    for size in ((24, 32), (32, 32)):
        forge(bundle, {"model.onnx": tiny_model(tiny_weights(), size).SerializeToString()})
        refused(bundle, "C505")
    colour = tiny_model(tiny_weights(in_chans=3)).SerializeToString()
    forge(bundle, {"model.onnx": colour})
    refused(bundle, "C505")


def test_C505_an_unknown_operator_names_itself(bundle: Path, forge: Forge) -> None:
    model = tiny_model(tiny_weights())
    model.graph.node[1].op_type = "Rectify"
    forge(bundle, {"model.onnx": model.SerializeToString()})
    assert "Rectify" in str(refused(bundle, "C505"))


def test_C505_a_fixed_batch_is_refused(bundle: Path, forge: Forge) -> None:
    model = tiny_model(tiny_weights())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    forge(bundle, {"model.onnx": model.SerializeToString()})
    refused(bundle, "C505")


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0, "operating_point": None},
        {"temperature": "warm", "operating_point": None},
        {"task": "guess"},
        {"decoding": {"frames": "all", "max_megapixels": 64.0}},
        {"decoding": {}},
        {"preprocess": {}},
        {"preprocess": None},
        {"operating_point": {"points": 3}},
        {"operating_point": 7},
    ],
)
def test_C505_values_that_make_no_sense(bundle: Path, forge: Forge, changes: dict[str, Any]) -> None:
    forge(bundle, **changes)
    with pytest.raises(ModelError) as caught:
        load(bundle)
    assert caught.value.code in ("C505", "C510")


def test_C506_permuted_classes(bundle: Path, forge: Forge) -> None:
    edit(bundle, classes=list(reversed(CLASSES)))
    refused(bundle, "C506")
    forge(bundle, classes=list(reversed(CLASSES)), operating_point=None)
    assert "NORMAL" in str(refused(bundle, "C506"))  # the weights' own file knows better


def test_C506_renamed_class(bundle: Path) -> None:
    edit(bundle, classes=["NORMAL", "COVID"])
    refused(bundle, "C506")


_SWAPS = [
    {"mean": [0.5]},
    {"std": [0.31]},
    {"intensity": "none"},
    {"intensity": "equalize"},
    {"resize": "pad"},
    {"resize": "crop"},
    {"percentiles": [2.0, 98.0]},
]


@pytest.mark.parametrize("swap", _SWAPS, ids=str)
def test_C507_swapped_preprocessing(bundle: Path, forge: Forge, swap: dict[str, Any]) -> None:
    changed = {**document(bundle)["preprocess"], **swap}
    edit(bundle, preprocess=changed)
    refused(bundle, "C507")
    forge(bundle, preprocess=changed)
    assert "golden" in str(refused(bundle, "C507"))  # hashes fit, answers do not


def test_C507_swapped_colour_order_is_seen_by_coloured_golden_images(tmp_path: Path, forge: Forge) -> None:
    from medloom.data.phantom import golden_images
    from medloom.data.preprocess import Preprocess
    from medloom.deployment.runtime import Pipeline, Runtime

    rule = Preprocess(size=(32, 24), channels="rgb", mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
    made = parts(rule)
    colour = np.stack(golden_images(3, 64, 1), axis=2)
    pipeline = Pipeline(CLASSES, "binary", rule, 1.0, {}, Runtime(made["onnx"]))
    logits = [list(next(iter(pipeline.stream([colour]))).logits.values())]
    bundle = write_bundle(tmp_path / "b", **(made | {"golden_images": [colour], "golden_logits": np.array(logits)}))
    weights = made["weights"] | {"conv.weight": made["weights"]["conv.weight"][:, ::-1].copy()}
    forge(bundle, {"model.onnx": tiny_model(weights).SerializeToString()})
    refused(bundle, "C507")


def test_C507_another_network_with_equal_shapes(bundle: Path, forge: Forge) -> None:
    forge(bundle, {"model.onnx": tiny_model(tiny_weights(seed=1)).SerializeToString()})
    assert "golden" in str(refused(bundle, "C507"))


def test_C507_edited_answers_and_no_answers(bundle: Path, forge: Forge) -> None:
    with np.load(bundle / "golden.npz") as golden:
        images, logits = golden["images"], golden["logits"]
    forge(bundle, {"golden.npz": npz(images=images, logits=logits + np.float32(1e-3))})
    refused(bundle, "C507")
    forge(bundle, {"golden.npz": npz(images=images[:0], logits=logits[:0])})
    refused(bundle, "C507")
    forge(bundle, {"golden.npz": npz(images=np.zeros_like(images), logits=logits)})
    refused(bundle, "C507")


def test_C508_weights_with_nan_or_all_zero(bundle: Path, forge: Forge) -> None:
    metadata = {"classes": json.dumps(list(CLASSES))}
    for value in (np.nan, -np.inf, 0.0):
        weights = {name: np.full_like(w, value) for name, w in tiny_weights().items()}
        forge(bundle, {"model.safetensors": save(weights, metadata=metadata)})
        refused(bundle, "C508")
    one = tiny_weights()
    one["head.weight"][0, 0] = np.nan
    forge(bundle, {"model.safetensors": save(one, metadata=metadata)})
    assert "head.weight" in str(refused(bundle, "C508"))


def test_C508_a_network_that_answers_nan(bundle: Path, forge: Forge) -> None:
    weights = tiny_weights()
    weights["head.bias"][:] = np.nan
    forge(bundle, {"model.onnx": tiny_model(weights).SerializeToString()})
    refused(bundle, "C508")


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


def test_C510_edited_threshold_and_temperature(bundle: Path, forge: Forge) -> None:
    point = document(bundle)["operating_point"]
    point["points"][0]["threshold"] = 0.01
    edit(bundle, operating_point=point)
    refused(bundle, "C510")
    forge(bundle, operating_point=point)  # the point carries its own hash
    refused(bundle, "C510")
    forge(bundle, operating_point=operating_point(), temperature=2.0)
    refused(bundle, "C510")


def test_C510_another_models_operating_point(bundle: Path, forge: Forge, tmp_path: Path) -> None:
    other = write_bundle(
        tmp_path / "other", **parts(weights=tiny_weights(seed=5), operating_point=operating_point(seed=4))
    )
    edit(bundle, operating_point=document(other)["operating_point"])
    refused(bundle, "C510")
    edit(bundle, temperature=1.7)
    refused(bundle, "C510")


def test_C510_thresholds_of_other_classes(bundle: Path, forge: Forge) -> None:
    forge(bundle, operating_point=operating_point(("A", "B")))
    refused(bundle, "C510")


def _with_external(place: str, location: str) -> onnx.ModelProto:
    model = tiny_model(tiny_weights())
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["stolen"], value=tensor))
    elif place == "list":
        model.graph.node.append(helper.make_node("Constant", [], ["stolen"], values=[tensor]))
    elif place == "subgraph":
        inner = helper.make_graph([helper.make_node("Constant", [], ["x"], value=tensor)], "inner", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner))
    elif place == "function":
        node = helper.make_node("Constant", [], ["x"], value=tensor)
        model.functions.append(helper.make_function("d", "f", [], ["x"], [node], [helper.make_opsetid("", 18)]))
    elif place == "sparse":
        sparse = onnx.SparseTensorProto(values=tensor, dims=[4])
        model.graph.sparse_initializer.append(sparse)
    elif place == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    return model


@pytest.mark.parametrize("place", ["initializer", "attribute", "list", "subgraph", "function", "sparse", "training"])
@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "weights.bin"])
def test_X606_external_data_is_refused_wherever_it_hides(bundle: Path, forge: Forge, place: str, location: str) -> None:
    forge(bundle, {"model.onnx": _with_external(place, location).SerializeToString()})
    assert "stolen" in str(refused(bundle, "X606"))


def test_X606_a_reference_without_the_flag_is_refused_too(bundle: Path, forge: Forge) -> None:
    model = _with_external("initializer", "../x")
    model.graph.initializer[-1].ClearField("data_location")
    forge(bundle, {"model.onnx": model.SerializeToString()})
    refused(bundle, "X606")


def test_C500_no_bundle_there(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "C500")
    refused(tmp_path, "C500")
    (tmp_path / "a.txt").write_text("hello")
    refused(tmp_path / "a.txt", "C500")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 10**9))
def test_parsers_refuse_any_bytes_with_a_code(data: bytes, position: int) -> None:
    whole = tiny_model(tiny_weights()).SerializeToString()
    at = position % len(whole)
    archive = npz(images=np.zeros((2, 3), np.uint8), logits=np.zeros((2, 2)))
    cut = position % len(archive)
    codes = [
        _code(refuse_external_data, whole[:at] + data + whole[at + len(data) :]),
        _code(refuse_external_data, data),
        _code(read_arrays, archive[:cut] + data + archive[cut + len(data) :]),
        _code(read_arrays, data),
        _code(read_weights, struct.pack("<Q", len(data)) + data),
        _code(read_weights, data),
    ]
    assert set(codes) <= {None, "C501", "C502", "C504", "X606"}
    assert codes[-1] == codes[3] == "C502"


def _code(parse: Callable[[Path, bytes], object], data: bytes) -> str | None:
    """Code of the refusal, None when the bytes pass; any other exception fails the test."""
    try:
        parse(Path("x"), data)
    except ModelError as problem:
        return problem.code
    return None
