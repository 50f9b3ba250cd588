"""Metrics over all pairs together, for many weightings of the pairs at once.

A bootstrap by query counts how often each query was drawn; that count weights its pairs. Every
function here takes weights ``[resamples, pairs]`` and gives one value a resample, equal to the plain
metric on rows repeated that often. Sorting is done once, when a ``Pooled`` is made.

Undefined values (one class only, constant scores, no weight) are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pertinent.correlation import correlation, divide, mid_ranks, sum_groups, tie_groups, tie_starts

Floats = NDArray[np.float64]
THRESHOLD = 0.5
BINS = 10
# Weights of a block of resamples are held at once: this many numbers, 16 MB each.
BLOCK = 2_000_000


@dataclass(frozen=True, slots=True)
class Pooled:
    """Scores with their grades, sorted for reuse; make one with ``pool``.

    ``order`` sorts by falling score; all other arrays are in that order. ``starts`` are the first
    rows of each group of equal scores, ``groups`` the group of each row; likewise for grades.
    """

    order: NDArray[np.int64]  # [pairs]
    scores: Floats  # [pairs], falling
    grades: Floats  # [pairs]
    relevant: NDArray[np.bool_]  # [pairs]
    threshold: float
    starts: NDArray[np.int64]
    groups: NDArray[np.int64]
    grade_order: NDArray[np.int64]
    grade_starts: NDArray[np.int64]
    grade_groups: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """True where the score reaches the threshold."""
        return self.scores >= self.threshold

    @property
    def probabilities(self) -> bool:
        """Whether all scores lie in [0, 1]; otherwise calibration cannot be measured."""
        return bool(len(self.scores) == 0 or (self.scores[-1] >= 0 and self.scores[0] <= 1))


def pool(scores: Floats, grades: Floats, relevant: NDArray[np.bool_], threshold: float) -> Pooled:
    """The pairs, sorted. All arrays ``[pairs]``, finite."""
    order = np.argsort(-scores, kind="stable")
    scores, grades, relevant = scores[order], grades[order], relevant[order]
    starts = tie_starts(scores)
    groups = tie_groups(starts, len(scores))
    grade_order = np.argsort(grades, kind="stable")
    grade_starts = tie_starts(grades[grade_order])
    grade_groups = np.empty_like(groups)
    grade_groups[grade_order] = tie_groups(grade_starts, len(grades))
    return Pooled(order, scores, grades, relevant, threshold, starts, groups, grade_order, grade_starts, grade_groups)


def measure(pooled: Pooled, weights: Floats, names: tuple[str, ...] | None = None) -> dict[str, Floats]:
    """Every pooled metric for weights ``[resamples, pairs]`` given in the input order of ``pool``."""
    weights = weights[:, pooled.order]
    return {name: POOLED[name](pooled, weights) for name in names or POOLED}


def auc(pooled: Pooled, weights: Floats) -> Floats:
    """Chance that a relevant pair outscores an irrelevant one; equal scores count half."""
    positive, negative = _split(pooled, weights)
    below = negative.sum(axis=1, keepdims=True) - np.cumsum(negative, axis=1)
    wins = (positive * (below + negative / 2)).sum(axis=1)
    return divide(wins, positive.sum(axis=1) * negative.sum(axis=1))


def average_precision(pooled: Pooled, weights: Floats) -> Floats:
    """Mean precision at the relevant pairs; equal scores share the precision of their group."""
    positive, negative = _split(pooled, weights)
    found = np.cumsum(positive, axis=1)
    seen = found + np.cumsum(negative, axis=1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return divide((positive * precision).sum(axis=1), positive.sum(axis=1))


def spearman(pooled: Pooled, weights: Floats) -> Floats:
    """Rank correlation of score and grade; ties have their mean rank, also inside a resample."""
    by_score = -mid_ranks(weights, pooled.starts)
    if len(pooled.starts) < len(pooled.scores):
        by_score = by_score[:, pooled.groups]
    by_grade = mid_ranks(weights[:, pooled.grade_order], pooled.grade_starts)[:, pooled.grade_groups]
    return correlation(by_score, by_grade, weights)


def pearson(pooled: Pooled, weights: Floats) -> Floats:
    """Linear correlation of score and grade."""
    if not len(pooled.scores):
        return np.full(len(weights), np.nan)
    # Measured from one of their own values, constant columns are exactly zero.
    return correlation(pooled.scores - pooled.scores[0], pooled.grades - pooled.grades[0], weights)


def accuracy(pooled: Pooled, weights: Floats) -> Floats:
    """Share of pairs on the right side of the threshold."""
    right, total = _weigh(weights, pooled.predicted == pooled.relevant), weights.sum(axis=1)
    return divide(right, total)


def f1_0(pooled: Pooled, weights: Floats) -> Floats:
    """F1 of the irrelevant class."""
    return _f1(~pooled.predicted, ~pooled.relevant, weights)


def f1_1(pooled: Pooled, weights: Floats) -> Floats:
    """F1 of the relevant class."""
    return _f1(pooled.predicted, pooled.relevant, weights)


def macro_f1(pooled: Pooled, weights: Floats) -> Floats:
    """Mean of the F1 of both classes; never above the accuracy."""
    return (f1_0(pooled, weights) + f1_1(pooled, weights)) / 2


def false_negative_rate(pooled: Pooled, weights: Floats) -> Floats:
    """Share of the relevant pairs that fall below the threshold."""
    missed = _weigh(weights, pooled.relevant & ~pooled.predicted)
    return divide(missed, _weigh(weights, pooled.relevant))


def calibration_error(pooled: Pooled, weights: Floats) -> Floats:
    """Expected calibration error over ten bins of equal width; NaN for scores outside [0, 1]."""
    if not pooled.probabilities:
        return np.full(len(weights), np.nan)
    # Per bin, |relevant - expected| already carries the bin's weight.
    gap = bin_rows(pooled.scores) * (pooled.relevant - pooled.scores)[:, None]  # [pairs, bins]
    return divide(np.abs(weights @ gap).sum(axis=1), weights.sum(axis=1))


def brier(pooled: Pooled, weights: Floats) -> Floats:
    """Mean squared distance of probability and relevance; NaN for scores outside [0, 1]."""
    if not pooled.probabilities:
        return np.full(len(weights), np.nan)
    return divide(weights @ (pooled.scores - pooled.relevant) ** 2, weights.sum(axis=1))


POOLED: dict[str, Callable[[Pooled, Floats], Floats]] = {
    "auc": auc,
    "average_precision": average_precision,
    "spearman": spearman,
    "pearson": pearson,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "micro_f1": accuracy,  # the same number where every pair has one label; see metrics.micro_f1
    "f1_0": f1_0,
    "f1_1": f1_1,
    "fnr": false_negative_rate,
    "ece": calibration_error,
    "brier": brier,
}


def bin_rows(probabilities: Floats, bins: int = BINS) -> Floats:
    """Which bin each probability falls in, one-hot ``[pairs, bins]``; a bin includes its upper edge.

    >>> bin_rows(np.array([0.0, 0.5, 0.51]), bins=2).tolist()
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)
    return np.asarray(np.eye(bins)[places], dtype=np.float64)


def _split(pooled: Pooled, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of the relevant and of the irrelevant pairs in each group of equal scores."""
    positive = sum_groups(weights * pooled.relevant, pooled.starts)
    return positive, sum_groups(weights, pooled.starts) - positive


def _f1(predicted: NDArray[np.bool_], actual: NDArray[np.bool_], weights: Floats) -> Floats:
    hits = _weigh(weights, predicted & actual)
    sizes = _weigh(weights, predicted) + _weigh(weights, actual)
    # A class that is neither judged nor predicted has F1 0; without any pair it is undefined.
    f1 = np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0)
    return np.where(weights.sum(axis=1) > 0, f1, np.nan)


def _weigh(weights: Floats, chosen: NDArray[np.bool_]) -> Floats:
    return np.asarray(weights @ chosen.astype(np.float64))
