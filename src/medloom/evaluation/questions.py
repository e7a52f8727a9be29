"""The yes-or-no questions inside a table of predictions, one per class that has a score of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medloom.evaluation.predictions import Predictions

LEAST_PATIENTS = 5
"""Of either side: with fewer, one resample in 150 has none at all, and of several labels soon every twentieth."""


@dataclass(frozen=True, eq=False)
class Question:
    """Is it this class or not.

    Attributes:
        name: the class.
        column: its position in ``Predictions.classes``.
        positive: ``(N,)`` bool, the truth.
        score: ``(N,)`` calibrated probability.
        groups: ``(N,)`` patient of each image; None takes every image for a patient.
    """

    name: str
    column: int
    positive: np.ndarray
    score: np.ndarray
    groups: np.ndarray | None = None

    @property
    def positives(self) -> int:
        return int(self.positive.sum())

    @property
    def negatives(self) -> int:
        return len(self.positive) - self.positives

    def missing(self, least: int) -> str | None:
        """Why discrimination cannot be judged on fewer than ``least`` images, or five patients, of either side (D122,
        D123); None where it can.
        """
        for count, kind in ((self.positives, "positives"), (self.negatives, "negatives")):
            if count < max(least, 1):
                return f"{count} {kind}" if count == 0 else f"{count} {kind}, {least} needed"
        wanted = min(least, LEAST_PATIENTS)
        for side, kind in ((self.positive, "positives"), (~self.positive, "negatives")):
            patients = int(side.sum()) if self.groups is None else len(set(self.groups[side]))
            if patients < wanted:
                return f"{int(side.sum())} {kind} of {patients} patients, {wanted} patients needed"
        return None


def task(predictions: Predictions) -> str:
    """``binary``, ``multi_class`` or ``multi_label``."""
    if predictions.multi_label:
        return "multi_label"
    return "binary" if len(predictions.classes) == 2 else "multi_class"


def questions(predictions: Predictions) -> tuple[Question, ...]:
    """The last class alone where two exclude each other; else every class against the rest."""
    columns = (1,) if task(predictions) == "binary" else tuple(range(len(predictions.classes)))
    return tuple(question_of(predictions, k) for k in columns)


def question_of(predictions: Predictions, k: int) -> Question:
    """Is it class ``k`` or not."""
    positive, score = predictions.positives[:, k], predictions.probabilities[:, k]
    return Question(predictions.classes[k], k, positive, score, predictions.groups)


def answers(predictions: Predictions) -> np.ndarray:
    """``(N, K)`` bool: the most probable class, or every label with probability of at least one half."""
    if predictions.multi_label:
        return predictions.probabilities >= 0.5
    return predictions.probabilities.argmax(axis=1)[:, None] == np.arange(len(predictions.classes))
