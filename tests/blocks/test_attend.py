"""Attention written out where that is faster gives what the fused kernel gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medloom.blocks import attention
from medloom.blocks.attention import Attention, attend


def gradients(function: object, dtype: torch.dtype, tokens: int = 50) -> tuple[Tensor, ...]:
    """Result and gradients of q, k and v, in float32."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, 3, tokens, 16).to(dtype).requires_grad_() for _ in range(3)]
    out_BHNE = function(*qkv)  # type: ignore[operator]
    out_BHNE.float().square().sum().backward()
    return out_BHNE.float(), *(x.grad.float() for x in qkv if x.grad is not None)


def test_bfloat16_training_agrees_with_float32() -> None:
    exact = gradients(F.scaled_dot_product_attention, torch.float32)
    fused = gradients(F.scaled_dot_product_attention, torch.bfloat16)
    for wanted, kernel, ours in zip(exact, fused, gradients(attend, torch.bfloat16), strict=True):
        error = (ours - wanted).norm() / wanted.norm()
        assert error < 0.02
        assert error < 2 * (kernel - wanted).norm() / wanted.norm(), "coarser than the kernel it stands in for"


@pytest.mark.parametrize(
    ("dtype", "tokens", "training", "fused"),
    [
        (torch.bfloat16, 320, True, False),
        (torch.bfloat16, 321, True, True),
        (torch.bfloat16, 50, False, False),
        (torch.float32, 50, False, True),
        (torch.float32, 50, True, True),
    ],
)
def test_the_kernel_is_left_only_where_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tokens: int, training: bool, fused: bool
) -> None:
    calls: list[int] = []

    def counted(*qkv: Tensor, attn_mask: Tensor | None) -> Tensor:
        calls.append(1)
        return F.softmax(qkv[0] @ qkv[1].mT, dim=-1) @ qkv[2]

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    attend(*(torch.randn(1, 1, tokens, 8, dtype=dtype, requires_grad=training) for _ in range(3)))
    assert bool(calls) == fused


def test_masked_attention_is_attention_among_the_present_and_tells_what_an_absent_token_would_change() -> None:
    torch.manual_seed(0)
    layer, x_BND = Attention(16, num_heads=2), torch.randn(2, 6, 16)
    present_BN = torch.tensor([[1.0, 0, 1, 1, 0, 1]] * 2, requires_grad=True)
    there = [0, 2, 3, 5]
    y_BND = layer.forward_masked(x_BND, present_BN)
    torch.testing.assert_close(y_BND[:, there], layer(x_BND[:, there]))
    y_BND[:, 0].square().sum().backward()
    assert present_BN.grad is not None
    assert present_BN.grad[:, 1:].all(), "absent ones too"
    alone_BND = layer.forward_masked(x_BND, torch.zeros(2, 6))
    torch.testing.assert_close(alone_BND, layer(x_BND.flatten(0, 1)[:, None]).view(2, 6, 16))
