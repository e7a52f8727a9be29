"""Choosing, dropping and merging tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medloom.blocks.reduction import Dropping, Merging, match
from medloom.blocks.selection import (
    MULTIPLE,
    check_keep,
    gather_tokens,
    keep_count,
    kept_mask,
    package,
    split_tokens,
    straight_through,
)
from medloom.blocks.taps import Taps
from medloom.blocks.transformer import init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError


@given(st.integers(1, 4096), st.floats(0.001, 1.0))
def test_kept_tokens_come_in_eights_close_to_the_rate(tokens: int, rate: float) -> None:
    k = keep_count(tokens, rate)
    assert 1 <= k <= tokens
    if rate == 1.0:
        assert k == tokens
    elif k < tokens:
        assert k % MULTIPLE == 0
        assert abs(k - rate * tokens) <= MULTIPLE / 2 or k == MULTIPLE


@pytest.mark.parametrize("rate", [0, -0.5, 1.01, float("nan"), float("inf"), True, "half", None])
def test_a_rate_outside_0_to_1_is_refused(rate: object) -> None:
    with pytest.raises(UsageError, match="U208"):
        check_keep(rate)  # type: ignore[arg-type]


def test_the_best_are_kept_and_the_rest_is_packed() -> None:
    x_BND = torch.arange(32.0).reshape(1, 16, 2)
    score_BN = torch.tensor([[0.0, 9, 0, 8, 7, 0, 6, 5, 0, 4, 3, 0, 2, 0, 0, 0]])
    kept_BMD, package_B1D, index_BM = split_tokens(x_BND, score_BN, 8)
    assert index_BM[0].tolist() == [1, 3, 4, 6, 7, 9, 10, 12]
    torch.testing.assert_close(kept_BMD, gather_tokens(x_BND, index_BM))
    assert package_B1D is not None
    rest = [0, 2, 5, 8, 11, 13, 14, 15]  # all of score zero: a plain mean
    torch.testing.assert_close(package_B1D[0, 0], x_BND[0, rest].mean(0))
    assert kept_mask(index_BM, 16).sum() == 8


def test_all_kept_leaves_no_package_and_the_order() -> None:
    x_BND = torch.randn(2, 5, 3)
    kept_BMD, nothing, index_BM = split_tokens(x_BND, torch.randn(2, 5), 5)
    assert kept_BMD is x_BND
    assert nothing is None
    assert index_BM.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_package_weighs_by_softmax() -> None:
    x_BRD = torch.tensor([[[0.0], [1.0]]])
    weight = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    torch.testing.assert_close(package(x_BRD, weight), torch.tensor([[[0.75]]]))


def test_the_gate_is_one_and_carries_a_gradient() -> None:
    score_BK = torch.tensor([[-2.0, 0.0, 3.0]], requires_grad=True)
    gate = straight_through(score_BK)
    torch.testing.assert_close(gate, torch.ones(1, 3, 1))
    gate.sum().backward()
    torch.testing.assert_close(score_BK.grad, score_BK.sigmoid() * (1 - score_BK.sigmoid()))


@pytest.fixture
def blocks() -> torch.nn.ModuleList:
    torch.manual_seed(0)
    made = transformer_blocks(32, depth=4, num_heads=2, mlp_ratio=2.0, dropout=0.0, drop_path=0.0)
    init_transformer(made)
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made.eval()


def test_keeping_all_is_the_plain_run(blocks: torch.nn.ModuleList) -> None:
    x_BND = torch.randn(2, 17, 32)
    plain = run_blocks(blocks, x_BND, None, grid=(4, 4), prefix=1)
    for run in (Dropping(1.0), Merging(1.0)):
        torch.testing.assert_close(run(blocks, x_BND, None, grid=(4, 4), prefix=1), plain, atol=1e-5, rtol=1e-5)


def test_dropping_keeps_what_cls_looks_at(blocks: torch.nn.ModuleList) -> None:
    x_BND = torch.randn(2, 65, 32)
    taps: Taps = {}
    out = Dropping(0.5, at=(1,))(blocks, x_BND, taps, grid=(8, 8), prefix=1)
    assert out.shape == (2, 1 + 32 + 1, 32)  # CLS, kept, fused
    plain: Taps = {}
    run_blocks(blocks, x_BND, plain, grid=(8, 8), prefix=1)
    looks_BN = plain["attention.1"].value[:, :, 0, 1:].mean(1)
    kept = taps["kept"].value
    assert kept.sum(1).tolist() == [32, 32]
    for row, mask in zip(looks_BN, kept):
        assert row[mask == 1].min() >= row[mask == 0].max()


def test_two_cuts_name_places_on_the_first_grid(blocks: torch.nn.ModuleList) -> None:
    taps: Taps = {}
    out = Dropping(0.5, at=(1, 3))(blocks, torch.randn(2, 65, 32), taps, grid=(8, 8), prefix=1)
    assert out.shape[1] == 1 + 16 + 2
    assert taps["kept"].value.sum(1).tolist() == [16, 16]
    assert taps["kept"].grid == (8, 8)


def test_merging_twins_changes_nothing(blocks: torch.nn.ModuleList) -> None:
    """Two equal tokens as one of size two: attention and answer stay (proportional attention)."""
    half = torch.randn(1, 8, 32)
    x_BND = torch.cat([torch.randn(1, 1, 32), half.repeat_interleave(2, dim=1)], dim=1)
    plain = run_blocks(blocks[:1], x_BND, None, grid=(4, 4), prefix=1)
    merged = Merging(0.5)(blocks[:1], x_BND, None, grid=(4, 4), prefix=1)
    assert merged.shape[1] == 9
    torch.testing.assert_close(merged[:, 0], plain[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged[:, 1:], plain[:, 2::2], atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.data())
def test_merging_loses_no_token(tokens: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, tokens // 2))
    key_BNE = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(tokens))
    order_BA, to_BMb = match(key_BNE, count)
    assert sorted(order_BA[0].tolist()) == list(range((tokens + 1) // 2))
    assert to_BMb.shape == (2, count, tokens // 2)
    assert (to_BMb.sum(2) == 1).all()


def test_sizes_of_merged_tokens_add_up(blocks: torch.nn.ModuleList) -> None:
    taps: Taps = {}
    out = Merging(0.625)(blocks, torch.randn(2, 65, 32), taps, grid=(8, 8), prefix=1)
    assert out.shape[1] == 65 - 4 * 6
    size_BN = taps["token_size"].value
    torch.testing.assert_close((1 / size_BN).sum(1), torch.full((2,), 64.0 - 24))  # one over the size, per cell
