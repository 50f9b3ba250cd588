from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertinent.engine.batching import padding_share, plan, stretches


@given(
    st.lists(st.tuples(st.integers(2, 16), st.integers(1, 36)), max_size=200),
    st.integers(1, 400),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_exactly_one_batch_and_batches_are_bounded(
    lengths: list[tuple[int, int]], max_tokens: int, workers: int
) -> None:
    query, item = (np.array([pair[side] for pair in lengths], dtype=np.int64) for side in (0, 1))
    batches = plan(query, item, max_tokens=max_tokens, workers=workers)
    rows = np.concatenate(batches) if batches else np.zeros(0, dtype=np.int64)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * (query[batch].max() + item[batch].max()) <= max_tokens or len(batch) == 1


def test_nothing_gives_no_batches() -> None:
    assert plan(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) == []
    assert padding_share([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) == 0.0


def test_ties_keep_their_order() -> None:
    same = np.full(5, 7)
    assert [batch.tolist() for batch in plan(same, same)] == [[0, 1, 2, 3, 4]]


def test_real_lengths_are_padded_little() -> None:
    item = np.clip(np.random.default_rng(0).normal(26, 8, 3000).astype(np.int64), 2, 36)
    query = np.full(3000, 7)
    batches = plan(query, item, workers=2)
    assert padding_share(batches, query, item) < 0.01
    assert padding_share([np.arange(3000)], query, item) > 0.15


@pytest.mark.parametrize("count", [1, 20])
def test_few_pairs_share_a_run_unless_lengths_are_far_apart(count: int) -> None:
    query = np.full(count, 5)
    near = np.full(count, 20) + np.arange(count) % 3
    assert len(plan(query, near)) <= 2


def test_grouping_is_the_cheapest_of_all() -> None:
    """Against trying every way to cut the ordered lengths."""
    random = np.random.default_rng(1)
    for _ in range(20):
        item = random.integers(1, 30, 6)
        query = np.full(6, 4)
        ordered = np.sort(item)
        costs = []
        for cuts in range(2**5):
            bounds = [0, *(i + 1 for i in range(5) if cuts >> i & 1), 6]
            pairs = list(itertools.pairwise(bounds))
            costs.append(sum((b - a) * (4 + ordered[a:b].max()) + 10 for a, b in pairs))
        batches = plan(query, item, max_tokens=10_000, overhead=10)
        found = sum(len(rows) * (4 + item[rows].max()) + 10 for rows in batches)
        assert found == min(costs)


@pytest.mark.parametrize("lengths", [[], [7], [5] * 40, list(range(3, 53)), [400, 3, 3]])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_stretches_hold_every_row_once_and_get_smaller(lengths: list[int], workers: int) -> None:
    each = np.array(lengths, dtype=np.int64)
    batches = stretches(each, most=100, workers=workers)
    rows = np.concatenate([*batches, np.zeros(0, dtype=np.int64)])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert (np.diff(each[rows]) <= 0).all()
    sizes = [int(each[batch].sum()) for batch in batches]
    assert all(size < 100 + max(lengths) for size in sizes)
    if len(sizes) > 2 * workers:
        assert sizes[-1] <= 100 / 2
