"""One image file, or the bytes of an upload, to an array: every way in which that can go wrong has a code.

The declared size is checked before a pixel is decoded, the format is read from the first bytes and never from the
name, and whatever Pillow raises becomes a ``DataError``. What was done to the pixels on the way (alpha laid on black,
rotation by the camera's tag ...) is told in ``Image.notes``, so that an audit can count it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin

from medloom.data.arrays import array_row
from medloom.data.formats import file_type_of
from medloom.data.modes import BURNED_IN, merge_equal_channels, to_labels, to_pixels
from medloom.data.patches import SUFFIXES as PATCH_SUFFIXES
from medloom.data.patches import patch_row
from medloom.data.records import Dataset, Record
from medloom.errors import DataError

if TYPE_CHECKING:
    from medloom.config import DataConfig

Convert = Callable[[Any, bytes, str], tuple[np.ndarray, int, tuple[str, ...]]]
Expect = Mapping[str, Sequence[str]]

MIN_SIDE = 8
MAX_ASPECT = 10.0

# The plugins are called directly: Image.open only warns about 13,000 x 13,000 pixels, and tries every codec it knows.
_OPENERS: dict[str, Any] = {
    "jpeg": JpegImagePlugin.jpeg_factory,
    "png": PngImagePlugin.PngImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "pnm": PpmImagePlugin.PpmImageFile,
}


@dataclass(frozen=True)
class Image:
    """Pixels as the file holds them, and what is known of the file.

    Attributes:
        pixels: ``(H, W)``, or ``(H, W, 3)`` where the channels differ; uint8, uint16 or float32.
        bits: significant bits, the range of the pixels being ``0 .. 2**bits - 1``; 0 for floats (range unknown).
        mode: Pillow's name of the stored form (``L``, ``RGB``, ``P``, ``CMYK``, ``I;16``, ``F`` ...).
        file_type: ``jpeg``, ``png`` ..., from the first bytes; ``npz`` or ``h5`` for a row of an array.
        size_bytes: of the file; of the row for arrays.
        notes: what was done to the pixels, in the fixed phrases of ``medloom.data.modes``.
        quality: sum of the first quantisation table of a JPEG (larger is coarser), 0 elsewhere.
        instance: hash of the SOP instance UID of a DICOM file, empty elsewhere: no two pictures may share one (M218).
        spacing: mm between the rows and between the columns of ``pixels``; None where the file does not say.
        spacing_from: the DICOM element that says so.
    """

    pixels: np.ndarray
    bits: int
    mode: str
    file_type: str
    size_bytes: int
    notes: tuple[str, ...] = ()
    quality: int = 0
    instance: str = ""
    spacing: tuple[float, float] | None = None
    spacing_from: str = ""


def decode(dataset: Dataset, record: Record, config: DataConfig) -> Image:
    """The image of a record: a file below the dataset's root, or a row of an npz or h5 file.

    Raises:
        DataError: as ``decode_file``; D116 when the array no longer holds the row; M216 text in the pixels of a DICOM
            image, which a model could learn and a report would show.
    """
    if record.index is not None and record.path.endswith(PATCH_SUFFIXES):
        return _from_row(patch_row(dataset.root / record.path, record), record, config, "h5")
    if not dataset.root.is_file():
        image = decode_file(
            dataset.root / record.path,
            frames=config.frames,
            max_megapixels=config.max_megapixels,
            frame=record.index or 0,
            place=record.id,
            expect={str(name): words for name, words in config.expect.items()},
        )
        if BURNED_IN in image.notes and config.burned_in == "exclude":
            told = (
                "text may be burned into the pixels: the file says so, or does not say, and is of a kind that often has"
            )
            raise DataError("M216", record.id, told, "Look at it; where there is none, set data.burned_in=keep")
        return image
    return _from_row(array_row(dataset.root, record), record, config, "npz")


def _from_row(row: np.ndarray, record: Record, config: DataConfig, file_type: str) -> Image:
    check_size(row.shape[1], row.shape[0], record.id, config.max_megapixels)
    pixels = merge_equal_channels(row)
    check_content(pixels, record.id)
    bits = 8 * pixels.dtype.itemsize
    return Image(pixels, bits, "RGB" if row.ndim == 3 else f"I;{bits}" if bits > 8 else "L", file_type, row.nbytes)


def decode_file(
    path: str | Path,
    *,
    frames: str = "refuse",
    max_megapixels: float = 64.0,
    frame: int = 0,
    place: str | None = None,
    expect: Expect | None = None,
) -> Image:
    """Decode one file.

    Args:
        frames: ``refuse`` a file of several frames, or read its ``first``; with ``all``, number ``frame`` is read.
        max_megapixels: cap on the declared size, checked before decoding.
        place: how errors name the file; its path when left out.
        expect: what a DICOM file must be of, see ``medloom.data.dicom``.

    Raises:
        DataError: D101 empty, D102 not an image, D103 truncated or damaged, D107 colours without a rule, D109 several
            frames, D110 too many pixels, D111 constant or not finite, D112 tiny or extreme, D114 unreadable; M202-M218
            of DICOM.
    """
    place = str(path) if place is None else place
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise DataError(
            "D114", place, f"cannot be read ({problem.strerror or problem})", "Correct its permissions or remove it"
        ) from None
    image = _decode_bytes(data, place, frames, max_megapixels, frame, expect=expect)
    check_content(image.pixels, place)
    return image


def decode_mask(path: str | Path, *, max_megapixels: float = 64.0, place: str | None = None) -> Image:
    """Decode a picture whose values are structures: it may be constant, and of a palette the indices count.

    Raises:
        DataError: as ``decode_file``, but for D111.
    """
    place = str(path) if place is None else place
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise DataError(
            "D114", place, f"cannot be read ({problem.strerror or problem})", "Put the mask there"
        ) from None
    return _decode_bytes(data, place, "refuse", max_megapixels, 0, to_labels)


def read_image_bytes(
    data: bytes, name: str, *, frames: str = "refuse", max_megapixels: float = 64.0, expect: Expect | None = None
) -> Image:
    """Decode an upload; ``name`` is only a label in errors.

    Raises:
        DataError: as ``decode_file``.
    """
    image = _decode_bytes(data, name, frames, max_megapixels, 0, expect=expect)
    check_content(image.pixels, name)
    return image


def count_frames(path: str | Path) -> int:
    """Frames of a GIF, TIFF, PNG or DICOM file; 1 for what cannot be opened (decoding it will say why)."""
    try:
        data = Path(path).read_bytes()
        if (file_type := file_type_of(data, str(path))) == "dicom":
            from medloom.data.dicom import count_dicom_frames

            return count_dicom_frames(data, str(path))
        return int(getattr(_OPENERS[file_type](io.BytesIO(data), ""), "n_frames", 1))
    except Exception:  # noqa: BLE001 - codecs raise anything
        return 1


def _decode_bytes(
    data: bytes,
    place: str,
    frames: str,
    max_megapixels: float,
    frame: int,
    convert: Convert = to_pixels,
    expect: Expect | None = None,
) -> Image:
    file_type = file_type_of(data, place)
    if file_type == "dicom":
        from medloom.data.dicom import read_dicom  # it needs what is defined here

        if convert is not to_pixels:
            raise DataError("D107", place, "a mask in a DICOM image, whose values a window changes", "Save it as PNG")
        return read_dicom(data, place, frames=frames, max_megapixels=max_megapixels, frame=frame, expect=expect)
    try:
        handle = _OPENERS[file_type](io.BytesIO(data), "")
        check_size(handle.size[0], handle.size[1], place, max_megapixels)
        count = getattr(handle, "n_frames", 1)
        if count > 1 and frames == "refuse":
            raise DataError("D109", place, f"holds {count} frames", "Say --set data.frames=first, or =all")
        if count > 1 and frames == "all":
            handle.seek(frame)
            check_size(handle.size[0], handle.size[1], place, max_megapixels)
        mode = handle.mode
        quality = sum(next(iter(handle.quantization.values()), ())) if file_type == "jpeg" else 0
        pixels, bits, notes = convert(handle, data, file_type)
    except DataError as problem:
        raise DataError(problem.code, place, problem.problem, problem.remedy) from None
    except MemoryError:
        raise DataError("D110", place, "too large for this machine's memory", "Lower data.max_megapixels") from None
    except Exception as problem:  # noqa: BLE001 - codecs raise anything: OSError, SyntaxError, struct.error, KeyError ...
        if "pixel mode" in str(problem):  # Pillow's word for a colour layout that it does not have
            raise DataError("D107", place, f"{file_type.upper()} of an {problem}", "Save it as PNG") from None
        what = f" ({problem})" if str(problem) else ""
        raise DataError(
            "D103",
            place,
            f"truncated or damaged {file_type.upper()} of {len(data):,} bytes{what}",
            "Copy it again, or list it in data.exclude",
        ) from None
    return Image(pixels, bits, mode, file_type, len(data), notes, quality)


def check_size(width: int, height: int, place: str, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise DataError(
            "D110",
            place,
            f"declares {width} x {height} pixels, more than {max_megapixels:g} megapixels",
            "Raise data.max_megapixels if the image is honest",
        )
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise DataError(
            "D112",
            place,
            f"{width} x {height} pixels: a side under {MIN_SIDE}, or one {MAX_ASPECT:g} times the other",
            "Remove it, or list it in data.exclude",
        )


def check_content(pixels: np.ndarray, place: str) -> None:
    remedy = "Look at it; remove it or list it in data.exclude"
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        bad = int(pixels.size - np.isfinite(pixels).sum())
        raise DataError("D111", place, f"{bad} pixels are NaN or infinite", remedy)
    # Most images differ within a few pixels, so the whole is compared only where a sparse sample is constant.
    first, sparse = pixels[0, 0], pixels[:: max(1, pixels.shape[0] // 8), :: max(1, pixels.shape[1] // 8)]
    if (sparse == first).all() and (pixels == first).all():
        what = "all black" if not np.any(first) else f"constant (every pixel is {np.asarray(first).tolist()})"
        raise DataError("D111", place, f"the image is {what}", remedy)
