from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pertinent.engine.cascade import best_first
from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer

ROWS = [5, 0, 17, 199, 42]


@pytest.fixture(scope="module")
def server(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, tiny_index, limits={"documents": 1_000})


def ask(server: Any, **body: Any) -> dict[str, Any]:
    reply = server.post("/v1/relevance", {"query": "usb cable", **body})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def packed(numbers: list[int]) -> str:
    return base64.b64encode(np.array(numbers, dtype="<i4").tobytes()).decode()


def test_ids_rows_packed_rows_and_texts_score_the_same(server: Any, tiny_scorer: Scorer, tiny_index: ItemIndex) -> None:
    items = tiny_index.items(ROWS)
    expected = tiny_scorer.score("usb cable", [item.title for item in items])
    order = best_first(expected).tolist()
    ids = [item.item_id for item in items]
    for given in ({"item_ids": ids}, {"rows": ROWS}, {"rows": packed(ROWS)}, {"texts": [i.title for i in items]}):
        answer = ask(server, **given)
        assert answer["index"] == order
        assert np.allclose(answer["scores"], expected[order], atol=1e-6)
        assert answer["scores"] == answer["relevance"]
        assert answer["scorer"].endswith(f"/{tiny_scorer.backend.name}") and answer["scored"] == 5
        assert set(answer["timings_ms"]) == {"queue", "tokenize", "score", "total"}
    assert ask(server, item_ids=ids)["ids"] == [ids[place] for place in order]


def test_scores_have_the_digits_of_float32_and_are_read_back_as_they_were(server: Any, tiny_scorer: Scorer) -> None:
    titles = [f"usb cable {number} m" for number in range(40)]
    answer = ask(server, texts=titles, explain=True)
    exact = tiny_scorer.score("usb cable", titles)[answer["index"]]
    assert np.allclose(answer["relevance"], exact, rtol=0, atol=1e-6)
    assert all(str(np.float32(value)) == str(value) for value in answer["relevance"])
    assert [item["relevance"] for item in answer["items"]] == answer["relevance"]
    fused = ask(server, texts=titles, ranking_scores=list(range(40)), fuse={"mode": "linear"}, explain=True)
    assert [item["score"] for item in fused["items"]] == fused["scores"]


def test_whole_numbers_and_packed_numbers_are_ids_too(server: Any) -> None:
    assert set(ask(server, item_ids=[0, 2, 4])["ids"]) == {0, 2, 4}
    assert set(ask(server, item_ids=packed([0, 2, 4]))["ids"]) == {0, 2, 4}
    assert ask(server, item_ids=[0, "0"])["relevance"][0] == ask(server, item_ids=["0"])["relevance"][0]


def test_tokens_terms_and_what_is_not_read_are_told_where_asked_for(server: Any) -> None:
    long = "usb cable " * 40
    answer = ask(server, texts=["usb cable", long, "", "größe 日本"], explain=True, tokens=True)
    assert [token["text"] for token in answer["query_read"]["tokens"]] == ["usb", "cable"]
    read = {item["index"]: item["read"]["tokens"] for item in answer["items"]}
    assert all(token["read"] for token in read[0]) and read[2] == []
    assert sum(token["read"] for token in read[1]) == 35 and len(read[1]) == 80
    assert answer["thresholds"][0]["recall"] == 0.9
    many = ask(server, rows=list(range(150)), explain=True, tokens=True)["items"]
    assert ["read" in item for item in many] == [True] * 100 + [False] * 50
    plain = ask(server, rows=[1, 2], explain=True)
    assert "query_read" not in plain and "read" not in plain["items"][0]
    refused = server.post("/v1/relevance", {"query": "usb", "rows": [1], "tokens": True})
    assert refused.status_code == 422 and "set explain too" in refused.text


def test_unknown_ids_are_told_one_by_one(server: Any) -> None:
    answer = ask(server, item_ids=["B1", "nothing", 7, "日本"])
    assert answer["unknown"] == [1, 2, 3] and answer["ids"] == ["B1"]
    answer = ask(server, rows=[-1, 3, 200, 2**40, 10**30])
    assert answer["unknown"] == [0, 2, 3, 4] and answer["ids"] == [3]
    assert ask(server, item_ids=["x", "y"])["unknown"] == [0, 1]


def test_blank_texts_stay_with_the_lowest_relevance(server: Any) -> None:
    answer = ask(server, texts=["usb cable", None, " ", "tea"])
    assert answer["blank"] == [1, 2]
    scores = dict(zip(answer["index"], answer["relevance"], strict=True))
    assert scores[1] == scores[2] == min(scores.values())


def test_a_filter_keeps_what_it_should_and_says_what_it_did(server: Any) -> None:
    everything = ask(server, rows=list(range(200)))
    middle = sorted(everything["relevance"])[100]
    answer = ask(server, rows=list(range(200)), filter={"threshold": middle, "keep": 30, "min_keep": 0})
    assert len(answer["ids"]) == 30 == answer["filtered"]["kept"]
    assert answer["filtered"]["below_threshold"] + answer["filtered"]["beyond_keep"] == 170
    assert answer["relevance"] == everything["relevance"][:30]
    default = ask(server, rows=list(range(200)), filter={})
    assert default["filtered"]["threshold"] == 0.2 and len(default["ids"]) >= 100
    assert len(ask(server, rows=list(range(200)), filter={"threshold": 2.0})["ids"]) == 100


def test_fusion_orders_by_both_scores(server: Any) -> None:
    ranking = [float(n % 7) for n in range(50)]
    given = {"rows": list(range(50)), "ranking_scores": ranking}
    relevance = np.array(sorted(zip(*(ask(server, **given)[k] for k in ("index", "relevance")), strict=True)))[:, 1]
    answer = ask(server, **given, fuse={"mode": "linear", "weight": 0.4})
    fused = 0.6 * np.array(ranking) / 6 + 0.4 * relevance
    assert answer["index"] == best_first(fused, relevance).tolist()
    assert np.allclose(answer["scores"], fused[answer["index"]], atol=1e-6)
    answer = ask(server, **given, fuse={"mode": "tiers"})
    assert answer["tiers"] == sorted(answer["tiers"], reverse=True)
    assert answer["tiers"] == [int(r >= 0.2) + int(r >= 0.5) for r in answer["relevance"]]
    for tier in set(answer["tiers"]):
        inside = [ranking[i] for i, t in zip(answer["index"], answer["tiers"], strict=True) if t == tier]
        assert inside == sorted(inside, reverse=True)


def test_equal_scores_are_ordered_by_retrieval_score_then_place(server: Any) -> None:
    answer = ask(server, texts=["usb cable"] * 4, retrieval_scores=[1, 2, 2, 0])
    assert answer["index"] == [1, 2, 0, 3]
    assert ask(server, texts=["usb cable"] * 3)["index"] == [0, 1, 2]


def test_explanations_have_titles_and_all_scores(server: Any, tiny_index: ItemIndex) -> None:
    answer = ask(server, rows=ROWS, ranking_scores=[1, 2, 3, 4, 5], fuse={"mode": "linear"}, explain=True, top=3)
    assert len(answer["items"]) == 3 == len(answer["ids"])
    for item in answer["items"]:
        assert item["title"] == tiny_index.items([ROWS[item["index"]]])[0].title
        assert item["ranking_score"] == item["index"] + 1 and 0 <= item["relevance"] <= 1


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 422, "one of item_ids"),
        ({"ids": ["a"]}, 422, "ids: there is no such field; did you mean item_ids?"),
        ({"documents": ["a"]}, 422, "documents: there is no such field; did you mean texts?"),
        ({"deadline": 5}, 422, "deadline: there is no such field; did you mean deadline_ms?"),
        ({"\n" + "x" * 100_000: 5}, 422, "there is no such field; allowed: query, "),
        ({"x - at `$.query`": 5}, 422, "x - at `$.query`: there is no such field; allowed: query, "),
        ({"filter": {"x" * 100_000: 5}}, 422, "filter: there is no such field as xxx"),
        ({"rows": [0], "fuse": {"mode": "x" * 100_000}}, 422, "fuse.mode: invalid value"),
        ({"rows": [1], "texts": ["a"]}, 422, "rows and texts"),
        ({"rows": []}, 400, "empty"),
        ({"texts": []}, 400, "empty"),
        ({"rows": [1.5]}, 422, "rows"),
        ({"rows": "abc"}, 422, "base64"),
        ({"rows": base64.b64encode(b"abc").decode()}, 422, "multiple of 4"),
        ({"rows": list(range(1_001))}, 413, "1000"),
        ({"rows": packed(list(range(1_001)))}, 413, "1000"),
        ({"rows": [1], "extra": 1}, 422, "extra"),
        ({"rows": [1], "top": -1}, 422, "top"),
        ({"rows": [1], "deadline_ms": 0}, 422, "deadline_ms"),
        ({"rows": [1], "ranking_scores": [1, 2]}, 422, "ranking_scores"),
        ({"rows": [1], "fuse": {"mode": "linear"}}, 422, "ranking_scores"),
        ({"rows": [1], "ranking_scores": [1], "fuse": {"mode": "other"}}, 422, "fuse"),
        ({"rows": [1], "ranking_scores": [1], "fuse": {"mode": "linear", "weight": 2}}, 422, "weight"),
        ({"rows": [1], "ranking_scores": [1], "fuse": {"mode": "tiers", "cuts": [0.5, 0.1]}}, 422, "rising"),
        ({"rows": [1], "filter": {"keep": -1}}, 422, "keep"),
        ({"rows": [1], "filter": {"kep": 1}}, 422, "kep"),
        ({"rows": [1], "model": "other"}, 404, "tiny"),
        ({"rows": [1], "query": 5}, 422, "query"),
        ({"texts": ["a"] * 1_001}, 413, "1000"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(body: dict[str, Any], status: int, word: str, server: Any) -> None:
    reply = server.post("/v1/relevance", {"query": "usb", **body})
    assert reply.status_code == status, reply.text
    assert word in reply.json()["message"]
    assert len(reply.content) < 1_000


def test_without_an_index_or_a_threshold_table_the_message_says_what_to_do(
    tiny_scorer: Scorer, start: Callable[..., Any]
) -> None:
    server = start(tiny_scorer)
    assert "--index" in server.post("/v1/relevance", {"query": "a", "rows": [1]}).json()["message"]
    assert ask(server, texts=["usb"])["ids"] == [0]


def test_a_deadline_gives_504_or_a_marked_part(speed_scorer: Any, start: Callable[..., Any]) -> None:
    server = start(speed_scorer(seconds=2e-5), limits={"documents": 5_000})
    body = {"query": "usb", "texts": [f"tea {n}" for n in range(4_000)], "deadline_ms": 150}
    assert server.post("/v1/relevance", body).status_code == 504
    answer = server.post("/v1/relevance", {**body, "partial": True}).json()
    assert answer["partial"] is True and 0 < answer["scored"] < 4_000
    assert len(answer["ids"]) == answer["scored"] and len(answer["unscored"]) == 4_000 - answer["scored"]
    assert server.app.queue.waiting[:2] == (0, 0)
