"""The files of a bundle as untrusted bytes: each is checked for what it claims to be before anything is believed.

No file is ever unpickled; nothing is allocated from a declared size before that size was compared with the bytes that
are there; no file can name another one.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from medloom.deployment.bundle_document import AGAIN
from medloom.errors import ModelError

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".t7", ".mar"})

_UNTRUSTED = "Use only bundles that medloom wrote; it never reads pickles"


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is, or by its name claims to be, a pickle or a container of pickles (C501).

    Raises:
        ModelError: C501; C504 for an archive with compressed members.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError("C501", path, f"{path.suffix} files can run code when they are opened", _UNTRUSTED)
    with path.open("rb") as handle:
        head = handle.read(16)
    if path.suffix != ".safetensors" and head[:1] == b"\x80" and 2 <= head[1] <= 5:
        raise ModelError("C501", path, "its content is a pickle, which can run code", _UNTRUSTED)
    if head.startswith(b"PK"):
        open_archive(path, path.read_bytes())


def open_archive(place: Path, data: bytes) -> dict[str, bytes]:
    """Members of a stored zip file (npz), without inflating anything.

    Raises:
        ModelError: C501 a member that is no plain array, C502 not a whole archive, C504 a compressed member, or
            sizes that do not fit the file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            for member in members:
                if not member.filename.endswith(".npy"):
                    raise ModelError("C501", place, f"it holds '{member.filename}', which is no array", _UNTRUSTED)
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise ModelError(
                        "C504",
                        place,
                        f"'{member.filename}' is compressed ({member.compress_size} bytes claim {member.file_size})",
                        "Save it uncompressed",
                    )
            if sum(m.file_size for m in members) > len(data):
                raise ModelError("C504", place, f"members claim more than the {len(data)} bytes of the file", AGAIN)
            return {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError) as problem:
        raise ModelError("C502", place, f"the archive is damaged ({type(problem).__name__})", AGAIN) from None


def read_arrays(place: Path, data: bytes) -> dict[str, np.ndarray]:
    """Arrays of an npz file; an array of objects would need a pickle and is refused.

    Raises:
        ModelError: C501, C502, C504 as ``open_archive``; C502 for an array whose header does not fit its bytes.
    """
    arrays = {}
    for name, content in open_archive(place, data).items():
        stream = io.BytesIO(content)
        try:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(stream)
        except (ValueError, KeyError, EOFError, SyntaxError, TypeError):
            raise ModelError("C502", place, f"'{name}' has no readable array header", AGAIN) from None
        if dtype.hasobject or dtype.kind not in "biuf":
            raise ModelError("C501", place, f"'{name}' holds {dtype}, which only a pickle can carry", _UNTRUSTED)
        count, left = 1, len(content) - stream.tell()
        for length in shape:
            count *= length
        if fortran or count * dtype.itemsize != left:
            raise ModelError("C502", place, f"'{name}' claims {shape} but has {left} bytes", AGAIN)
        arrays[name] = np.frombuffer(content, dtype, count, stream.tell()).reshape(shape)
    return arrays


def read_weights(place: Path, data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ModelError: C502 when it is not a whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError("C502", place, f"not a whole safetensors file ({type(problem).__name__})", AGAIN) from None
    return tensors, metadata


def check_weights(place: object, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse weights that cannot be a trained model.

    Raises:
        ModelError: C508 for NaN or infinity, or when every matrix is zero.
    """
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            bad = int((~np.isfinite(tensor)).sum())
            raise ModelError("C508", place, f"'{name}' holds {bad} values that are no numbers", "Train again")
    matrices = [t for t in tensors.values() if t.dtype.kind == "f" and t.ndim >= 2]
    if not any(t.any() for t in matrices):
        raise ModelError("C508", place, f"all {len(matrices)} weight matrices are zero", "Train again")


def refuse_external_data(place: object, data: bytes) -> None:
    """Refuse an ONNX file that keeps tensors in other files (X606: such a name can be ``../../anything``).

    Our bundles are single files, so any such reference is foreign. The message is walked as protobuf by the field
    numbers of onnx.proto (IR version 3 to 13), through sub-graphs, functions and attributes; no onnx package is needed.

    Raises:
        ModelError: X606 a tensor with external data; C502 not a protobuf message.
    """
    try:
        for name in _external(memoryview(data), "model", 0):
            raise ModelError("X606", place, f"tensor '{name}' lies in another file", "Export as a single file")
    except (IndexError, ValueError, RecursionError) as problem:
        raise ModelError("C502", place, f"not a whole ONNX file ({problem})", AGAIN) from None


# Message kind -> field number -> kind of the message in that field.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14


def _external(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    """Names of the tensors with external data in a message."""
    if depth > 64:
        raise ValueError("nested too deep")
    name, external = "", False
    for number, value in _protobuf_fields(message):
        if kind == "tensor":
            if number == _NAME and isinstance(value, memoryview):
                name = bytes(value).decode("utf-8", "replace")
            external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == 1)
        elif number in _FIELDS[kind]:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {number} of a {kind} is no message")
            yield from _external(value, _FIELDS[kind][number], depth + 1)
    if external:
        yield name


def _protobuf_fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field numbers and values of one protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise ValueError(f"{at + length - len(message)} bytes are missing")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("number too long")
