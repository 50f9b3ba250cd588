"""Candidates of an index for a query, by BM25 over the token ids that the index has anyway.

Nothing is built ahead: the ids of all titles are read through once for a query, from the memory map. That is
fast enough to try a model on a catalog; a shop retrieves with the search engine that it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pertinent.engine.cascade import best_first
from pertinent.models.lexical import bm25_weight, idf
from pertinent.records import TokenRows

# Ids compared in one go: what a core's own cache holds.
_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of an index, best first, with their BM25; ``[k]`` each."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def search(tokens: TokenRows, query: NDArray[np.int32], top: int) -> Found:
    """The rows that share a token with the query, best first, ``top`` at most; equal scores by row.

    >>> rows = TokenRows(np.array([7, 8, 7, 9], np.int32), np.array([0, 2, 2, 4]), np.zeros(3, np.bool_))
    >>> search(rows, np.array([9, 7], np.int32), top=5).rows.tolist()
    [2, 0]
    """
    wanted, asked = np.unique(query, return_counts=True)
    scores = np.zeros(len(tokens), dtype=np.float32)
    mean = max(len(tokens.ids) / max(len(tokens), 1), 1e-9)
    for places, count in zip(_places(tokens.ids, wanted), asked, strict=True):
        rows, often = _runs(np.searchsorted(tokens.offsets, places, side="right") - 1)
        lengths = tokens.offsets[rows + 1] - tokens.offsets[rows]
        scores[rows] += int(count) * idf(len(tokens), len(rows)) * bm25_weight(often, lengths, mean)
    found = np.flatnonzero(scores)
    if len(found) > top > 0:
        # Those that tie with the last one stay until rows decide between them.
        found = found[scores[found] >= -np.partition(-scores[found], top - 1)[top - 1]]
    best = found[best_first(scores[found])][:top]
    return Found(best, scores[best])


def _runs(rising: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different values of numbers that never fall, and how often each comes.

    >>> [part.tolist() for part in _runs(np.array([3, 3, 5]))]
    [[3, 5], [2, 1]]
    """
    first = np.flatnonzero(np.diff(rising, prepend=-1))
    return rising[first], np.diff(first, append=len(rising))


def _places(ids: NDArray[np.int32], wanted: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Where each of the wanted ids stands, in rising order."""
    found: list[list[NDArray[np.int64]]] = [[np.zeros(0, dtype=np.int64)] for _ in wanted]
    for start in range(0, len(ids), _AT_ONCE):
        part = np.asarray(ids[start : start + _AT_ONCE])
        for places, token in zip(found, wanted, strict=True):
            places.append(np.flatnonzero(part == token) + start)
    return [np.concatenate(places) for places in found]
