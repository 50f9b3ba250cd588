"""A cached score is the one that was computed; what changes a score cannot hit."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.artifact import Artifact, open_artifact, write_artifact
from pertinent.commands import cache
from pertinent.engine.cache import (
    Block,
    CacheCounts,
    MemoryScores,
    ScoreCaches,
    query_digest,
    score_stamp,
)
from pertinent.engine.hot_pairs import SCORE_ARRAYS, SCORES_FILE, CacheConfig, HotPairs
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.pieces import item_digests
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.records import Item
from pertinent.text import NORMALIZER, normalize

TITLES = ["tea pot", "usb cable", "日本語 イヤホン", "", "usb cable", "coffee mug " * 30]
ITEMS = [Item(str(n), title) for n, title in enumerate(TITLES)]
PAIRS = [("Tea", "0"), ("tea ", "1"), ("ＴＥＡ", "0"), ("usb", "1"), ("", "3"), ("наушники", "2"), ("usb", "gone")]
QUIET = IndexConfig(progress=False)


class Watched:
    """A backend that counts the pairs it computes."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.name, self.workers, self.computed = backend, backend.name, backend.workers, 0

    def forward(self, batch: Any) -> Any:
        self.computed += len(batch)
        return self.backend.forward(batch)


@pytest.fixture(scope="module")
def loaded(tiny_artifact: Artifact) -> Scorer:
    return Scorer.load(tiny_artifact.path, threads=1)


@pytest.fixture
def scorer(loaded: Scorer) -> Scorer:
    return Scorer(Watched(loaded.backend), loaded.pairs, name="tiny", version=loaded.version)


@pytest.fixture(scope="module")
def index(loaded: Scorer, tmp_path_factory: pytest.TempPathFactory) -> ItemIndex:
    return ItemIndex.build(ITEMS, loaded.pairs, tmp_path_factory.mktemp("i") / "index", config=QUIET)


@pytest.fixture(scope="module")
def hot(loaded: Scorer, index: ItemIndex, tmp_path_factory: pytest.TempPathFactory) -> HotPairs:
    config = CacheConfig(chunk=2, progress=False)
    return HotPairs.build(PAIRS, loaded, index, tmp_path_factory.mktemp("h") / "hot", config)


def stamp_of(scorer: Scorer) -> bytes:
    return score_stamp(scorer.pairs, scorer.version, scorer.backend.name)


def caches(scorer: Scorer, *levels: Any) -> ScoreCaches:
    return ScoreCaches(stamp_of(scorer), levels)


def test_what_was_computed_comes_back_bit_for_bit_and_is_not_computed_again(scorer: Scorer, index: ItemIndex) -> None:
    fresh = scorer.logits("tea", TITLES), scorer.index_logits(["tea"], np.zeros(6, np.int64), index, np.arange(6))
    scorer.caches = caches(scorer, MemoryScores(10**6))
    scorer.backend.computed = 0
    for turn in range(3):
        np.testing.assert_array_equal(scorer.logits(" TEA", TITLES), fresh[0])
        np.testing.assert_array_equal(
            scorer.index_logits(["Tea"], np.zeros(6, np.int64), index, np.arange(6)), fresh[1]
        )
        assert scorer.backend.computed == 12
        assert scorer.caches.counts.misses == 12 and scorer.caches.counts.hits["memory"] == 12 * turn
    assert scorer.caches.counts.hit_rate == pytest.approx(2 / 3)
    assert [s.item.item_id for s in scorer.rank("tea", index, top=None)]
    assert scorer.backend.computed == 12
    assert scorer.logits("tea", []).tolist() == []


def test_a_call_computes_only_what_no_level_has(scorer: Scorer) -> None:
    scorer.caches = caches(scorer, MemoryScores(10**6))
    scorer.score("tea", TITLES[:2])
    scorer.score("tea", TITLES[:3])
    assert scorer.backend.computed == 3
    pairs = [("usb", "tea pot"), ("tea", "usb cable"), ("tea", "日本語 イヤホン"), ("usb", "usb cable")]
    got = scorer.score_pairs(pairs)
    assert scorer.backend.computed == 5
    scorer.caches = None
    np.testing.assert_allclose(got, scorer.score_pairs(pairs), atol=1e-6)


def test_hot_pairs_are_the_scores_of_the_scorer(scorer: Scorer, hot: HotPairs, index: ItemIndex) -> None:
    artifact = open_artifact(hot.path, "scores")
    assert artifact.metrics.items() >= {"queries": 4, "pairs": 5, "unknown_items": 1, "entries": 10}.items()
    assert len(hot) == 10 and artifact.metrics["bytes"] > 0
    wanted = {
        (query, row): scorer.index_logits([query], np.zeros(1, np.int64), index, np.array([row]))[0]
        for query, row in (("tea", 0), ("tea", 1), ("usb", 1), ("", 3), ("наушники", 2))
    }
    scorer.caches = caches(scorer, hot)
    scorer.backend.computed = 0
    for (query, row), logit in wanted.items():
        by_id = scorer.index_logits([query.upper()], np.zeros(1, np.int64), index, np.array([row]))[0]
        by_text = scorer.logits(query, [TITLES[row]])[0]
        assert by_id == pytest.approx(logit, abs=2e-6) and by_text == by_id
    assert scorer.backend.computed == 0
    assert scorer.caches.counts.hits["hot"] == 10
    scorer.score("tea", ["nothing like it"])
    assert scorer.backend.computed == 1


def test_hot_pairs_without_texts_are_found_by_id_alone(loaded: Scorer, index: ItemIndex, tmp_path: Path) -> None:
    config = CacheConfig(texts=False, progress=False, limit=None)
    hot = HotPairs.build(PAIRS, loaded, index, tmp_path / "hot", config)
    assert len(hot) == 5
    level = caches(loaded, hot)
    rows = np.zeros(1, np.int64)
    assert level.find(["tea"], rows, index.digests[:1]).hit.all()
    assert not level.find(["tea"], rows, item_digests([""], ["tea pot"])).hit.any()


def test_no_pairs_are_scores_of_nothing(loaded: Scorer, index: ItemIndex, tmp_path: Path) -> None:
    hot = HotPairs.build([], loaded, index, tmp_path / "hot")
    assert len(hot) == 0
    found = caches(loaded, hot).find(["tea"], np.zeros(6, np.int64), index.digests)
    assert not found.hit.any()
    assert not caches(loaded, hot).find([], np.zeros(0, np.int64), index.digests[:0]).hit.any()


def test_a_changed_title_model_lexicon_backend_or_calibration_misses(
    loaded: Scorer, hot: HotPairs, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    def hits(stamp: bytes, index: ItemIndex) -> list[bool]:
        return ScoreCaches(stamp, [hot]).find(["tea"], np.zeros(2, np.int64), index.digests[:2]).hit.tolist()

    same = ItemIndex.build(ITEMS, loaded.pairs, tmp_path / "same", config=QUIET)
    assert hits(stamp_of(loaded), same) == [True, True]
    changed = [Item("0", "Tea pot"), *ITEMS[1:]]
    retitled = ItemIndex.build(changed, loaded.pairs, tmp_path / "changed", config=QUIET)
    assert hits(stamp_of(loaded), retitled) == [False, True]
    moved = ItemIndex.build([Item("9", "tea pot"), *ITEMS[1:]], loaded.pairs, tmp_path / "moved", config=QUIET)
    assert hits(stamp_of(loaded), moved) == [False, True]  # another item with the same title
    tokenizer = tiny_tokenizer.from_str(tiny_tokenizer.to_str())
    tokenizer.add_tokens(["earbud"])
    learned = PairTokenizer(tokenizer, loaded.pairs.config)
    longer = PairTokenizer(tiny_tokenizer, PairConfig(item_length=40))
    # A model's version covers all its files: weights, lexicon, layout, calibration.
    backend = loaded.backend.name
    for stamp in (
        score_stamp(loaded.pairs, "other", backend),
        score_stamp(learned, loaded.version, backend),
        score_stamp(longer, loaded.version, backend),
        score_stamp(loaded.pairs, loaded.version, f"{backend}-int8"),
    ):
        assert hits(stamp, same) == [False, False]
        with pytest.raises(ArtifactError, match=f"{SCORES_FILE}: has the scores of model version {loaded.version}"):
            HotPairs.open(hot.path, stamp)


def test_the_normalizer_has_the_version_that_caches_were_made_with() -> None:
    texts = ["ＴＥＡ  pot", "İstanbul\u200b", "a\u0301 Ünï", "x" * 10_001, "\ud800\x00 ﬁ", "½ 1.5m", "\u202eabc\ufeff"]
    found = hashlib.sha256("\n".join(map(normalize, texts)).encode()).hexdigest()[:16]
    assert (NORMALIZER, found) == (1, "1fbd58178aeb2fb4")


@pytest.mark.parametrize("name", SCORE_ARRAYS)
def test_damaged_scores_are_refused(hot: HotPairs, tmp_path: Path, name: str) -> None:
    import json
    import shutil
    import struct

    folder = Path(shutil.copytree(hot.path, tmp_path / "hot"))
    content = bytearray((folder / SCORES_FILE).read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    start, end = json.loads(content[8 : 8 + size])[name]["data_offsets"]
    content[8 + size + (start + end) // 2] ^= 1
    (folder / SCORES_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{SCORES_FILE}: SHA-256 is"):
        HotPairs.open(folder)
    (folder / SCORES_FILE).write_bytes(content[: 8 + size + start])
    with pytest.raises(ArtifactError, match=f"{SCORES_FILE}: has .* bytes, the manifest says"):
        HotPairs.open(folder)
    with pytest.raises(ArtifactError, match="not a readable file of scores"):
        HotPairs.open(folder, verify=False)


def digests(numbers: list[int]) -> Any:
    return np.array([[number, number * 7 + 1] for number in numbers], dtype=np.uint64).reshape(-1, 2)


def block(numbers: list[int], offset: float = 0.0) -> Block:
    logits = np.array(numbers, dtype=np.float32) + np.float32(offset)
    return Block.of(digests(numbers), logits, np.array(numbers, dtype=np.int64) % 2 == 1)


numbers = st.lists(st.integers(0, 12), max_size=15)


@given(numbers, numbers, numbers, st.integers(1, 8))
def test_a_block_gives_what_was_put_in_last(older: list[int], newer: list[int], asked: list[int], most: int) -> None:
    merged = block(newer, 0.5).with_older(block(older))
    places = merged.find(digests(asked))
    for number, place in zip(asked, places, strict=True):
        if number in newer or number in older:
            assert merged.logits[place] == number + (0.5 if number in newer else 0.0)
            assert merged.truncated[place] == (number % 2 == 1)
        else:
            assert place == -1
    short = block(newer, 0.5).with_older(block(older), most)
    assert len(short) == min(most, len({*newer, *older}))
    assert (np.diff(short.heads.astype(np.int64)) > 0).all()
    assert len(set(newer)) > most or set(newer) <= {int(h) for h in short.heads}


def test_half_of_a_digest_is_no_hit_and_what_is_not_finite_is_not_kept() -> None:
    items = digests([1, 2, 3])
    found = Block.of(items, np.array([1, np.nan, np.inf], np.float32), np.zeros(3, np.bool_))
    assert found.heads.tolist() == [1]
    assert found.find(np.array([[1, 8], [1, 9], [2, 15]], dtype=np.uint64)).tolist() == [0, -1, -1]


def test_memory_stays_within_its_limit_and_forgets_the_oldest_query() -> None:
    memory = MemoryScores(limit=5_000)
    for number in range(40):
        memory.keep(b"%d" % number, block(list(range(10))))
        memory.blocks([b"0"])
        assert memory.size <= 5_000
    assert [found is not None for found in memory.blocks([b"0", b"1", b"39"])] == [True, False, True]
    memory.keep(b"large", block(list(range(1_000))))
    assert memory.size == 0  # too large for it
    memory.keep(b"a", block([1, 2]))
    memory.keep(b"a", block([2, 3], 0.5))
    (found,) = memory.blocks([b"a"])
    assert found is not None and found.logits.tolist() == [1.0, 2.5, 3.5]


def test_a_nearer_level_takes_over_what_a_further_one_had() -> None:
    near, far = MemoryScores(10**6), MemoryScores(10**6)
    far.name = "far"
    stamp = b"s" * 16
    far.keep(query_digest(stamp, "tea"), block([1, 2]))
    both = ScoreCaches(stamp, [near, far], CacheCounts())
    rows = np.array([0, 1, 0, 0])
    first = both.find(["tea", "usb"], rows, digests([1, 1, 2, 9]))
    assert first.level.tolist() == [1, -1, 1, -1] and first.logits[[0, 2]].tolist() == [1, 2]
    again = both.find(["tea", "usb"], rows, digests([1, 1, 2, 9]))
    assert again.level.tolist() == [0, -1, 0, -1]
    assert both.counts.hits == {"memory": 2, "far": 2} and both.counts.misses == 4


def test_threads_may_share_the_levels(scorer: Scorer) -> None:
    scorer.caches = caches(scorer, MemoryScores(3_000))
    wanted = {query: scorer.score(query, TITLES) for query in ("tea", "usb", "mug", "")}
    wrong: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(30):
            query = ["tea", "usb", "mug", ""][random.integers(4)]
            rows = random.permutation(6)[: random.integers(1, 7)]
            got = scorer.score(query, [TITLES[row] for row in rows])
            if np.abs(got - wanted[query][rows]).max() > 1e-6:
                wrong.append(query)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_hot_pairs_in_part_files_are_read_in_order(tiny_artifact: Artifact, index: ItemIndex, tmp_path: Path) -> None:
    asked = [pair for pair in PAIRS if pair[0]]
    table = pa.table({"query": [q for q, _ in asked], "item_id": [i for _, i in asked]})
    with write_artifact(tmp_path / "mined", "mined", {}) as folder:
        (folder / "hot_pairs.parquet").mkdir()
        for number, (start, size) in enumerate(((0, 4), (4, 0), (4, 2))):
            pq.write_table(table.slice(start, size), folder / "hot_pairs.parquet" / f"part-{number:05}.parquet")
    pq.write_table(table, tmp_path / "whole.parquet")
    settings = {"model": str(tiny_artifact.path), "index": str(index.path), "threads": 1, "progress": False}
    out = str(tmp_path / "out")
    versions = {
        cache(CacheConfig.build({**settings, "hot_pairs": str(tmp_path / source), "out": out})).version
        for source in ("whole.parquet", "mined", "mined/hot_pairs.parquet")
    }
    assert len(versions) == 1
