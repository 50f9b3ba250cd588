"""Metrics as plain functions: arrays in, one number out.

Conventions, the same everywhere:

* ``scores`` are the larger the better; ``relevant`` is true or false; ``grades`` and ``gains`` are
  numbers. All are of one length.
* An undefined value is NaN: nothing given, one class only where two are needed, constant scores in a
  correlation, no relevant item in a ranking.
* Equal scores get no luck from their order: AUC counts them half, correlations use mean ranks, and the
  rankings take the mean over all orders of the tied items. ``ties="trec"`` orders them as trec_eval
  does instead (by id, falling); ``ties="input"`` keeps the given order.
* A pair is predicted relevant when its score is at least the threshold.
* Rankings are over judged items only: an item that nobody judged is not scored, and counts nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pertinent.correlation import tie_starts
from pertinent.errors import ScoringError
from pertinent.evaluation import pooled as _pooled
from pertinent.evaluation.pooled import BINS, THRESHOLD, Floats

Ties = Literal["average", "trec", "input"]


def auc(scores: ArrayLike, relevant: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a relevant pair outscores an irrelevant one.

    >>> auc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0])
    0.875
    """
    return _whole(_pooled.auc, scores, relevant=relevant)


def average_precision(scores: ArrayLike, relevant: ArrayLike) -> float:
    """Area under precision over recall, as a sum of steps at the distinct scores.

    >>> round(average_precision([0.9, 0.8, 0.7], [1, 0, 1]), 4)
    0.8333
    """
    return _whole(_pooled.average_precision, scores, relevant=relevant)


def spearman(scores: ArrayLike, grades: ArrayLike) -> float:
    """Rank correlation, ties at their mean rank.

    >>> spearman([1, 2, 3], [0, 0.5, 1])
    1.0
    """
    return _whole(_pooled.spearman, scores, grades=grades)


def pearson(scores: ArrayLike, grades: ArrayLike) -> float:
    """Linear correlation.

    >>> round(pearson([1, 2, 3], [0, 1, 0]), 4)
    0.0
    """
    return _whole(_pooled.pearson, scores, grades=grades)


def accuracy(scores: ArrayLike, relevant: ArrayLike, threshold: float = THRESHOLD) -> float:
    """Share of pairs on the right side of the threshold.

    >>> accuracy([0.9, 0.5, 0.1, 0.2], [1, 0, 0, 0])
    0.75
    """
    return _whole(_pooled.accuracy, scores, relevant=relevant, threshold=threshold)


def macro_f1(scores: ArrayLike, relevant: ArrayLike, threshold: float = THRESHOLD) -> float:
    """Mean of the F1 of both classes; a class neither judged nor predicted counts 0.

    >>> macro_f1([0.9, 0.1], [1, 0])
    1.0
    """
    return _whole(_pooled.macro_f1, scores, relevant=relevant, threshold=threshold)


def micro_f1(scores: ArrayLike, relevant: ArrayLike, threshold: float = THRESHOLD) -> float:
    """F1 over the decisions of both classes together, which for one label a pair is the accuracy.

    >>> micro_f1([0.9, 0.5, 0.1, 0.2], [1, 0, 0, 0])
    0.75
    """
    return accuracy(scores, relevant, threshold)


def class_f1(scores: ArrayLike, relevant: ArrayLike, threshold: float = THRESHOLD) -> tuple[float, float]:
    """F1 of the irrelevant and of the relevant class; 0 for a class neither judged nor predicted.

    >>> class_f1([0.9, 0.5, 0.1], [1, 0, 0])
    (0.6666666666666666, 0.6666666666666666)
    """
    zero = _whole(_pooled.f1_0, scores, relevant=relevant, threshold=threshold)
    return zero, _whole(_pooled.f1_1, scores, relevant=relevant, threshold=threshold)


def false_negative_rate(scores: ArrayLike, relevant: ArrayLike, threshold: float = THRESHOLD) -> float:
    """Share of the relevant pairs that fall below the threshold.

    >>> false_negative_rate([0.9, 0.2, 0.1], [1, 1, 0])
    0.5
    """
    return _whole(_pooled.false_negative_rate, scores, relevant=relevant, threshold=threshold)


def calibration_error(probabilities: ArrayLike, relevant: ArrayLike) -> float:
    """Expected calibration error: mean gap of probability and share relevant, over ten equal bins.

    Bins have equal width and include their upper edge. NaN for scores outside [0, 1].

    >>> round(calibration_error([0.9, 0.9, 0.2], [1, 0, 0]), 4)
    0.3333
    """
    return _whole(_pooled.calibration_error, probabilities, relevant=relevant)


def brier(probabilities: ArrayLike, relevant: ArrayLike) -> float:
    """Mean squared distance of probability and relevance; NaN for scores outside [0, 1].

    >>> brier([1.0, 0.5], [1, 0])
    0.125
    """
    return _whole(_pooled.brier, probabilities, relevant=relevant)


def roc(scores: ArrayLike, relevant: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates at each distinct score, from (0, 0) to (1, 1).

    NaN where a class is missing.

    >>> [rate.tolist() for rate in roc([0.9, 0.4, 0.1], [1, 0, 1])]
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]]
    """
    values, truth = _checked(scores, relevant), _flags(relevant)
    order = np.argsort(-values, kind="stable")
    ends = np.r_[tie_starts(values[order])[1:], len(values)] - 1 if len(values) else np.zeros(0, int)
    hits = np.cumsum(truth[order], dtype=np.float64)[ends]
    false = ends + 1 - hits
    rates = [np.r_[0.0, x] / (x[-1] if len(x) and x[-1] else math.nan) for x in (false, hits)]
    return rates[0], rates[1]


class Reliability(NamedTuple):
    """One bin of a reliability curve: what was promised and what came."""

    probability: float
    relevant: float
    pairs: int


def reliability(probabilities: ArrayLike, relevant: ArrayLike, bins: int = BINS) -> list[Reliability]:
    """Mean probability, share relevant and number of pairs of each bin that is not empty.

    >>> reliability([0.1, 0.1, 0.9], [0, 1, 1], bins=2)
    [Reliability(probability=0.1, relevant=0.5, pairs=2), Reliability(probability=0.9, relevant=1.0, pairs=1)]
    """
    values, truth = _checked(probabilities, relevant), _flags(relevant)
    rows = _pooled.bin_rows(values, bins)
    size = rows.sum(axis=0)
    sums = zip(values @ rows, truth @ rows, size, strict=True)
    return [Reliability(float(p / n), float(r / n), int(n)) for p, r, n in sums if n]


def ndcg(
    scores: ArrayLike,
    gains: ArrayLike,
    k: int | None = None,
    ties: Ties = "average",
    ids: Sequence[str] | None = None,
) -> float:
    """Discounted gain of the first k of one query's items, over the best that an order could have.

    Gains are linear (the grade itself, so ESCI's 1, 0.1, 0.01, 0 work as meant), the discount is
    log2(rank + 1), and the ideal order is over the judged items. NaN where no gain is positive.

    >>> round(ndcg([0.9, 0.8, 0.7], [0, 1, 0], k=10), 4)
    0.6309
    """
    values, gain = _checked(scores, gains), np.asarray(gains, dtype=np.float64)
    if len(gain) and not gain.min() >= 0:
        raise ScoringError(f"gains must be numbers from 0 up, got {gain.min()}")
    top = len(values) if k is None else min(k, len(values))
    discount = np.zeros(len(values))
    discount[:top] = 1 / np.log2(np.arange(top) + 2)
    best = float(np.sort(gain)[::-1] @ discount)
    if not best > 0:
        return math.nan
    order, starts = _ranked(values, ties, ids)
    return float(_spread(gain[order], starts) @ discount / best)


def mrr(scores: ArrayLike, relevant: ArrayLike, ties: Ties = "average", ids: Sequence[str] | None = None) -> float:
    """One over the rank of one query's first relevant item; the mean over queries is the MRR.

    NaN where nothing is relevant.

    >>> mrr([0.9, 0.8, 0.7], [0, 1, 1])
    0.5
    """
    values, truth = _checked(scores, relevant), _flags(relevant)
    if not truth.any():
        return math.nan
    order, starts = _ranked(values, ties, ids)
    first = np.flatnonzero(truth[order])[0]
    group = int(np.searchsorted(starts, first, side="right")) - 1
    start, end = int(starts[group]), int(np.r_[starts, len(values)][group + 1])
    size, hits = end - start, int(truth[order][start:end].sum())
    # The first of `hits` relevant items among `size` tied ones, over all their orders.
    value, chance_left = 0.0, 1.0
    for place in range(size - hits + 1):
        chance = chance_left * hits / (size - place)
        value += chance / (start + place + 1)
        chance_left -= chance
    return value


def recall_at(
    scores: ArrayLike,
    relevant: ArrayLike,
    k: int,
    ties: Ties = "average",
    ids: Sequence[str] | None = None,
) -> float:
    """Share of one query's relevant items that are among its first k. NaN where nothing is relevant.

    >>> recall_at([0.9, 0.8, 0.7], [1, 0, 1], k=2)
    0.5
    """
    values, truth = _checked(scores, relevant), _flags(relevant)
    if not truth.any():
        return math.nan
    order, starts = _ranked(values, ties, ids)
    return float(_spread(truth[order].astype(np.float64), starts)[:k].sum() / truth.sum())


class Metric(NamedTuple):
    """A metric by name: its function, what the second argument is, which way is better."""

    function: Callable[..., Any]
    against: Literal["relevant", "grades"]
    higher_is_better: bool
    text: str


METRICS: dict[str, Metric] = {
    "auc": Metric(auc, "relevant", True, "Chance that a relevant pair outscores an irrelevant one"),
    "average_precision": Metric(average_precision, "relevant", True, "Area under precision over recall"),
    "spearman": Metric(spearman, "grades", True, "Rank correlation of score and grade"),
    "pearson": Metric(pearson, "grades", True, "Linear correlation of score and grade"),
    "accuracy": Metric(accuracy, "relevant", True, "Share of pairs on the right side of the threshold"),
    "macro_f1": Metric(macro_f1, "relevant", True, "Mean of the F1 of both classes"),
    "micro_f1": Metric(micro_f1, "relevant", True, "F1 over all decisions, equal to accuracy"),
    "f1_0": Metric(lambda s, r: class_f1(s, r)[0], "relevant", True, "F1 of the irrelevant class"),
    "f1_1": Metric(lambda s, r: class_f1(s, r)[1], "relevant", True, "F1 of the relevant class"),
    "fnr": Metric(false_negative_rate, "relevant", False, "Share of relevant pairs below the threshold"),
    "ece": Metric(calibration_error, "relevant", False, "Mean gap of probability and share relevant"),
    "brier": Metric(brier, "relevant", False, "Mean squared distance of probability and relevance"),
    "ndcg": Metric(ndcg, "grades", True, "Discounted gain of a query's first items, over the best order"),
    "mrr": Metric(mrr, "relevant", True, "One over the rank of a query's first relevant item"),
    "recall": Metric(lambda s, r: recall_at(s, r, 10), "relevant", True, "Share of relevant items ranked first"),
}


def metric(name: str) -> Metric:
    """The entry for a name as it stands in results, with or without its cut-off.

    >>> metric("ndcg@10").higher_is_better
    True
    """
    return METRICS[name.partition("@")[0]]


def _whole(
    function: Callable[[_pooled.Pooled, Floats], Floats],
    scores: ArrayLike,
    grades: ArrayLike | None = None,
    relevant: ArrayLike | None = None,
    threshold: float = THRESHOLD,
) -> float:
    """A pooled metric with every pair counted once."""
    other = grades if grades is not None else relevant
    assert other is not None
    values = _checked(scores, other)
    truth = np.zeros(len(values), bool) if relevant is None else _flags(relevant)
    grade = np.asarray(other, dtype=np.float64)
    view = _pooled.pool(values, grade, truth, threshold)
    return float(function(view, np.ones((1, len(values))))[0])


def _checked(scores: ArrayLike, other: ArrayLike) -> Floats:
    values, against = np.asarray(scores, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if values.ndim != 1 or values.shape != against.shape:
        raise ScoringError(
            f"scores have shape {values.shape} and judgments {against.shape}; give two lists of one length"
        )
    for name, array in (("scores", values), ("judgments", against)):
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ScoringError(f"{name} must be finite numbers, got {array[row]} in row {row}")
    return values


def _flags(relevant: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(relevant)
    flags = array.astype(bool)
    if array.dtype != bool and not (array == flags).all():
        raise ScoringError("relevance must be 0 or 1 (or true or false); compare grades with a positive grade first")
    return flags


def _ranked(values: Floats, ties: Ties, ids: Sequence[str] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by falling score, and the first place of each group whose order is left open."""
    if ties == "trec":
        if ids is None or len(ids) != len(values):
            raise ScoringError("ties='trec' orders equal scores by id: give one id for each score")
        by_id = np.array(sorted(range(len(ids)), key=lambda row: ids[row], reverse=True), dtype=np.int64)
        return by_id[np.argsort(-values[by_id], kind="stable")], np.arange(len(values))
    order = np.argsort(-values, kind="stable")
    return order, tie_starts(values[order]) if ties == "average" else np.arange(len(values))


def _spread(ranked: Floats, starts: NDArray[np.int64]) -> Floats:
    """Each value replaced by the mean of its group of ties."""
    sizes = np.diff(np.r_[starts, len(ranked)])
    return np.asarray(np.repeat(np.add.reduceat(ranked, starts) / sizes, sizes))
