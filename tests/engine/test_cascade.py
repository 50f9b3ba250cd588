from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.engine.cascade import best_first, fuse_linear, fuse_tiers, keep_relevant, normalized, tiers
from pertinent.errors import DataError

values = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), max_size=30).map(np.array)


def test_ties_are_broken_by_the_next_scores_and_then_by_place() -> None:
    assert best_first(np.array([])).tolist() == []
    assert best_first(np.array([0.5, 0.5, 0.9, 0.5])).tolist() == [2, 0, 1, 3]
    assert best_first(np.array([0.5, 0.5, 0.5]), np.array([1, 2, 2])).tolist() == [1, 2, 0]


@given(values, st.floats(0, 1), st.integers(0, 12), st.integers(0, 12))
def test_a_filter_keeps_the_best_and_counts_the_rest(scores: Any, threshold: float, keep: int, least: int) -> None:
    kept = keep_relevant(scores, threshold, keep, least)
    assert len(kept.rows) + kept.below + kept.beyond == len(scores)
    passing = int((scores >= threshold).sum())
    assert len(kept.rows) == min(keep, max(passing, min(least, len(scores))))
    left = np.setdiff1d(np.arange(len(scores)), kept.rows)
    if len(left) and len(kept.rows):
        assert scores[left].max() <= scores[kept.rows].min()
    assert kept.rows.tolist() == best_first(scores).tolist()[: len(kept.rows)]


def test_equal_items_at_the_border_stay_by_retrieval_score() -> None:
    kept = keep_relevant(np.array([0.5, 0.5, 0.5]), 0.1, 1, 0, retrieval=np.array([1.0, 3.0, 2.0]))
    assert kept.rows.tolist() == [1] and kept.beyond == 2


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="keep is -1"):
        keep_relevant(np.array([0.5]), 0.1, -1, 0)
    with pytest.raises(DataError, match="weight"):
        fuse_linear(np.array([0.5]), np.array([1.0]), 1.5, "min_max")
    with pytest.raises(DataError, match="rising"):
        tiers(np.array([0.5]), (0.6, 0.1))


@given(values, st.sampled_from(["min_max", "rank"]))
def test_normalized_scores_lie_between_0_and_1_in_the_same_order(scores: Any, how: Any) -> None:
    found = normalized(scores, how)
    assert len(found) == len(scores) and ((found >= 0) & (found <= 1)).all()
    for first in range(len(scores)):
        same = np.sign(scores[first] - scores) == np.sign(np.round(found[first] - found, 12))
        assert same.all() or len(set(scores.tolist())) == 1


def test_the_largest_numbers_do_not_overflow() -> None:
    assert normalized(np.array([-1.7e308, 1.7e308, 0.0]), "min_max").tolist() == [0.0, 1.0, 0.5]


@given(
    values, st.integers(0, 29), st.floats(0, 1), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from(["min_max", "rank"])
)
def test_more_relevance_never_lowers_a_fused_score(scores: Any, row: int, more: float, weight: float, how: Any) -> None:
    if not len(scores):
        return
    row %= len(scores)
    ranking = np.random.default_rng(len(scores)).normal(size=len(scores))
    raised = scores.copy()
    raised[row] = max(raised[row], more)
    assert fuse_linear(raised, ranking, weight, how)[row] >= fuse_linear(scores, ranking, weight, how)[row]
    cuts = (0.2, 0.6)
    assert fuse_tiers(raised, ranking, cuts, how)[row] >= fuse_tiers(scores, ranking, cuts, how)[row]


@given(values)
def test_a_better_tier_always_comes_first(scores: Any) -> None:
    ranking = np.random.default_rng(0).normal(size=len(scores))
    fused, levels = fuse_tiers(scores, ranking, (0.2, 0.6), "min_max"), tiers(scores, (0.2, 0.6))
    assert levels[best_first(fused)].tolist() == sorted(levels.tolist(), reverse=True)
