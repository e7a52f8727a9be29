"""Reading a DICOM file in memory, to an image or to the error that refuses it."""

from __future__ import annotations

from typing import Any

import pytest

from medloom.data.dicom import read_dicom
from medloom.data.images import Image
from medloom.errors import DataError


def read(data: bytes, **options: Any) -> Image:
    return read_dicom(data, "x.dcm", **options)


def refused(data: bytes, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(data, **options)
    return caught.value
