from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertinent.errors import ScoringError
from pertinent.models.lexical import BM25, TFIDF
from pertinent.records import PairScorer
from pertinent.text import words

CATALOG = [
    "USB-C cable 1.5 m",
    "red mug",
    "red red mug with tea pot",
    "",
    "größe 3 schuhe",
    "日本語 イヤホン",
    "usb charger",
    "кабель usb",
]
QUERIES = ["red mug", "usb", "usb usb cable", "", "nothing of this", "日本語", "Größe", "red red"]
text = st.lists(st.sampled_from(["red", "mug", "usb", "tea", "größe", "3", "of"]), max_size=8).map(" ".join)


def bm25_by_definition(query: str, title: str, catalog: list[str], k1: float = 1.2, b: float = 0.75) -> float:
    documents = [words(t) for t in catalog]
    mean = sum(len(d) for d in documents) / len(documents)
    document = words(title)
    total = 0.0
    for term in words(query):
        n = sum(term in d for d in documents)
        f = document.count(term)
        idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
        total += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(document) / mean))
    return total


def tfidf_by_definition(query: str, title: str, catalog: list[str]) -> float:
    documents = [words(t) for t in catalog]
    terms = sorted({*words(query), *words(title)})

    def vector(of: str) -> np.ndarray[Any, Any]:
        values = []
        for term in terms:
            n, f = sum(term in d for d in documents), words(of).count(term)
            values.append((1 + math.log(f)) * math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) if f else 0.0)
        return np.array(values)

    q, t = vector(query), vector(title)
    size = float(np.linalg.norm(q) * np.linalg.norm(t))
    return float(q @ t) / size if size else 0.0


@pytest.mark.parametrize("query", QUERIES)
def test_scores_equal_the_definitions(query: str) -> None:
    titles = [*CATALOG, "a title outside of the catalog: red usb"]
    expected = [bm25_by_definition(query, title, CATALOG) for title in titles]
    np.testing.assert_allclose(BM25().fit(CATALOG).score(query, titles), expected, rtol=1e-6)
    expected = [bm25_by_definition(query, title, CATALOG, 2.0, 0.1) for title in titles]
    np.testing.assert_allclose(BM25(k1=2.0, b=0.1).fit(CATALOG).score(query, titles), expected, rtol=1e-6)
    expected = [tfidf_by_definition(query, title, CATALOG) for title in titles]
    np.testing.assert_allclose(TFIDF().fit(CATALOG).score(query, titles), expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(text, min_size=1, max_size=6), text)
def test_laws_of_both(catalog: list[str], query: str) -> None:
    for scorer in (BM25().fit(catalog), TFIDF().fit(catalog)):
        scores = scorer.score(query, catalog)
        assert scores.dtype == np.float32 and scores.shape == (len(catalog),)
        assert np.isfinite(scores).all() and (scores >= 0).all()
        assert (scores > 0).tolist() == [bool({*words(query)} & {*words(title)}) for title in catalog]
        np.testing.assert_array_equal(scorer.score(query, catalog[::-1]), scores[::-1])
        np.testing.assert_array_equal([scorer.score(query, [title])[0] for title in catalog], scores)
        assert all(scorer.idf(word) > 0 for word in (*words(query), "unknown"))
    assert (TFIDF().fit(catalog).score(query, catalog) <= 1).all()
    if words(query):
        assert TFIDF().fit(catalog).score(query, [query.title()])[0] == pytest.approx(1.0)


def test_idf_falls_as_a_word_becomes_common_and_stays_positive() -> None:
    rarities = []
    for count in range(11):
        scorer = BM25().fit(["red"] * count + ["mug"] * (10 - count))
        rarities.append(scorer.idf("red"))
    assert all(a > b > 0 for a, b in itertools.pairwise(rarities))
    assert rarities[10] == pytest.approx(math.log(1 + 0.5 / 10.5))


def test_more_occurrences_raise_the_score_by_less_and_less() -> None:
    scorer = BM25().fit(CATALOG)
    # Titles of one length, so only the frequency differs.
    scores = scorer.score("red", ["red " * n + "mug " * (9 - n) for n in range(10)]).astype(float)
    steps = np.diff(scores)
    assert (steps > 0).all() and (np.diff(steps) < 0).all()
    assert scores.max() < scorer.idf("red") * 2.2


def test_longer_titles_score_lower() -> None:
    scores = BM25().fit(CATALOG).score("red", ["red", "red mug", "red mug tea", "red mug tea pot"])
    assert (np.diff(scores) < 0).all()


@pytest.mark.parametrize("kind", [BM25, TFIDF])
def test_corner_cases(kind: Any) -> None:
    scorer = kind().fit(CATALOG)
    assert isinstance(scorer, PairScorer) and scorer.name == kind.__name__.lower()
    assert scorer.score("red", []).shape == (0,)
    assert scorer.score("", ["red", ""]).tolist() == [0.0, 0.0]
    assert scorer.score("red", ["", "mug"]).tolist() == [0.0, 0.0]
    ties = scorer.score("red", ["red mug"] * 3)
    assert ties[0] > 0 and len(set(ties.tolist())) == 1
    assert np.isfinite(scorer.score("\ud800 \x00 red", ["red \ud800", "x" * 100_000, "\U0001f3a7"])).all()
    assert np.isfinite(kind().fit(["", ""]).score("red", ["red", ""])).all()
    assert scorer.fit(["mug"]) is scorer and scorer.idf("red") == kind().fit(["mug"]).idf("red")


@pytest.mark.parametrize("kind", [BM25, TFIDF])
def test_without_a_catalog_there_is_no_score(kind: Any) -> None:
    for scorer in (kind(), kind().fit([])):
        with pytest.raises(ScoringError, match=r"knows no catalog yet; call fit"):
            scorer.score("red", ["red"])
