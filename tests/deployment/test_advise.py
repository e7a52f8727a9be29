"""The decision tree: every branch, what contradicts the founding text, and figures of this machine or of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medloom.deployment.advise import CANDIDATES, HERE, Asked, advise, committed_figures, summary
from medloom.errors import UsageError
from medloom.models.registry import list_models
from medloom.workflows import advise as verb
from medloom.workflows.advise import advise_here
from medloom.workflows.environment import gpu_memory_gib

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
    found = advise(_asked(latency=10.0), FIGURES, FIGURES)
    assert found.model == "hatr_conv2d"
    assert found.expected_ms == 8.0
    assert found.branch[1] == "Edge (no GPU of 4 GB)? yes"
    assert any("110 ms against 11 ms" in text for text in found.contradicts)
    assert {row["where"] for row in found.figures} == {"measured on this machine"}


def test_a_tight_budget_asks_for_int8_and_an_impossible_one_says_so() -> None:
    slow = {"machine": "some machine", "rows": {k: v for k, v in FIGURES["rows"].items() if k != "conv2d"}}
    tight = advise(_asked(latency=4.5), slow)
    assert tight.model == "hatr_conv2d"
    assert any(step.startswith("quantize: int8 must bring 1.8") for step in tight.compression)
    assert {row["where"] for row in tight.figures} == {"measured elsewhere on some machine"}
    hopeless = advise(_asked(latency=0.5), FIGURES)
    assert hopeless.model == "conv2d"
    assert "Nothing here answers within 0.5 ms" in hopeless.reasons[0]


def test_another_size_scales_the_figures_by_the_area_and_says_so() -> None:
    small = advise(_asked(latency=4.5, size=112), FIGURES, FIGURES)
    assert small.expected_ms == 2.0  # hatr_conv2d: a quarter of 8 ms
    assert any("224 pixels, scaled by the area" in text for text in small.reasons)
    assert {row["size"] for row in small.figures} == {112}
    hopeless = advise(_asked(latency=0.5), FIGURES, FIGURES)
    assert any(step.startswith("preprocess.size 128:") for step in hopeless.compression)  # 224 * sqrt(2 * 0.5 / 3)


def test_a_server_takes_coatnet_unless_labels_are_few() -> None:
    assert advise(_asked(gpu_memory=8.0, latency=100.0), FIGURES, FIGURES).model == "coatnet_0"
    few = advise(_asked(gpu_memory=8.0, latency=100.0, labels=300), FIGURES, FIGURES)
    assert few.model == "conv2d"
    assert any("300" in question for question in few.branch)


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("memory", [0.0, 8.0])
def test_segmentation_names_models_that_there_are(volume: bool, memory: float) -> None:
    found = advise(_asked(task="segmentation", volume=volume, gpu_memory=memory), FIGURES)
    assert found.model in list_models(task="segmentation", spatial_dims=3 if volume else 2)
    assert bool(found.contradicts) == (memory == 0.0)
    assert any("not measured" in text for text in found.reasons) or found.contradicts


def test_without_a_figure_the_tree_alone_answers() -> None:
    found = advise(_asked(), {"machine": "none", "rows": {}})
    assert (found.model, found.expected_ms, found.figures) == ("hatr_conv2d", None, [])
    assert "no figure" in found.reasons[-1]


def test_a_model_measured_here_stands_beside_the_others_of_elsewhere() -> None:
    one = {"machine": "this", "rows": {"resnet18": {"batch 1": 12.0, "parameters": 11_000_000}}}
    found = advise(_asked(latency=50.0), FIGURES, one)
    assert found.model == "hatr_conv2d", "one timed model must not be the proposal for want of others"
    where = {row["model"]: row["where"] for row in found.figures}
    assert [name for name, told in where.items() if told == HERE] == ["resnet18"]
    assert {told for name, told in where.items() if name != "resnet18"} == {"measured elsewhere on some machine"}
    assert next(row["batch 1"] for row in found.figures if row["model"] == "resnet18") == 12.0
    told = summary(found, found.figures)
    assert [line.rpartition("(")[2] for line in told if line.startswith("figures")] == [
        f"{HERE}):",
        "measured elsewhere on some machine):",
    ]


def test_times_of_one_thread_are_not_scaled_to_cores_and_the_answer_says_so() -> None:
    found = advise(_asked(cores=16), FIGURES)
    assert found.expected_ms == 8.0
    assert any("one thread" in text and "not scaled to 16 cores" in text for text in found.reasons)
    assert not any("not scaled" in text for text in advise(_asked(cores=16), FIGURES, FIGURES).reasons)


def test_what_memory_does_not_hold_is_not_proposed() -> None:
    asked = {"gpu_memory": 8.0, "latency": 100.0}
    assert advise(_asked(memory=1.0, **asked), FIGURES).model == "coatnet_0"
    found = advise(_asked(memory=0.5, **asked), FIGURES)  # 27 million parameters: 0.2 + 0.54 GB
    assert found.model == "hatr_conv2d"
    assert any("estimated from parameters" in text and "coatnet_0 0.74 GB" in text for text in found.reasons)
    none = advise(_asked(memory=0.1, **asked), FIGURES)
    assert none.model == "conv2d"
    assert any("nothing here fits" in text for text in none.reasons)
    assert any("memory, of which nothing" in text for text in advise(_asked(memory=0.0, **asked), FIGURES).reasons)


@pytest.mark.parametrize("latency", [4.5, 0.5])
def test_what_int8_brings_is_called_an_assumption(latency: float) -> None:
    slow = {"machine": "some machine", "rows": {k: v for k, v in FIGURES["rows"].items() if k != "conv2d"}}
    assert any(
        "an assumption" in text and "medloom benchmark" in text
        for text in advise(_asked(latency=latency), slow).reasons
    )
    assert not any("an assumption" in text for text in advise(_asked(latency=50.0), slow).reasons)


def test_masks_say_what_was_not_used() -> None:
    found = advise(_asked(task="segmentation", latency=1.0, size=64), FIGURES)
    assert any("latency and size" in text and "Not used" in text for text in found.reasons)


def test_the_memory_of_a_gpu_is_asked_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for there, answer in ((24.0, "a GPU of 24 GB"), (0.0, "no GPU,"), (None, "no GPU (torch, which")):
        monkeypatch.setattr(verb, "gpu_memory_gib", lambda there=there: there)
        found = advise_here(cores=1, cache=tmp_path / "none.json")
        assert found.values["asked"]["gpu_memory"] == (there or 0.0)
        assert answer in found.lines[0]
        assert advise_here(gpu_memory=6.0, cache=tmp_path / "none.json").values["asked"]["gpu_memory"] == 6.0


def test_without_torch_nobody_knows_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if not torch.cuda.is_available():
        assert gpu_memory_gib() == 0.0
    else:
        assert (gpu_memory_gib() or 0.0) > 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpu_memory_gib() is None


def test_committed_figures_are_of_known_models_and_say_where_they_are_from() -> None:
    found = committed_figures()
    assert found["machine"]
    assert set(found["rows"]) <= set(CANDIDATES) <= set(list_models())
    assert all(row["batch 1"] > 0 and row["parameters"] > 0 and "load" in row for row in found["rows"].values())
    assert found["rows"]["convnext_base"]["batch 1"] > 3 * found["rows"]["efficientnet_b0"]["batch 1"]


def test_what_was_measured_here_is_kept_and_preferred_row_by_row(tmp_path: Path) -> None:
    """As after an interrupted ``--measure``: one model was timed, the others keep the figures of elsewhere."""
    cache = tmp_path / "figures.json"
    asked: dict[str, Any] = {"cores": 1, "gpu_memory": 0.0, "cache": cache, "latency": 1000.0}
    elsewhere = advise_here(**asked)
    assert not elsewhere.values["measured_here"]
    assert "measured elsewhere on" in elsewhere.text()
    here = advise_here(measure=True, models=("conv2d",), **asked)
    assert here.values["measured_here"]
    assert here.values["model"] == elsewhere.values["model"] != "conv2d"
    assert {row["model"] for row in here.values["figures"] if row["where"] == HERE} == {"conv2d"}
    assert {row["model"] for row in here.values["figures"]} == set(committed_figures()["rows"])
    assert f"{here.values['model']} was not measured on this machine" in here.lines[-1]
    assert advise_here(**asked).values["figures"] == here.values["figures"]
    kept = json.loads(cache.read_text())
    assert list(kept) == [verb._key(1)]
    assert not advise_here(**(asked | {"cores": 3})).values["measured_here"]


@pytest.mark.parametrize("wrong", [{"task": "detection"}, {"cores": -1}, {"latency": 0.0}, {"gpu_memory": -1.0}])
def test_U237_what_makes_no_sense(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U237"):
        advise_here(cache=tmp_path / "none.json", **wrong)
