"""Whether two scorers differ by more than chance, on the same judgments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pertinent.errors import DataError
from pertinent.evaluation.pooled import BLOCK, Floats, Pooled, pool
from pertinent.evaluation.resample import Estimate, finite, interval, resampled
from pertinent.evaluation.result import Evaluation

RESAMPLES = 2000


class Difference(NamedTuple):
    """First less second: value, 95% interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p_value: float

    def plain(self) -> dict[str, float | None]:
        """JSON-able: None where undefined."""
        return {name: finite(value) for name, value in self._asdict().items()}


def compare(a: Evaluation, b: Evaluation, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Difference]:
    """For each metric that both have, how far ``a`` is above ``b``.

    Intervals are paired bootstraps: both scorers see the same drawn queries. The p-value of a ranking
    metric is a sign-flip permutation test over queries; that of a pooled metric comes from the
    bootstrap, as it has no value of a single query. Raises DataError for different judgments.
    """
    if a.judged != b.judged:
        raise DataError(
            f"{a.scorer} and {b.scorer} were evaluated on different judgments ({a.judged}, {b.judged})",
            fix="evaluate both on one file",
        )
    if a.positive_grade != b.positive_grade:
        raise DataError(
            f"{a.scorer} counts grades from {a.positive_grade:g} as relevant, {b.scorer} from {b.positive_grade:g}",
            fix="use one positive grade",
        )
    drawn = resamples if len(a.queries) > 1 else 0
    first, second = (_draw(evaluation, drawn, seed) for evaluation in (a, b))
    differences = {}
    for name in a.metrics:
        if name not in b.metrics:
            continue
        value = a.metrics[name].value - b.metrics[name].value
        spread = first.get(name, np.zeros(0)) - second.get(name, np.zeros(0))
        if name in a.per_query:
            p_value = sign_flip(a.per_query[name] - b.per_query[name], resamples, seed)
        else:
            p_value = tail_share(spread)
        differences[name] = Difference(value, *interval(spread), p_value)
    return differences


def mean_estimates(evaluations: Sequence[Evaluation]) -> dict[str, Estimate]:
    """The mean of each metric over runs (seeds) of one system, with its interval over queries.

    All runs see the same resampled queries, so the interval is that of the mean; how far the runs
    are apart is not in it.
    """
    drawn = _mean_draws(evaluations, evaluations[0].bootstrap)
    estimates = {}
    for name in evaluations[0].metrics:
        value = float(np.mean([evaluation.metrics[name].value for evaluation in evaluations]))
        estimates[name] = Estimate(value, *interval(drawn.get(name, np.zeros(0))))
    return estimates


def compare_means(
    a: Sequence[Evaluation], b: Sequence[Evaluation], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """How far the mean over runs of ``a`` is above that of ``b``, metric by metric.

    Paired by query as ``compare`` is; with one run on each side it is the same, save that every
    p-value comes from the bootstrap. Raises DataError for different judgments.
    """
    first = {(each.judged, each.positive_grade) for each in (*a, *b)}
    if len(first) > 1:
        raise DataError("the runs were evaluated on different judgments or grades", fix="evaluate all on one file")
    drawn = resamples if len(a[0].queries) > 1 else 0
    above, below = _mean_draws(a, drawn, seed), _mean_draws(b, drawn, seed)
    differences = {}
    for name in a[0].metrics:
        if name in b[0].metrics:
            values = [float(np.mean([each.metrics[name].value for each in side])) for side in (a, b)]
            spread = above.get(name, np.zeros(0)) - below.get(name, np.zeros(0))
            differences[name] = Difference(values[0] - values[1], *interval(spread), tail_share(spread))
    return differences


def sign_flip(differences: Floats, resamples: int, seed: int) -> float:
    """Two-sided p-value that paired differences ``[queries]`` have mean 0: signs are flipped at random.

    Undefined differences are left out. Never 0: the given signs count as one of the flips.

    >>> sign_flip(np.zeros(10), resamples=100, seed=0)
    1.0
    >>> sign_flip(np.ones(30), resamples=999, seed=0)
    0.001
    """
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return float("nan")
    seen = abs(float(known.sum())) * (1 - 1e-12)
    rng = np.random.default_rng(seed)
    as_far = 0
    block = max(1, BLOCK // len(known))
    for start in range(0, resamples, block):
        flips = rng.integers(0, 2, size=(min(block, resamples - start), len(known))) * 2.0 - 1.0
        as_far += int((np.abs(flips @ known) >= seen).sum())
    return (as_far + 1) / (resamples + 1)


def tail_share(spread: Floats) -> float:
    """Two-sided p-value of no difference, from resampled differences; NaN of fewer than two.

    >>> tail_share(np.array([0.1, 0.2, 0.3]))
    0.5
    """
    spread = spread[~np.isnan(spread)]
    if len(spread) < 2:
        return float("nan")
    beyond = min(int((spread <= 0).sum()), int((spread >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(spread) + 1))


def _mean_draws(evaluations: Sequence[Evaluation], resamples: int, seed: int = 0) -> dict[str, Floats]:
    drawn = [_draw(evaluation, resamples, seed) for evaluation in evaluations]
    return {name: np.mean([each[name] for each in drawn], axis=0) for name in drawn[0]}


def _draw(evaluation: Evaluation, resamples: int, seed: int) -> dict[str, Floats]:
    if not resamples:
        return {}
    view: Pooled = pool(evaluation.scores, evaluation.grades, evaluation.relevant, evaluation.threshold)
    return resampled(view, evaluation.query_rows, evaluation.per_query, resamples, seed)
