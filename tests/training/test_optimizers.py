"""Parameter groups, layer-wise decay, learning rate over the steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import recipe
from torch import nn

from medloom.config import TrainConfig
from medloom.models.registry import create_model, list_models
from medloom.training.optimizers import layers, make_optimizer, parameter_groups, set_learning_rate
from medloom.training.schedule import learning_rate


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.patch_embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(3)])
        self.rel_pos = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        self.head = nn.Linear(4, 2)


def test_norms_biases_and_positions_are_not_decayed() -> None:
    model = Blocks()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1, 1.0)
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {
        "patch_embed.weight",
        "blocks.0.1.weight",
        "blocks.1.1.weight",
        "blocks.2.1.weight",
        "head.weight",
    }
    assert sum(len(g["params"]) for g in groups) == len(names)


def test_layers_rise_from_the_input_to_the_head() -> None:
    depth = layers(Blocks())
    assert depth["cls_token"] == depth["patch_embed.weight"] == 0
    assert [depth[f"blocks.{k}.1.weight"] for k in range(3)] == [1, 2, 3]
    assert depth["head.bias"] == 4


def test_layer_decay_shrinks_the_rate_towards_the_input() -> None:
    model = Blocks()
    optimizer = make_optimizer(model, recipe(layer_decay=0.5, optimizer="adamw").train)
    set_learning_rate(optimizer, 0.8)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(model.head.weight)] == pytest.approx(0.8)
    assert rate[id(model.cls_token)] == pytest.approx(0.8 * 0.5**4)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_frozen_parameters_stay(name: str) -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    optimizer = make_optimizer(model, recipe(optimizer=name, weight_decay=0.1).train)
    weight = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model.bias, before)
    assert not torch.equal(model.weight, weight)


def config(**values: object) -> TrainConfig:
    return TrainConfig.model_validate({"learning_rate": 1.0, **values})


def test_warm_up_is_a_line_that_ends_at_the_peak() -> None:
    rates = [learning_rate(s, 10, 100, config(warmup_epochs=1.0)) for s in range(12)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10:] == [1.0, 1.0]


def test_cosine_falls_from_the_peak_to_zero() -> None:
    rates = [learning_rate(s, 10, 100, config(schedule="cosine")) for s in range(101)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)


def test_steps_multiply_after_the_named_epochs() -> None:
    wanted = config(schedule="step", step_epochs=(2, 3), step_factor=0.1)
    assert [learning_rate(s, 10, 50, wanted) for s in (0, 19, 20, 29, 30, 49)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@settings(max_examples=80, deadline=None)
@given(
    schedule=st.sampled_from(["constant", "cosine", "step"]),
    warmup=st.floats(0, 5),
    per_epoch=st.integers(1, 50),
    total=st.integers(1, 300),
    step=st.integers(0, 299),
)
def test_the_rate_never_leaves_zero_to_peak(
    schedule: str, warmup: float, per_epoch: int, total: int, step: int
) -> None:
    rate = learning_rate(step, per_epoch, total, config(schedule=schedule, warmup_epochs=warmup, step_epochs=(2,)))
    assert 0.0 <= rate <= 1.0


@pytest.mark.parametrize("name", list_models())
def test_layers_of_every_model_rise_from_its_stem_to_its_classifier(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    depth = layers(model)
    assert set(depth) == {key for key, _ in model.named_parameters()}
    last = max(depth.values())
    assert {depth[key] for key in model.head_parameters()} == {last}
    assert 2 <= last <= 13
    assert set(range(1, last + 1)) <= set(depth.values()), "a depth without parameters shrinks the rate for nobody"
    numbered = [value for key, value in depth.items() if ".blocks." in f".{key}" and not key.startswith("trunk.")]
    assert numbered == sorted(numbered)
    groups = parameter_groups(model, 0.05, 0.8)
    assert max(group["scale"] for group in groups) == 1.0
    assert min(group["scale"] for group in groups) == pytest.approx(0.8 ** (last - min(depth.values())))
    assert sum(len(group["params"]) for group in groups) == len(depth)


def test_layers_of_a_hybrid_put_its_tokens_behind_its_trunk() -> None:
    with torch.device("meta"):
        for name, tokens in (("hatr_resnet50", "cls_token"), ("convnext_deit", "deit.cls_token")):
            depth = layers(create_model(name, num_classes=2))
            trunk = [value for key, value in depth.items() if key.startswith("trunk.")]
            assert max(trunk) <= depth[tokens] < max(depth.values())
            assert trunk == sorted(trunk)


def test_layers_of_a_convnext_follow_its_stages() -> None:
    with torch.device("meta"):
        depth = layers(create_model("convnext_base", num_classes=2))
    assert depth["network.stem.0.weight"] == 0
    assert depth["network.stages.0.blocks.0.gamma"] == depth["network.stages.0.blocks.2.gamma"] == 1
    assert depth["network.stages.2.downsample.1.weight"] == depth["network.stages.2.blocks.0.gamma"] == 3
    assert depth["network.stages.3.blocks.2.gamma"] == 12
    assert depth["network.head.fc.weight"] == depth["network.head.norm.weight"] == 13


@pytest.mark.parametrize("name", ["token_pruned", "dynamic_vit", "hatr_conv2d", "vit", "rr_vit", "convnext_deit_atto"])
def test_positions_and_tokens_do_not_decay(name: str) -> None:
    options = {"registers": 2, "pool": "map"} if name == "vit" else {}
    with torch.device("meta"):
        model = create_model(name, num_classes=2, **options)
    decayed = {id(p) for g in parameter_groups(model, 0.1, 1.0) if g["weight_decay"] for p in g["params"]}
    spared = [key for key, p in model.named_parameters() if id(p) not in decayed and p.ndim > 1]
    assert spared
    wrong = [
        key
        for key, p in model.named_parameters()
        if id(p) in decayed and any(word in key for word in ("pos", "token", "scale_embed", "latent"))
    ]
    assert wrong == []
