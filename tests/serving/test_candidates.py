"""Candidates of the index over HTTP: BM25 order, limits, and who may ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest

from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.engine.search import search
from pertinent.serving import candidates
from pertinent.serving.access import key_digest

PATH = "/v1/candidates"


@pytest.fixture(scope="module")
def server(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, tiny_index, limits={"documents": 300})


@pytest.mark.parametrize("query", ["usb cable 7", "TEA pot", "earbuds of no such word"])
def test_they_are_those_of_bm25_best_first(server: Any, tiny_scorer: Scorer, tiny_index: ItemIndex, query: str) -> None:
    found = search(tiny_index.tokens, tiny_scorer.pairs.encode_queries([query]).row(0), 30)
    items = tiny_index.items(found.rows)
    answer = server.post(PATH, {"query": query, "top": 30}).json()
    assert answer["ids"] == [item.item_id for item in items] and answer["titles"] == [item.title for item in items]
    assert np.allclose(answer["scores"], found.scores) and answer["scores"] == sorted(answer["scores"], reverse=True)
    assert answer["searched"] == len(tiny_index) and answer["version"] == server.app.models.get(None).version
    assert len(server.post(PATH, {"query": query}).json()["ids"]) == 20


def test_they_go_straight_into_relevance(server: Any) -> None:
    found = server.post(PATH, {"query": "tea pot", "top": 25}).json()
    body = {"query": "tea pot", "item_ids": found["ids"], "retrieval_scores": found["scores"]}
    body |= {"ranking_scores": found["scores"], "fuse": {"mode": "tiers"}, "explain": True}
    answer = server.post("/v1/relevance", body).json()
    assert sorted(answer["ids"]) == sorted(found["ids"]) and "unknown" not in answer
    assert all(item["retrieval_score"] == found["scores"][item["index"]] for item in answer["items"])


def test_a_query_that_nothing_shares_a_word_with_has_none(server: Any) -> None:
    for query in ("", "   ", "\u200b"):
        reply = server.post(PATH, {"query": query})
        assert reply.status_code == 200 and reply.json()["ids"] == []


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 422, "query is missing"),
        ({"query": 5}, 422, "query"),
        ({"query": "usb", "top": 0}, 422, "1 to 300"),
        ({"query": "usb", "top": 301}, 422, "1 to 300"),
        ({"query": "usb", "extra": 1}, 422, "extra"),
        ({"query": "usb", "model": "other"}, 404, "tiny"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(server: Any, body: dict[str, Any], status: int, word: str) -> None:
    reply = server.post(PATH, body)
    assert reply.status_code == status and word in reply.json()["message"]


def test_there_are_none_without_an_index_a_key_or_the_page(
    tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]
) -> None:
    reply = start(tiny_scorer).post(PATH, {"query": "usb"})
    assert reply.status_code == 422 and reply.json()["code"] == "no_index"
    locked = start(tiny_scorer, tiny_index, keys={"shop": key_digest("secret")})
    assert locked.post(PATH, {"query": "usb"}).status_code == 401
    assert locked.post(PATH, {"query": "usb"}, headers={"x-api-key": "secret"}).status_code == 200
    assert start(tiny_scorer, tiny_index, playground=False).post(PATH, {"query": "usb"}).status_code == 404


def test_one_search_runs_at_a_time_and_few_wait_for_it(
    tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(tiny_scorer, tiny_index)
    gate, running, most = threading.Event(), [], []
    answer = candidates._answer

    def held(*arguments: Any) -> Any:
        running.append(1)
        most.append(len(running))
        gate.wait(20)
        running.pop()
        return answer(*arguments)

    monkeypatch.setattr(candidates, "_answer", held)
    refused = threading.Semaphore(0)

    def ask(_: int) -> httpx2.Response:
        with httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            reply = client.post(PATH, json={"query": "usb"})
        if reply.status_code == 429:
            refused.release()
        return reply

    with ThreadPoolExecutor(15) as pool:
        replies = pool.map(ask, range(15))
        try:
            for _ in range(15 - 1 - candidates._WAITING):
                assert refused.acquire(timeout=20)
            # Scoring goes on beside it.
            assert server.post("/v2/rerank", {"query": "usb", "documents": ["usb"]}).status_code == 200
        finally:
            gate.set()
        codes = [reply.status_code for reply in replies if reply.status_code != 429 or reply.headers["retry-after"]]
    assert sorted(codes) == [200] * 9 + [429] * 6 and set(most) == {1}
    assert 'pertinent_shed_total{reason="searches"} 6.0' in server.client.get("/metrics").text
