"""search on phantoms: over the budget is not trained, a stopped search goes on, the test images are never scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medloom.config import load_recipe
from medloom.data.phantom import write_phantom
from medloom.errors import UsageError
from medloom.workflows import search as verb
from medloom.workflows import search_space, search_trial
from medloom.workflows.search import search

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"patient": "column:patient", "site": "column:site", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 64, "channels": "grey", "statistics": "half"},
    "model": {"name": "hatr_conv2d"},
    "train": {"epochs": 1, "max_steps": 1, "batch_size": 8, "threads": 1, "amp": "off"},
    "evaluation": {"resamples": 50, "min_positives": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=40, size=64, seed=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and narrow compositions; speed as if measured: one millisecond per block."""
    monkeypatch.setattr(search_space, "WIDTHS", (32,))
    monkeypatch.setattr(search_space, "TRUNKS", ("conv2d",))

    def measured(self: Any, model: dict[str, Any]) -> dict[str, Any]:
        network = self._build(model)
        return {
            "ms": float(model["options"]["depth"]),
            "parameters": sum(p.numel() for p in network.parameters()),
            "macs": 1,
        }

    monkeypatch.setattr(search_trial.Session, "measure", measured)


@pytest.mark.usefixtures("small")
def test_a_search_keeps_its_budget_goes_on_and_leaves_a_recipe(data: Path, tmp_path: Path) -> None:
    place = tmp_path / "search"
    recipe = {**RECIPE, "model": {"name": "hatr_conv2d", "weights": "of_its_own.safetensors", "new_head": True}}
    first = search(recipe, data=data, budget=2.5, trials=3, out=place)
    assert len(first.values["trials"]) == 3
    done = search(recipe, data=data, budget=2.5, trials=6, out=place)
    rows = done.values["trials"]
    assert [row["trial"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[:3] == [{**row, "front": rows[k]["front"]} for k, row in enumerate(first.values["trials"])]
    assert len({row["spelled"] for row in rows}) > 1
    for row in rows:
        if row["ms"] is not None and row["ms"] > 2.5:
            assert row["refused"] == "over the budget"
            assert row["validation_auc"] is None
            assert not (place / "trials" / f"{row['trial']:03d}").exists()
        elif row["validation_auc"] is not None:
            assert (place / "trials" / f"{row['trial']:03d}" / "log.jsonl").exists()
    trained = [row for row in rows if row["validation_auc"] is not None]
    assert trained
    assert any(row["front"] for row in trained)
    best = load_recipe(place / "best.yaml")
    assert best.model.name == done.values["best"]["model"]["name"]
    assert (best.model.weights, best.model.new_head, best.model.pretrained) == (None, False, False)
    assert "test images were never scored" in best.notes
    assert not list(place.rglob("predictions_test.csv"))
    assert not list(place.rglob("ledger.jsonl"))
    assert not list(place.rglob("*.safetensors"))
    page = (place / "search.html").read_text()
    assert "<svg" in page
    assert all(row["spelled"].replace("'", "&#39;") in page for row in rows)
    again = search(recipe, data=data, budget=2.5, trials=6, out=place)
    assert again.values["trials"] == rows


@pytest.mark.usefixtures("small")
def test_nothing_fits_an_impossible_budget(data: Path, tmp_path: Path) -> None:
    done = search(RECIPE, data=data, budget=0.5, trials=2, out=tmp_path / "search")
    assert done.values["best"] is None
    assert "nothing fits 0.5 ms" in done.text()
    assert not (tmp_path / "search" / "best.yaml").exists()


@pytest.mark.usefixtures("small")
def test_U238_other_questions_and_models_without_a_composition(data: Path, tmp_path: Path) -> None:
    search(RECIPE, data=data, budget=0.5, trials=1, out=tmp_path / "search")
    with pytest.raises(UsageError, match="U238"):
        search(RECIPE, data=data, budget=0.6, trials=1, out=tmp_path / "search")
    with pytest.raises(UsageError, match="U238"):
        search({**RECIPE, "model": {"name": "resnet18"}}, data=data, budget=1, out=tmp_path / "other")
    with pytest.raises(UsageError, match="U238"):
        search(RECIPE, data=data, budget=-1, out=tmp_path / "other")


def test_the_front_is_what_nothing_beats() -> None:
    assert verb.mark_front([(1.0, 0.8), (2.0, 0.9), (3.0, 0.85), (2.0, 0.7), (1.0, 0.8)]) == [
        True,
        True,
        False,
        False,
        True,
    ]
