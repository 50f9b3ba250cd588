"""After scoring: which items go on to ranking, and in which order they end (ei-SRC, section 12).

Pure functions over arrays in input order. All are monotone in relevance: a higher relevance never loses an
item its place. Ties are broken by relevance, then by the retrieval score, then by the given place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import DataError

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Normalization = Literal["min_max", "rank"]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a filter left: ``rows`` best first, how many fell below the threshold, how many beyond ``keep``."""

    rows: Rows
    below: int
    beyond: int


def best_first(scores: NDArray[np.floating], *ties: NDArray[np.floating]) -> Rows:
    """Rows by score, highest first; ties by the next array, highest first, at last by row.

    >>> best_first(np.array([1.0, 2.0, 1.0]), np.array([0.0, 0.0, 5.0])).tolist()
    [1, 2, 0]
    """
    lowest_first = -np.asarray(scores, dtype=np.float64)
    order = np.argsort(lowest_first, kind="stable")
    ordered = lowest_first[order]
    if not ties or (ordered[1:] > ordered[:-1]).all():
        return order.astype(np.int64, copy=False)
    # Also where scores are not numbers. Equal rows keep their order: the sort is a stable one.
    return np.lexsort([*(-np.asarray(tie, dtype=np.float64) for tie in reversed(ties)), lowest_first]).astype(np.int64)


def keep_relevant(
    relevance: NDArray[np.floating],
    threshold: float,
    keep: int,
    min_keep: int,
    retrieval: NDArray[np.floating] | None = None,
) -> Kept:
    """The rows with at least the threshold, ``keep`` at most and ``min_keep`` at least where there are as many.

    >>> keep_relevant(np.array([0.9, 0.1, 0.5]), threshold=0.4, keep=2_000, min_keep=0)
    Kept(rows=array([0, 2]), below=1, beyond=0)
    >>> keep_relevant(np.array([0.9, 0.1, 0.5]), threshold=0.6, keep=2_000, min_keep=2).rows.tolist()
    [0, 2]
    """
    if keep < 0 or min_keep < 0:
        raise DataError(f"keep is {keep} and min_keep is {min_keep}", fix="give 0 or more")
    order = best_first(relevance, *(() if retrieval is None else (retrieval,)))
    passing = int(np.count_nonzero(np.asarray(relevance, dtype=np.float64) >= threshold))
    wanted = max(passing, min(min_keep, len(order)))
    kept = min(wanted, keep)
    return Kept(order[:kept], len(order) - wanted, wanted - kept)


def normalized(scores: NDArray[np.floating], how: Normalization) -> Floats:
    """Scores of one request brought to 0..1; all equal scores give 0.5 each.

    ``min_max`` keeps distances, ``rank`` only the order; equal scores stay equal.

    >>> normalized(np.array([10.0, 30.0, 15.0]), "min_max").tolist()
    [0.0, 1.0, 0.25]
    >>> normalized(np.array([10.0, 30.0, 15.0]), "rank").tolist()
    [0.0, 1.0, 0.5]
    """
    values = np.asarray(scores, dtype=np.float64)
    if how == "rank":
        values = np.unique(values, return_inverse=True)[1].astype(np.float64)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if not high > low:
        return np.full(len(values), 0.5)
    # Halves first: the difference of two numbers near the largest float is none.
    return (values / 2 - low / 2) / (high / 2 - low / 2)


def fuse_linear(
    relevance: NDArray[np.floating], ranking: NDArray[np.floating], weight: float, how: Normalization
) -> Floats:
    """``(1 - weight) * ranking + weight * relevance``, the ranking scores brought to 0..1 first.

    >>> fuse_linear(np.array([1.0, 0.0]), np.array([0.0, 8.0]), weight=0.25, how="min_max").tolist()
    [0.25, 0.75]
    """
    if not 0.0 <= weight <= 1.0:
        raise DataError(f"the weight of relevance is {weight}", fix="give a number from 0 to 1")
    return (1 - weight) * normalized(ranking, how) + weight * np.asarray(relevance, dtype=np.float64)


def tiers(relevance: NDArray[np.floating], cuts: Sequence[float]) -> Rows:
    """The tier of each row: the number of cuts that its relevance reaches. The highest is best.

    >>> tiers(np.array([0.05, 0.5, 0.9]), (0.1, 0.6)).tolist()
    [0, 1, 2]
    """
    if list(cuts) != sorted(cuts):
        raise DataError(f"the cuts are {list(cuts)}", fix="give them in rising order")
    return np.searchsorted(np.asarray(cuts, dtype=np.float64), relevance, side="right").astype(np.int64)


def fuse_tiers(
    relevance: NDArray[np.floating], ranking: NDArray[np.floating], cuts: Sequence[float], how: Normalization
) -> Floats:
    """Tiers of relevance, and inside a tier the ranking score: tier plus a part below 1.

    >>> fuse_tiers(np.array([0.2, 0.9]), np.array([9.0, 1.0]), cuts=(0.5,), how="min_max").tolist()
    [0.5, 1.0]
    """
    return tiers(relevance, cuts) + normalized(ranking, how) / 2
