"""The cost trial of compare: a few true steps of every kind of recipe, also of those with stages and with a teacher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from medloom.config import load_recipe
from medloom.data.preprocess import Preprocess
from medloom.errors import UsageError
from medloom.models.registry import create_model
from medloom.models.token_pruned import TokenPruned
from medloom.workflows import trial as module
from medloom.workflows.trial import trial

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def recipe(**parts: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, dict[str, Any]] = {
        "preprocess": {"size": 32, "channels": "grey", "statistics": "half"},
        "model": {"name": "token_pruned", "options": SMALL},
        "train": {"epochs": 30, "batch_size": 2, "threads": 1, "amp": "off", "device": "cpu"},
    }
    return load_recipe({**base, **{k: {**base.get(k, {}), **v} for k, v in parts.items()}}).as_dict()


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A vit of two classes behind whatever ``distill.teacher`` names; the list counts its passes."""
    passes: list[int] = []

    def restored(bundle: Any) -> nn.Module:
        model = create_model("vit", num_classes=2, in_chans=1, image_size=32, **SMALL).eval()
        model.register_forward_hook(lambda *_: passes.append(1))
        return model

    preprocess = Preprocess.from_config(load_recipe(recipe()).preprocess)
    known = SimpleNamespace(classes=("a", "b"), preprocess=preprocess)
    monkeypatch.setattr(module, "load_classifier", lambda path: known)
    monkeypatch.setattr(module, "restore_model", restored)
    return passes


def test_a_teacher_is_part_of_the_cost(teacher: list[int]) -> None:
    found = trial(recipe(distill={"teacher": "t"}, tokens={"attention_weight": 1.0}), 2, False)
    assert found["seconds_per_step"] > 0
    assert len(teacher) >= module.EPOCHS  # of each step


def test_U225_a_teacher_of_other_classes_fails_before_anything_is_trained(teacher: list[int]) -> None:
    with pytest.raises(UsageError, match="U225"):
        trial(recipe(distill={"teacher": "t"}), 3, False)
    assert teacher == []


def test_no_stage_of_the_recipe_stands_still_in_the_steps_that_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[bool] = []
    outputs = TokenPruned.train_outputs

    def watched(self: TokenPruned, x_BCHW: Tensor) -> dict[str, Tensor]:
        learnt.append(all(p.requires_grad for p in self.parameters()))
        return outputs(self, x_BCHW)

    monkeypatch.setattr(TokenPruned, "train_outputs", watched)
    stages = {"scorer_epochs": 2, "freeze_scorer": 0.9, "multi_keep": [0.5, 1.0]}
    trial(recipe(tokens=stages, train={"freeze_epochs": 3}), 2, False)
    assert learnt == [True] * module.EPOCHS * module.STEPS
