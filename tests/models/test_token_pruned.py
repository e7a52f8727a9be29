"""The token-pruned hybrid: keep rates on one set of weights, choice by score, adaptive mode, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kept_tokens import check_runtimes
from safetensors.torch import save_file

from medloom.blocks.taps import Taps
from medloom.deployment.export import onnx_bytes
from medloom.deployment.runtime import Runtime
from medloom.errors import ModelError, UsageError
from medloom.models.pruning import reduce_tokens
from medloom.models.registry import create_model
from medloom.models.token_pruned import TokenPruned
from medloom.models.weights import load_weights
from medloom.training.freezing import hold

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def build(**options: object) -> TokenPruned:
    torch.manual_seed(0)
    model = create_model("token_pruned", num_classes=2, in_chans=1, **{"image_size": 64, **SMALL, **options})
    assert isinstance(model, TokenPruned)
    return model.eval()


@pytest.fixture
def x_BCHW() -> torch.Tensor:
    return torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_one_checkpoint_serves_every_rate(x_BCHW: torch.Tensor) -> None:
    model = build(keep_rate=1.0)
    for rate in (1.0, 0.75, 0.5, 0.25):
        model.set_keep(rate)
        twin = build(keep_rate=rate)
        torch.testing.assert_close(model(x_BCHW), twin(x_BCHW))
        taps: Taps = {}
        model(x_BCHW, taps)
        assert taps["kept"].value.sum(1).tolist() == [64 * rate] * 3
        assert taps["tokens"].value.shape[1] == 64 * rate + (1 if rate == 1.0 else 2)


@torch.no_grad()
def test_the_tokens_of_the_highest_score_are_kept(x_BCHW: torch.Tensor) -> None:
    taps: Taps = {}
    build(keep_rate=0.25)(x_BCHW, taps)
    score, kept = taps["token_score"].value, taps["kept"].value
    for s, k in zip(score, kept):
        assert s[k == 1].min() >= s[k == 0].max()


@torch.no_grad()
def test_second_cut_is_a_part_of_the_first(x_BCHW: torch.Tensor) -> None:
    first: Taps = {}
    second: Taps = {}
    build(keep_rate=0.5)(x_BCHW, first)
    build(keep_rate=0.5, second_keep=0.5)(x_BCHW, second)
    assert second["kept"].value.sum(1).tolist() == [16] * 3
    assert (second["kept"].value <= first["kept"].value).all()


@torch.no_grad()
def test_adaptive_keeps_more_where_the_scores_are_flat(x_BCHW: torch.Tensor) -> None:
    model = build()
    model.set_keep(0.5, adaptive=True)
    flat, peaked = torch.zeros(1, 64), torch.full((1, 64), -9.0)
    peaked[0, :4] = 9.0
    assert model.rates(torch.cat([flat, peaked])).tolist() == [1.0, 0.3]
    together = model(x_BCHW)
    torch.testing.assert_close(together, torch.cat([model(x[None]) for x in x_BCHW]))
    taps: Taps = {}
    torch.testing.assert_close(model(x_BCHW, taps), together, atol=1e-5, rtol=0)
    assert taps["kept"].value.shape == (3, 64)


def test_scores_get_a_gradient_from_both_stages(x_BCHW: torch.Tensor) -> None:
    model = build(keep_rate=0.5)
    for name in ("scorer_logits", "logits"):
        model.zero_grad()
        model.train_outputs(x_BCHW)[name].square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.scorer.parameters()), name


@pytest.mark.parametrize("rate", [0.0, 1.5, -1.0])
def test_keep_rate_outside_0_to_1_is_refused(rate: float) -> None:
    model = build()
    with pytest.raises(UsageError, match="U208"):
        model.set_keep(rate)
    with pytest.raises(UsageError, match="U208"):
        build(keep_rate=rate)


def test_image_smaller_than_a_patch_is_refused(x_BCHW: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="C511"):
        create_model("token_pruned", num_classes=2, image_size=8)
    with pytest.raises(ModelError, match="C511"):
        build()(x_BCHW[:, :, :60])


def test_weights_of_another_grid_are_interpolated_and_of_another_patch_refused(tmp_path: Path) -> None:
    save_file(build().state_dict(), tmp_path / "model.safetensors")
    larger = create_model("token_pruned", num_classes=2, in_chans=1, image_size=128, **SMALL)
    notices = load_weights(larger, tmp_path)
    assert any("position_1Dhw converted from 1x32x8x8 to 1x32x16x16" in notice for notice in notices)
    other = create_model("token_pruned", num_classes=2, in_chans=1, image_size=128, **{**SMALL, "patch_size": 16})
    with pytest.raises(ModelError, match="C505"):
        load_weights(other, tmp_path)


@pytest.mark.parametrize("method", ["gate", "evit", "tome"])
@torch.no_grad()
def test_onnx_answers_as_torch_does(x_BCHW: torch.Tensor, method: str) -> None:
    if method == "gate":
        model: torch.nn.Module = build(keep_rate=0.5, second_keep=0.5)
    else:
        torch.manual_seed(0)
        model = create_model(
            "vit", num_classes=2, in_chans=1, image_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2
        ).eval()
        reduce_tokens(model, method, keep_rate=0.5)  # type: ignore[arg-type]
    runtime = Runtime(onnx_bytes(model, in_chans=1, size=(64, 64)))
    for images in (x_BCHW, x_BCHW[:1]):
        torch.testing.assert_close(torch.from_numpy(runtime.logits(images.numpy())), model(images), atol=1e-4, rtol=0)


def test_the_runtimes_keep_the_same_tokens_behind_both_cuts(x_BCHW: torch.Tensor) -> None:
    kept_BN = check_runtimes(build(keep_rate=0.5, second_keep=0.5), x_BCHW)
    assert kept_BN.sum(1).tolist() == [16] * 3
    assert not torch.equal(kept_BN[0], kept_BN[1])


@pytest.mark.parametrize("trunk", ["test_convnext", "timm/test_efficientnet"])
@torch.no_grad()
def test_any_trunk_of_timm_is_a_stem(x_BCHW: torch.Tensor, trunk: str) -> None:
    model = build(trunk=trunk, patch_size=16, keep_rate=0.5)
    taps: Taps = {}
    answer = model(x_BCHW, taps)
    assert answer.shape == (3, 2)
    assert answer.isfinite().all()
    assert (answer[0] - answer[1]).abs().max() > 0
    assert taps["features.0"].value.shape == (3, 32, 4, 4)
    assert taps["kept"].value.sum(1).tolist() == [8] * 3
    assert sum(p.numel() for p in model.trunk.parameters()) > 0


@torch.no_grad()
def test_a_tenth_of_many_tokens_is_more_than_the_floor() -> None:
    taps: Taps = {}
    model = build(keep_rate=0.1, image_size=112)
    assert model(torch.randn(2, 1, 112, 112), taps).isfinite().all()
    assert taps["kept"].value.sum(1).tolist() == [16] * 2  # of 196, and 19.6 is nearest to 16


def test_reduction_needs_a_body_of_ours() -> None:
    with pytest.raises(UsageError, match="U208"):
        reduce_tokens(torch.nn.Linear(2, 2), "evit")
    with pytest.raises(UsageError, match="U208"):
        reduce_tokens(create_model("vit_tiny", num_classes=2, image_size=32), "other")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit_tiny", "hatr_conv2d", "convnext_deit_atto", "rr_vit", "token_pruned"])
@torch.no_grad()
def test_none_takes_all_tokens_again(name: str) -> None:
    model = create_model(name, num_classes=2, image_size=96).eval()
    x_BCHW = torch.randn(2, 3, 96, 96)
    before = model(x_BCHW)
    for method in ("tome", "evit"):
        reduce_tokens(model, method, keep_rate=0.5)  # type: ignore[arg-type]
        taps: Taps = {}
        torch.testing.assert_close(model(x_BCHW, taps), model(x_BCHW), atol=1e-5, rtol=0)
        assert (model(x_BCHW) - before).abs().max() > 1e-6
        assert taps["tokens"].grid == ()
    torch.testing.assert_close(reduce_tokens(model, "none")(x_BCHW), before)


@torch.no_grad()
def test_merging_counts_the_tokens_that_enter_the_blocks(x_BCHW: torch.Tensor) -> None:
    model = build(keep_rate=0.5, depth=4)
    reduce_tokens(model, "tome", keep_rate=0.5)
    taps: Taps = {}
    model(x_BCHW, taps)
    assert taps["tokens"].value.shape[1] == 2 + 16  # CLS and package; half of the 32 kept
    model.set_keep(1.0)
    model(x_BCHW, taps)
    assert taps["tokens"].value.shape[1] == 1 + 32


def test_two_cuts_in_the_blocks_are_one_too_many() -> None:
    with pytest.raises(UsageError, match=r"U208.*second_keep"):
        reduce_tokens(build(second_keep=0.5), "evit")
    model = build()
    reduce_tokens(model, "tome")
    with pytest.raises(UsageError, match=r"U208.*second_keep"):
        model.set_keep(0.5, second=0.5)


@torch.no_grad()
def test_adaptive_runs_in_bf16(x_BCHW: torch.Tensor) -> None:
    model = build()
    model.set_keep(0.5, adaptive=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(x_BCHW)).all()


def test_rgb_weights_fit_a_grey_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    colour = create_model("token_pruned", num_classes=2, in_chans=3, image_size=64, **SMALL).eval()
    save_file(colour.state_dict(), tmp_path / "model.safetensors")
    grey = build()
    load_weights(grey, tmp_path)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


def test_freezing_holds_the_trunk_and_not_the_transformer() -> None:
    model = create_model("token_pruned_resnet18", num_classes=2, image_size=64)
    hold(model, 1, 1)
    free = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {"blocks", "scorer", "head", "position_1Dhw"} <= free
    assert not any(p.requires_grad for p in model.trunk.parameters())
