"""Which image goes into which step and process, and what it looks like there."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import CPU, PREPROCESS, recipe, splits

from medloom.training.batches import Reader, deal, parts
from medloom.training.distributed import World


@given(n=st.integers(1, 500), size=st.integers(1, 64))
def test_T415_steps_cover_all_images_and_none_is_left_alone(n: int, size: int) -> None:
    lengths = [s.stop - s.start for s in deal(n, size)]
    assert np.concatenate([np.arange(n)[s] for s in deal(n, size)]).tolist() == list(range(n))
    assert len(lengths) == -(-n // size)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    if n > 1 and size > 2:
        assert min(lengths) > 1


def test_steps_of_two_may_leave_one_only_where_the_number_is_odd() -> None:
    assert [s.stop - s.start for s in deal(5, 2)] == [1, 2, 2]


@given(n=st.integers(0, 100), size=st.integers(1, 9))
def test_shares_are_disjoint_and_complete(n: int, size: int) -> None:
    shares = [World(rank, size).share(n) for rank in range(size)]
    assert np.concatenate([np.arange(n)[s] for s in shares]).tolist() == list(range(n))
    assert max(s.stop - s.start for s in shares) == shares[0].stop - shares[0].start


def reader(world: World) -> Reader:
    train, _ = splits()
    config = recipe(augment={"rotate": 20.0, "translate": 0.1, "noise": 0.1}).augment
    return Reader(train, PREPROCESS, config, 3, world, CPU)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 5), micro=st.integers(1, 16))
def test_pictures_do_not_depend_on_processes_or_micro_batches(size: int, micro: int) -> None:
    rows = np.random.default_rng(0).permutation(40)[:13]
    whole = next(iter([reader(World()).read(p) for p in parts([rows], 13, 2, 0)]))
    pieces = []
    for part in parts([rows], micro, 2, 0):
        pieces += [reader(World(rank, size)).read(part) for rank in range(size)]
    kept = [b for b in pieces if b.counts]
    torch.testing.assert_close(torch.cat([b.x_BCHW for b in kept]), whole.x_BCHW, rtol=0, atol=0)
    assert torch.equal(torch.cat([b.target for b in kept]), whole.target)


def test_a_process_without_an_image_is_given_one_that_does_not_count() -> None:
    (part,) = parts([np.array([4, 5])], 8, 1, 0)
    batches = [reader(World(rank, 3)).read(part) for rank in range(3)]
    assert [b.counts for b in batches] == [True, True, False]
    assert len(batches[2].x_BCHW) == 1


def test_another_step_epoch_or_seed_gives_other_pictures() -> None:
    rows = np.arange(4)
    pictures = [reader(World()).read(p).x_BCHW for e in (1, 2) for p in parts([rows, rows], 4, e, 0)]
    assert not any(torch.equal(a, b) for k, a in enumerate(pictures) for b in pictures[k + 1 :])


def test_parts_go_on_from_a_step() -> None:
    steps = [np.arange(5), np.arange(5, 10)]
    whole, rest = list(parts(steps, 3, 1, 0)), list(parts(steps, 3, 1, 1))
    assert [(p.step, p.place, p.last) for p in whole[2:]] == [(p.step, p.place, p.last) for p in rest]
    assert [p.last for p in whole] == [False, True, False, True]
