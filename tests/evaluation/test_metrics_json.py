"""The summary: every number with bounds, baseline or a reason, the same from the table on disk as from memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medloom.config import EvaluationConfig
from medloom.errors import DataError
from medloom.evaluation.baselines import covariate_only, trivial, years
from medloom.evaluation.calibration import fit_temperature
from medloom.evaluation.operating_point import choose_operating_points
from medloom.evaluation.predictions import Predictions, read_csv
from medloom.evaluation.subgroups import subgroups
from medloom.evaluation.summary import summarise

Table = Callable[..., Predictions]
QUICK = EvaluationConfig(resamples=200)
ENTRY = {"value", "low", "high", "n", "patients", "baseline", "method", "note"}


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.keys() >= ENTRY:
            yield value
        for inner in value.values():
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _run(val: Predictions, test: Predictions, config: EvaluationConfig = QUICK) -> dict[str, Any]:
    t = fit_temperature(val.logits, val.labels, val.multi_label)
    val, test = val.calibrated(t), test.calibrated(t)
    points = choose_operating_points(val, config, timestamp="t", temperature=t)
    made = summarise(test, validation=val, operating_points=points, temperature=t, config=config, seed=1)
    result: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return result


@pytest.mark.parametrize(
    ("classes", "multi_label", "kind"),
    [
        (("NORMAL", "PNEUMONIA"), False, "binary"),
        (("a", "b", "c", "d"), False, "multi_class"),
        (("a", "b", "c"), True, "multi_label"),
        (("alone",), True, "multi_label"),
    ],
)
def test_every_number_has_bounds_or_a_reason(
    table: Table, classes: tuple[str, ...], multi_label: bool, kind: str
) -> None:
    sex = ["F", "M", "M"] * 200
    val = table(400, classes, multi_label=multi_label, seed=5, split="val")
    test = table(600, classes, multi_label=multi_label, covariates={"Sex": sex, "age": ["40", "70"] * 300})
    made = _run(val, test)
    assert made["task"] == kind
    found = list(_entries(made))
    assert len(found) > 60
    for e in found:
        if e["value"] is None:
            assert e["note"]
            assert e["low"] is None
        elif e["low"] is None:
            assert e["note"]
        else:
            assert e["low"] <= e["value"] <= e["high"]
    for split in made["splits"].values():
        assert split["metrics"]["auc"]["baseline"] == 0.5
        assert split["metrics"]["auc"]["value"] > 0.7
        for curve in split["curves"].values():
            assert len(curve["roc"]["y"]) == len(curve["pr"]["low"]) == 101
    assert {r["column"] for r in made["splits"]["test"]["subgroups"]["rows"]} == {"age", "sex"}
    assert made["splits"]["test"]["subgroups"]["absent"] == ["view", "device", "scanner", "site"]


def test_numbers_are_those_of_scikit_learn(table: Table) -> None:
    from sklearn import metrics as sk

    test = table(300, ("a", "b", "c"))
    made = _run(table(300, ("a", "b", "c"), seed=5), test)["splits"]["test"]
    p, y = test.calibrated(made["calibration"]["after"]["temperature"]).probabilities, test.labels
    answer, got = p.argmax(axis=1), {k: e["value"] for k, e in made["metrics"].items()}
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, answer))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, answer))
    assert got["precision"] == pytest.approx(sk.precision_score(y, answer, average="macro"))
    assert got["recall"] == pytest.approx(sk.recall_score(y, answer, average="macro"))
    assert got["f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert got["auc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    assert got["log_loss"] == pytest.approx(sk.log_loss(y, p))
    assert made["confusion"] == sk.confusion_matrix(y, answer).tolist()


def test_label_numbers_are_those_of_scikit_learn(table: Table) -> None:
    from sklearn import metrics as sk

    test = table(300, ("a", "b", "c"), multi_label=True)
    made = summarise(test, config=QUICK)["splits"]["test"]
    p, y = test.probabilities, test.labels
    answer, got = (p >= 0.5).astype(int), {k: e["value"] for k, e in made["metrics"].items()}
    assert got["auc"] == pytest.approx(sk.roc_auc_score(y, p))
    assert got["average_precision"] == pytest.approx(sk.average_precision_score(y, p))
    assert got["f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert got["exact_match"] == pytest.approx(sk.accuracy_score(y, answer))
    assert got["accuracy"] == pytest.approx((answer == y).mean())
    assert got["log_loss"] == pytest.approx(np.mean([sk.log_loss(y[:, k], p[:, k]) for k in range(3)]))
    assert got["brier"] == pytest.approx(np.mean([sk.brier_score_loss(y[:, k], p[:, k]) for k in range(3)]))


def test_the_table_on_disk_gives_the_same_bytes(table: Table, tmp_path: Path) -> None:
    test = table(200).calibrated(1.7)
    test.write_csv(tmp_path / "predictions_test.csv")
    first = summarise(test, temperature=1.7, config=QUICK)
    assert json.dumps(first) == json.dumps(
        summarise(read_csv(tmp_path / "predictions_test.csv"), temperature=1.7, config=QUICK)
    )


@pytest.mark.parametrize(("only", "words"), [(0, "0 positives"), (1, "0 negatives")])
def test_D123_a_one_class_split_is_not_estimable_in_so_many_words(table: Table, only: int, words: str) -> None:
    test = summarise(table(60, labels=np.full(60, only)), config=QUICK)["splits"]["test"]
    for name in ("auc", "average_precision", "balanced_accuracy", "recall", "precision", "f1", "brier_skill"):
        assert test["metrics"][name]["value"] is None
        assert test["metrics"][name]["note"] == f"not estimable ({words})"
    assert test["metrics"]["accuracy"]["value"] is not None
    assert test["curves"]["PNEUMONIA"]["roc"] is None


def test_D122_fewer_positives_than_ten_give_a_reason_instead_of_a_number(table: Table) -> None:
    labels = (np.arange(80) < 9).astype(int)
    test = summarise(table(80, labels=labels, per_patient=1), config=QUICK)["splits"]["test"]
    assert test["metrics"]["auc"]["note"] == "not estimable (9 positives, 10 needed)"
    assert test["per_class"]["PNEUMONIA"]["recall"]["value"] is None
    ten = (np.arange(80) < 10).astype(int)
    assert summarise(table(80, labels=ten, per_patient=1), config=QUICK)["splits"]["test"]["metrics"]["auc"]["value"]


def test_D123_the_macro_mean_says_13_of_14_labels(table: Table) -> None:
    names = tuple(f"label{k}" for k in range(14))
    made = table(200, names, multi_label=True)
    labels = made.labels.copy()
    labels[:, 6] = 0
    test = summarise(table(200, names, multi_label=True, labels=labels), config=QUICK)["splits"]["test"]
    assert test["metrics"]["auc"]["note"] == "mean of 13 of 14 labels"
    others = [test["per_class"][c]["auc"]["value"] for c in names if c != "label6"]
    assert test["metrics"]["auc"]["value"] == pytest.approx(np.mean(others))
    assert test["per_class"]["label6"]["auc"]["note"] == "not estimable (0 positives)"
    assert test["per_class"]["label6"]["auc"]["value"] is None


def test_D122_a_missing_class_of_several_is_left_out_and_counted(table: Table) -> None:
    labels = np.arange(120) % 3
    test = summarise(table(120, ("a", "b", "c", "d"), labels=labels, per_patient=1), config=QUICK)["splits"]["test"]
    assert test["metrics"]["balanced_accuracy"]["note"] == "mean of 3 of 4 classes"
    assert test["metrics"]["auc"]["note"] == "mean of 3 of 4 classes"


def test_a_class_that_nobody_was_given_is_named_in_the_macro_precision(table: Table) -> None:
    made = table(90, labels=np.arange(90) % 2, per_patient=1)
    logits = np.stack([np.full(90, 9.0), np.linspace(0, 1, 90)], axis=1)
    silent = Predictions(made.ids, made.patients, made.sites, made.labels, logits, logits * 0, made.classes)
    test = summarise(silent.calibrated(1.0), config=QUICK)["splits"]["test"]
    assert "nobody was called PNEUMONIA" in test["metrics"]["precision"]["note"]
    assert test["per_class"]["PNEUMONIA"]["precision"]["value"] is None
    assert test["per_class"]["PNEUMONIA"]["recall"]["value"] == 0.0
    assert test["metrics"]["accuracy"]["value"] == test["metrics"]["accuracy"]["baseline"] == 0.5


def test_random_labels_beat_no_baseline(table: Table) -> None:
    """The canary: scores that know nothing of the labels."""
    inside = 0
    for seed in range(20):
        test = table(200, separation=0.0, seed=seed)
        e = summarise(test, config=QUICK)["splits"]["test"]["metrics"]["auc"]
        inside += e["low"] <= 0.5 <= e["high"]
    assert inside >= 17


def test_predicting_nothing_scores_what_seed_003_scored() -> None:
    """Fourteen rare labels: 94.8 % per-label accuracy without looking at an image."""
    y = (np.random.default_rng(0).random((5000, 14)) < 81176 / 1569680).astype(int)
    n = len(y)
    made = Predictions(
        [str(i) for i in range(n)], [None] * n, [None] * n, y, np.zeros(y.shape) - 5, np.zeros(y.shape) + 0.01,
        [f"l{k}" for k in range(14)], True,
    )  # fmt: skip
    assert trivial(made)["accuracy"] == pytest.approx(0.948, abs=0.002)


def test_an_empty_split_is_refused(table: Table) -> None:
    with pytest.raises(DataError, match=r"error\[D115\] split test"):
        summarise(table(10).select(np.zeros(10, dtype=bool)), config=QUICK)


def test_summaries_are_repeatable(table: Table) -> None:
    first, again = (json.dumps(summarise(table(100), config=QUICK, seed=3)) for _ in range(2))
    assert first == again


def test_a_site_that_tells_the_label_shows_in_the_covariates(table: Table) -> None:
    made = table(400)
    sites = tuple("north" if y or i % 5 == 0 else "south" for i, y in enumerate(made.labels))
    noise = np.random.default_rng(0)
    marked = Predictions(
        made.ids, made.patients, sites, made.labels, made.logits, made.probabilities, made.classes,
        covariates={"sex": tuple(noise.choice(["F", "M"], 400).tolist()), "age": ("",) * 200 + ("063Y",) * 200},
    )  # fmt: skip
    rows = {tuple(r["columns"]): r["auc"] for r in covariate_only(marked, QUICK)}
    assert rows["site",]["value"] > 0.8
    assert rows["sex",]["low"] <= 0.5 <= rows["sex",]["high"]
    assert rows["age", "sex", "site"]["value"] > 0.8
    assert covariate_only(made, QUICK) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_site_that_tells_nothing_scores_a_half(table: Table, seed: int) -> None:
    labels = np.arange(120) // 2 % 2
    made = table(120, labels=labels, per_patient=1)
    sites = tuple(np.array(["north", "east", "south"])[np.arange(120) // 4 % 3].tolist())  # each half positive
    marked = Predictions(
        made.ids, made.patients, sites, made.labels, made.logits, made.probabilities, made.classes
    )  # fmt: skip
    [row] = covariate_only(marked, QUICK, seed)
    assert row["columns"] == ["site"]
    assert row["auc"]["value"] == pytest.approx(0.5, abs=0.03)


def test_small_subgroups_are_too_few_to_judge(table: Table) -> None:
    made = table(300, labels=np.arange(300) % 2, per_patient=1)
    view = tuple("LATERAL" if i < 12 else "PA" for i in range(300))
    marked = Predictions(
        made.ids, made.patients, made.sites, made.labels, made.logits, made.probabilities, made.classes,
        covariates={"view": view, "age": tuple(str(a % 100) for a in range(300))},
    )  # fmt: skip
    points = choose_operating_points(marked, QUICK, timestamp="t")
    rows = {(r["column"], r["group"]): r for r in subgroups(marked, points, QUICK)["rows"]}
    assert rows["view", "LATERAL"]["auc"]["note"] == "not estimable (too few to judge)"
    assert rows["view", "PA"]["auc"]["value"] > 0.7
    assert [g for c, g in rows if c == "age"] == ["0-17", "18-39", "40-59", "60-79", "80+"]
    assert sum(r["n"] for (c, _), r in rows.items() if c == "age") == 300


@pytest.mark.parametrize(
    ("text", "age"), [("63", 63), ("063Y", 63), ("018M", 1.5), ("63.5", 63.5), ("", None), ("old", None), ("-3", None)]
)
def test_ages_are_read(text: str, age: float | None) -> None:
    assert years(text) == age
