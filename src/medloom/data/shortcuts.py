"""How well the label is told by what no reader of the image would look at: bit depth, size, file type, site, view ...

Each attribute is judged alone, on training and validation images (all, where there are no splits): numbers by the
AUC that they reach, the best class against the rest; words by Cramer's V. An attribute without any relation to the
label stays under the limits but for one chance in some ten thousand.

References: Hanley and McNeil, Radiology 143:29, 1982; Cramer, Mathematical Methods of Statistics, 1946; Zech et al.,
PLoS Medicine 15:e1002683, 2018 (networks that read the hospital instead of the lung).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from medloom.data.findings import Finding
from medloom.data.records import Dataset, Record
from medloom.data.scan import ImageFacts

AUC_LIMIT = 0.65
V_LIMIT = 0.2
_DEVIATIONS = 4.0
_MOST_WORDS = 20

_NUMBERS: dict[str, Callable[[ImageFacts], float]] = {
    "file size": lambda image: image.size_bytes,
    "image height": lambda image: image.height,
    "image width": lambda image: image.width,
    "aspect ratio": lambda image: image.width / image.height,
    "JPEG quality": lambda image: -image.quality,
    "mean brightness": lambda image: image.mean,
}
_WORDS: dict[str, Callable[[ImageFacts], str]] = {
    "file type": lambda image: image.file_type,
    "colour mode": lambda image: image.mode,
}


def shortcuts(dataset: Dataset, images: Sequence[ImageFacts]) -> list[Finding]:
    """D106: mixed bit depths (refuse), and every other attribute that predicts the label (warn)."""
    rows = [k for k, r in enumerate(dataset.records) if r.split != "test"] or list(range(len(dataset)))
    records, shown = [dataset.records[k] for k in rows], [images[k] for k in rows]
    y_NK = _indicators(records, len(dataset.classes))
    findings = _bit_depths(dataset, images, records, shown, y_NK)
    for name, read in _NUMBERS.items():
        findings += _number(name, np.array([read(image) for image in shown], dtype=np.float64), y_NK, dataset.classes)
    for name, read_word in _WORDS.items():
        findings += _word(name, [read_word(image) for image in shown], y_NK, dataset.classes)
    findings += _word("site", [r.site or "" for r in records], y_NK, dataset.classes)
    for column in sorted({key for r in records for key in r.covariates}):
        cells = [r.covariates.get(column, "") for r in records]
        if cells == [r.patient or "" for r in records]:
            continue  # the column that says who it is
        if (values := _as_numbers(cells)) is not None:
            findings += _number(f"column {column}", values, y_NK, dataset.classes)
        elif len(set(cells)) <= _MOST_WORDS:
            findings += _word(f"column {column}", cells, y_NK, dataset.classes)
    return findings


def auc(values_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Area under the ROC curve of ``values`` as a score, by ranks with ties shared; NaN where one side is empty."""
    n, positives = len(values_N), int(positive_N.sum())
    if positives in (0, n):
        return math.nan
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * (n - positives)))


def cramers_v(words: Sequence[str], positive_N: np.ndarray) -> tuple[float, float]:
    """Cramer's V of a word and a yes-or-no label, and its standard score (chi squared against its expectation)."""
    names, code = np.unique(np.array(words, dtype=object).astype(str), return_inverse=True)
    n, freedom = len(code), len(names) - 1
    if freedom < 1 or positive_N.all() or not positive_N.any():
        return 0.0, 0.0
    table = np.zeros((len(names), 2))
    np.add.at(table, (code, positive_N.astype(int)), 1)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / n
    chi = float(((table - expected) ** 2 / expected).sum())
    return math.sqrt(chi / n), (chi - freedom) / math.sqrt(2 * freedom)


def _bit_depths(
    dataset: Dataset,
    images: Sequence[ImageFacts],
    records: Sequence[Record],
    shown: Sequence[ImageFacts],
    y_NK: np.ndarray,
) -> list[Finding]:
    depths = Counter(image.bits for image in images)
    findings = []
    if len(depths) > 1:
        words = [str(image.bits) for image in shown]
        v = max(cramers_v(words, y_N)[0] for y_N in y_NK.T)
        told = ", ".join(f"{n} of {f'{bits} bits' if bits else 'floats'}" for bits, n in sorted(depths.items()))
        examples = tuple(
            next(r.id for r, image in zip(dataset.records, images) if image.bits == bits) for bits in sorted(depths)
        )
        title = f"bit depths are mixed: {told}; bit depth alone predicts the label with Cramer's V {v:.2f}"
        findings.append(
            Finding("D106", "refuse", title, min(depths.values()), examples,
                    "Export all images from one source at one depth")
        )  # fmt: skip
    narrow = [k for k, image in enumerate(images) if image.bits > 8 and image.used_bits < image.bits]
    deep = sum(image.bits > 8 for image in images)
    if narrow and len(narrow) == deep:
        used = max(images[k].used_bits for k in narrow)
        title = f"{deep} images of {images[narrow[0]].bits} bits use only the lower {used}: they will look dark"
        findings.append(Finding("D105", "warn", title, deep, (), "Set preprocess.intensity=percentile"))
    return findings


def _number(name: str, values_N: np.ndarray, y_NK: np.ndarray, classes: Sequence[str]) -> list[Finding]:
    known_N = np.isfinite(values_N)
    best, label = 0.5, ""
    for y_N, title in zip(y_NK[known_N].T, classes):
        n, positives = len(y_N), int(y_N.sum())
        if positives in (0, n):
            continue
        area = auc(values_N[known_N], y_N)
        deviation = math.sqrt((n + 1) / (12 * positives * (n - positives)))
        if abs(area - 0.5) > max(abs(best - 0.5), _DEVIATIONS * deviation):
            best, label = area, title
    if max(best, 1 - best) < AUC_LIMIT:
        return []
    side = "higher" if best > 0.5 else "lower"
    title = f"{name} alone predicts {label} with AUC {max(best, 1 - best):.2f} ({side} where it is present)"
    return [_shortcut(title, int(known_N.sum()))]


def _word(name: str, words: Sequence[str], y_NK: np.ndarray, classes: Sequence[str]) -> list[Finding]:
    best, label = 0.0, ""
    for y_N, title in zip(y_NK.T, classes):
        v, score = cramers_v(words, y_N)
        if v > best and score > _DEVIATIONS:
            best, label = v, title
    if best < V_LIMIT:
        return []
    return [_shortcut(f"{name} alone predicts {label} with Cramer's V {best:.2f}", len(words))]


def _shortcut(title: str, count: int) -> Finding:
    remedy = "A model may learn this instead of the disease; balance it, or test where it does not hold"
    return Finding("D106", "warn", title, count, (), remedy)


def _indicators(records: Sequence[Record], n_classes: int) -> np.ndarray:
    y_NK = np.zeros((len(records), n_classes), dtype=bool)
    for row, record in enumerate(records):
        y_NK[row, list(record.labels)] = True
    return y_NK


def _as_numbers(cells: Sequence[str]) -> np.ndarray | None:
    """NaN for empty cells; None where some cell is a word, or there are too few values to be a scale."""
    try:
        values = np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        return None
    return values if len(set(cells)) > 2 else None
