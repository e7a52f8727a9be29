"""Many images of few patients are few: a label is judged by who bears it, not by how often they were imaged."""

from __future__ import annotations

import numpy as np
import pytest

from medloom.config import EvaluationConfig
from medloom.evaluation.predictions import Predictions, from_logits
from medloom.evaluation.questions import questions
from medloom.evaluation.scoring import score

CONFIG = EvaluationConfig(resamples=200)


def table(owners_of_rare: int) -> Predictions:
    """Two labels on 240 images of 60 patients; the rare one is on all 4 images of each of a few patients."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 4)
    labels = np.stack([rng.random(240) < 0.4, patient < owners_of_rare], axis=1).astype(int)
    logits = rng.normal(0, 1, (240, 2)) + labels
    return from_logits(
        [str(i) for i in range(240)], [f"p{p}" for p in patient], [None] * 240, labels, logits, ("common", "rare"),
        multi_label=True,
    )  # fmt: skip


def test_D122_positives_of_four_patients_are_too_few_and_of_five_are_not() -> None:
    few, enough = (questions(table(n))[1].missing(10) for n in (4, 5))
    assert few == "16 positives of 4 patients, 5 patients needed"
    assert enough is None
    assert questions(table(3))[1].missing(1) is None  # who asks for one positive gets it


def test_D123_the_mean_leaves_the_label_out_and_keeps_its_interval() -> None:
    found = score(table(3), CONFIG)
    assert found["per_class"]["rare"]["auc"]["value"] is None
    assert "3 patients" in found["per_class"]["rare"]["auc"]["note"]
    mean = found["metrics"]["auc"]
    assert mean["note"] == "mean of 1 of 2 labels"
    assert mean["low"] < mean["value"] < mean["high"]


def test_without_patients_every_image_counts_as_one() -> None:
    made = table(3)
    alone = Predictions(
        made.ids, (None,) * 240, made.sites, made.labels, made.logits, made.probabilities, made.classes, True
    )
    assert questions(alone)[1].missing(10) is None


def test_D124_many_labels_without_any_threshold_are_no_refusal() -> None:
    from medloom.evaluation.operating_point import choose_operating_points

    made = table(5)
    small = made.select(np.arange(len(made)) < 40)
    found = choose_operating_points(small, CONFIG, timestamp="t")
    assert [p["threshold"] for p in found["points"]] == [None, None]
    assert all("D124" in p["reason"] for p in found["points"])


def test_the_all_negative_answer_stands_beside_both_accuracies() -> None:
    made = table(5)
    found, answer = score(made, CONFIG)["metrics"], made.probabilities >= 0.5
    for name, nothing, ours in (
        ("accuracy", 1 - made.labels.mean(), (answer == made.labels).mean()),
        ("exact_match", (made.labels.sum(axis=1) == 0).mean(), (answer == made.labels).all(axis=1).mean()),
    ):
        assert found[name]["baseline"] == pytest.approx(nothing)
        assert found[name]["value"] == pytest.approx(ours)
