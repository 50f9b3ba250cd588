"""Cached scores on the wire: equal to computed ones, told in the answer and in the metrics, never a failed request."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from pertinent.artifact import open_artifact
from pertinent.cli import main
from pertinent.engine.cache import MemoryScores, ScoreCaches
from pertinent.engine.fallback import lexical_scores
from pertinent.engine.hot_pairs import CacheConfig, HotPairs
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item
from pertinent.serving import caching, native
from pertinent.serving.caching import CacheSettings, SharedCaches
from pertinent.serving.config import ServeConfig
from pertinent.serving.queue import QueueConfig, ScoringQueue, Work
from pertinent.serving.registry import Registry, Served, Source
from pertinent.serving.run import check, sources

DOCUMENTS = ["wireless earbuds", "usb cable", "", "日本語 イヤホン", "tea pot " * 40, "usb cable"]
ROWS = [3, 17, 0, 5]


def counter(text: str, name: str) -> float:
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE).group(1))  # type: ignore[union-attr]


def test_the_second_answer_is_the_first_without_computing(start: Any, tiny_scorer: Scorer, tiny_index: Any) -> None:
    plain = start(tiny_scorer, tiny_index)
    cached = start(tiny_scorer, tiny_index, cache={"memory_mb": 1})
    bodies = [
        ("/v2/rerank", {"query": "Tea pot", "documents": DOCUMENTS}),
        ("/v1/relevance", {"query": "tea", "rows": ROWS}),
        ("/v1/relevance", {"query": "tea", "texts": ["a", "usb cable"]}),
        ("/predict", {"inputs": [["tea", "usb"], ["usb", "tea"], ["tea", "usb"]]}),
    ]
    for path, body in bodies:
        wanted, first, again = (server.post(path, body) for server in (plain, cached, cached))
        assert "x-cached" not in wanted.headers
        assert int(again.headers["x-cached"]) == int(again.headers["x-scored"]) == int(wanted.headers["x-scored"])
        assert again.headers["x-truncated"] == wanted.headers["x-truncated"]
        assert scores(first) == scores(again)  # to the last bit
        np.testing.assert_allclose(scores(again), scores(wanted), atol=1e-6)
    # Another spelling of the query, other documents beside the known ones, another order.
    body = {"query": " tea  POT", "documents": ["new", *reversed(DOCUMENTS)]}
    mixed = cached.post("/v2/rerank", body)
    assert mixed.headers["x-cached"] == "6" and mixed.headers["x-scored"] == "7"
    np.testing.assert_allclose(scores(mixed), scores(plain.post("/v2/rerank", body)), atol=1e-6)
    text = cached.client.get("/metrics").text
    assert counter(text, 'pertinent_cache_hits_total{level="memory"}') == 6 + 4 + 2 + 3 + 6
    assert counter(text, "pertinent_cache_misses_total") == 6 + 4 + 2 + 3 + 1
    assert counter(text, "pertinent_cache_hit_ratio") == pytest.approx(21 / 37)
    assert "cache;dur=" in mixed.headers["server-timing"]


def scores(answer: Any) -> list[float]:
    body = answer.json()
    if isinstance(body, list):
        return [row[0]["score"] if isinstance(row, list) else row["score"] for row in body]
    if "results" in body:
        return [row["relevance_score"] for row in sorted(body["results"], key=lambda row: row["index"])]
    return [body["scores"][spot] for spot in np.argsort(body["index"])]


def test_a_long_query_does_not_make_its_items_cut_for_others(start: Any, tiny_scorer: Scorer) -> None:
    server = start(tiny_scorer, cache={"memory_mb": 1})
    long = "tea pot " * 40
    for _ in range(2):
        answer = server.post("/v2/rerank", {"query": long, "documents": DOCUMENTS})
        assert answer.headers["x-truncated"] == "6"
    short = server.post("/v2/rerank", {"query": " ".join(long.split()[:10]), "documents": DOCUMENTS})
    assert short.headers["x-truncated"] == "1"


def test_scores_of_cut_texts_are_not_those_of_whole_ones(start: Any, tiny_scorer: Scorer) -> None:
    server = start(tiny_scorer, cache={"memory_mb": 1})
    body = {"query": "usb", "documents": ["usb cable tea pot green"]}
    whole, cut, again = (server.post("/v2/rerank", {**body, **more}) for more in ({}, {"max_tokens_per_doc": 2}, {}))
    assert scores(whole) == scores(again) != scores(cut) and "x-cached" not in cut.headers


def test_a_deadline_leaves_what_was_cached(speed_scorer: Any) -> None:
    scorer = speed_scorer(0.0, 1)
    caches = ScoreCaches(b"s" * 16, [MemoryScores(10**6)])

    async def run() -> None:
        queue = ScoringQueue(QueueConfig(), 1)
        served = Served("tiny", scorer)
        try:
            await caching.score(queue, caches, served, Work.of_texts("tea", ["a", "b"]))
            scorer.backend.hold.clear()
            late = asyncio.get_running_loop().time() + 0.2
            work = Work.of_texts("tea", ["b", "c", "a"])
            result = await caching.score(queue, caches, served, work, deadline=late, partial=True)
            assert result.scored.tolist() == [True, False, True]
            assert result.cached is not None and result.cached.tolist() == [True, False, True]
            scorer.backend.hold.set()
            empty = await caching.score(queue, caches, served, Work.of_texts("tea", []))
            assert len(empty.logits) == 0
        finally:
            scorer.backend.hold.set()
            await asyncio.to_thread(queue.close)

    asyncio.run(run())


def test_what_a_deadline_leaves_is_ordered_by_words_and_each_item_names_its_scorer(
    start: Any, speed_scorer: Any, tiny_index: ItemIndex
) -> None:
    scorer = speed_scorer(0.0, 1)
    server = start(scorer, tiny_index, cache={"memory_mb": 1})
    rows = [item.title for item in tiny_index.items([0, 1, 2, 3, 4, 5])]
    assert rows[2].startswith("tea pot green")
    warm = server.post("/v1/relevance", {"query": "tea pot", "rows": [0, 1]}).json()
    assert warm["scorers"] == ["model", "model"]
    scorer.backend.hold.clear()
    try:
        body = {"query": "tea pot", "rows": [5, 2, 0, 3, 1], "deadline_ms": 300, "fallback": True}
        answer = server.post("/v1/relevance", {**body, "explain": True}).json()
        assert answer["scorers"] == ["cached", "cached", "lexical", "lexical", "lexical"]
        assert answer["ids"][:3] == [*warm["ids"], 2] and sorted(answer["ids"]) == [0, 1, 2, 3, 5]
        assert answer["scores"][:2] == warm["scores"] and answer["scores"][2] > answer["scores"][3] == 0.0
        assert answer["partial"] and "unscored" not in answer and answer["scored"] == 2
        assert [item["id"] for item in answer["items"]] == answer["ids"]
        assert server.post("/v1/relevance", {**body, "top": 3}).json()["ids"] == answer["ids"][:3]
        assert server.post("/v1/relevance", {**body, "top": 1}).json()["scorers"] == ["cached"]
        texts = {"query": "mug", "texts": ["pot", "a mug", ""], "deadline_ms": 300, "fallback": True}
        assert server.post("/v1/relevance", texts).json()["index"] == [1, 0, 2]
        partial = server.post("/v1/relevance", {**body, "fallback": False, "partial": True}).json()
        assert partial["scorers"] == ["cached", "cached"] and partial["unscored"] == [0, 1, 3]
    finally:
        scorer.backend.hold.set()


def test_ordering_by_words_holds_up_no_other_request(
    start: Any, speed_scorer: Any, tiny_index: ItemIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(query: str, titles: Any) -> Any:
        began.set()
        assert go.wait(5), "no other request was answered meanwhile"
        return lexical_scores(query, titles)

    monkeypatch.setattr(native, "lexical_scores", slow)
    scorer = speed_scorer(0.0, 1)
    server = start(scorer, tiny_index)
    scorer.backend.hold.clear()
    body = {"query": "tea pot", "rows": [0, 2], "deadline_ms": 50, "fallback": True}
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.post, "/v1/relevance", body)
            assert began.wait(10)
            assert server.client.get("/livez").status_code == 200
            go.set()
            assert answer.result(10).json()["ids"] == [2, 0]
    finally:
        go.set()
        scorer.backend.hold.set()


@pytest.fixture(scope="module")
def shop(tiny_artifact: Any, tiny_pairs: PairTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an index and the scores of hot pairs."""
    folder = tmp_path_factory.mktemp("shop")
    shutil.copytree(tiny_artifact.path, folder / "model")
    items = [Item(str(n), f"tea pot {n}") for n in range(20)]
    ItemIndex.build(items, tiny_pairs, folder / "index", config=IndexConfig(progress=False))
    (folder / "pairs.csv").write_text("query,item_id,rank\n" + "".join(f"Tea,{n},{n}\n" for n in range(15)))
    argv = ["--hot-pairs", str(folder / "pairs.csv"), "--index", str(folder / "index"), "--out", str(folder / "hot")]
    assert main(["cache", str(folder / "model"), *argv, "--limit", "12", "--set", "progress=false", "--json"]) == 0
    return folder


def config(shop: Path, **more: Any) -> ServeConfig:
    values = {"model": str(shop / "model"), "index": str(shop / "index"), "watch_seconds": 0, "threads": 1}
    return ServeConfig.build({**values, "cache": {"hot_pairs": str(shop / "hot"), **more}})


def test_hot_pairs_are_served_by_id_and_by_text(start: Any, shop: Path) -> None:
    (served,) = Registry.open(sources(config(shop))).all
    assert served.hot is not None and len(served.hot) == 24
    assert served.scorer.pairs.cache is not None  # the tokens of texts
    caches = SharedCaches(CacheSettings()).of(served)
    assert caches is not None and served.index is not None
    found = caches.find(["tea"], np.zeros(20, np.int64), served.index.digests)
    assert found.hit.tolist() == [True] * 12 + [False] * 8
    wanted = served.scorer.index_logits(["tea"], np.zeros(12, np.int64), served.index, np.arange(12))
    np.testing.assert_allclose(found.logits[:12], wanted, atol=2e-6)


def test_a_new_model_is_served_without_the_scores_of_the_old_one(
    shop: Path, tmp_path: Path, artifact_maker: Any, network_maker: Any, tiny_pairs: Any, caplog: Any
) -> None:
    mine = Path(shutil.copytree(shop, tmp_path / "shop"))
    registry = Registry.open(sources(config(mine)))
    artifact_maker(mine / "model", network_maker("ei_src", tiny_pairs.vocabulary_size, seed=5), tiny_pairs, graph=False)
    assert registry.changed() == ["model"]
    outcome = registry.reload()
    assert not outcome["model"].startswith("failed") and registry.get(None).hot is None
    assert "has the scores of another version" in caplog.text
    assert registry.without_hot_pairs() == ["model"]
    with pytest.raises(ArtifactError, match="has the scores of model version"):  # but not at the start
        Registry.open(sources(config(mine)))
    # New scores are taken up as new models are.
    scorer = Scorer.load(mine / "model")
    HotPairs.build([("tea", "0")], scorer, ItemIndex.open(mine / "index"), mine / "hot", CacheConfig(progress=False))
    assert registry.changed() == ["model"]
    registry.reload()
    assert registry.get(None).hot is not None and registry.without_hot_pairs() == []


def test_damaged_scores_stop_a_start_and_not_a_server(shop: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(shop, tmp_path / "shop"))
    registry = Registry.open(sources(config(mine)))
    before = registry.get(None)
    file = mine / "hot" / "scores.safetensors"
    file.rename(tmp_path / "old")  # a mapped file is never edited in place
    file.write_bytes(b"x" * 100)
    assert registry.reload()["model"].startswith("failed")
    assert registry.get(None) is before
    with pytest.raises(ArtifactError, match=r"scores\.safetensors: has 100 bytes"):
        Registry.open(sources(config(mine)))


def test_an_updated_index_is_taken_up(shop: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(shop, tmp_path / "shop"))
    registry = Registry.open(sources(config(mine)))
    scorer = registry.get(None).scorer
    changed = [Item("0", "usb cable"), Item("new", "mug")]
    ItemIndex.update(mine / "index", scorer.pairs, changed, ["1"], config=IndexConfig(progress=False))
    assert registry.changed() == ["model"]
    registry.reload()
    served = registry.get(None)
    assert served.index is not None and served.hot is not None
    assert served.index.find(["1", "new"]).tolist() == [-1, 19]
    caches = SharedCaches(CacheSettings()).of(served)
    assert caches is not None
    hit = caches.find(["tea"], np.zeros(20, np.int64), served.index.digests).hit
    assert hit.tolist() == [False] + [True] * 10 + [False] * 9  # item 0 has another title now


def test_settings_and_secrets(shop: Path) -> None:
    secret = config(shop, redis="redis://:password@host:6379")
    assert "password" not in json.dumps(secret.without_secrets())
    only = ServeConfig.build({"models": {"a": "x"}, "cache": {"hot_pairs": "hot"}})
    with pytest.raises(ConfigError, match="hot_pairs are for the default model"):
        check(only)
    with pytest.raises(ConfigError, match="--index is required"):
        from pertinent.commands import cache

        cache(CacheConfig(hot_pairs="x", out="y"))


def test_a_dead_redis_costs_no_request(start: Any, tiny_scorer: Scorer) -> None:
    pytest.importorskip("redis", reason="the redis client is not installed")
    server = start(tiny_scorer, cache={"redis": "redis://127.0.0.1:1", "memory_mb": 1})
    for _ in range(8):
        answer = server.post("/v2/rerank", {"query": "tea", "documents": ["tea pot", "mug"]})
        assert answer.status_code == 200
    text = server.client.get("/metrics").text
    assert counter(text, 'pertinent_cache_errors_total{level="redis"}') >= 1
    assert counter(text, 'pertinent_cache_hits_total{level="memory"}') == 14


def test_requests_do_not_notice_that_redis_is_killed_and_comes_back(
    start: Any, tiny_scorer: Scorer, redis_server: Any
) -> None:
    server = start(tiny_scorer, cache={"redis": redis_server.url, "redis_budget_ms": 50})
    bodies = [{"query": f"tea {n % 7}", "documents": ["tea pot", "mug", f"usb cable {n % 5}"]} for n in range(300)]
    plain = {json.dumps(body): tiny_scorer.score(body["query"], body["documents"]) for body in bodies}
    asked = itertools.count()

    def ask(body: Any) -> bool:
        place = next(asked)
        if place == 100:
            redis_server.kill()
        if place == 200:
            redis_server.start()
        answer = httpx2.post(server.url + "/v2/rerank", json=body, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        scores = {result["index"]: result["relevance_score"] for result in answer.json()["results"]}
        return bool(np.allclose([scores[row] for row in range(3)], plain[json.dumps(body)], atol=1e-6))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, bodies))
    text = server.client.get("/metrics").text
    assert counter(text, 'pertinent_cache_hits_total{level="redis"}') > 0
    assert counter(text, 'pertinent_cache_errors_total{level="redis"}') > 0


def test_mined_folders_are_read(shop: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    from pertinent.artifact import write_artifact

    with write_artifact(tmp_path / "mined", "mined", {}) as folder:
        rows = "(values ('tea', '3', 0), ('mug', '4', 1), ('mug', 'gone', 2)) t(query, item_id, rank)"
        duckdb.sql(f"copy (select * from {rows}) to '{folder}/hot_pairs.parquet'")
    argv = ["--hot-pairs", str(tmp_path / "mined"), "--index", str(shop / "index"), "--out", str(tmp_path / "hot")]
    assert main(["cache", str(shop / "model"), *argv]) == 0
    assert open_artifact(tmp_path / "hot").metrics["pairs"] == 2
    assert main(["cache", str(shop / "model"), *argv[:-2]]) == 2


def test_sources_carry_the_settings(shop: Path) -> None:
    (source,) = sources(config(shop, token_mb=0))
    assert source == Source("model", shop / "model", shop / "index", None, 1, hot_pairs=shop / "hot", token_mb=0.0)
