"""The MaxViT block: strides and odd extents, TensorFlow's padding, and its export."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medloom.blocks.convolution import normalisation, pad_strided
from medloom.blocks.maxvit import MaxViTBlock, maxvit_blocks, pass_blocks
from medloom.blocks.mbconv import ChannelWeights, MBConv, Shortcut
from medloom.blocks.windows import Positions, RelativePositionMLP, RelativePositions


@pytest.mark.parametrize(
    ("size", "stride", "cells"),
    [
        ((8, 9), (2, 2), (4, 5)),
        ((8, 9), (2, 1), (4, 9)),
        ((5, 6, 7), (2, 2, 1), (3, 3, 7)),
        ((1, 1, 4), (2, 2, 2), (1, 1, 2)),
    ],
)
def test_every_stride_rounds_up(size: tuple[int, ...], stride: tuple[int, ...], cells: tuple[int, ...]) -> None:
    block = MaxViTBlock(8, 32, stride=stride, window=(3,) * len(size), norm="group").eval()
    assert block(torch.randn(2, 8, *size)).shape == (2, 32, *cells)


def test_padding_of_strided_axes_is_that_of_tensorflow() -> None:
    """As documented for padding='same': what is odd goes behind."""
    x_BCS = torch.ones(1, 1, 4, 5)
    assert pad_strided(x_BCS, (1, 1)) is x_BCS
    assert pad_strided(x_BCS, (2, 2))[0, 0].tolist() == [[0, 1, 1, 1, 1, 1, 0]] * 4 + [[0] * 7]
    assert pad_strided(x_BCS, (2, 1)).shape == (1, 1, 5, 5)


def test_the_shortcut_means_over_cells_that_are_there() -> None:
    x_BCS = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    assert Shortcut(1, 1, (2, 2))(x_BCS)[0, 0].tolist() == [[3.0, 4.5], [7.5, 9.0]]
    still = Shortcut(4, 4, (1, 1))
    assert still(x_BCS) is x_BCS
    assert list(still.parameters()) == []


def test_channels_are_weighed_by_their_means() -> None:
    layer = ChannelWeights(2, 1, dims=3)
    x_BCS = torch.randn(2, 2, 3, 4, 5)
    mean = x_BCS.mean((2, 3, 4))
    hidden = F.silu(mean @ layer.fc1.weight.flatten(1).T + layer.fc1.bias)
    weight = torch.sigmoid(hidden @ layer.fc2.weight.flatten(1).T + layer.fc2.bias)
    torch.testing.assert_close(layer(x_BCS), x_BCS * weight[:, :, None, None, None])


def test_a_convolution_that_is_dropped_leaves_its_shortcut() -> None:
    torch.manual_seed(0)
    layer = MBConv(4, 4, dims=2, stride=(1, 1), norm="batch", drop_path=0.9).train()
    x_BCS = torch.randn(32, 4, 3, 3)
    same = [torch.equal(a, b) for a, b in zip(layer(x_BCS), x_BCS)]
    assert 16 < sum(same) < 32


def test_group_norm_takes_a_single_cell_of_a_single_volume() -> None:
    norm = normalisation("group", 3, 12)
    assert norm.num_groups == 4
    assert torch.isfinite(norm(torch.randn(1, 12, 1, 1, 1))).all()


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    blocks = maxvit_blocks(
        8, 32, stride=(2, 2), window=(2, 2), norm="group", dropout=0.0, drop_paths=[0.0, 0.0]
    ).train()
    gradients = []
    for checkpointing in (False, True):
        blocks.zero_grad()
        pass_blocks(blocks, torch.ones(1, 8, 6, 6), checkpointing=checkpointing).square().sum().backward()
        gradients.append([p.grad.clone() for p in blocks.parameters()])
    for plain, saved in zip(*gradients):
        torch.testing.assert_close(plain, saved)


@pytest.mark.parametrize("positions", [RelativePositions, RelativePositionMLP])
def test_a_block_on_a_padded_volume_exports_with_a_free_batch(positions: Positions) -> None:
    import onnxruntime

    torch.manual_seed(0)
    block = MaxViTBlock(8, 32, stride=(2, 2, 1), window=(2, 2, 3), norm="group", positions=positions).eval()
    x_BCS = torch.randn(3, 8, 5, 6, 4)
    program = torch.onnx.export(
        block, (x_BCS[:2],), dynamo=True, opset_version=18, verbose=False, input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"x": x_BCS.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answers, block(x_BCS).numpy(), atol=1e-5)
