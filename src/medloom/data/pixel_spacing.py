"""How large the pixels of pictures with masks are: what their DICOM header says, else the recipe, else unknown.

Other formats are not asked: what they call a resolution is of a printer, and 72 dots per inch where nobody set it.

All measures of a data set are in one unit. Where the size is known of some pictures and not of all, every case is
measured in pixels and the audit says so (N307): a mean of millimetres and pixels would mean nothing, and cases left out
of it would be missed by nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from medloom.data.findings import MOST_EXAMPLES, Finding
from medloom.data.records import Record

if TYPE_CHECKING:
    from medloom.config import DataConfig
    from medloom.data.images import Image
    from medloom.data.scan import Scan

RECIPE = "data.pixel_spacing"


def picture_spacing(image: Image, config: DataConfig) -> tuple[tuple[float, float] | None, str]:
    """mm between the rows and between the columns of a picture as it was decoded, and what says so; None and nothing
    where neither its file nor the recipe does.

    A header goes before the recipe: it speaks of its own image.
    """
    if image.spacing is not None:
        return image.spacing, image.spacing_from
    told = config.pixel_spacing
    if told is None:
        return None, ""
    return (told if isinstance(told, tuple) else (told, told)), RECIPE


def in_one_unit(records: Sequence[Record]) -> tuple[Record, ...]:
    """The same records, without any spacing where some have none."""
    if all(r.spacing is not None for r in records):
        return tuple(records)
    return tuple(replace(r, spacing=None) for r in records)


def spacing_findings(scan: Scan) -> list[Finding]:
    """Of pictures: N307 a size of pixels that is known of some alone (warn); D100 where it is from (note)."""
    if scan.cases[0].spacing is not None:
        return []
    sources = Counter(case.spacing_from for case in scan.cases)
    unknown = sources.pop("", 0)
    if not sources:
        return []
    told = ", ".join(f"{name} ({n} images)" for name, n in sources.most_common())
    if not unknown:
        title = f"the size of pixels in mm is from {told}"
        remedy = "Nothing, if that is right"
        if set(sources) != {RECIPE}:
            remedy = "All but a calibrated PixelSpacing is measured at the detector or on the film, not in the patient"
        return [Finding("D100", "note", title, len(scan.cases), (), remedy)]
    examples = tuple(r.id for r, case in zip(scan.dataset.records, scan.cases) if not case.spacing_from)
    title = f"the size of pixels is known from {told}, and unknown of {unknown} images: all are measured in pixels"
    remedy = "Set data.pixel_spacing for those that do not say, or list them in data.exclude"
    return [Finding("N307", "warn", title, unknown, examples[:MOST_EXAMPLES], remedy)]
