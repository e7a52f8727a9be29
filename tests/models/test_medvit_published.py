"""MedViT: the names and shapes of the published weights, and a second forward pass on them in plain functions."""

from __future__ import annotations

from collections.abc import Iterator

import golden
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medloom.models.medvit import MedViT
from medloom.models.registry import create_model

State = dict[str, Tensor]
SHALLOW = (1, 2, 2, 2)
REPEATS = {"medvit_tiny": 1, "medvit_small": 2, "medvit_base": 4, "medvit_large": 6}  # of the five blocks of stage 3


def norm_entries(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (width,)
    yield f"{name}.num_batches_tracked", ()


def linear_entries(name: str, before: int, after: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (after, before)
    yield f"{name}.bias", (after,)


def projection_entries(name: str, before: int, after: int, halves: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    if halves or before != after:
        yield f"{name}.conv.weight", (after, before, 1, 1)
        yield from norm_entries(f"{name}.norm", after)


def mixing_entries(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.group_conv3x3.weight", (width, 32, 3, 3)
    yield from norm_entries(f"{name}.norm", width)
    yield f"{name}.projection.weight", (width, width, 1, 1)


def feed_forward_entries(name: str, width: int, ratio: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = width * ratio
    yield f"{name}.0.weight", (hidden, width, 1, 1)
    yield from norm_entries(f"{name}.1", hidden)
    yield f"{name}.3.weight", (hidden, 1, 3, 3)
    yield from norm_entries(f"{name}.4", hidden)
    yield from linear_entries(f"{name}.6.fc.0", hidden, ratio)
    yield from linear_entries(f"{name}.6.fc.2", ratio, hidden)
    yield f"{name}.7.weight", (width, hidden, 1, 1)
    yield from norm_entries(f"{name}.8", width)


def published(repeats: int, classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for i, (before, after) in enumerate([(3, 64), (64, 32), (32, 64), (64, 64)]):
        yield f"stem.{i}.conv.weight", (after, before, 3, 3)
        yield from norm_entries(f"stem.{i}.norm", after)
    stages = [[96] * 3, [192] * 3 + [256], [384, 384, 384, 384, 512] * repeats, [768, 768, 1024]]
    before, i = 64, 0
    for stage, widths in enumerate(stages):
        for place, width in enumerate(widths):
            block, halves = f"features.{i}", stage > 0 and place == 0
            if width in (256, 512, 1024):
                attended = {256: 192, 512: 384, 1024: 768}[width]
                yield from projection_entries(f"{block}.patch_embed", before, attended, halves)
                yield from norm_entries(f"{block}.norm1", attended)
                for part in "qkv":
                    yield from linear_entries(f"{block}.e_mhsa.{part}", attended, attended)
                yield from linear_entries(f"{block}.e_mhsa.proj", attended, attended)
                if stage < 3:
                    yield from norm_entries(f"{block}.e_mhsa.norm", attended)
                yield from projection_entries(f"{block}.projection", attended, width - attended, False)
                yield from mixing_entries(f"{block}.mhca", width - attended)
                yield from norm_entries(f"{block}.norm2", width)
                yield from feed_forward_entries(f"{block}.conv.conv", width, 2)
            else:
                yield from projection_entries(f"{block}.patch_embed", before, width, halves)
                yield from mixing_entries(f"{block}.mhca", width)
                yield from feed_forward_entries(f"{block}.conv.conv", width, 3)
                yield from norm_entries(f"{block}.norm", width)
            before, i = width, i + 1
    yield from norm_entries("norm", 1024)
    yield from linear_entries("proj_head.0", 1024, classes)


@pytest.mark.parametrize("name", REPEATS)
def test_a_state_dict_with_the_published_names_and_shapes_loads_strictly(name: str) -> None:
    repeats = REPEATS[name]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in published(repeats, 1000)}
        model = create_model(name, num_classes=1000, pmc=True, pooling="grid")
        assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == dict(published(repeats, 1000))
        model.load_state_dict(state, strict=True, assign=True)


# A second forward pass, from the same description, with plain functions on the published names.


def norm_of(s: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5
    )


def projected(s: State, name: str, x: Tensor, halves: bool) -> Tensor:
    if f"{name}.conv.weight" not in s:
        return x
    if halves:
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return norm_of(s, f"{name}.norm", F.conv2d(x, s[f"{name}.conv.weight"]))


def mixed(s: State, name: str, x: Tensor) -> Tensor:
    x = F.conv2d(x, s[f"{name}.group_conv3x3.weight"], padding=1, groups=x.shape[1] // 32)
    return F.conv2d(F.relu(norm_of(s, f"{name}.norm", x)), s[f"{name}.projection.weight"])


def fed_forward(s: State, name: str, x: Tensor) -> Tensor:
    def swish(y: Tensor) -> Tensor:
        return y * F.relu6(y + 3) / 6

    y = swish(norm_of(s, f"{name}.1", F.conv2d(x, s[f"{name}.0.weight"])))
    y = swish(norm_of(s, f"{name}.4", F.conv2d(y, s[f"{name}.3.weight"], padding=1, groups=y.shape[1])))
    gate = F.relu(F.linear(y.mean((2, 3)), s[f"{name}.6.fc.0.weight"], s[f"{name}.6.fc.0.bias"]))
    gate = F.relu6(F.linear(gate, s[f"{name}.6.fc.2.weight"], s[f"{name}.6.fc.2.bias"]) + 3) / 6
    return x + norm_of(s, f"{name}.8", F.conv2d(y * gate[..., None, None], s[f"{name}.7.weight"]))


def attended(s: State, name: str, x: Tensor) -> Tensor:
    B, D, h, w = x.shape
    tokens = x.reshape(B, D, h * w).transpose(1, 2)
    keys, averaged = tokens, {192: 16, 384: 4, 768: 1}[D]
    if averaged > 1:
        whole = h * w // averaged * averaged
        keys = tokens[:, :whole].reshape(B, -1, averaged, D).mean(2)
        keys = norm_of(s, f"{name}.norm", keys.transpose(1, 2)).transpose(1, 2)
    q, k, v = (
        F.linear(y, s[f"{name}.{part}.weight"], s[f"{name}.{part}.bias"]).reshape(B, -1, D // 32, 32).transpose(1, 2)
        for part, y in (("q", tokens), ("k", keys), ("v", keys))
    )
    y = ((q @ k.transpose(2, 3) / 32**0.5).softmax(-1) @ v).transpose(1, 2).reshape(B, h * w, D)
    return F.linear(y, s[f"{name}.proj.weight"], s[f"{name}.proj.bias"]).transpose(1, 2).reshape(B, D, h, w)


def answer(s: State, x: Tensor, depths: tuple[int, ...]) -> Tensor:
    for i, stride in enumerate((2, 1, 1, 2)):
        x = F.relu(norm_of(s, f"stem.{i}.norm", F.conv2d(x, s[f"stem.{i}.conv.weight"], stride=stride, padding=1)))
    i = 0
    for stage, depth in enumerate(depths):
        for place in range(depth):
            block, halves = f"features.{i}", stage > 0 and place == 0
            x = projected(s, f"{block}.patch_embed", x, halves)
            if f"{block}.norm1.weight" in s:
                x = x + attended(s, f"{block}.e_mhsa", norm_of(s, f"{block}.norm1", x))
                y = projected(s, f"{block}.projection", x, False)
                x = torch.cat([x, y + mixed(s, f"{block}.mhca", y)], dim=1)
                x = x + fed_forward(s, f"{block}.conv.conv", norm_of(s, f"{block}.norm2", x))
            else:
                x = x + mixed(s, f"{block}.mhca", x)
                x = x + fed_forward(s, f"{block}.conv.conv", norm_of(s, f"{block}.norm", x))
            i += 1
    x = norm_of(s, "norm", x).mean((2, 3))
    return F.linear(x, s["proj_head.0.weight"], s["proj_head.0.bias"])


@pytest.mark.parametrize("size", [64, 56])  # 56: 7x7 tokens in stage 2, of which the last is left out of the keys
@torch.no_grad()
def test_the_same_answers_as_a_second_forward_pass_on_the_published_names(size: int) -> None:
    model = golden.settle(golden.fill(MedViT(num_classes=3, depths=SHALLOW).eval()), 64)
    x_BCHW = golden.images(3, size)
    torch.testing.assert_close(model(x_BCHW), answer(model.state_dict(), x_BCHW, SHALLOW), atol=2e-5, rtol=0)
