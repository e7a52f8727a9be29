"""metrics.json of masks: strict JSON, intervals by patient, nothing flattering, and a trivial answer beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from masks_fixture import shapes, table
from scipy.stats import norm

from medloom.config import EvaluationConfig
from medloom.errors import DataError
from medloom.evaluation.mean_shape import mean_shape
from medloom.evaluation.segmentation import dice
from medloom.evaluation.segmentation_comparison import (
    difference_of_cases,
    differences_of_cases,
    signed_rank,
)
from medloom.evaluation.segmentation_summary import notable_cases, order_interval, summarise_segmentation

CONFIG = EvaluationConfig(resamples=200)


def test_every_number_follows_from_the_table_and_is_strict_json() -> None:
    test, val = table(n=40, missing=0.3), table(n=12, seed=3, split="val")
    content = summarise_segmentation(test, validation=val, config=CONFIG)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert (content["task"], content["unit"], content["classes"]) == ("segmentation", "patient", list(test.structures))
    part = content["splits"]["test"]
    assert (part["n"], part["patients"], content["splits"]["val"]["name"]) == (40, 40, "val")
    assert part["metrics"]["dice"]["value"] == pytest.approx(np.nanmean(test.per_case("dice")))
    assert part["metrics"]["dice"]["baseline"] == pytest.approx(np.nanmean(test.per_case("trivial_dice")))
    assert part["metrics"]["hd95"]["baseline"] is None
    posterior = part["structures"]["posterior"]
    column = test.values["dice"][:, 1]
    assert posterior["metrics"]["dice"]["value"] == pytest.approx(np.nanmean(column))
    assert posterior["metrics"]["dice"]["n"] == int(np.isfinite(column).sum()) < 40
    assert posterior["medians"]["dice"]["value"] == pytest.approx(np.nanmedian(column))
    assert posterior["metrics"]["size_bias"]["value"] == pytest.approx(test.values["size_error"][:, 1].mean())
    error = np.abs(test.values["size_error_relative"][:, 1])
    assert posterior["metrics"]["size_error_relative"]["value"] == pytest.approx(np.nanmean(error))
    lesions = posterior["lesions"]
    pooled = 2 * lesions["found"] / (2 * lesions["found"] + lesions["missed"] + lesions["invented"])
    assert posterior["metrics"]["lesion_f1"]["value"] == pytest.approx(pooled)
    assert lesions["truth"] == part["counts"]["posterior"]
    assert sum(posterior["outcomes"].values()) == 40
    assert posterior["outcomes"]["missed"] == int((test.outcomes[:, 1] == "missed").sum()) > 0
    low, high = (part["metrics"]["dice"][k] for k in ("low", "high"))
    assert low < part["metrics"]["dice"]["value"] < high


def test_finding_less_never_looks_better() -> None:
    """The cases that a model does worst on are answered empty instead: no mean may improve."""
    test = table(n=40, shift=3, missing=0.0)
    worst = np.argsort(test.per_case("dice"))[:8]
    values = {name: v.copy() for name, v in test.values.items()}
    far = float(np.hypot(np.hypot(14, 18), 18))
    for name, empty in (("dice", 0.0), ("nsd", 0.0), ("hd95", far), ("assd", far), ("size_answer", 0.0)):
        values[name][worst] = empty
    values["lesions_missed"][worst] += values["lesions_found"][worst]
    values["lesions_found"][worst] = 0
    lazy = replace(test, values=values)
    before, after = (summarise_segmentation(t, config=CONFIG)["splits"]["test"] for t in (test, lazy))
    for name, sign in (("dice", 1), ("nsd", 1), ("lesion_f1", 1), ("hd95", -1), ("assd", -1)):
        assert sign * after["metrics"][name]["value"] < sign * before["metrics"][name]["value"], name
    assert after["outcomes"]["missed"] == before["outcomes"]["missed"] + 16


def test_H3_intervals_resample_patients_and_not_their_cases() -> None:
    """Every case four times under one patient: the interval stays, though the cases are four times as many."""
    once = table(n=20, shift=3)
    rows = np.repeat(np.arange(20), 4)
    again = replace(
        once,
        ids=tuple(f"{i}" for i in range(80)),
        patients=tuple(once.patients[i] for i in rows),
        sites=tuple(once.sites[i] for i in rows),
        values={name: v[rows] for name, v in once.values.items()},
    )
    a, b = (summarise_segmentation(t, config=CONFIG)["splits"]["test"] for t in (once, again))
    assert (b["n"], b["patients"]) == (80, 20)
    assert b["metrics"]["dice"]["low"] == pytest.approx(a["metrics"]["dice"]["low"], abs=1e-9)
    assert a["medians"]["dice"]["method"] == "order statistics"
    assert b["medians"]["dice"]["low"] is None
    assert "several cases" in b["medians"]["dice"]["note"]


def test_the_interval_of_the_median_covers_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside = [
        bounds.low <= norm.ppf(0.5) <= bounds.high
        for bounds in (order_interval(np.sort(generator.normal(size=25))) for _ in range(600))
    ]
    assert np.mean(inside) >= 0.94
    assert order_interval(np.arange(4.0)).low is None


def test_D122_a_structure_that_no_case_has_is_not_estimable() -> None:
    none = table(n=12, missing=1.0)
    content = summarise_segmentation(none, config=CONFIG)["splits"]["test"]
    posterior = content["structures"]["posterior"]
    assert posterior["outcomes"] == {"both": 0, "missed": 0, "invented": 0, "empty": 12}
    assert posterior["metrics"]["dice"]["value"] is None
    assert "0 cases" in posterior["metrics"]["dice"]["note"]
    assert content["metrics"]["dice"]["value"] == content["structures"]["anterior"]["metrics"]["dice"]["value"]


def test_few_patients_give_numbers_without_intervals_and_no_row_of_a_site() -> None:
    content = summarise_segmentation(table(n=4), config=CONFIG)["splits"]["test"]
    assert content["metrics"]["dice"]["value"] is not None
    assert content["metrics"]["dice"]["low"] is None
    assert "fewer than 5" in content["metrics"]["dice"]["note"]
    assert all(row["dice"]["value"] is None for row in content["sites"])


def test_sites_are_judged_by_themselves() -> None:
    test = table(n=40, shift=3)
    rows = summarise_segmentation(test, config=CONFIG)["splits"]["test"]["sites"]
    assert [(r["site"], r["structure"]) for r in rows[:3]] == [("east", s) for s in ("all", "anterior", "posterior")]
    east = test.per_case("dice")[[s == "east" for s in test.sites]]
    assert rows[0]["dice"]["value"] == pytest.approx(np.nanmean(east))
    assert rows[0]["n"] == 20


def test_every_site_has_its_row_however_many_there_are() -> None:
    test = replace(table(n=25), sites=tuple(f"site {i:02}" for i in range(25)))
    rows = summarise_segmentation(test, config=CONFIG)["splits"]["test"]["sites"]
    assert {row["site"] for row in rows} == set(test.sites)


def test_worst_median_and_best_are_three_different_things() -> None:
    test = table(n=30, shift=3)
    found = notable_cases(test)
    score = dict(zip(test.ids, test.per_case("dice")))
    assert [len(v) for v in found.values()] == [4, 2, 2]
    assert len({i for ids in found.values() for i in ids}) == 8
    assert score[found["worst"][0]] == min(score.values())
    assert score[found["best"][-1]] == max(score.values())
    assert score[found["median"][0]] == pytest.approx(np.median(list(score.values())), abs=0.05)
    assert notable_cases(table(n=2))["best"] == []


def test_D115_a_split_without_cases() -> None:
    with pytest.raises(DataError, match="D115"):
        summarise_segmentation(table(n=3).select(np.array([], dtype=int)))


def test_the_mean_shape_is_a_fair_trivial_answer() -> None:
    """Structures in one place are found without a look; structures anywhere are not."""
    fixed = np.zeros((20, 24), dtype=np.uint8)
    fixed[5:15, 6:18] = 1
    shape = mean_shape([fixed] * 5, 1)
    assert dice(fixed > 0, shape.at((20, 24)) > 0) > 0.95
    assert shape.at((40, 48)).shape == (40, 48)
    generator = np.random.default_rng(0)
    anywhere = [np.roll(fixed, generator.integers(0, 24, 2), axis=(0, 1)) for _ in range(40)]
    loose = mean_shape(anywhere, 1)
    assert np.mean([dice(m > 0, loose.at(m.shape) > 0) for m in anywhere]) < 0.6
    assert loose.answer.any()  # never so careful that it is empty, which would be no opponent
    with pytest.raises(ValueError, match="no masks"):
        mean_shape([], 1)


def test_the_mean_shape_works_on_masks_of_any_size_and_several_structures() -> None:
    masks = [truth for truth, _ in shapes(20, missing=0.0)]
    shape = mean_shape([*masks, np.repeat(masks[0], 2, axis=0)], 2)
    assert set(np.unique(shape.at((14, 18, 12)))) == {0, 1, 2}
    assert np.mean([dice(m == 1, shape.at(m.shape) == 1) for m in masks]) > 0.6


def test_H4_the_difference_is_paired_and_has_an_interval() -> None:
    good, bad = table(n=40, shift=1, missing=0.05), table(n=40, shift=1, missing=0.05)
    values = {name: v.copy() for name, v in bad.values.items()}
    values["dice"] = np.clip(values["dice"] - 0.04, 0, 1)
    bad = replace(bad, values=values)
    got = difference_of_cases(good, bad.select(np.arange(40)[::-1]), resamples=500)
    assert got["difference"]["value"] == pytest.approx(got["a"] - got["b"])
    assert got["difference"]["value"] > 0.03
    assert 0 < got["difference"]["low"] < got["difference"]["high"]
    assert got["p"] < 0.01
    assert got["wilcoxon"] < 0.001
    assert got["better"]["b"] == 0
    back = difference_of_cases(bad, good, resamples=500)
    assert back["difference"]["value"] == pytest.approx(-got["difference"]["value"])


def test_equal_models_differ_by_nothing_and_no_test_says_otherwise() -> None:
    one = table(n=20)
    got = difference_of_cases(one, one, "hd95", structure="posterior", resamples=200)
    assert got["difference"]["value"] == 0
    assert got["p"] == got["wilcoxon"] == 1
    assert got["better"] == {"a": 0, "b": 0, "equal": got["difference"]["n"]}


def test_an_invention_costs_something_beside_a_model_that_held_still() -> None:
    """Truth empty: one model answers empty (no Dice), the other invents (Dice 0). Dropping the pair would hide it."""
    rows = table(n=12, missing=1.0)
    values = {name: v.copy() for name, v in rows.values.items()}
    values["dice"][:, 1], values["hd95"][:, 1], values["size_answer"][:, 1] = 0.0, 30.0, 0.4
    inventor = replace(rows, values=values)
    got = difference_of_cases(rows, inventor, structure="posterior", resamples=200)
    assert (got["a"], got["b"]) == (1.0, 0.0)
    far = difference_of_cases(rows, inventor, "hd95", structure="posterior", resamples=200)
    assert (far["a"], far["b"], far["better"]["a"]) == (0.0, 30.0, 12)
    both = difference_of_cases(rows, rows, structure="posterior", resamples=200)
    assert both["difference"]["value"] is None


def test_several_models_pay_for_their_number() -> None:
    tables = {"unet": table(n=30), "a": table(n=30, missing=0.3), "b": table(n=30)}
    tables["a"] = replace(
        tables["unet"], values={**tables["unet"].values, "dice": tables["unet"].values["dice"] - 0.02}
    )
    rows = differences_of_cases(tables, "unet", resamples=300)
    assert [r["model"] for r in rows] == ["a", "b"]
    assert rows[0]["wilcoxon_holm"] == pytest.approx(min(1, 2 * rows[0]["wilcoxon"]))
    assert rows[1]["wilcoxon_holm"] == 1


def test_fewer_than_five_patients_are_not_tested() -> None:
    got = difference_of_cases(table(n=8, per_patient=2), table(n=8, per_patient=2), resamples=100)
    assert got["p"] is None
    assert got["wilcoxon"] is None
    assert got["difference"]["low"] is None


@pytest.mark.parametrize("fault", ["cases", "structures", "masks"])
def test_D116_other_cases_are_not_compared(fault: str) -> None:
    one = table(n=10)
    other = {
        "cases": one.select(np.arange(9)),
        "structures": replace(one, structures=("a", "b")),
        "masks": replace(one, values={**one.values, "size_truth": one.values["size_truth"] * 1.01}),
    }[fault]
    with pytest.raises(DataError, match="D116"):
        difference_of_cases(one, other)


def test_unknown_measures_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="unknown measure"):
        difference_of_cases(table(n=3), table(n=3), "auc")
    with pytest.raises(ValueError, match="unknown structure"):
        difference_of_cases(table(n=3), table(n=3), structure="lung")


def test_signed_ranks_are_scipys() -> None:
    assert signed_rank(np.zeros(9)) == 1.0
    assert signed_rank(np.arange(1.0, 11)) == pytest.approx(2 / 2**10)
