"""Small synthetic DICOM files, written by pydicom: the reader under test has no part in their making."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

NATIVE = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
ROOT = "1.2.826.0.1.3680043.8.498."
# What may stand in no message, log or file: one mark per element that names a person, a place or a time.
SECRETS = {
    "PatientName": "SECRETNAME^ANNA",
    "PatientID": "SECRETID77",
    "OtherPatientIDs": "SECRETOTHER",
    "PatientBirthDate": "19770301",
    "PatientAddress": "SECRETSTREET 5",
    "AccessionNumber": "SECRETACC9",
    "InstitutionName": "SECRETHOSPITAL",
    "ReferringPhysicianName": "SECRETDOCTOR^B",
    "StudyDescription": "SECRETSTUDY",
    "SeriesDescription": "SECRETSERIES",
    "StationName": "SECRETSTATION",
    "DeviceSerialNumber": "SECRETSERIAL",
    "PatientComments": "SECRETCOMMENT",
    "StudyDate": "20190704",
    "StudyInstanceUID": ROOT + "777001",
}


def picture(rows: int = 40, columns: int = 32, bits: int = 12, seed: int = 0) -> np.ndarray:
    """Noise over a slope, over the whole range of the bits."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0.1, 0.8, rows)[:, None] + np.linspace(0, 0.1, columns)[None]
    values = np.clip(slope + random.normal(0, 0.03, (rows, columns)), 0, 1) * (2**bits - 1)
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return np.rint(values).astype(np.uint8 if bits <= 8 else np.uint16)


def dataset(pixels: np.ndarray, *, bits: int = 12, number: int = 1, **tags: Any) -> Dataset:
    """A digital radiograph of these samples; ``tags`` by keyword, None takes one out."""
    frames = pixels.ndim == 3 and pixels.shape[2] != 3
    rows, columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    made = Dataset()
    made.SOPClassUID = DigitalXRayImageStorageForPresentation
    made.SOPInstanceUID = f"{ROOT}{number}"
    made.SeriesInstanceUID = f"{ROOT}5000"
    made.Modality = "DX"
    made.Rows, made.Columns = rows, columns
    made.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    made.PhotometricInterpretation = "RGB" if pixels.shape[-1] == 3 else "MONOCHROME2"
    if pixels.shape[-1] == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored, made.HighBit = bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames:
        made.NumberOfFrames = len(pixels)
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    made["PixelData"].VR = "OW"
    for name, value in tags.items():
        if value is None:
            if name in made:
                delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def secretive(made: Dataset) -> Dataset:
    """The same with every mark of ``SECRETS`` in it."""
    for name, value in SECRETS.items():
        setattr(made, name, value)
    made.add_new(0x00110010, "LO", "SECRETCREATOR")
    made.add_new(0x00111001, "LO", "SECRETPRIVATE")
    return made


def written(made: Dataset, syntax: str | UID = "explicit") -> bytes:
    """A file of it, with preamble and meta group."""
    uid = NATIVE.get(str(syntax), syntax)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(uid)
    meta.MediaStorageSOPClassUID = made.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", ROOT + "1")
    big = uid == ExplicitVRBigEndian
    if big and made.get("BitsAllocated") == 16:
        made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
        made["PixelData"].VR = "OW"
    if big and made.get("BitsAllocated") == 8:
        made["PixelData"].VR = "OB"
    if uid == ImplicitVRLittleEndian and "PixelData" in made:
        made["PixelData"].VR = "OW"
    if made.get("BitsAllocated") == 8 and not big and uid != ImplicitVRLittleEndian and "PixelData" in made:
        made["PixelData"].VR = "OB"
    if "PixelData" in made and len(made.PixelData) % 2 and not made["PixelData"].is_undefined_length:
        made.PixelData = made.PixelData + b"\0"
    made.file_meta = meta
    out = io.BytesIO()
    dcmwrite(out, made, enforce_file_format=True, little_endian=not big, implicit_vr=uid == ImplicitVRLittleEndian)
    return out.getvalue()


def meta(syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    """Preamble and file meta group, by hand: of any transfer syntax."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    body = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body


def radiograph(pixels: np.ndarray | None = None, *, bits: int = 12, syntax: str = "explicit", **tags: Any) -> bytes:
    """``dataset`` and ``written`` in one."""
    return written(dataset(picture(bits=bits) if pixels is None else pixels, bits=bits, **tags), syntax)
