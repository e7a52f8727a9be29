"""Damaged DICOM: never an exception but ours, and never other pixels where a check can tell (FAULTS 2.3).

A change inside the pixels, or inside a number that says how they are shown, is a picture that could be; only hashes can
find it. Everything else (tags, types, lengths, sizes, depths, frames, syntax) must be refused, or change nothing.
"""

from __future__ import annotations

import io
import random
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_files import NATIVE, dataset, picture, secretive, written
from medloom.data.dicom_header import header_of
from medloom.data.dicom_stream import walk_stream
from medloom.data.images import read_image_bytes
from medloom.errors import DataError

CODES = {"D101", "D102", "D110", "D111", "D112"} | {f"M{n}" for n in range(202, 219)}
# Their values decide what is shown, and any value of theirs is possible.
SHOWN = (0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00280004, 0x00280030, 0x20500020, 0x00281056)


def samples() -> dict[str, bytes]:
    tags: dict[str, Any] = {"WindowCenter": 2000, "WindowWidth": 3000, "RescaleSlope": 1, "RescaleIntercept": 0}
    made = {name: written(secretive(dataset(picture(40, 32), **tags)), name) for name in NATIVE}
    made["eight bits"] = written(dataset(picture(40, 32, 8), bits=8))
    made["colour"] = written(dataset(np.stack([picture(40, 32, 8, seed=k) for k in range(3)], axis=2), bits=8))
    for uid in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        one = dataset(picture(40, 32), **tags)
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.compress(uid, picture(40, 32), generate_instance_uid=False)
        made[uid.name] = written(one, uid)
    return made


def look(data: bytes) -> np.ndarray | str:
    """The picture, or the code of its refusal; anything else is the failure that is looked for."""
    told: DataError
    try:
        return read_image_bytes(data, "x.dcm").pixels
    except DataError as problem:
        told = problem
    assert told.code in CODES
    assert "SECRET" not in str(told)
    return told.code


def free_bytes(data: bytes) -> np.ndarray:
    """Where a changed byte may rightly change the picture: the pixels, and the values of ``SHOWN``."""
    free = np.zeros(len(data), bool)
    stream = walk_stream(data, "x")
    for tag, element in header_of(stream, "x").elements.items():
        for view in (element.value, *(element.fragments or ())):
            # A JPEG-LS stream has no sign of its own that could contradict the header's.
            unsure = tag == 0x00280103 and stream.syntax == JPEGLSLossless
            if (unsure or tag in SHOWN or tag == 0x7FE00010) and view.obj is data:
                start = np.frombuffer(view, np.uint8).ctypes.data - np.frombuffer(data, np.uint8).ctypes.data
                free[start : start + len(view)] = len(view) > 0
    return free


def mutants(data: bytes, count: int, seed: int) -> list[tuple[str, bytes, tuple[int, ...]]]:
    dice = random.Random(seed)
    made: list[tuple[str, bytes, tuple[int, ...]]] = []
    header = data.rindex(b"\xe0\x7f") + 12 if b"\xe0\x7f" in data else len(data)
    for number in range(count):
        changed = bytearray(data)
        kind = ("flip", "byte", "cut", "insert", "delete", "copy")[number % 6]
        # Most of a file is pixels; what is at stake stands in front of them.
        at = dice.randrange(0, min(header, len(data)) if number % 4 else len(data))
        places: tuple[int, ...] = (at,)
        if kind == "flip":
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == "byte":
            changed[at] = dice.choice((0, 255, 127, 128, dice.randrange(256)))
        elif kind == "cut":
            changed, places = changed[:at], ()
        elif kind == "insert":
            changed[at:at] = dice.randbytes(dice.choice((1, 2, 4, 8)))
        elif kind == "delete":
            del changed[at : at + dice.choice((1, 2, 4, 8))]
        else:
            width, other = dice.choice((2, 4, 8)), dice.randrange(len(data))
            changed[at : at + width] = data[other : other + width]
            places = tuple(range(at, at + width))
        made.append((kind, bytes(changed), places))
    return made


def fuzz(count: int, seed: int) -> dict[str, int]:
    tally = {"same": 0, "refused": 0, "shown otherwise": 0}
    silent = []
    for name, data in samples().items():
        good = look(data)
        assert isinstance(good, np.ndarray), (name, good)
        free = free_bytes(data)
        for kind, changed, places in mutants(data, count, seed):
            seen = look(changed)
            if isinstance(seen, str):
                tally["refused"] += 1
            elif seen.shape == good.shape and (seen == good).all():
                tally["same"] += 1
            else:
                tally["shown otherwise"] += 1
                inside = bool(places) and all(free[min(at, len(free) - 1)] for at in places)
                if not inside and name != "deflated":
                    silent.append((name, kind, places, seen.shape))
    assert not silent
    return tally


def test_M211_forty_mutants_of_each_of_nine_files() -> None:
    tally = fuzz(40, 1)
    assert sum(tally.values()) == 360
    assert tally["refused"] > 100


@pytest.mark.long
def test_M211_three_thousand_mutants() -> None:
    tally = fuzz(334, 2)
    print(tally)
    assert sum(tally.values()) > 3000
    assert tally["refused"] > 1000


@pytest.mark.parametrize("name", ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_M207_M209_no_single_number_of_the_pixel_format_can_be_another(name: str, syntax: str) -> None:
    """None but the true one gives a picture."""
    good = dataset(picture(40, 32))
    true = getattr(good, name)
    for value in (*range(25), 31, 33, 39, 41, 64, 65, 255, 256, 4096, 65535):
        made = dataset(picture(40, 32))
        setattr(made, name, value)
        seen = look(_quietly(made, syntax))
        if value != true:
            assert isinstance(seen, str), (name, value)


@pytest.mark.parametrize("tag", ["SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit", "Rows"])
def test_M209_no_part_of_the_pixel_format_can_be_missing(tag: str) -> None:
    made = dataset(picture(40, 32))
    delattr(made, tag)
    assert look(_quietly(made, "explicit")) == "M209"


def _quietly(made: pydicom.Dataset, syntax: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return written(made, syntax)


def test_pydicom_reads_the_samples_as_they_were_meant() -> None:
    """The files that are bent here are sound."""
    for data in samples().values():
        assert pydicom.dcmread(io.BytesIO(data)).pixel_array.size
