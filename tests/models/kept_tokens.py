"""The tokens that a model keeps, asked of every runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medloom.blocks.taps import Taps
from medloom.deployment.export import onnx_bytes
from medloom.deployment.runtime import Runtime


class WithKept(nn.Module):
    """Logits and kept tokens as one output, to ask a runtime for both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        taps: Taps = {}
        logits_BK = self.model(x_BCHW, taps)
        return torch.cat([logits_BK, taps["kept"].value], dim=1)


def check_runtimes(model: nn.Module, x_BCHW: Tensor, classes: int = 2) -> Tensor:
    """ONNX Runtime and OpenVINO give PyTorch's logits and keep its tokens, ``(B, N)``; skips without OpenVINO."""
    asked = WithKept(model).eval()
    data = onnx_bytes(asked, in_chans=x_BCHW.shape[1], size=(x_BCHW.shape[2], x_BCHW.shape[3]))
    with torch.no_grad():
        here = asked(x_BCHW)

    def same(found: np.ndarray) -> None:
        np.testing.assert_allclose(found[:, :classes], here[:, :classes].numpy(), atol=1e-4)
        assert (found[:, classes:] == here[:, classes:].numpy()).all()

    same(Runtime(data).logits(x_BCHW.numpy()))
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    same(core.compile_model(core.read_model(data, b""), "CPU", hints)(x_BCHW.numpy())[0])
    return here[:, classes:]
