"""DynamicViT: what training masks is what answering leaves out; with all tokens it is the ViT of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_tokens import check_runtimes
from safetensors.torch import save_file
from torch import Tensor, nn

from medloom.blocks.selection import kept_mask
from medloom.blocks.taps import Taps
from medloom.errors import ModelError, UsageError
from medloom.models import dynamic_vit
from medloom.models.dynamic_vit import DynamicViT, TokenPredictor, draw
from medloom.models.registry import create_model
from medloom.models.timm_networks import load_timm
from medloom.models.weights import load_weights

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


def build(image_size: int = 64, **options: Any) -> DynamicViT:
    torch.manual_seed(0)
    model = create_model("dynamic_vit", num_classes=2, in_chans=1, image_size=image_size, **{**SMALL, **options})
    assert isinstance(model, DynamicViT)
    for predictor in model.predictors:
        nn.init.normal_(predictor.fc3.weight)  # scores that tell tokens apart
    return model.eval()


@pytest.fixture
def x_BCHW() -> Tensor:
    return torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_one_checkpoint_serves_every_rate_with_ever_fewer_tokens(x_BCHW: Tensor) -> None:
    model = build(keep_rate=1.0)
    for rate, counts in ((1.0, (64, 64, 64)), (0.7, (48, 32, 24)), (0.5, (32, 16, 8)), (0.1, (8, 8, 8))):
        model.set_keep(rate)
        assert model.kept_counts(64) == counts
        taps: Taps = {}
        torch.testing.assert_close(build(keep_rate=rate)(x_BCHW), model(x_BCHW, taps))
        assert taps["kept"].value.sum(1).tolist() == [counts[-1]] * 3
        seen = [taps[f"attention.{i}"].value.shape[-1] - 1 for i in range(4)]
        assert seen == [64, *counts]
        assert taps["token_score"].value.shape == (3, 64)


@torch.no_grad()
def test_the_first_cut_keeps_the_tokens_of_the_highest_score(x_BCHW: Tensor) -> None:
    taps: Taps = {}
    build(keep_rate=0.125)(x_BCHW, taps)  # 8 tokens, which both later cuts leave alone
    for score, kept in zip(taps["token_score"].value, taps["kept"].value):
        assert score[kept == 1].min() >= score[kept == 0].max()


@torch.no_grad()
def test_masked_training_answers_as_gathering_does(x_BCHW: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(keep_rate=0.5)
    left = [torch.ones(3, 64)]

    def best(logit_BN2: Tensor) -> Tensor:
        """Not at random, but as answering chooses: the best of those that are left."""
        score_BN = (logit_BN2[:, :, 0] - logit_BN2[:, :, 1]).masked_fill(left[-1] == 0, -torch.inf)
        left.append(kept_mask(score_BN.topk((32, 16, 8)[len(left) - 1]).indices, 64))
        return left[-1]

    monkeypatch.setattr(dynamic_vit, "draw", best)
    outputs, taps = model.train_outputs(x_BCHW), Taps()
    torch.testing.assert_close(outputs["logits"], model(x_BCHW, taps), atol=1e-5, rtol=0)
    assert torch.equal(taps["kept"].value, left[-1])
    assert outputs["kept_share"].tolist() == [[0.5, 0.25, 0.125]] * 3
    assert outputs["kept_goal"].tolist() == [0.5, 0.25, 0.125]


def test_a_dropped_token_stays_dropped_and_is_not_in_the_mean() -> None:
    torch.manual_seed(0)
    predictor, x_BND = TokenPredictor(16), torch.randn(2, 6, 16)
    present_BN = torch.tensor([[1.0, 1, 0, 1, 1, 0]] * 2)
    before = predictor(x_BND, present_BN)
    other_BND = x_BND + (1 - present_BN)[:, :, None] * torch.randn(2, 6, 16)
    torch.testing.assert_close(predictor(other_BND, present_BN)[:, [0, 1, 3, 4]], before[:, [0, 1, 3, 4]])
    torch.testing.assert_close(predictor(x_BND[:, [0, 1, 3, 4]]), before[:, [0, 1, 3, 4]])
    assert torch.isfinite(predictor(x_BND, torch.zeros(2, 6))).all()
    shares = build(keep_rate=0.5).train_outputs(torch.randn(3, 1, 64, 64))["kept_share"]
    assert (shares.diff(dim=1) <= 0).all()


def test_a_draw_is_zero_or_one_as_often_as_its_probability_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    logit = torch.tensor([1.5, 0.0], requires_grad=True)
    drawn_BN = draw(logit.expand(1, 20_000, 2))
    assert set(drawn_BN.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert float(drawn_BN.detach().mean()) == pytest.approx(1 / (1 + np.exp(-1.5)), abs=0.01)
    drawn_BN.mean().backward()
    assert logit.grad is not None
    assert logit.grad[0] > 0.01
    assert logit.grad[1] < -0.01


def test_at_keep_1_training_is_that_of_the_vit_and_the_predictors_learn_beside_it(x_BCHW: Tensor) -> None:
    model = build(keep_rate=1.0)
    outputs = model.train_outputs(x_BCHW)
    torch.testing.assert_close(outputs["logits"], model(x_BCHW))
    assert outputs["kept_goal"].tolist() == [1.0] * 3
    outputs["kept_share"].sum().backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learnt == {name for name, _ in model.named_parameters() if name.startswith("predictors.")}
    model.zero_grad()
    model.train_outputs(x_BCHW)["logits"].sum().backward()
    assert not any(name.startswith("predictors.") for name, p in model.named_parameters() if p.grad is not None)


@pytest.mark.parametrize("theirs", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", None])
def test_weights_of_a_vit_load_and_the_predictors_start_fresh(tmp_path: Path, theirs: str | None) -> None:
    options = {"num_classes": 2, "image_size": 48}
    sizes = {"embed_dim": 192, "depth": 12, "num_heads": 3}
    if theirs is None:
        network: nn.Module = create_model("vit_tiny", **options).eval()  # type: ignore[arg-type]
    else:
        network = load_timm().create_model(theirs, img_size=48, num_classes=2).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    model = create_model("dynamic_vit", keep_rate=1.0, **options, **sizes).eval()  # type: ignore[arg-type]
    fresh = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("predictors.")}
    notices = load_weights(model, tmp_path)
    assert notices == ("weights have the names of a ViT", "the rest stays as it was: predictors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in fresh.items())
    x_BCHW = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCHW), network(x_BCHW), atol=1e-5, rtol=0)


def test_weights_of_another_grid_are_interpolated_and_of_other_networks_refused(tmp_path: Path) -> None:
    save_file(build().state_dict(), tmp_path / "model.safetensors")
    notices = load_weights(build(128), tmp_path)
    assert any("pos_embed converted from 1x65x32 to 1x257x32" in notice for notice in notices)
    with pytest.raises(ModelError, match="C505"):
        load_weights(build(depth=5), tmp_path)
    save_file(load_timm().create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="C505"):
        load_weights(build(), tmp_path)


def test_pretrained_fetches_the_deit_of_that_width(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = load_timm()
    make, asked = timm.create_model, []

    def published(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.extend([name] * pretrained)
        return make(name, **options)

    monkeypatch.setattr(timm, "create_model", published)
    sizes = {"embed_dim": 192, "depth": 12, "num_heads": 3, "patch_size": 16}
    model = build(48, pretrained=True, **sizes)
    assert asked == ["deit_tiny_patch16_224"]
    assert model.pos_embed.shape == (1, 10, 192)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": 3}, "no room for 3 cuts"),
        ({"num_heads": 3}, "32 channels do not divide by 3"),
        ({"keep_rate": 0.0}, "keep_rate"),
        ({"keep_rate": 1.5}, "keep_rate"),
        ({"embed_dim": 2}, "cannot quarter 2"),
        ({"pretrained": True}, "no published weights"),
    ],
)
def test_U208_what_cannot_be_asked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match="U208") as refused:
        build(**options)
    assert said in str(refused.value)


def test_C511_an_image_that_does_not_divide_into_patches(x_BCHW: Tensor) -> None:
    with pytest.raises(ModelError, match="C511"):
        build(4)
    with pytest.raises(ModelError, match="C511"):
        build()(x_BCHW[:, :, :60])


def test_the_runtimes_keep_the_same_tokens(x_BCHW: Tensor) -> None:
    check_runtimes(build(keep_rate=0.6), x_BCHW)
