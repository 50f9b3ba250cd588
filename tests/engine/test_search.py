from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertinent.engine import search as module
from pertinent.engine.cascade import best_first
from pertinent.engine.search import search
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.lexical import BM25
from pertinent.records import TokenRows

ids = st.lists(st.integers(0, 6), max_size=7)


def rows(texts: list[list[int]]) -> TokenRows:
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    flat = np.array([token for text in texts for token in text], dtype=np.int32)
    return TokenRows(flat, offsets, np.zeros(len(texts), dtype=np.bool_))


@settings(max_examples=150, deadline=None)
@given(st.lists(ids, max_size=8), ids, st.integers(1, 9), st.integers(1, 8))
def test_it_is_bm25_over_the_tokens(texts: list[list[int]], query: list[int], top: int, at_once: int) -> None:
    titles = [" ".join(f"t{token}" for token in text) for text in texts]
    scores = BM25().fit(titles).score(" ".join(f"t{token}" for token in query), titles) if titles else np.zeros(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_AT_ONCE", at_once)
        found = search(rows(texts), np.array(query, dtype=np.int32), top)
    wanted = [row for row in best_first(np.round(scores, 5)).tolist() if scores[row] > 0][:top]
    assert sorted(np.round(found.scores, 5).tolist(), reverse=True) == pytest.approx(
        [round(float(scores[row]), 5) for row in wanted], abs=2e-5
    )
    np.testing.assert_allclose(found.scores, scores[found.rows], rtol=1e-4)
    assert found.rows.dtype == np.int64 and found.scores.dtype == np.float32


def test_equal_scores_are_ordered_by_row_also_at_the_cut() -> None:
    found = search(rows([[1, 2], [3, 1], [1, 4], [5, 5]]), np.array([1], dtype=np.int32), 2)
    assert found.rows.tolist() == [0, 1]


def test_titles_of_other_scripts_are_found(tiny_pairs: PairTokenizer) -> None:
    titles = ["tea pot", "日本語 3", "", "tea"]
    tokens = tiny_pairs.encode_items(titles)
    for query, best in (("TEA", 3), ("日本", 1)):
        assert search(tokens, tiny_pairs.encode_queries([query]).row(0), 4).rows[0] == best
    assert len(search(tokens, tiny_pairs.encode_queries([""]).row(0), 4).rows) == 0
    assert len(search(tiny_pairs.encode_items([]), tiny_pairs.encode_queries(["tea"]).row(0), 4).rows) == 0
