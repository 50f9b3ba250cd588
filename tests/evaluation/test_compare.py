"""Paired comparisons of two scorers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from pertinent.errors import DataError
from pertinent.evaluation.compare import compare, sign_flip
from pertinent.evaluation.evaluate import evaluate, evaluate_scores
from pertinent.evaluation.result import Evaluation
from pertinent.records import Judgment

Judged = Callable[..., list[Judgment]]


@pytest.fixture(scope="session")
def scored(judged: Judged) -> Callable[..., Evaluation]:
    def scored(quality: float, seed: int, name: str = "m", queries: int = 60) -> Evaluation:
        rows = judged(queries)
        noise = np.random.default_rng(seed).normal(size=len(rows))
        scores = 1 / (1 + np.exp(-(quality * np.array([row.grade for row in rows]) + noise)))
        return evaluate_scores(scores, rows, name=name, positive_grade=1.0, bootstrap=10)

    return scored


def test_a_scorer_does_not_differ_from_itself(scored: Callable[..., Evaluation]) -> None:
    first = scored(1.0, 0)
    for name, difference in compare(first, first, resamples=200).items():
        assert difference[:3] == (0.0, 0.0, 0.0), name
        assert difference.p_value == 1.0


def test_a_much_better_scorer_is_found_and_signs_turn_with_the_order(scored: Callable[..., Evaluation]) -> None:
    good, bad = scored(4.0, 0, "good"), scored(0.0, 1, "bad")
    ahead, behind = compare(good, bad, resamples=500), compare(bad, good, resamples=500)
    for name in ("auc", "spearman", "pearson", "ndcg@10", "mrr"):
        assert ahead[name].low > 0 and ahead[name].p_value < 0.05, name
        assert behind[name].value == pytest.approx(-ahead[name].value)
        assert behind[name].high == pytest.approx(-ahead[name].low)


def test_equally_good_scorers_seldom_differ(scored: Callable[..., Evaluation]) -> None:
    p_values = [compare(scored(1.0, s), scored(1.0, s + 100), resamples=200) for s in range(20)]
    for name in ("auc", "ndcg@10"):
        assert sum(p[name].p_value < 0.05 for p in p_values) <= 4


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_sign_flip_equals_scipy(shift: float) -> None:
    differences = np.random.default_rng(0).normal(shift, 1, 80)
    theirs = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    )
    assert sign_flip(differences, 9999, 0) == pytest.approx(theirs.pvalue, abs=0.02)
    assert math.isnan(sign_flip(np.array([0.3, np.nan]), 100, 0))


def test_one_query_has_values_but_no_interval(words: type[Any], judged: Judged) -> None:
    rows = [row for row in judged(20) if row.query == judged(20)[0].query]
    first, second = (evaluate(words(noise=n), rows, positive_grade=0.01) for n in (0.1, 5.0))
    difference = compare(first, second)["accuracy"]
    assert math.isfinite(difference.value) and math.isnan(difference.low) and math.isnan(difference.p_value)
    assert difference.plain()["p_value"] is None


def test_metrics_of_one_side_only_are_left_out(words: type[Any], judged: Judged) -> None:
    rows = judged(10)
    first, second = (evaluate(words(), rows, positive_grade=1.0, k=k, bootstrap=0) for k in ((5, 10), (10,)))
    assert "ndcg@5" not in compare(first, second, resamples=20)
    assert "ndcg@10" in compare(first, second, resamples=20)


def test_different_judgments_are_refused(scored: Callable[..., Evaluation]) -> None:
    first = scored(1.0, 0)
    with pytest.raises(DataError, match="different judgments"):
        compare(first, scored(1.0, 0, queries=30))
    with pytest.raises(DataError, match="use one positive grade"):
        compare(first, replace(first, positive_grade=0.1))
