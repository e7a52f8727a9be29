"""Attention inside blocks and grids: who looks at whom, in two and three dimensions, against a loop over cells."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.blocks.windows import BLOCK, GRID, Partition, PartitionAttention, RelativePositionMLP, RelativePositions


@settings(max_examples=60, deadline=None)
@given(
    window=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    cells=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    partition=st.sampled_from([BLOCK, GRID]),
)
def test_groups_and_back_is_the_same_map(window: list[int], cells: list[int], partition: Partition) -> None:
    size = tuple(w * n for w, n in zip(window, cells))
    x_BSD = torch.arange(2 * math.prod(size) * 3).reshape(2, *size, 3)
    x_GND = partition.groups(x_BSD, tuple(window))
    assert x_GND.shape == (2 * math.prod(n for n, _ in zip(cells, window)), math.prod(window), 3)
    assert torch.equal(partition.map(x_GND, tuple(window), size), x_BSD)


def test_a_block_holds_neighbours_and_a_grid_spans_the_map() -> None:
    x_BSD = torch.arange(36).reshape(1, 6, 6, 1)
    assert BLOCK.groups(x_BSD, (2, 3))[0, :, 0].tolist() == [0, 1, 2, 6, 7, 8]
    assert BLOCK.groups(x_BSD, (2, 3))[1, 0, 0] == 3
    assert GRID.groups(x_BSD, (2, 3))[0, :, 0].tolist() == [0, 2, 4, 18, 20, 22]
    assert GRID.groups(x_BSD, (2, 3))[1, 0, 0] == 1


@pytest.mark.parametrize("window", [(3, 2), (2, 3, 2)])
def test_the_bias_of_a_pair_goes_by_its_offset(window: tuple[int, ...]) -> None:
    positions = RelativePositions(window, num_heads=2)
    table = positions.relative_position_bias_table
    cells = list(itertools.product(*(range(w) for w in window)))
    bias_HNN = positions(window)
    for (i, query), (j, key) in itertools.product(enumerate(cells), repeat=2):
        place = tuple(k - q + w - 1 for q, k, w in zip(query, key, window))
        assert torch.equal(bias_HNN[:, i, j], table[(slice(None), *place)])


def test_a_smaller_window_takes_the_small_offsets() -> None:
    positions = RelativePositions((5, 4, 3), num_heads=1)
    inner = RelativePositions((2, 4, 1), num_heads=1)
    with torch.no_grad():
        inner.relative_position_bias_table.copy_(positions.relative_position_bias_table[:, 3:6, :, 2:3])
    assert torch.equal(positions((2, 4, 1)), inner((2, 4, 1)))


@pytest.mark.parametrize("window", [(3, 2), (2, 3, 2)])
def test_the_mlp_asks_for_the_logarithm_of_the_offset(window: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    positions = RelativePositionMLP(window, num_heads=2)
    cells = list(itertools.product(*(range(w) for w in window)))
    bias_HNN = positions(window)
    for (i, query), (j, key) in itertools.product(enumerate(cells), repeat=2):
        far = [math.copysign(math.log2(1 + abs(k - q)) / 3, k - q) for q, k in zip(query, key)]
        torch.testing.assert_close(bias_HNN[:, i, j], positions.mlp(torch.tensor(far)))


def test_the_mlp_holds_for_any_window() -> None:
    """An offset has the same bias in a small window and in one that is larger than the one it was built for."""
    positions = RelativePositionMLP((3, 3), num_heads=1)
    large, small = positions((7, 5)), positions((2, 2))
    torch.testing.assert_close(small[0, 0], large[0, 0][torch.tensor([0, 1, 5, 6])])


def of_one_group(partition: Partition, a: int, b: int, extent: int, w: int) -> bool:
    w = min(w, extent)
    step = math.ceil(extent / w)
    return a // w == b // w if partition is BLOCK else a % step == b % step


@pytest.mark.parametrize("partition", [BLOCK, GRID])
@pytest.mark.parametrize(("size", "window"), [((5, 7), (4, 3)), ((3, 6), (4, 3)), ((5, 2, 3), (2, 2, 2))])
def test_cells_look_at_their_group_and_never_at_padding(
    partition: Partition, size: tuple[int, ...], window: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = PartitionAttention(64, partition=partition, window=window).eval()
    x_BSD = torch.randn(2, *size, 64)
    cells = list(itertools.product(*(range(n) for n in size)))
    with torch.no_grad():
        layer.attn.rel_pos.relative_position_bias_table.normal_()
        layer.attn.qkv.bias.normal_()  # padding has keys and values too: those of the bias
        normed = layer.norm1(x_BSD).reshape(2, len(cells), 64)
        q, k, v = layer.attn.qkv(normed).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) / 32**0.5
        table = layer.attn.rel_pos.relative_position_bias_table
        padded = [math.ceil(n / min(w, n)) for n, w in zip(size, window)]
        for (i, a), (j, b) in itertools.product(enumerate(cells), repeat=2):
            if not all(of_one_group(partition, p, q, n, w) for p, q, n, w in zip(a, b, size, window)):
                logits[..., i, j] = -math.inf
                continue
            inside = [(q - p if partition is BLOCK else q // s - p // s) for p, q, s in zip(a, b, padded)]
            logits[..., i, j] += table[(slice(None), *(o + w - 1 for o, w in zip(inside, window)))]
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(2, *size, 64)
        wanted = x_BSD + layer.attn.proj(mixed)
        wanted = wanted + layer.mlp(layer.norm2(wanted))
        np.testing.assert_allclose(layer(x_BSD).numpy(), wanted.numpy(), atol=1e-5)


def test_half_precision_and_training_give_the_same_attention() -> None:
    """On the CPU bfloat16 takes another path while it learns."""
    torch.manual_seed(0)
    layer = PartitionAttention(32, partition=GRID, window=(3, 3))
    x_BSD = torch.randn(2, 5, 5, 32)
    with torch.no_grad():
        exact = layer(x_BSD)
    with torch.autocast("cpu", torch.bfloat16):
        learning = layer(x_BSD.clone().requires_grad_())
        with torch.no_grad():
            answering = layer(x_BSD)
    assert (learning - exact).abs().max() < 0.03
    assert (answering - exact).abs().max() < 0.03
    learning.float().sum().backward()
    assert torch.isfinite(layer.attn.rel_pos.relative_position_bias_table.grad).all()
    assert layer.attn.rel_pos.relative_position_bias_table.grad.any()


def test_a_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="48 channels"):
        PartitionAttention(48, partition=BLOCK, window=(2, 2))
