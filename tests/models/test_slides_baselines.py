"""The CNN baselines of the slides: their head, their parameter counts, and DenseNet's memory."""

from __future__ import annotations

from typing import Any

import golden
import pytest
import torch
from test_models import check_export
from torch import nn

from medloom.errors import UsageError
from medloom.models.cards import CARDS
from medloom.models.registry import create_model
from medloom.training.optimizers import layers

HEAD: dict[str, Any] = {"num_classes": 14, "head_hidden": 256}


@pytest.mark.parametrize(
    ("name", "ours", "keras", "printed", "biases", "scaling"),
    [
        ("resnet50", 24_036_174, 24_115_854, "24.12 M", True, 0),
        ("densenet121", 7_219_854, 7_303_502, "7.30 M", False, 0),
        # Keras' EfficientNet begins with a layer of three means, three variances and a counter.
        ("efficientnet_b0", 4_339_082, 4_381_105, "4.38 M", False, 7),
    ],
)
def test_from_our_count_to_the_count_on_the_slides(
    name: str, ours: int, keras: int, printed: str, biases: bool, scaling: int
) -> None:
    """Keras' "total params" hold batch norms' running mean and variance; its ResNet-50 has biases in convolutions."""
    with torch.device("meta"):
        model = create_model(name, **HEAD)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    statistics = sum(m.running_mean.numel() + m.running_var.numel() for m in norms)  # type: ignore[union-attr]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    added = sum(m.out_channels for m in convolutions) if biases else 0
    count = sum(p.numel() for p in model.parameters())
    assert count == ours
    assert count + statistics + added + scaling == keras
    assert f"{keras / 1e6:.2f} M" == printed
    said = str(CARDS[name]["reading"])
    assert all(f"{number:,}" in said for number in (count, statistics, keras) + ((added,) if biases else ()))
    assert printed in said


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "efficientnet_b0", "timm/convnext_atto"])
def test_the_wide_head_is_pooling_dense_relu_dropout_dense(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, dropout=0.3, **HEAD)
    head = model.network.get_classifier()
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head[0].out_features, head[2].p, head[3].out_features) == (256, 0.3, 14)
    names = [n for n, p in model.named_parameters() if p is head[3].weight or p is head[3].bias]
    assert model.head_parameters() == tuple(names)
    depth = layers(model)
    assert depth[names[0]] == max(depth.values()), "the head learns at the full rate"


def test_the_wide_head_learns_and_exports() -> None:
    model = golden.fill(create_model("resnet18", image_size=64, in_chans=1, dropout=0.5, **HEAD).eval())
    model(golden.images(1, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    check_export(model, golden.images(1, 64))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet18", {"head_hidden": -1}, "a whole number"),
        ("resnet18", {"head_hidden": True}, "a whole number"),
        ("timm/deit_tiny_distilled_patch16_224", {"head_hidden": 256}, "not one linear layer"),
        ("timm/vgg11", {"checkpointing": True}, "no checkpointing"),
        ("densenet121", {"checkpointing": 1}, "true or false"),
    ],
)
def test_what_a_network_cannot_have_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match="U208") as refused, torch.device("meta"):
        create_model(name, num_classes=2, **options)
    assert said in str(refused.value)


def test_checkpointing_keeps_gradients_and_holds_less() -> None:
    """What autograd keeps for the backward pass is counted, since peak memory differs from machine to machine."""
    torch.manual_seed(0)
    x_BCHW = torch.rand(2, 3, 64, 64)
    kept, gradients = {}, {}
    state = None
    for checkpointing in (False, True):
        model = create_model("densenet121", num_classes=2, image_size=64, checkpointing=checkpointing)
        state = state or {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(state)
        stored: dict[int, int] = {}

        def pack(x: torch.Tensor, stored: dict[int, int] = stored) -> torch.Tensor:
            stored[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(x_BCHW).square().mean()
        held = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept[checkpointing] = sum(n for pointer, n in stored.items() if pointer not in held)
        loss.backward()
        gradients[checkpointing] = {name: p.grad for name, p in model.named_parameters()}
    assert kept[True] < 0.6 * kept[False]
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, atol=1e-5, rtol=1e-3)


def test_checkpointing_is_for_training_alone() -> None:
    model = create_model("densenet121", num_classes=2, image_size=64, checkpointing=True)
    layer = model.network.features.denseblock1.denselayer1
    assert layer.grad_checkpointing
    assert not model.eval().network.features.denseblock1.denselayer1.grad_checkpointing
    assert model.train().network.features.denseblock1.denselayer1.grad_checkpointing
