"""Intervals by drawing whole queries again: the pairs of one query are not independent, queries are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pertinent.evaluation.pooled import BLOCK, Floats, Pooled, measure


class Estimate(NamedTuple):
    """A value with its 95% interval; NaN where undefined.

    >>> str(Estimate(0.81, 0.786, 0.834))
    '0.810 [0.786, 0.834]'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f}" + ("" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]")

    def plain(self) -> dict[str, float | None]:
        """JSON-able: None where undefined."""
        return {name: finite(value) for name, value in self._asdict().items()}


def finite(value: float) -> float | None:
    """The number, or None where it is NaN or infinite: JSON has neither.

    >>> finite(0.5), finite(float("nan"))
    (0.5, None)
    """
    return float(value) if math.isfinite(value) else None


def draws(queries: int, resamples: int, seed: int, block: int) -> Iterator[Floats]:
    """How often each query was drawn, ``[rows, queries]``, in blocks of at most ``block`` resamples.

    The draws do not depend on the size of the blocks.

    >>> [counts.sum(axis=1).tolist() for counts in draws(3, resamples=3, seed=0, block=2)]
    [[3.0, 3.0], [3.0]]
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
        yield np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries).astype(np.float64)


def resampled(
    pooled: Pooled,
    query_rows: NDArray[np.int64],
    per_query: Mapping[str, Floats],
    resamples: int,
    seed: int,
) -> dict[str, Floats]:
    """Each metric in each resample, ``[resamples]``; ``per_query`` values are ``[queries]``, NaN left out.

    The same seed and number of queries draw the same queries, so that two scorers can be compared pair by pair.
    """
    queries = len(next(iter(per_query.values())))
    parts: dict[str, list[Floats]] = {}
    for counts in draws(queries, resamples, seed, max(1, BLOCK // max(1, len(query_rows)))):
        values = measure(pooled, counts[:, query_rows])
        for name, each in per_query.items():
            values[name] = weighted_mean(each, counts)
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def weighted_mean(values: Floats, counts: Floats) -> Floats:
    """Mean of the values that are defined, for each row of counts; NaN where none was drawn.

    >>> weighted_mean(np.array([1.0, np.nan, 0.0]), np.array([[1.0, 5.0, 3.0], [0.0, 1.0, 0.0]])).tolist()
    [0.25, nan]
    """
    known = ~np.isnan(values)
    total = counts @ known.astype(np.float64)
    top = counts @ np.where(known, values, 0.0)
    return np.asarray(np.divide(top, total, out=np.full(len(counts), np.nan), where=total > 0))


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95% of the resampled values, undefined ones left out; NaN of fewer than two.

    >>> interval(np.arange(101.0))
    (2.5, 97.5)
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
