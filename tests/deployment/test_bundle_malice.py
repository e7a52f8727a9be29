"""The rows C501, C504 and X606 of docs/errors.md: pickles, bombs, paths that lead outside, any bytes at all."""

from __future__ import annotations

import os
import pickle
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
from spoilt_bundle import Forge, refused
from tiny_bundle import npz, tiny_model, tiny_weights

from medloom.deployment.bundle import load
from medloom.deployment.bundle_document import FILES
from medloom.deployment.bundle_files import read_arrays, read_weights, refuse_external_data
from medloom.errors import ModelError


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
