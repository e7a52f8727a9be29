"""Convolutions of volumes keep their gradients in number formats and at sizes where a library's do not."""

from __future__ import annotations

import pytest
import torch

from medloom.blocks.convolution import convolution


@pytest.mark.parametrize("cells", [(2, 2, 2), (1, 2, 3), (2, 4, 4), (3, 3, 3)])
def test_gradients_in_bf16_are_those_of_float32_however_few_the_cells(cells: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer = convolution(3, 96, 96, 3, padding=1, bias=False)
    for _ in range(8):
        # Memory that is handed out again holds what was in it.
        junk = [torch.full((size,), 1e30) for size in (2000, 96 * 96 * 27, 500_000)]
        del junk
        x_BCXYZ = torch.randn(2, 96, *cells)
        upstream = torch.randn(2, 96, *cells)
        gradients = []
        for enabled in (True, False):
            layer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y_BCXYZ = layer(x_BCXYZ)
            y_BCXYZ.backward(upstream.to(y_BCXYZ.dtype))
            assert layer.weight.grad is not None
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(*gradients, atol=0.1, rtol=0.05)
