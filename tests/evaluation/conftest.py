"""Tables of predictions with known properties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medloom.evaluation.predictions import Predictions, from_logits

Table = Callable[..., Predictions]


def make_table(
    n: int = 300,
    classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA"),
    *,
    labels: np.ndarray | None = None,
    multi_label: bool = False,
    separation: float = 1.5,
    per_patient: int = 2,
    seed: int = 0,
    model_seed: int = 0,
    **more: object,
) -> Predictions:
    """Gaussian logits around the truth; images of one patient share its label and half of its difficulty."""
    generator, k = np.random.default_rng(seed), len(classes)
    patient = np.arange(n) // per_patient
    if labels is None:
        if multi_label:
            labels = (generator.random((n, k)) < 0.3).astype(int)
        else:
            labels = generator.integers(0, k, patient.max() + 1)[patient]
    truth = labels if multi_label else labels[:, None] == np.arange(k)
    shared = generator.normal(size=(patient.max() + 1, k))[patient]
    own = np.random.default_rng((seed, model_seed)).normal(size=(n, k))
    logits = separation * truth + 0.7 * shared + 0.7 * own - (separation / 2 if multi_label else 0)
    return from_logits(
        [f"image{i}.png" for i in range(n)],
        [f"p{p}" for p in patient],
        [None] * n,
        labels,
        logits,
        classes,
        multi_label=multi_label,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def table() -> Table:
    return make_table
