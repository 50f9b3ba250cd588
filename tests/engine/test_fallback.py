from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.artifact import Artifact
from pertinent.engine.cache import MemoryScores, ScoreCaches, score_stamp
from pertinent.engine.cascade import best_first, fuse_linear, fuse_tiers, keep_relevant
from pertinent.engine.fallback import FallbackChain, Stage, cached_stage, lexical_stage, model_stage
from pertinent.engine.scorer import Scorer
from pertinent.errors import DataError, ScoringError
from pertinent.evaluation.calibration import threshold_for_recall
from pertinent.records import Item

ITEMS = [Item("a", "tea pot"), Item("b", "usb cable"), Item("c", ""), Item("d", "日本語 tea"), Item("e", "tea pot")]


@pytest.fixture(scope="module")
def scorer(tiny_artifact: Artifact) -> Scorer:
    return Scorer.load(tiny_artifact.path, threads=1)


def knows(name: str, ids: str, value: float) -> Stage:
    """Scores the items of these ids only, as a model that needs an item's neighbors does."""

    def score(query: str, items: Any, end: float | None) -> Any:
        return np.array([value if item.item_id in ids else np.nan for item in items], dtype=np.float32)

    return Stage(name, score)


def broken(error: BaseException) -> Stage:
    def score(query: str, items: Any, end: float | None) -> Any:
        raise error

    return Stage("broken", score)


def test_each_item_has_the_first_scorer_that_knows_it(scorer: Scorer) -> None:
    stamp = score_stamp(scorer.pairs, scorer.version, scorer.backend.name)
    warm = Scorer(scorer.backend, scorer.pairs, name="ei_src", version=scorer.version)
    warm.caches = ScoreCaches(stamp, [MemoryScores(10**6)])
    warm.score("tea", ["usb cable"])
    chain = FallbackChain([cached_stage(warm), knows("barl_ase", "a", 0.75), model_stage(warm), lexical_stage()])
    answered = chain.answer(" TEA ", ITEMS)
    assert answered.scorers == ["barl_ase", "cached", "ei_src", "ei_src", "ei_src"]
    wanted = scorer.score("tea", [item.title for item in ITEMS])
    np.testing.assert_allclose(answered.scores[1:], wanted[1:], atol=1e-6)
    assert answered.scores[0] == 0.75 and not answered.failures
    ranked = chain.rank("tea", ITEMS, top=2)
    assert len(ranked) == 2 and {scored.scorer for scored in chain.rank("tea", ITEMS, top=None)} <= {
        "barl_ase",
        "cached",
        "ei_src",
    }
    assert chain.answer("tea", []).scores.shape == (0,)


@pytest.mark.parametrize("error", [ScoringError("not finite"), RuntimeError("x"), MemoryError(), OSError("gone")])
def test_a_scorer_that_fails_is_stood_in_for(error: BaseException) -> None:
    chain = FallbackChain([broken(error), lexical_stage()])
    answered = chain.answer("tea pot", ITEMS)
    assert answered.scorers == ["lexical"] * 5
    assert answered.failures["broken"].startswith(type(error).__name__)
    assert [scored.item.item_id for scored in chain.rank("tea pot", ITEMS, top=3)] == ["a", "e", "d"]


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones(1), np.float32(1), np.ones((5, 1)), None, "no scores"])
def test_a_scorer_that_gives_no_score_for_each_item_is_stood_in_for(wrong: Any) -> None:
    careless = Stage("careless", lambda query, items, end: wrong)
    answered = FallbackChain([careless, lexical_stage()]).answer("tea pot", ITEMS)
    assert answered.scorers == ["lexical"] * 5 and "careless" in answered.failures
    with pytest.raises(ScoringError, match="5 of 5 items were scored by no scorer of the chain"):
        FallbackChain([careless]).answer("tea pot", ITEMS)


def test_wrong_input_and_a_chain_that_ends_too_early_are_told() -> None:
    with pytest.raises(DataError, match="wrong query"):
        FallbackChain([broken(DataError("wrong query")), lexical_stage()]).answer("tea", ITEMS)
    chain = FallbackChain([broken(OSError("gone")), knows("some", "ab", 0.5)])
    with pytest.raises(
        ScoringError, match=r"3 of 5 items were scored by no scorer of the chain \(broken: OSError: gone\)"
    ):
        chain.answer("tea", ITEMS)
    with pytest.raises(DataError, match="no scorers"):
        FallbackChain([])


def test_scores_that_are_no_probabilities_come_last() -> None:
    chain = FallbackChain([knows("model", "bc", 0.01), lexical_stage()])
    ranked = chain.rank("tea pot", ITEMS, top=None)
    assert [(scored.item.item_id, scored.scorer) for scored in ranked[:2]] == [("b", "model"), ("c", "model")]
    assert [scored.scorer for scored in ranked[2:]] == ["lexical"] * 3


def test_when_time_is_over_the_last_one_answers(scorer: Scorer) -> None:
    chain = FallbackChain([model_stage(scorer, "model"), lexical_stage()])
    answered = chain.answer("tea", ITEMS, seconds=0.0)
    assert answered.scorers == ["lexical"] * 5 and answered.failures == {"model": "no time was left"}
    assert chain.answer("tea", ITEMS, seconds=60.0).scorers == ["model"] * 5

    class Slow(Scorer):
        def score(self, query: str, titles: Any) -> Any:
            time.sleep(1.0)
            return np.zeros(len(titles), dtype=np.float32)

    slow = Slow(scorer.backend, scorer.pairs)
    many = ITEMS * 300
    scorers = FallbackChain([model_stage(slow, "model"), lexical_stage()]).answer("tea", many, seconds=0.5).scorers
    assert scorers == ["model"] * 512 + ["lexical"] * (1_500 - 512)


values = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), min_size=1, max_size=25).map(np.array)


def place(relevance: Any, ranking: Any, row: int, keep: int, least: int, weight: float | None) -> float:
    """Where an item ends after filter, fusion and order; infinite where it is dropped."""
    chosen = np.sort(keep_relevant(relevance, 0.25, keep, least).rows)
    if weight is None:
        fused = fuse_tiers(relevance[chosen], ranking[chosen], (0.2, 0.6), "min_max")
    else:
        fused = fuse_linear(relevance[chosen], ranking[chosen], weight, "min_max")
    order = chosen[best_first(fused, relevance[chosen])].tolist()
    return order.index(row) if row in order else np.inf


@given(
    values,
    st.integers(0, 24),
    st.floats(0, 1),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from([None, 0.0, 0.3, 1.0]),
    st.integers(0, 3),
)
def test_more_relevance_never_costs_an_item_its_place(
    relevance: Any, row: int, more: float, keep: int, least: int, weight: float | None, seed: int
) -> None:
    row %= len(relevance)
    ranking = np.random.default_rng(seed).integers(0, 4, len(relevance)).astype(np.float64)
    raised = relevance.copy()
    raised[row] = max(raised[row], more)
    assert place(raised, ranking, row, keep, least, weight) <= place(relevance, ranking, row, keep, least, weight)


@given(st.integers(0, 50))
def test_the_threshold_of_the_table_keeps_99_of_100_relevant_items(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, grades = random.integers(0, 12, 400) / 12, (random.random(400) < 0.3).astype(np.float64)
    threshold = threshold_for_recall(scores, grades, 0.99)
    kept = keep_relevant(scores, threshold, keep=2_000, min_keep=0).rows
    assert grades[kept].sum() >= 0.99 * grades.sum()
