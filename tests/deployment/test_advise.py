"""The decision tree: every branch, what contradicts the founding text, and figures of this machine or of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medloom.deployment.advise import CANDIDATES, Asked, advise, committed_figures
from medloom.errors import UsageError
from medloom.models.registry import list_models
from medloom.workflows import advise as verb
from medloom.workflows.advise import advise_here

FIGURES: dict[str, Any] = {
    "machine": "some machine",
    "rows": {
        name: {"batch 1": ms, "parameters": count}
        for name, ms, count in (
            ("hatr_conv2d", 8.0, 4_000_000),
            ("efficientnet_b0", 11.0, 4_000_000),
            ("conv2d", 3.0, 400_000),
            ("resnet18", 9.0, 11_000_000),
            ("coatnet_0", 60.0, 27_000_000),
            ("hatr_resnet50", 40.0, 40_000_000),
            ("convnext_base", 110.0, 88_000_000),
        )
    },
}


def _asked(**changes: Any) -> Asked:
    usual: dict[str, Any] = {"task": "classification", "volume": False, "cores": 2, "memory": 8.0, "gpu_memory": 0.0}
    return Asked(**(usual | {"latency": 50.0, "labels": None} | changes))


def test_the_edge_takes_a_small_hybrid_and_not_the_leaf_of_the_text() -> None:
    found = advise(_asked(latency=10.0), FIGURES, measured_here=True)
    assert found.model == "hatr_conv2d"
    assert found.expected_ms == 8.0
    assert found.branch[1] == "Edge (no GPU of 4 GB)? yes"
    assert any("110 ms against 11 ms" in text for text in found.contradicts)
    assert {row["where"] for row in found.figures} == {"measured on this machine"}


def test_a_tight_budget_asks_for_int8_and_an_impossible_one_says_so() -> None:
    slow = {"machine": "some machine", "rows": {k: v for k, v in FIGURES["rows"].items() if k != "conv2d"}}
    tight = advise(_asked(latency=4.5), slow, measured_here=False)
    assert tight.model == "hatr_conv2d"
    assert any(step.startswith("quantize: int8 must bring 1.8") for step in tight.compression)
    assert {row["where"] for row in tight.figures} == {"measured elsewhere on some machine"}
    hopeless = advise(_asked(latency=0.5), FIGURES, measured_here=False)
    assert hopeless.model == "conv2d"
    assert "Nothing here answers within 0.5 ms" in hopeless.reasons[0]


def test_another_size_scales_the_figures_by_the_area_and_says_so() -> None:
    small = advise(_asked(latency=4.5, size=112), FIGURES, measured_here=True)
    assert small.expected_ms == 2.0  # hatr_conv2d: a quarter of 8 ms
    assert any("224 pixels, scaled by the area" in text for text in small.reasons)
    assert {row["size"] for row in small.figures} == {112}
    hopeless = advise(_asked(latency=0.5), FIGURES, measured_here=True)
    assert any(step.startswith("preprocess.size 128:") for step in hopeless.compression)  # 224 * sqrt(2 * 0.5 / 3)


def test_a_server_takes_coatnet_unless_labels_are_few() -> None:
    assert advise(_asked(gpu_memory=8.0, latency=100.0), FIGURES, measured_here=True).model == "coatnet_0"
    few = advise(_asked(gpu_memory=8.0, latency=100.0, labels=300), FIGURES, measured_here=True)
    assert few.model == "conv2d"
    assert any("300" in question for question in few.branch)


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("memory", [0.0, 8.0])
def test_segmentation_names_models_that_there_are(volume: bool, memory: float) -> None:
    found = advise(_asked(task="segmentation", volume=volume, gpu_memory=memory), FIGURES, measured_here=False)
    assert found.model in list_models(task="segmentation", spatial_dims=3 if volume else 2)
    assert bool(found.contradicts) == (memory == 0.0)
    assert any("not measured" in text for text in found.reasons) or found.contradicts


def test_without_a_figure_the_tree_alone_answers() -> None:
    found = advise(_asked(), {"machine": "none", "rows": {}}, measured_here=False)
    assert (found.model, found.expected_ms, found.figures) == ("hatr_conv2d", None, [])
    assert "no figure" in found.reasons[-1]


def test_committed_figures_are_of_known_models_and_say_where_they_are_from() -> None:
    found = committed_figures()
    assert found["machine"]
    assert set(found["rows"]) <= set(CANDIDATES) <= set(list_models())
    assert all(row["batch 1"] > 0 and row["parameters"] > 0 and "load" in row for row in found["rows"].values())
    assert found["rows"]["convnext_base"]["batch 1"] > 3 * found["rows"]["efficientnet_b0"]["batch 1"]


def test_what_was_measured_here_is_kept_and_preferred(tmp_path: Path) -> None:
    cache = tmp_path / "figures.json"
    elsewhere = advise_here(cores=1, cache=cache)
    assert not elsewhere.values["measured_here"]
    assert "measured elsewhere on" in elsewhere.text()
    here = advise_here(cores=1, measure=True, cache=cache, models=("conv2d",), latency=1000.0)
    assert here.values["measured_here"]
    assert here.values["model"] == "conv2d"
    again = advise_here(cores=1, cache=cache)
    assert again.values["figures"] == here.values["figures"] or again.values["measured_here"]
    kept = json.loads(cache.read_text())
    assert list(kept) == [verb._key(1)]
    assert not advise_here(cores=3, cache=cache).values["measured_here"]


@pytest.mark.parametrize("wrong", [{"task": "detection"}, {"cores": -1}, {"latency": 0.0}, {"gpu_memory": -1.0}])
def test_U237_what_makes_no_sense(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U237"):
        advise_here(cache=tmp_path / "none.json", **wrong)
