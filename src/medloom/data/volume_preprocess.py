"""The one implementation of volume -> model input and of model answer -> mask on the grid of the file.

``to_uint16`` does orientation, intensity rule and resampling and ends in 16 bits: the cache stores that and serving
computes that, with this very function. ``normalise`` is the affine to floats.

Resampling is linear along each axis, behind a Gaussian where the new grid is coarser. Linear and not cubic: a value
never leaves the range of its neighbours, so nothing rings beside bone or metal and 16 bits hold every value, and the
same filter takes logits back; Isensee et al. (Nature Methods 18:203, 2021) use cubic for images, which the percentile
clip would cut again.

Shapes: B batch, C channels, K classes, X Y Z voxels to the right, anterior, superior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medloom.data.geometry import resampled_affine
from medloom.data.resample import resample, resample_argmax
from medloom.data.volumes import Volume, canonical
from medloom.errors import DataError, UsageError

if TYPE_CHECKING:
    from medloom.config_segmentation import VolumeConfig

FORMAT = 1
"""Raised whenever ``to_uint16`` would give other values for the same fields; part of every cache key."""

TOP = 65535
Z_LIMIT = 5.0
"""zscore keeps this many deviations either side of the case's mean."""

MOST_VOXELS = 1 << 29
"""After resampling, which holds 8 to 12 bytes a voxel: here 4 to 6 GB. A whole body at 1 mm has half of it; where there
would be more, the spacing that the file states is wrong, or that of the recipe too fine."""


@dataclass(frozen=True)
class VolumePreprocess:
    """What happens to a volume between its file and the model. A plain value, equal when its fields are.

    Attributes:
        spacing: mm along right, anterior, superior of the model's grid; None keeps each case's own.
        intensity: what becomes 0 and 65535: two ``percentile`` values of the case, the ``window`` of all cases (CT), or
            5 deviations below and above the mean of the case (``zscore``).
        percentiles: in percent.
        window: lowest and highest value, for ``window``.
        prefer: which place counts where sform and qform of a file differ.
        mean, std: on values in [0, 1]; empty until the statistics of the training cases are set (zscore knows its own).
    """

    spacing: tuple[float, float, float] | None = None
    intensity: Literal["percentile", "window", "zscore"] = "percentile"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    prefer: Literal["refuse", "sform", "qform"] = "refuse"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.intensity not in ("percentile", "window", "zscore"):
            raise ValueError(f"intensity is {self.intensity!r}, not percentile, window or zscore")
        if self.prefer not in ("refuse", "sform", "qform"):
            raise ValueError(f"prefer is {self.prefer!r}, not refuse, sform or qform")
        if self.spacing is not None and not (len(self.spacing) == 3 and min(self.spacing) > 0):
            raise ValueError(f"spacing is {self.spacing!r}, not three lengths in mm")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles are {self.percentiles!r}, not two rising numbers in 0 to 100")
        if (self.intensity == "window") != (self.window is not None) or (
            self.window and self.window[0] >= self.window[1]
        ):
            raise ValueError(
                f"intensity is {self.intensity} and window {self.window!r}: a window has two rising values"
            )
        if len(self.mean) != len(self.std) or len(self.mean) > 1:
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations for one channel")
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(s) and s > 0 for s in self.std):
            raise ValueError("mean and deviation must be finite, the deviation above zero")

    @classmethod
    def from_config(
        cls, config: VolumeConfig, statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    ) -> VolumePreprocess:
        """The value that a recipe describes.

        Args:
            statistics: mean and deviation of the training cases, from ``pixel_statistics``. Without them ``normalise``
                refuses, but for ``zscore``, whose scale is the same in every case.

        Raises:
            UsageError: U226 a window without its values, or values without the window.
        """
        if config.intensity == "zscore":
            statistics = ((0.5,), (0.5 / Z_LIMIT,))
        mean, std = statistics if statistics is not None else ((), ())
        try:
            return cls(config.spacing, config.intensity, config.percentiles, config.window, config.prefer, mean, std)
        except ValueError as problem:
            raise UsageError("U226", "volume", str(problem), "Correct the volume part of the recipe") from None

    @property
    def in_chans(self) -> int:
        """Channels of the model input."""
        return 1

    def grid(self, volume: Volume, place: str = "volume") -> tuple[tuple[int, int, int], np.ndarray]:
        """Voxels and affine of the model's grid: the field of view of the case at ``spacing``, axes RAS+.

        Args:
            place: how an error names the case.

        Raises:
            DataError: N307 more than ``MOST_VOXELS`` after resampling, before any memory is taken for them.
        """
        upright = canonical(volume)
        shape = upright.shape
        if self.spacing is not None:
            x, y, z = (max(1, round(n * a / b)) for n, a, b in zip(shape, upright.spacing, self.spacing))
            shape = (x, y, z)
            if x * y * z > max(MOST_VOXELS, upright.array.size):
                own, new = (" x ".join(f"{length:.4g}" for length in part) for part in (upright.spacing, self.spacing))
                told = f"{x} x {y} x {z} voxels when {own} mm become {new} mm, above {MOST_VOXELS:,}"
                raise DataError(
                    "N307", place, told, "Correct the spacing in its header, or set a coarser volume.spacing"
                )
        return shape, resampled_affine(upright.affine, upright.shape, shape)

    def to_uint16(self, volume: Volume) -> np.ndarray:
        """Orientation, intensity and spacing: any volume to ``(1, X, Y, Z)`` uint16.

        The intensity rule sees the voxels of the file, before resampling, so that it does not depend on the spacing
        of the model.

        Raises:
            DataError: D111 a volume without any variation; N307 as ``grid``.
        """
        shape, _ = self.grid(volume)
        upright = canonical(volume)
        low, high = self._limits(upright.array)
        levels = upright.array.astype(np.float32)
        levels -= np.float32(low)
        levels *= np.float32(TOP / (high - low))
        np.clip(levels, 0, TOP, out=levels)
        sized = resample(levels, shape)
        return np.ascontiguousarray(np.rint(sized).astype(np.uint16)[None])

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """uint16 of any shape to float32 of the same shape, standardised."""
        if x.dtype != np.uint16:
            raise ValueError(f"expected uint16, got {x.dtype}")
        if not self.mean:
            raise ValueError("the statistics of the training cases are not set; use from_config(config, statistics)")
        out = x.astype(np.float32)
        out *= np.float32(1 / (TOP * self.std[0]))
        out -= np.float32(self.mean[0] / self.std[0])
        return out

    def __call__(self, volume: Volume) -> np.ndarray:
        """One volume to the float32 ``(1, X, Y, Z)`` that the model sees."""
        return self.normalise(self.to_uint16(volume))

    def labels(self, mask: Volume, label_values: tuple[int, ...]) -> np.ndarray:
        """A mask as positions in ``label_values``, ``(X, Y, Z)`` uint8 on the model's grid.

        Each structure is resampled as a share and the largest share wins: nearest neighbours would fray every border.

        Args:
            mask: values as stored, on its image's grid (``require_same_grid``), each of them in ``label_values``.
        """
        shape, _ = self.grid(mask)
        values = canonical(mask).array
        if shape == values.shape:
            out = np.zeros(shape, dtype=np.uint8)
            for position, value in enumerate(label_values):
                out[values == value] = position
            return out
        shares = ((values == value).astype(np.float32) for value in label_values)
        return resample_argmax(shares, shape)

    def restore(self, logits_KXYZ: np.ndarray, volume: Volume) -> np.ndarray:
        """The model's answer as positions uint8 on the grid and in the axis order of the file.

        Logits (or probabilities) are resampled and then compared, class by class and slab by slab, so that beside the
        answer no more than a few volumes are held.

        Args:
            logits_KXYZ: on the model's grid of ``volume``, any float type.
            volume: the image, as read or canonical.
        """
        shape, _ = self.grid(volume)
        if logits_KXYZ.shape[1:] != shape:
            raise ValueError(f"expected (K, {', '.join(map(str, shape))}), got {logits_KXYZ.shape}")
        upright = canonical(volume)
        positions = resample_argmax(logits_KXYZ, upright.shape, smooth=False)
        return np.ascontiguousarray(upright.to_stored(positions))

    def geometric_part(self) -> dict[str, Any]:
        """What decides the bytes of ``to_uint16``, and nothing else: the preprocessing's share of a cache key."""
        return {
            "format": FORMAT,
            "spacing": None if self.spacing is None else list(self.spacing),
            "intensity": self.intensity,
            "percentiles": list(self.percentiles) if self.intensity == "percentile" else None,
            "window": None if self.window is None else list(self.window),
            "prefer": self.prefer,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the bundle; floats survive JSON exactly."""
        return {
            **self.geometric_part(),
            "percentiles": list(self.percentiles),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VolumePreprocess:
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

    def with_statistics(self, mean: float, std: float) -> VolumePreprocess:
        """The same with mean and deviation of the training cases."""
        return replace(self, mean=(mean,), std=(std,))

    def _limits(self, values: np.ndarray) -> tuple[float, float]:
        """What becomes 0 and 65535."""
        if self.window is not None:
            return self.window
        if self.intensity == "zscore":
            mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
            low, high = mean - Z_LIMIT * std, mean + Z_LIMIT * std
        else:
            low, high = (float(v) for v in np.percentile(values, self.percentiles))
            if high <= low:  # nearly constant: its own extremes are all that is left to stretch
                low, high = float(values.min()), float(values.max())
        if not high > low:
            raise DataError("D111", "volume", "every voxel has the same value", "Leave it out")
        return low, high


def pixel_statistics(cases: list[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation on [0, 1] over the ``to_uint16`` of the training cases, from exact integer counts.

    Raises:
        DataError: D111, no cases, or cases that do not vary.
    """
    counts = np.zeros(TOP + 1, dtype=np.int64)
    for case in cases:
        counts += np.bincount(case.reshape(-1), minlength=TOP + 1)
    levels = np.arange(TOP + 1) / TOP
    total = int(counts.sum())
    mean = float(counts @ levels / max(total, 1))
    std = float(np.sqrt(counts @ (levels - mean) ** 2 / max(total, 1)))
    if not std > 0:
        raise DataError("D111", "training cases", f"{len(cases)} cases without any variation", "Check the images")
    return (mean,), (std,)
