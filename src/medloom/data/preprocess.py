"""The one implementation of decoded image -> model input, stored as data in the bundle.

It has two halves. ``to_uint8`` does grey conversion, intensity rule and geometry and ends in uint8: the cache stores
that and serving computes that, with this very function. ``normalise`` is the affine to floats; its torch twin for
whole batches on a device is ``medloom.data.cache.finish``.

Shapes: N images, B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image as PIL

from medloom.data.intensity import curve, to_grey, to_integers
from medloom.errors import DataError

if TYPE_CHECKING:
    from medloom.config import PreprocessConfig
    from medloom.data.images import Image

FORMAT = 1
"""Raised whenever ``to_uint8`` would give other bytes for the same value; part of every cache key."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAPER_MEAN, PAPER_STD = 0.485, 0.229
"""HATR, section 3.1.2, uses ImageNet's first pair in every channel."""

PSEUDOCOLOR = np.array([0.0, 0.5, 1.0], dtype=np.float32)
"""Channel c of the pseudo-colour is ``clip(2 g - PSEUDOCOLOR[c], 0, 1)`` of the grey value g in [0, 1]: the lower, the
middle and the upper half of the range, each at double contrast, like three windows. First plus last is 2 g, so
nothing is lost, and every channel is monotone."""


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image between its file and the model. A plain value, equal when its fields are.

    Attributes:
        size: height and width of the model input.
        resize: ``squash`` to the size, ``pad`` with black keeping the aspect, centre ``crop`` keeping it, or ``none``:
            another size is refused, as of tissue it would be another magnification.
        channels: ``grey`` (1), ``replicate`` (grey three times), ``pseudocolor`` (``PSEUDOCOLOR``), ``rgb``.
        intensity: ``none`` (range from the bit depth of the file), ``percentile`` (clip, then stretch),
            ``equalize`` (histogram equalisation of the whole image); see ``medloom.data.intensity``.
        percentiles: lower and upper clip, in percent, for ``percentile``.
        mean, std: per model channel, on values in [0, 1]; empty until the statistics of the training images are set.
    """

    size: tuple[int, int] = (224, 224)
    resize: Literal["squash", "pad", "crop", "none"] = "squash"
    channels: Literal["grey", "replicate", "pseudocolor", "rgb"] = "replicate"
    intensity: Literal["none", "percentile", "equalize"] = "none"
    percentiles: tuple[float, float] = (0.5, 99.5)
    mean: tuple[float, ...] = (PAPER_MEAN,) * 3
    std: tuple[float, ...] = (PAPER_STD,) * 3

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(allowed)}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is {self.size!r}, not two numbers of pixels")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles are {self.percentiles!r}, not two rising numbers in 0 to 100")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.in_chans):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations for {self.in_chans} channels")
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(s) and s > 0 for s in self.std):
            raise ValueError("mean and deviation must be finite, the deviation above zero")

    @classmethod
    def from_config(
        cls,
        config: PreprocessConfig,
        train_pixels: np.ndarray | tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        rows: np.ndarray | None = None,
    ) -> Preprocess:
        """The value that a recipe describes.

        Args:
            train_pixels: for ``statistics: train``: cached pixels ``(N, H, W, C)`` uint8, or a known
                ``(mean, std)``. Without it the statistics stay empty: enough to build the cache, which does not
                depend on them, while ``normalise`` refuses.
            rows: which of ``train_pixels`` are training images, all by default; so a memory map need not be copied.

        Raises:
            DataError: D111, the training images do not vary.
        """
        size = (config.size, config.size) if isinstance(config.size, int) else config.size
        width = 1 if config.channels == "grey" else 3
        if config.statistics == "train":
            mean: tuple[float, ...] = ()
            std: tuple[float, ...] = ()
        elif config.statistics == "imagenet":
            mean, std = IMAGENET_MEAN, IMAGENET_STD
            if width == 1:
                mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        else:
            pair = {"paper": (PAPER_MEAN, PAPER_STD), "half": (0.5, 0.5), "unit": (0.0, 1.0)}[config.statistics]
            mean, std = (pair[0],) * width, (pair[1],) * width
        made = cls(size, config.resize, config.channels, config.intensity, config.percentiles, mean, std)
        if config.statistics != "train" or train_pixels is None:
            return made
        if isinstance(train_pixels, tuple):
            return replace(made, mean=tuple(train_pixels[0]), std=tuple(train_pixels[1]))
        mean, std = made.statistics(train_pixels, rows)
        return replace(made, mean=mean, std=std)

    @property
    def stored_channels(self) -> int:
        """Channels of ``to_uint8``: grey rules are widened only after the cache."""
        return 3 if self.channels == "rgb" else 1

    @property
    def in_chans(self) -> int:
        """Channels of the model input."""
        return 1 if self.channels == "grey" else 3

    def to_uint8(self, image: Image) -> np.ndarray:
        """Geometry and intensity: any decoded image to ``(H, W, C)`` uint8 with C = ``stored_channels``.

        The range comes from the file's bit depth, never from the largest value met. Resizing is by Pillow with an
        area-aware triangle filter (no ringing, so values stay in range and order); 8-bit images stay in 8 bits,
        deeper ones are resized in float and rounded once.

        Raises:
            DataError: D107 a float image outside [0, 1] under ``intensity: none``; D111 not finite; D128 another size
                than the model's under ``resize: none``.
        """
        given = image.pixels.shape[:2]
        if self.resize == "none" and given != self.size:
            told = f"is {given[0]} x {given[1]} pixels, and the model takes {self.size[0]} x {self.size[1]} alone"
            raise DataError("D128", "image", told, "Cut it at that size and magnification, or set preprocess.resize")
        levels, bits = to_integers(image.pixels, image.bits, fixed_range=self.intensity == "none")
        if self.channels == "rgb":
            levels = levels if levels.ndim == 3 else np.repeat(levels[:, :, None], 3, axis=2)
        else:
            levels = to_grey(levels)
        table = curve(levels, bits, self.intensity, self.percentiles)
        if table is None:
            toned = levels
        elif levels.dtype == np.uint8:
            toned = np.rint(table).astype(np.uint8)[levels]
        else:
            toned = table[levels]
        planes = [toned] if toned.ndim == 2 or toned.dtype == np.uint8 else [toned[:, :, c] for c in range(3)]
        sized = [self._resize(plane) for plane in planes]
        out = sized[0] if len(sized) == 1 else np.stack(sized, axis=2)
        return np.ascontiguousarray(out if out.ndim == 3 else out[:, :, None])

    def normalise(self, x_BHWC: np.ndarray) -> np.ndarray:
        """uint8 ``(B, H, W, stored_channels)`` to float32 ``(B, in_chans, H, W)``: scaled, widened, standardised."""
        tables_C256 = self._tables
        if x_BHWC.dtype != np.uint8 or x_BHWC.ndim != 4 or x_BHWC.shape[3] != self.stored_channels:
            raise ValueError(f"expected uint8 (B, H, W, {self.stored_channels}), got {x_BHWC.dtype} {x_BHWC.shape}")
        B, H, W, stored = x_BHWC.shape
        out_BCHW = np.empty((B, self.in_chans, H, W), dtype=np.float32)
        for c in range(self.in_chans):
            source_BHW = x_BHWC[..., c if stored > 1 else 0]
            if c and stored == 1 and np.array_equal(tables_C256[c], tables_C256[0]):
                out_BCHW[:, c] = out_BCHW[:, 0]
            else:
                out_BCHW[:, c] = tables_C256[c][source_BHW]
        return out_BCHW

    def __call__(self, image: Image) -> np.ndarray:
        """One decoded image to the float32 ``(in_chans, H, W)`` that the model sees."""
        return self.normalise(self.to_uint8(image)[None])[0]

    def statistics(
        self, pixels_NHWC: np.ndarray, rows: np.ndarray | None = None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation per model channel over cached pixels, from exact integer counts (order cannot matter).

        Raises:
            DataError: D111, no images, or images that do not vary.
        """
        chosen = np.arange(len(pixels_NHWC)) if rows is None else np.asarray(rows)
        counts_C256 = np.zeros((self.stored_channels, 256), dtype=np.int64)
        for start in range(0, len(chosen), 256):
            block = pixels_NHWC[np.sort(chosen[start : start + 256])]
            for c in range(self.stored_channels):
                counts_C256[c] += np.bincount(block[..., c].reshape(-1), minlength=256)
        values_C256 = self._widened().astype(np.float64)
        counts_C256 = np.broadcast_to(counts_C256, values_C256.shape)
        total = counts_C256[0].sum()
        mean_C = (counts_C256 * values_C256).sum(1) / max(total, 1)
        std_C = np.sqrt((counts_C256 * (values_C256 - mean_C[:, None]) ** 2).sum(1) / max(total, 1))
        if total == 0 or not (std_C > 0).all():
            raise DataError(
                "D111",
                "training images",
                f"{len(chosen)} images without any variation give no mean and deviation",
                "Check the images, or choose preprocess.statistics=half",
            )
        return tuple(float(m) for m in mean_C), tuple(float(s) for s in std_C)

    def geometric_part(self) -> dict[str, Any]:
        """What decides the bytes of ``to_uint8``, and nothing else: the preprocessing's share of a cache key."""
        return {
            "format": FORMAT,
            "size": list(self.size),
            "resize": self.resize,
            "stored_channels": self.stored_channels,
            "intensity": self.intensity,
            "percentiles": list(self.percentiles) if self.intensity == "percentile" else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the bundle; floats survive JSON exactly."""
        return {
            "format": FORMAT,
            "size": list(self.size),
            "resize": self.resize,
            "channels": self.channels,
            "intensity": self.intensity,
            "percentiles": list(self.percentiles),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Inverse of ``as_dict``.

        Raises:
            ValueError: another format, a key too many or too few, or a value that makes no sense.
        """
        given = dict(values)
        if given.pop("format", None) != FORMAT:
            raise ValueError(f"preprocessing format {values.get('format')!r}, this version reads {FORMAT}")
        if given.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(f"preprocessing keys {sorted(given)}, expected {sorted(cls.__dataclass_fields__)}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**fields)

    @cached_property
    def _tables(self) -> np.ndarray:
        """``(in_chans, 256)`` float32: stored value to standardised value."""
        if not self.mean:
            raise ValueError("the statistics of the training images are not set; use from_config(config, train_pixels)")
        mean_C1, std_C1 = (np.array(v, dtype=np.float32)[:, None] for v in (self.mean, self.std))
        return (self._widened() - mean_C1) / std_C1

    def _widened(self) -> np.ndarray:
        """``(in_chans, 256)`` float32 in [0, 1]: stored value to model channel, before standardisation."""
        grey_256 = np.arange(256, dtype=np.float32) / np.float32(255)
        if self.channels == "pseudocolor":
            return np.clip(2 * grey_256 - PSEUDOCOLOR[:, None], 0, 1)
        return np.repeat(grey_256[None], self.in_chans, axis=0)

    def inner_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image takes of the model's grid under ``resize: pad``."""
        scale = min(self.size[0] / height, self.size[1] / width)
        return _at_least_one(height * scale, self.size[0]), _at_least_one(width * scale, self.size[1])

    def _resize(self, plane: np.ndarray) -> np.ndarray:
        """One plane (or 8-bit RGB) to ``size``, as uint8."""
        height, width = plane.shape[:2]
        target_h, target_w = self.size
        box = (0.0, 0.0, float(width), float(height))
        inner = (target_h, target_w)
        if self.resize == "pad":
            inner = self.inner_size(height, width)
        elif self.resize == "crop":
            scale = max(target_h / height, target_w / width)
            kept_h, kept_w = min(height, target_h / scale), min(width, target_w / scale)
            top, left = (height - kept_h) / 2, (width - kept_w) / 2
            box = (left, top, left + kept_w, top + kept_h)
        if (height, width) != inner or box != (0.0, 0.0, width, height):
            picture = PIL.fromarray(np.ascontiguousarray(plane))
            # The gap lets Pillow average whole blocks first: 3 times faster from 2000 px, at most a level off.
            plane = np.asarray(picture.resize(inner[::-1], PIL.Resampling.BILINEAR, box=box, reducing_gap=3.0))
        if plane.dtype != np.uint8:
            plane = np.rint(np.clip(plane, 0, 255)).astype(np.uint8)
        if inner == (target_h, target_w):
            return plane
        out = np.zeros((target_h, target_w, *plane.shape[2:]), dtype=np.uint8)
        top, left = (target_h - inner[0]) // 2, (target_w - inner[1]) // 2
        out[top : top + inner[0], left : left + inner[1]] = plane
        return out


def _at_least_one(length: float, limit: int) -> int:
    return min(max(1, round(length)), limit)


_CHOICES = {
    "resize": ("squash", "pad", "crop", "none"),
    "channels": ("grey", "replicate", "pseudocolor", "rgb"),
    "intensity": ("none", "percentile", "equalize"),
}
