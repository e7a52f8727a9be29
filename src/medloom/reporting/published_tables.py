"""Published tables that a leaderboard may show beside ours, as plain data, and what their numbers mean.

Sources: the Padova slides "Cross-attention and reconstruction-regularized transformers for multi-label chest X-ray
classification" (2026), three tables; Yang et al., MedMNIST v2, Scientific Data 10:41 (2023), table 3; Manzari et al.,
MedViT, Computers in Biology and Medicine 157:106791 (2023); the HATR paper (EMITI 2025), table 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medloom.reporting.published import TABLE_2, WHAT_IT_MEANS, is_the_papers_task


@dataclass(frozen=True)
class Row:
    """One published model: shares, not per cent; parameters in millions. ``names`` are our registry's."""

    model: str
    names: tuple[str, ...]
    auc: float | None
    accuracy: float | None
    millions: float | None = None


@dataclass(frozen=True)
class Table:
    """One published table. ``size``: pixels per side of the network's input; None where each row says its own."""

    title: str
    data: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    size: int | None = None


_SLIDES = (
    "Accuracy is defined there as the share of images whose 14 labels are all right; the values are label-wise "
    "accuracy. On the official test split the answer 'no finding' to everything has a label-wise accuracy of 0.948 and "
    "all 14 labels right in 0.538 of the images, so the published accuracies do not tell a model from no model. Read "
    "the AUC.",
    "One run each, no intervals; the numbers of validation and test images are printed the wrong way round (official: "
    "11,219 and 22,433), so it is open which of the two was scored.",
    "Parameters of the three baselines are Keras totals with a head of 256 units and with batch-norm statistics; the "
    "inference times name no batch size.",
)
_MEDMNIST = (
    "One number per model, no intervals. Adam 1e-3, 100 epochs, batch 128, no augmentation, best epoch by validation "
    "AUC.",
    "The rows (224) are the same 28 px images enlarged to 224, not images of 224 px.",
)
_MEDVIT = (
    "28 px images enlarged to 224; one run. Users report that the released code does not reach all of its "
    "numbers. The sizes printed in the paper (10.8, 23.6, 45.8 M) are not those of the code.",
)
_CHEST_ACCURACY = "Accuracy is label-wise: 'no finding' to everything has 0.947 on ChestMNIST. Read the AUC."


def _slides(size: int, values: Sequence[tuple[float, float] | None], millions: tuple[float | None, ...]) -> Table:
    names: tuple[tuple[str, str, float | None], ...] = (
        ("ResNet50", "resnet50", 24.12),
        ("DenseNet121", "densenet121", 7.30),
        ("EfficientNetB0", "efficientnet_b0", 4.38),
        ("MedViT", "medvit_large", 57.69),
        ("DBCT", "dbct", millions[0]),
        ("RR-ViT", "rr_vit", millions[1]),
        ("Hybrid RR-ViT", "hybrid_rr_vit", millions[2]),
    )
    rows = tuple(
        Row(title, (name,), pair[1] if pair else None, pair[0] if pair else None, count)
        for (title, name, count), pair in zip(names, values, strict=True)
    )
    more = ("MedViT is copied there from its own paper (enlarged 28 px images), not run.",) if size == 224 else ()
    return Table(f"Padova slides, {size} px", "chestmnist", rows, (*_SLIDES, *more), size)


def _medmnist(data: str, pairs: Sequence[tuple[float, float]], notes: tuple[str, ...] = ()) -> Table:
    models: tuple[tuple[str, tuple[str, ...]], ...] = (
        *(("ResNet-18 (28)", ("resnet18",)), ("ResNet-18 (224)", ("resnet18",)), ("ResNet-50 (28)", ("resnet50",))),
        *(("ResNet-50 (224)", ("resnet50",)), ("auto-sklearn", ()), ("AutoKeras", ()), ("Google AutoML Vision", ())),
    )
    rows = tuple(Row(m, names, auc, acc) for (m, names), (auc, acc) in zip(models, pairs, strict=True))
    return Table("MedMNIST v2, table 3", data, rows, (*_MEDMNIST, *notes))


def _medvit(data: str, pairs: Sequence[tuple[float, float]], notes: tuple[str, ...] = ()) -> Table:
    models = (("MedViT-T", "medvit_tiny", 10.8), ("MedViT-S", "medvit_small", 23.6), ("MedViT-L", "medvit_large", 45.8))
    rows = tuple(Row(m, (name,), auc, acc, n) for (m, name, n), (auc, acc) in zip(models, pairs, strict=True))
    return Table("MedViT", data, rows, (*_MEDVIT, *notes), 224)


TABLES = (
    _medmnist(
        "pneumoniamnist",
        (
            (0.944, 0.854),
            (0.956, 0.864),
            (0.948, 0.854),
            (0.962, 0.884),
            (0.942, 0.855),
            (0.947, 0.878),
            (0.991, 0.946),
        ),
    ),
    _medvit("pneumoniamnist", ((0.993, 0.949), (0.995, 0.961), (0.991, 0.921))),
    _medmnist(
        "chestmnist",
        (
            (0.768, 0.947),
            (0.773, 0.947),
            (0.769, 0.947),
            (0.773, 0.948),
            (0.649, 0.779),
            (0.742, 0.937),
            (0.778, 0.948),
        ),
        (_CHEST_ACCURACY,),
    ),
    _medvit("chestmnist", ((0.786, 0.956), (0.791, 0.954), (0.805, 0.959)), (_CHEST_ACCURACY,)),
    _slides(
        64,
        ((0.947, 0.686), (0.948, 0.726), (0.948, 0.743), None, (0.947, 0.747), (0.947, 0.722), (0.948, 0.755)),
        (2.41, 0.29, 4.46),
    ),
    _slides(
        128,
        ((0.948, 0.706), (0.948, 0.758), (0.948, 0.740), None, (0.947, 0.736), (0.948, 0.733), (0.948, 0.761)),
        (2.41, 0.32, 4.66),
    ),
    _slides(
        224,
        ((0.947, 0.702), (0.948, 0.701), (0.948, 0.729), (0.959, 0.805), (0.947, 0.747), (0.948, 0.738), None),
        (2.45, 0.38, None),
    ),
    Table(
        "HATR paper, table 2",
        "chest_xray",
        tuple(Row(p.model, p.names, p.auc, p.accuracy) for p in TABLE_2),
        WHAT_IT_MEANS,
        224,
    ),
)


def tables_for(source: str, classes: tuple[str, ...], counts: dict[str, int], images: int) -> tuple[Table, ...]:
    """The tables of the data set that was scored: by its name and, for the HATR paper, by its 624 test images."""
    name = source.lower()
    for data in ("pneumoniamnist", "chestmnist"):
        if name.startswith(data):
            return tuple(t for t in TABLES if t.data == data)
    if is_the_papers_task(classes, images, counts.get(classes[-1], 0)):
        return tuple(t for t in TABLES if t.data == "chest_xray")
    return ()
