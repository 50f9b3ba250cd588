"""Which pairs run together: close in length, so that little padding is computed, not too many at once.

Float32 scores do not depend on this (int8 scores do, a little); time does. A run costs its padded
tokens plus a fixed overhead, and the grouping below is the cheapest one for that cost among those
that keep pairs in length order.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# What starting a run costs, in tokens: measured 20 on networks of 3 layers, hidden 128 and 384 alike.
RUN_OVERHEAD = 20
# Beyond some 500 tokens the states of a run leave the cache: at hidden 384 a token takes 93 us in runs
# of 500 tokens, 98 in runs of 1,000 and 105 in runs of 2,000. At hidden 128 it makes no difference.
MAX_TOKENS = 512
MIN_TOKENS = 256


def plan(
    query_lengths: NDArray[np.int64],
    item_lengths: NDArray[np.int64],
    max_tokens: int = MAX_TOKENS,
    workers: int = 1,
    overhead: int = RUN_OVERHEAD,
) -> list[NDArray[np.int64]]:
    """Batches as row numbers, longest first; every row is in exactly one batch.

    Lengths are those of the two blocks of each pair, both ``[n]``. A batch has at most
    ``max_tokens`` padded tokens (one pair may have more), and less where that keeps ``workers`` busy.

    >>> [batch.tolist() for batch in plan(np.array([3, 3, 3]), np.array([40, 8, 40]), overhead=8)]
    [[0, 2], [1]]
    """
    if len(query_lengths) == 0:
        return []
    order = np.lexsort((np.arange(len(query_lengths)), item_lengths, query_lengths))
    keys = np.stack([query_lengths[order], item_lengths[order]], axis=1)  # [n, 2]
    shapes, starts = np.unique(keys, axis=0, return_index=True)
    bounds = np.append(starts, len(order))
    total = int(keys.sum())
    if workers > 1:
        max_tokens = min(max_tokens, max(MIN_TOKENS, total // (2 * workers)))
    batches: list[tuple[int, NDArray[np.int64]]] = []
    for first, last in _groups(shapes, np.diff(bounds), overhead):
        rows = order[bounds[first] : bounds[last]]
        width = int(shapes[first:last].max(axis=0).sum())
        pieces = -(-len(rows) // max(1, max_tokens // width))
        batches.extend((width, piece) for piece in np.array_split(rows, pieces))
    # Longest first: the short ones fill the gaps at the end when several workers take them in turn.
    batches.sort(key=lambda batch: -batch[0] * len(batch[1]))
    return [rows for _, rows in batches]


def stretches(lengths: NDArray[np.int64], most: int, workers: int) -> list[NDArray[np.int64]]:
    """Batches for a backend that pads nothing, as row numbers, longest rows first: every row is in exactly one.

    A batch has some ``most`` tokens. Towards the end they get smaller, so that ``workers`` end together.

    >>> [batch.tolist() for batch in stretches(np.array([10, 30, 20, 10, 10]), most=40, workers=1)]
    [[1, 2], [0, 3], [4]]
    """
    shorter = lengths.max(initial=0) - lengths
    if shorter.max(initial=0) < 2**16:
        shorter = shorter.astype(np.uint16)  # which numpy sorts by radix, in a quarter of the time
    order = np.argsort(shorter, kind="stable")
    ends = np.cumsum(lengths[order])
    least = max(1, most // 8)
    cuts, done = [0], 0
    while cuts[-1] < len(order):
        left = int(ends[-1]) - done
        step = min(most, max(least, left // (2 * workers)))
        cuts.append(min(int(np.searchsorted(ends, done + step)) + 1, len(order)))
        done = int(ends[cuts[-1] - 1])
    return [order[start:stop] for start, stop in pairwise(cuts)]


def padding_share(
    batches: list[NDArray[np.int64]], query_lengths: NDArray[np.int64], item_lengths: NDArray[np.int64]
) -> float:
    """The part of all computed tokens that is padding, 0 to 1; 0 for no batches.

    >>> padding_share([np.array([0, 1])], np.array([2, 2]), np.array([8, 3]))
    0.25
    """
    padded = sum(len(rows) * int(query_lengths[rows].max() + item_lengths[rows].max()) for rows in batches)
    real = sum(int(query_lengths[rows].sum() + item_lengths[rows].sum()) for rows in batches)
    return 1.0 - real / padded if padded else 0.0


def _groups(shapes: NDArray[np.int64], counts: NDArray[np.int64], overhead: int) -> list[tuple[int, int]]:
    """The cheapest cut of the ordered shapes into runs, as (first, last + 1)."""
    size = len(shapes)
    before = np.concatenate([[0], np.cumsum(counts)])
    best = np.zeros(size + 1, dtype=np.int64)
    choice = np.zeros(size + 1, dtype=np.int64)
    widest = np.zeros(size, dtype=np.int64)  # the longest item block from each start up to `end`
    for end in range(1, size + 1):
        query, item = shapes[end - 1]
        np.maximum(widest[:end], item, out=widest[:end])
        cost = best[:end] + (before[end] - before[:end]) * (query + widest[:end]) + overhead
        choice[end] = int(np.argmin(cost))
        best[end] = cost[choice[end]]
    cuts, end = [], size
    while end:
        cuts.append((int(choice[end]), end))
        end = int(choice[end])
    return cuts[::-1]
