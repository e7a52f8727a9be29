"""From file to mask, without torch: the one path that parity at export, the golden check and every user go through.

Shapes: K classes with the background, S spatial axes: (H, W) of an image, (X, Y, Z) of a volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medloom.data.case_answer import Windows, answer_case
from medloom.data.case_restore import Case, Grid, answer_on_file, planes, restore_case, to_pixels
from medloom.data.dicom_pixels import SQUARED
from medloom.data.images import Image
from medloom.data.largest_piece import keep_largest
from medloom.data.modes import BURNED_IN
from medloom.data.preprocess import Preprocess
from medloom.data.volume_source import read_volume
from medloom.data.volumes import Volume
from medloom.deployment.runtime import TEXT_NOTICE, Picture, Runtime, open_image
from medloom.errors import DataError

Source = Picture | Volume | Sequence[Path]
"""A file, the files of a DICOM series, an image's bytes or array, or what was decoded already."""

Steps = Callable[[int, int, int], None]
"""Called with the case's place in the list, its windows done and its windows in all."""


SQUARED_NOTICE = "its pixels are not square: the mask lies on the enlarged picture"
DETECTOR_NOTICE = "sizes are those on the detector or the film, where a structure is larger than in the patient"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The mask of one image or volume, or why there is none.

    Attributes:
        id: path as given, or ``image 3`` for the fourth of a list of arrays.
        mask: the numbers by which the bundle stores its structures (uint8, above 255 uint16), on the pixels or voxels
            of the file and in their order: ``(H, W)`` after EXIF rotation, or ``(X, Y, Z)``. None when refused.
        structures: size of each structure, in ``unit``; the background is left out.
        unit: ``ml`` of volumes; of images ``cm²`` where their DICOM header says how large a pixel is, else ``pixels``.
        volume: where a volume's mask lies; None of an image.
        probabilities: ``(K, *S)`` float32 on the same grid, where they were asked for.
        error: code of the refusal, with ``problem`` in words.
        notice: what a reader must know of the image beside the mask.
    """

    id: str
    mask: np.ndarray | None = None
    structures: dict[str, float] = field(default_factory=dict)
    unit: Literal["ml", "cm²", "pixels"] = "pixels"
    volume: Volume | None = None
    probabilities: np.ndarray | None = None
    error: str | None = None
    problem: str | None = None
    notice: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; arrays are left out."""
        return {k: getattr(self, k) for k in ("id", "structures", "unit", "error", "problem", "notice")}


@dataclass(frozen=True)
class SegmentPipeline:
    """Preprocessing, windows, network and the way back in one value.

    Attributes:
        classes: the background first.
        label_values: the number in a mask that stands for each class.
        keep_largest: only the largest piece of each structure.
        frames, max_megapixels, expect: how images are decoded, as in training (D109, D110, M215).
    """

    classes: tuple[str, ...]
    label_values: tuple[int, ...]
    preprocess: Grid
    windows: Windows
    keep_largest: bool
    runtime: Runtime
    frames: str = "refuse"
    max_megapixels: float = 64.0
    expect: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def volumes(self) -> bool:
        """Whether it takes volumes and not images."""
        return not isinstance(self.preprocess, Preprocess)

    def open(self, source: Source, name: str) -> Case:
        """Decode as training did.

        Raises:
            DataError: D102 an image where a volume is wanted, or the other way round; the codes of reading.
        """
        if not isinstance(self.preprocess, Preprocess):
            if isinstance(source, Volume):
                return source
            if isinstance(source, bytes | np.ndarray | Image):
                told = "is no file, and volumes are read from files"
                raise DataError("D102", name, told, "Give its path, or a Volume")
            return read_volume(source, prefer=self.preprocess.prefer, expect=self.expect, place=name)
        if isinstance(source, Volume | Sequence) and not isinstance(source, str | bytes):
            raise DataError("D102", name, "is a volume, and this model takes images", "Give an image")
        return open_image(source, name, frames=self.frames, max_megapixels=self.max_megapixels, expect=self.expect)

    def logits(self, case: Case) -> np.ndarray:
        """``(K, *S)`` float32 on the grid of the model."""
        pixels_CS = to_pixels(case, self.preprocess)
        return answer_case(pixels_CS, self.preprocess, self.windows, len(self.classes), self.runtime.logits)

    def positions(self, case: Case, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Positions in ``classes``, uint8 on the grid of the file, before ``keep_largest``.

        A volume's logits are worked off in slabs and never held as a whole.
        """
        pixels_CS, grid, classes = to_pixels(case, self.preprocess), self.preprocess, len(self.classes)
        return answer_on_file(pixels_CS, grid, case, self.windows, classes, self.runtime.logits, progress)

    def stream(
        self, sources: Iterable[Source], *, probabilities: bool = False, progress: Steps | None = None
    ) -> Iterator[Segmentation]:
        """Masks in the order of ``sources``, one in memory at a time; a bad file gives a refusal, not an exception."""
        for place, source in enumerate(sources):
            name = str(source) if isinstance(source, str | Path) else f"image {place}"
            if isinstance(source, tuple | list):
                name = str(source[0].parent)

            def told(done: int, total: int, place: int = place) -> None:
                if progress is not None:
                    progress(place, done, total)

            try:
                answer = self._answer(self.open(source, name), name, probabilities, told)
            except DataError as refusal:
                answer = Segmentation(name, error=refusal.code, problem=refusal.problem)
            yield answer

    def finish(self, positions: np.ndarray, case: Case, name: str) -> Segmentation:
        """The answer that positions on the grid of the file make."""
        kept = keep_largest(positions) if self.keep_largest else positions
        counts = np.bincount(kept.reshape(-1), minlength=len(self.classes))
        values = np.array(self.label_values, dtype=np.uint8 if max(self.label_values) <= 255 else np.uint16)
        scale, unit = _cell(case)
        sizes = {self.classes[k]: float(counts[k]) * scale for k in range(1, len(self.classes))}
        told = _notices(case) if isinstance(case, Image) else []
        volume = case if isinstance(case, Volume) else None
        return Segmentation(name, values[kept], sizes, unit, volume, notice="; ".join(told) or None)

    def _answer(self, case: Case, name: str, probabilities: bool, progress: Callable[[int, int], None]) -> Segmentation:
        if not probabilities:
            return self.finish(self.positions(case, progress), case, name)
        from scipy.special import softmax  # a third of a second that no answer with classes needs

        logits_KS = self.logits(case)
        answer = self.finish(restore_case(logits_KS, self.preprocess, case), case, name)
        chances_KS = softmax(np.stack(list(planes(logits_KS, self.preprocess, case))), axis=0)
        return Segmentation(
            name, answer.mask, answer.structures, answer.unit, answer.volume, chances_KS, notice=answer.notice
        )


def _cell(case: Case) -> tuple[float, Literal["ml", "cm²", "pixels"]]:
    """Size of one cell of a mask, and its unit."""
    if isinstance(case, Volume):
        # From the determinant: voxels of a sheared grid are no boxes.
        return abs(float(np.linalg.det(case.affine[:3, :3]))) / 1000, "ml"
    if case.spacing is None:
        return 1.0, "pixels"
    return case.spacing[0] * case.spacing[1] / 100, "cm²"


def _notices(image: Image) -> list[str]:
    told = [text for note, text in ((BURNED_IN, TEXT_NOTICE), (SQUARED, SQUARED_NOTICE)) if note in image.notes]
    return [*told, DETECTOR_NOTICE] if image.spacing_from not in ("", "PixelSpacing") else told
