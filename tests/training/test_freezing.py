"""A frozen trunk moves nothing, statistics included, and thaws on its epoch in every kind of run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import build, recipe, run
from torch import Tensor, nn

from medloom.errors import UsageError
from medloom.files import RunDirectory
from medloom.models.registry import create_model, list_models
from medloom.training.checkpoint import newest
from medloom.training.freezing import hold, train_mode


class Trunked(nn.Module):
    """A trunk with statistics and dropout, and a head with both."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.Dropout(0.2))
        self.neck = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.neck(self.trunk(x)).relu().amax((2, 3))))


def saved(directory: Path) -> dict[str, Tensor]:
    found, _ = newest(RunDirectory(directory).checkpoint)
    assert found is not None
    return found.tensors


def moved(directory: Path, model: nn.Module) -> set[str]:
    """Parts of the model that are not as they began."""
    tensors = saved(directory)
    before = model.state_dict()
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(tensors[f"model/{name}"], value)}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_frozen_trunk_and_its_statistics_stand_still(tmp_path: Path, optimizer: str) -> None:
    wanted = {"optimizer": optimizer, "weight_decay": 0.1, "ema_decay": 0.5, "freeze_epochs": 2}
    model = build(Trunked)
    run(tmp_path / "held", recipe(epochs=2, **wanted), model=model)
    assert moved(tmp_path / "held", build(Trunked)) == {"neck", "head"}
    assert not any(name.startswith("optimizer/trunk") for name in saved(tmp_path / "held"))
    assert all(parameter.requires_grad for parameter in model.parameters()), "whoever gets the model may train it on"
    run(tmp_path / "thawed", recipe(epochs=3, **wanted), model=build(Trunked))
    assert moved(tmp_path / "thawed", build(Trunked)) == {"trunk", "neck", "head"}


def test_T401_stopped_in_any_epoch_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    wanted = recipe(epochs=4, freeze_epochs=2, ema_decay=0.5, save_steps=2)
    run(tmp_path / "whole", wanted, model=build(Trunked))
    for stop in (
        1,
        3,
        6,
        7,
    ):  # saved behind steps 2, 4 and 5 of each epoch, frozen or free
        at = tmp_path / str(stop)
        seen: list[object] = []

        def interrupt(event: dict[str, object], stop: int = stop, seen: list[object] = seen) -> None:
            seen += [event] if event["event"] == "saved" else []
            if len(seen) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(at, wanted, model=build(Trunked), progress=interrupt)
        assert not any(name.startswith("optimizer/trunk") for name in saved(at)) or stop > 6
        run(at, wanted, model=build(Trunked, seed=1), resume=True)
        whole, resumed = saved(tmp_path / "whole"), saved(at)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_T411_freezing_another_number_of_epochs_is_another_run(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=2, freeze_epochs=1), model=build(Trunked))
    with pytest.raises(UsageError, match=r"T411.*freeze_epochs: 1 -> 2"):
        run(tmp_path, recipe(epochs=3, freeze_epochs=2), model=build(Trunked), resume=True)


@pytest.mark.parametrize("name", list_models())
def test_every_model_has_a_trunk_to_freeze_and_a_head_that_learns(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    assert hold(model, 1, 1)
    assert not hold(model, 1, 1), "nothing changes twice"
    free = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert free >= set(model.head_parameters())
    assert 0 < len(free) < len(list(model.parameters()))
    train_mode(model)
    still = [
        key
        for key, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not layer.weight.requires_grad and layer.training
    ]
    assert still == []
    assert hold(model, 2, 1)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_wide_head_on_a_timm_network_learns_as_a_whole() -> None:
    with torch.device("meta"):
        model = create_model("resnet18", num_classes=3, head_hidden=8)
    hold(model, 1, 1)
    assert [key for key, parameter in model.named_parameters() if parameter.requires_grad] == [
        key for key, _ in model.named_parameters() if key.startswith("network.fc.")
    ]
