"""Correlations of weighted pairs, many weightings at once; equal values share their mean rank.

A constant column correlates with nothing: the value is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation of two columns; NaN where one is constant or has fewer than two values.

    >>> spearman([1, 2, 3], [10, 20, 30])
    1.0
    """
    a, b = (_ranks(np.asarray(values).ravel()) for values in (first, second))
    return float(correlation(a, b, np.ones((1, len(a))))[0])


def tie_starts(ordered: Floats) -> NDArray[np.int64]:
    """First rows of each run of equal values.

    >>> tie_starts(np.array([3.0, 2.0, 2.0, 1.0])).tolist()
    [0, 1, 3]
    """
    return np.flatnonzero(np.r_[np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]])


def tie_groups(starts: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """The group of each of so many ordered rows, from the first rows of the groups.

    >>> tie_groups(np.array([0, 1, 3]), 4).tolist()
    [0, 1, 1, 2]
    """
    return np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, rows]))


def sum_groups(weights: Floats, starts: NDArray[np.int64]) -> Floats:
    """The weight of each group of ties, ``[resamples, groups]``."""
    if len(starts) == weights.shape[1]:
        return weights  # no ties
    return np.asarray(np.add.reduceat(weights, starts, axis=1))


def mid_ranks(weights: Floats, starts: NDArray[np.int64]) -> Floats:
    """Mean rank of each group of ties, up to a constant: repeated rows take up as many ranks.

    >>> mid_ranks(np.ones((1, 4)), np.array([0, 1, 3])).tolist()
    [[0.5, 2.0, 3.5]]
    """
    size = sum_groups(weights, starts)
    return np.cumsum(size, axis=1) - size / 2


def correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Linear correlation of two columns for each row of weights ``[resamples, pairs]``.

    >>> correlation(np.array([0.0, 1.0]), np.array([0.0, 2.0]), np.array([[1.0, 3.0], [1.0, 0.0]])).tolist()
    [1.0, nan]
    """
    total = weights.sum(axis=1)
    x, spread_x = _center(x, weights, total)
    y, spread_y = _center(y, weights, total)
    shared = (weights * x * y).sum(axis=1)
    return np.clip(divide(shared, np.sqrt(spread_x * spread_y)), -1.0, 1.0)


def divide(top: Floats, bottom: Floats) -> Floats:
    """The quotient, NaN where the divisor is not positive.

    >>> divide(np.array([1.0, 1.0]), np.array([2.0, 0.0])).tolist()
    [0.5, nan]
    """
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))


def _ranks(values: NDArray[np.float64]) -> Floats:
    order = np.argsort(values, kind="stable")
    starts = tie_starts(values[order])
    ranks = np.empty(len(values))
    ranks[order] = mid_ranks(np.ones((1, len(values))), starts)[0][tie_groups(starts, len(values))]
    return ranks


def _center(x: Floats, weights: Floats, total: Floats) -> tuple[Floats, Floats]:
    """``x`` less its weighted mean, and its weighted sum of squares: exactly 0 where it is constant."""
    mean = divide((weights * x).sum(axis=1), total)
    centered = x - mean[:, None]
    spread = (weights * centered**2).sum(axis=1)
    raw = (weights * x**2).sum(axis=1)
    return centered, np.where(spread <= 1e-24 * raw, 0.0, spread)
