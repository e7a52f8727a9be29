"""Where the finding is, for images that somebody drew it on: what a scorer of tokens can learn from directly.

Masks share the geometry of their images: resized by the same rule here, moved by the same draw in training. They are
held in memory, one byte per pixel of the model's input, for the images that have one.

Shapes: N images of the data set, M images with a mask, B batch, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medloom.data.images import Image, decode_file
from medloom.data.preprocess import Preprocess
from medloom.data.records import Dataset
from medloom.errors import DataError
from medloom.files import sha256_bytes

EMPTY = "D111"
"""How a picture of one value is refused: for a mask it says that nothing is there."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of a data set.

    Attributes:
        pixels: ``(M, H, W)`` uint8, 255 inside, between at an edge.
        row_of: ``(N,)`` row in ``pixels``, or -1 for an image without a mask.
    """

    pixels: np.ndarray
    row_of: np.ndarray

    @property
    def hash(self) -> str:
        """SHA-256 of all of it."""
        return sha256_bytes(self.pixels.tobytes() + self.row_of.tobytes())

    def shares(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share of the finding in each pixel of the images in ``rows``, and which of them have a mask.

        Returns:
            float32 ``(B, H, W)`` in [0, 1], zero for an image without a mask; bool ``(B,)``.
        """
        places = self.row_of[rows]
        known_B = places >= 0
        mask_BHW = np.zeros((len(rows), *self.pixels.shape[1:]), dtype=np.float32)
        mask_BHW[known_B] = self.pixels[places[known_B]] / np.float32(255)
        return mask_BHW, known_B


def load_masks(dataset: Dataset, preprocess: Preprocess) -> Masks | None:
    """The masks of the training records that have one; None where none has.

    Raises:
        DataError: the D-codes of decoding; D134, a mask of another size than its image cannot be laid over it.
    """
    named = [k for k, record in enumerate(dataset.records) if record.mask is not None and record.split == "train"]
    if not named:
        return None
    plain = Preprocess(size=preprocess.size, resize=preprocess.resize, channels="grey", mean=(0.5,), std=(0.5,))
    pixels = np.zeros((len(named), *preprocess.size), dtype=np.uint8)
    row_of = np.full(len(dataset), -1, dtype=np.int64)
    for place, k in enumerate(named):
        record = dataset.records[k]
        path = dataset.root / str(record.mask)
        row_of[k] = place
        try:
            drawn = decode_file(path).pixels
        except DataError as problem:
            if problem.code != EMPTY:
                raise
            continue
        inside = drawn > 0 if drawn.ndim == 2 else (drawn > 0).any(axis=2)
        image = decode_file(dataset.file(record)).pixels
        if inside.shape != image.shape[:2]:
            sizes = " and ".join("x".join(map(str, shape)) for shape in (inside.shape, image.shape[:2]))
            told = f"the mask and its image {record.path} are of {sizes} pixels"
            raise DataError("D134", record.mask, told, "Draw it on the image itself, or leave it out")
        pixels[place] = plain.to_uint8(Image(np.where(inside, 255, 0).astype(np.uint8), 8, "L", "array", 0, ()))[..., 0]
    return Masks(pixels, row_of)
