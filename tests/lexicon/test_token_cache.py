from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from pertinent.lexicon.pairs import PairTokenizer
from pertinent.lexicon.tagger import Tagger
from pertinent.lexicon.token_cache import TokenCache
from pertinent.records import TokenRows

TEXTS = ["red tea pot", "", "usb cable", "red tea pot", "日本語 イヤホン", "coffee mug " * 30, "X" * 10_001]


@pytest.fixture(params=[False, True], ids=["plain", "tagged"])
def pairs(request: pytest.FixtureRequest, tiny_pairs: PairTokenizer) -> PairTokenizer:
    return PairTokenizer(tiny_pairs.tokenizer, tiny_pairs.config, Tagger.shipped() if request.param else None)


def same(one: TokenRows, other: TokenRows) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.truncated, other.truncated)
    assert (one.term_classes is None) == (other.term_classes is None)
    if one.term_classes is not None:
        np.testing.assert_array_equal(one.term_classes, other.term_classes)
    assert (one.ids.dtype, one.offsets.dtype, one.truncated.dtype) == (np.int32, np.int64, np.bool_)


def test_rows_from_the_cache_are_those_of_the_tokenizer(pairs: PairTokenizer) -> None:
    fresh = {count: pairs.encode_items(TEXTS[:count]) for count in (0, 1, 3, len(TEXTS))}
    pairs.cache = TokenCache(10**6)
    for count in (0, 1, 3, len(TEXTS), len(TEXTS), 0):
        same(pairs.encode_items(TEXTS[:count]), fresh[count])
    assert len(pairs.cache) == 5  # one text comes twice, one is longer than is read
    assert (pairs.cache.hits, pairs.cache.misses) == (1 + 4 + 6, 1 + 2 + 3 + 1)


def test_memory_stays_within_its_limit(tiny_pairs: PairTokenizer) -> None:
    cache = TokenCache(20_000)
    for number in range(200):
        cache.rows([f"usb cable {number}", "tea"], tiny_pairs._encode_items)
        assert 0 < cache.size <= 20_000
    hits = cache.hits
    cache.rows(["tea", "usb cable 199", "usb cable 0"], tiny_pairs._encode_items)
    assert cache.hits == hits + 2
    nothing = TokenCache(0)
    same(nothing.rows(TEXTS, tiny_pairs._encode_items), tiny_pairs._encode_items(TEXTS))
    assert len(nothing) == 0 and nothing.size == 0


def test_threads_may_share_it(tiny_pairs: PairTokenizer) -> None:
    cache = TokenCache(8_000)
    texts = [f"tea pot {number}" for number in range(40)]
    wanted: Any = tiny_pairs.encode_items(texts)
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            rows = random.integers(0, 40, size=6)
            got = cache.rows([texts[row] for row in rows], tiny_pairs._encode_items)
            if got.ids.tolist() != wanted.take(rows).ids.tolist():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.size <= 8_000
