"""DICOM series for tests, written by pydicom from a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medloom.data.volumes import Volume


def write_series(folder: Path, volume: Volume, *, name: str = "", ending: str = ".dcm", **tags: Any) -> Path:
    """The volume (int16) as slices, numbered backwards and named at random.

    Args:
        name: what the UIDs are made from, the folder's own when left out.
        tags: elements that differ from the usual, by keyword.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = name or folder.name
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    along = lps[:3, :3] / spacing
    uid, frame = generate_uid(entropy_srcs=[name]), generate_uid(entropy_srcs=["frame"])
    for k in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, str(k)])
        made: Any = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        made.SeriesInstanceUID, made.FrameOfReferenceUID, made.StudyInstanceUID = uid, frame, frame
        made.Modality, made.PatientID, made.InstanceNumber = "CT", "x", 100 - k
        made.ImagePositionPatient = [float(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        made.ImageOrientationPatient = [float(v) for v in (*along[:, 0], *along[:, 1])]
        made.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        made.SliceThickness = float(spacing[2])
        made.Rows, made.Columns = volume.shape[1], volume.shape[0]
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 15, 1, 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.RescaleSlope, made.RescaleIntercept = 1, 0
        made.PixelData = np.ascontiguousarray(volume.array[:, :, k].T).astype("<i2").tobytes()
        for key, value in tags.items():
            setattr(made, key, value)
        made.save_as(folder / f"{(k * 7) % 100:03d}{ending}", enforce_file_format=True)
    return folder
