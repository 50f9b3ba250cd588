from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError
from pertinent.serving.access import Keys, key_digest
from pertinent.serving.app import App, Exchange, as_wire_error
from pertinent.serving.config import ServeConfig
from pertinent.serving.limits import ClientGone
from pertinent.serving.messages import WireError
from pertinent.serving.queue import Work
from pertinent.serving.registry import Registry, Served, Source
from pertinent.serving.wire import ROUTES

TITLES = ["wireless earbuds", "usb cable", "日本語 イヤホン", "tea pot green"]
BODY = {"query": "usb", "documents": TITLES}


@pytest.fixture(scope="module")
def server(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, tiny_index, limits={"body_bytes": 500_000, "documents": 300})


def body_for(path: str) -> dict[str, Any]:
    """A body that the dialect of a path takes."""
    name = path.rsplit("/", 1)[1]
    if name == "reranking" and "retrieval" not in path:
        return {"query": "usb", "input": TITLES}
    if name in ("ranking", "reranking"):
        return {"query": {"text": "usb"}, "passages": [{"text": title} for title in TITLES]}
    if name == "score":
        return {"text_1": "usb", "text_2": TITLES}
    if name == "predict":
        return {"inputs": [["usb", title] for title in TITLES]}
    return {"query": "usb", "texts": TITLES} if path.startswith("/tei") else BODY


def numbers(value: Any) -> list[float]:
    """All floats of a reply, whatever its shape."""
    if isinstance(value, float):
        return [value]
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [number for part in below for number in numbers(part)]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_answers(route: Any, server: Any, tiny_scorer: Scorer) -> None:
    path = route.path.replace("{model:path}", "tiny")
    if route.method == "GET":
        reply = server.client.get(path)
        assert reply.status_code == 200
        return
    reply = server.post(path, body_for(path))
    assert reply.status_code == 200, reply.text
    probabilities, logits = tiny_scorer.score("usb", TITLES), tiny_scorer.logits("usb", TITLES)
    expected = logits if ("ranking" in path and "reranking" not in path) or "retrieval" in path else probabilities
    assert np.allclose(sorted(numbers(reply.json())), sorted(expected.tolist()), atol=1e-5)
    assert reply.headers["x-request-id"] and reply.headers["x-model-version"] == server.app.models.get(None).version


def test_trailing_and_doubled_slashes_reach_the_same_route(server: Any) -> None:
    expected = server.post("/v2/rerank", BODY).json()["results"]
    for path in ("/v2/rerank/", "//v2/rerank", "/v2//rerank//"):
        reply = server.client.post(server.url + path, json=BODY, follow_redirects=False)
        assert reply.status_code == 200 and reply.json()["results"] == expected
    for path in ("/V2/rerank", "/v2/../etc", "/v2/%2e%2e/rerank", "/nothing"):
        assert server.client.post(server.url + path, json=BODY).status_code == 404


def test_methods_that_a_path_does_not_take_are_told(server: Any) -> None:
    reply = server.client.get("/v2/rerank")
    assert reply.status_code == 405 and "POST" in reply.headers["allow"]
    assert server.client.options("/v2/rerank").status_code == 204
    head = server.client.head("/v1/models")
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("size", [1, 2, 31, 33, 300])
def test_a_pair_scores_the_same_in_lists_of_any_size(size: int, server: Any, tiny_scorer: Scorer) -> None:
    titles = [TITLES[place % 4] for place in range(size)]
    results = server.post("/v2/rerank", {"query": "usb", "documents": titles}).json()["results"]
    scores = {item["index"]: item["relevance_score"] for item in results}
    assert len(scores) == size
    expected = tiny_scorer.score("usb", TITLES)
    assert all(abs(score - expected[index % 4]) < 1e-5 for index, score in scores.items())
    ties = [item["index"] for item in results if item["index"] % 4 == 0]
    assert ties == sorted(ties)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity", None])
def test_packed_bodies_are_read_and_replies_never_packed(encoding: str | None, server: Any) -> None:
    content = json.dumps(BODY).encode()
    packed = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}.get(encoding or "", bytes)(content)
    headers = {"content-type": "application/json; charset=utf-8", "accept-encoding": "gzip, identity"}
    if encoding:
        headers["content-encoding"] = encoding
    reply = server.client.post("/v2/rerank", content=packed, headers=headers)
    assert reply.status_code == 200 and "content-encoding" not in reply.headers


def stated_bomb() -> bytes:
    """Some kilobytes of zstd whose frame states 100 MB."""
    return zstandard.ZstdCompressor(level=19).compress(bytes(100_000_000))


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {}, 415),
        (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"content-type": "application/json; charset=utf-16"}, 415),
        (b"{}", {"content-encoding": "br"}, 415),
        (b"{}", {"content-encoding": "gzip, gzip"}, 415),
        (b"nothing packed", {"content-encoding": "gzip"}, 400),
        (b"nothing packed", {"content-encoding": "zstd"}, 400),
        (gzip.compress(b"x" * 5_000, mtime=0)[:40], {"content-encoding": "gzip"}, 400),
        (gzip.compress(bytes(50_000_000), mtime=0), {"content-encoding": "gzip"}, 413),
        (stated_bomb(), {"content-encoding": "zstd"}, 413),
        (b" " * 500_001, {}, 413),
        (b"", {}, 400),
        (b"[]", {}, 400),
        (b'"text"', {}, 400),
        (b'{"query": "usb", "documents": ["a"]', {}, 400),
        (b'{"query": "usb", "documents": ["a"]} x', {}, 400),
        (b"[" * 200_000, {}, 400),
        (b'{"query": "usb\xff", "documents": ["a"]}', {}, 400),
        (b'{"query": "usb", "documents": []}', {}, 400),
        (b'{"query": "usb", "documents": "a"}', {}, 422),
        (b'{"query": "usb", "documents": ["a"], "top_n": NaN}', {}, 422),
        (b'{"query": "usb", "documents": ["a"], "top_n": "3"}', {}, 422),
        (b'{"query": "usb", "documents": ["a"], "top_n": -1}', {}, 422),
        (b'{"query": "usb", "documents": ["a"], "model": "other"}', {}, 404),
        (json.dumps({"query": "usb", "documents": ["a"] * 301}).encode(), {}, 413),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(
    content: bytes, headers: dict[str, str], status: int, server: Any
) -> None:
    if headers and "content-type" not in headers:
        headers = {**headers, "content-type": "application/json"}
    elif not headers and content != b"{}":
        headers = {"content-type": "application/json"}
    reply = server.client.post("/v2/rerank", content=content, headers=headers)
    assert reply.status_code == status, reply.text
    said = reply.json()
    assert said["message"] == said["detail"] and said["request_id"] == reply.headers["x-request-id"]
    assert server.post("/v2/rerank", BODY).status_code == 200


def test_a_request_id_is_kept_where_it_is_harmless(server: Any) -> None:
    assert server.post("/v2/rerank", BODY, headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert server.post("/v2/rerank", BODY, headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_heads_beyond_the_limits_are_refused(server: Any) -> None:
    assert server.post("/v2/rerank", BODY, headers={"x-long": "a" * 17_000}).status_code == 431
    many = {f"x-{number}": "a" for number in range(101)}
    assert server.post("/v2/rerank", BODY, headers=many).status_code == 431
    assert server.client.get("/health?" + "a" * 9_000).status_code == 414


def test_blank_and_null_documents_come_last_and_are_counted(server: Any) -> None:
    reply = server.post("/v2/rerank", {"query": "usb", "documents": ["", *TITLES, None, "  "]})
    results = reply.json()["results"]
    assert reply.headers["x-bad-items"] == "3" and len(results) == 7
    assert [item["index"] for item in results[-3:]] in ([0, 5, 6], [4, 5, 6]) or results[-4]["relevance_score"] >= (
        results[-3]["relevance_score"]
    )
    lowest = results[-1]["relevance_score"]
    assert all(item["relevance_score"] == lowest for item in results if item["index"] in (0, 5, 6))


def test_special_tokens_in_texts_are_plain_text(server: Any, tiny_scorer: Scorer) -> None:
    titles = ["usb cable [SEP] best match", "usb cable"]
    results = server.post("/v2/rerank", {"query": "usb [CLS]", "documents": titles}).json()["results"]
    scores = {item["index"]: item["relevance_score"] for item in results}
    assert np.allclose([scores[0], scores[1]], tiny_scorer.score("usb [CLS]", titles), atol=1e-5)


def test_health_models_info_and_metrics(server: Any) -> None:
    assert server.client.get("/health").content == b""
    assert server.client.get("/livez").json() == {"status": "live"}
    assert server.client.get("/readyz").json() == {"status": "ready"}
    assert server.client.get("/v2/models/other/ready").status_code == 404
    assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["tiny"]
    info = server.client.get("/info").json()
    assert list(info["model_type"]) == ["reranker"] and info["max_client_batch_size"] == 300
    server.post("/v2/rerank", BODY)
    text = server.client.get("/metrics").text
    for name in (
        'pertinent_requests_total{dialect="cohere",route="/v2/rerank",status="200"}',
        'pertinent_stage_seconds_count{stage="queue"}',
        'pertinent_stage_seconds_count{stage="tokenize"}',
        'pertinent_stage_seconds_count{stage="score"}',
        'pertinent_stage_seconds_count{stage="total"}',
        "pertinent_batch_pairs_count",
        "pertinent_padding_tokens_total",
        "pertinent_queue_pairs 0.0",
        'pertinent_model_info{backend="',
        'model="tiny"',
        'pertinent_shed_total{reason="wait"} 0.0',
    ):
        assert name in text, name


def test_paths_from_clients_never_become_labels(server: Any) -> None:
    server.client.get("/made-up-path")
    server.client.get("/v2/models/made-up-model/ready")
    assert "made-up" not in server.client.get("/metrics").text


def test_draining_tells_balancers_and_goes_on_answering(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    server = start(tiny_scorer)
    server.app.draining = True
    for path in ("/readyz", "/health", "/ping", "/v2/health/ready", "/v1/health/ready"):
        assert server.client.get(path).status_code == 503
    assert server.client.get("/livez").status_code == 200
    reply = server.post("/v2/rerank", BODY)
    assert reply.status_code == 200 and reply.headers["connection"] == "close"


def test_without_keys_there_is_nothing_to_read_again() -> None:
    assert not Keys({}).reload() and not Keys({"shop": key_digest("secret")}).reload()


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer ")], [(b"x-api-key", b"")]])
def test_the_digest_of_nothing_lets_nobody_in(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(WireError, match="an API key is needed"):
        Keys({"shop": key_digest("")}).name_of(headers)


@pytest.mark.parametrize("error", [ArtifactError("/srv/model: damaged"), KeyError("/srv/model"), MemoryError("/srv")])
def test_no_words_of_an_error_that_is_ours_reach_the_client(error: Exception) -> None:
    found = as_wire_error(error)
    assert found.status == 500 and "/srv" not in found.message


def test_keys_are_asked_for_and_never_shown(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    keys = {"shop": key_digest("s3cret-one"), "old": key_digest("s3cret-two")}
    server = start(tiny_scorer, keys=keys, log_queries=True)
    for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic s3cret-one"}, {"x-api-key": ""}):
        reply = server.post("/v2/rerank", BODY, headers=headers)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["code"] == "unauthorized"
    assert server.client.get("/v2/rerank?key=s3cret-one").status_code in (401, 405)
    for headers in ({"authorization": "Bearer s3cret-one"}, {"x-api-key": "s3cret-two"}):
        assert server.post("/v2/rerank", BODY, headers=headers).status_code == 200
        settings = server.client.get("/v1/config", headers=headers)
        assert settings.json()["settings"]["keys"] == ["old", "shop"]
        assert not any(digest in settings.text for digest in keys.values())
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/metrics").status_code == 401
    server.app.log.close()
    assert '"key":"shop"' in server.lines.text and "s3cret" not in server.lines.text


def test_the_log_has_one_json_line_a_request_without_the_query(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    server = start(tiny_scorer)
    server.post("/v2/rerank", {"query": "secret wish\n\x1b[31m", "documents": TITLES})
    server.client.get("/v2/rerank?q=secret")
    server.app.log.close()
    lines = [json.loads(line) for line in server.lines.text.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 405]
    assert requests[0]["documents"] == 4 and requests[0]["dialect"] == "cohere"
    assert "secret" not in server.lines.text


def test_queries_are_logged_where_asked_and_cannot_break_the_line(
    tiny_scorer: Scorer, start: Callable[..., Any]
) -> None:
    server = start(tiny_scorer, log_queries=True)
    server.post("/v2/rerank", {"query": 'wish\n{"event": "x"}\x1b[31m', "documents": TITLES})
    server.app.log.close()
    lines = [json.loads(line) for line in server.lines.text.splitlines()]
    assert [line["query"] for line in lines if line["event"] == "request"] == ['wish\n{"event": "x"}\x1b[31m']


def test_openapi_lists_every_route(server: Any) -> None:
    document = server.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert {(route.method, route.path.replace(":path}", "}")) for route in ROUTES} <= listed
    assert ("POST", "/v1/relevance") in listed
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    text = json.dumps(document)
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert referred <= set(document["components"]["schemas"])


def test_the_page_is_one_file_with_nothing_from_elsewhere(server: Any) -> None:
    page = server.client.get("/", headers={"accept": "text/html"})
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text.replace("http://www.w3.org", "") and "https://" not in page.text
    assert server.client.get("/").content == b""


def test_settings_without_effect_are_named_in_a_header(server: Any) -> None:
    reply = server.post("/v2/rerank", {**BODY, "max_chunks_per_doc": 2})
    assert reply.headers["x-unused-settings"] == "max_chunks_per_doc"
    assert "x-unused-settings" not in server.post("/v2/rerank", BODY).headers


FIELDS = ["query", "documents", "texts", "rows", "item_ids", "inputs", "top_n", "top_k", "filter", "fuse", "passages"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "mode", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
PATHS = ["/v1/relevance", *(route.path.replace("{model:path}", "m") for route in ROUTES if route.method == "POST")]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5) | ANYTHING)
def test_no_json_whatsoever_makes_a_server_error(server: Any, path: str, body: Any) -> None:
    reply = server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code < 500, (path, body, reply.text)
    assert reply.headers["content-type"] == "application/json" and reply.json() is not None


def test_a_limit_of_tokens_scores_as_the_shorter_text_and_counts_it(server: Any) -> None:
    long = {"query": "usb", "documents": ["usb cable tea pot green", "tea"], "max_tokens_per_doc": 2}
    short = {"query": "usb", "documents": ["usb cable", "tea"]}
    reply, expected = server.post("/v2/rerank", long), server.post("/v2/rerank", short)
    assert reply.headers["x-truncated"] == "1" and expected.headers["x-truncated"] == "0"
    for one, other in zip(reply.json()["results"], expected.json()["results"], strict=True):
        assert one["index"] == other["index"] and abs(one["relevance_score"] - other["relevance_score"]) < 1e-5
    unbounded = server.post("/v2/rerank", {**long, "max_tokens_per_doc": 4096})
    assert unbounded.headers["x-truncated"] == "0"


def test_items_without_a_text_or_in_no_index_are_refused_by_place_where_that_is_wanted(
    tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]
) -> None:
    server = start(tiny_scorer, tiny_index, bad_items="reject")
    for path, body, place in (
        ("/v2/rerank", {"documents": ["usb", " ", "tea", ""]}, "item 1: its text is null or blank, and of 1 more;"),
        ("/tei/rerank", {"texts": ["usb", "tea", ""]}, "item 2: its text"),
        ("/v1/relevance", {"texts": ["usb", None]}, "item 1: its text"),
        ("/v1/relevance", {"item_ids": ["0", "gone"]}, "item 1: its id is not in the index;"),
    ):
        reply = server.post(path, {"query": "usb", **body})
        assert reply.status_code == 422 and place in reply.text, reply.text
    assert server.post("/v1/relevance", {"query": "usb", "item_ids": ["0"]}).status_code == 200


SHOP = "https://shop.example"


def test_pages_of_listed_sites_alone_may_ask_and_read(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    server = start(tiny_scorer, cors_origins=[SHOP, "http://localhost:3000"], keys={"shop": key_digest("secret")})
    asked = {"origin": SHOP, "access-control-request-method": "POST"}
    preflight = server.client.options("/v2/rerank", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == SHOP
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    body = {"query": "usb", "documents": ["usb cable"]}
    for key, status in (("secret", 200), ("other", 401)):  # a page has to read why it was refused
        reply = server.post("/v2/rerank", body, headers={"origin": SHOP, "authorization": f"Bearer {key}"})
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == SHOP
        assert reply.headers["vary"] == "origin"
        assert "retry-after" in reply.headers["access-control-expose-headers"]
    for origin in (f"{SHOP}.evil.example", "http://shop.example", f"{SHOP}:444", "null"):
        asked["origin"] = origin
        for reply in (
            server.client.options("/v2/rerank", headers=asked),
            server.post("/v2/rerank", body, headers={"origin": origin, "authorization": "Bearer secret"}),
        ):
            assert not any(name.startswith("access-control") for name in reply.headers)
            assert reply.headers["vary"] == "origin"


@pytest.mark.parametrize("origin", ["*", "null", "shop.example", f"{SHOP}/", f"{SHOP}/a", "https://Shop.example", ""])
def test_what_is_no_origin_is_refused_at_the_start(origin: str, tiny_scorer: Scorer) -> None:
    with pytest.raises(ConfigError, match=r"cors_origins: .* is not an origin; give scheme"):
        App(ServeConfig(cors_origins=[origin]), Registry([Served("tiny", tiny_scorer)]))


def test_ids_that_no_index_has_and_versions_that_were_not_taken_degrade_health(
    tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]
) -> None:
    server = start(tiny_scorer, tiny_index)
    known = ["0", "B1", "2", "B3"]
    gone = [f"gone {number}" for number in range(60)]

    def state() -> Any:
        reply = server.client.get("/readyz")
        assert reply.status_code == 200
        return reply.json()

    server.post("/v1/relevance", {"query": "usb", "item_ids": gone})
    assert state() == {"status": "ready"}, "so few say nothing"
    server.post("/v1/relevance", {"query": "usb", "item_ids": gone + known})
    assert state() == {"status": "ready", "degraded": ["97% of the item ids of late are not in the index"]}
    for _ in range(6):
        server.post("/v1/relevance", {"query": "usb", "item_ids": known * 25})
    assert state() == {"status": "ready"}
    server.app.models.failures["tiny"] = "/srv/secret/model: is damaged"
    assert state()["degraded"] == ["model tiny: its new version could not be taken"]


@pytest.mark.parametrize("part", ["index", "hot pairs", "behavior"])
def test_what_is_older_than_it_may_be_makes_it_unready_where_that_is_set(
    part: str, tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]
) -> None:
    server = start(tiny_scorer, tiny_index, stale_hours=24)

    def of_age(hours: float) -> Any:
        made = {"other": time.time(), part: time.time() - 3_600 * hours}
        server.app.models = Registry([Served("tiny", tiny_scorer, tiny_index, made=made)])
        return server.client.get("/readyz")

    assert of_age(23.9).json() == {"status": "ready"}
    reply = of_age(30)
    assert reply.status_code == 503 and reply.json()["reason"] == f"stale: the {part} of model tiny is 30.0 h old"
    assert server.client.get("/livez").status_code == 200
    assert server.post("/v1/relevance", {"query": "usb", "rows": [0]}).status_code == 200, "it answers who asks"
    server.app.config = server.app.config.model_copy(update={"stale_hours": None})
    assert of_age(3_000).status_code == 200


def test_scores_made_ahead_that_are_not_used_degrade_health(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    server = start(tiny_scorer)
    server.app.models._sources = {"tiny": Source("tiny", None, hot_pairs=Path("/srv/secret/hot"))}
    told = ["model tiny: its hot pairs are of another version and not used"]
    assert server.client.get("/readyz").json() == {"status": "ready", "degraded": told}


def test_a_request_that_has_waited_too_long_makes_it_unready_where_that_is_set(
    tiny_scorer: Scorer, start: Callable[..., Any]
) -> None:
    server = start(tiny_scorer, queue={"overloaded_ms": 50})
    assert server.client.get("/readyz").status_code == 200
    held, done = threading.Event(), threading.Event()
    work = Work.computed("usb", 1, lambda rows: np.full(len(rows), float(held.wait(20)), dtype=np.float32))
    server.app.queue._submit(work, tiny_scorer, "", None, False, lambda job: done.set())
    try:
        time.sleep(0.06)
        reply = server.client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["reason"].startswith("overloaded: a request has waited for 0.")
        assert server.client.get("/livez").status_code == 200
    finally:
        held.set()
    assert done.wait(20)
    assert server.client.get("/readyz").status_code == 200


def test_reloads_that_are_asked_for_at_once_take_turns(tiny_scorer: Scorer) -> None:
    class Slow(Registry):
        running = most = 0

        def reload(self, names: Any = None) -> dict[str, str]:
            self.running += 1
            self.most = max(self.most, self.running)
            time.sleep(0.05)
            self.running -= 1
            return {}

    models = Slow([Served("tiny", tiny_scorer)])
    app = App(ServeConfig(watch_seconds=0), models)

    async def run() -> None:
        await asyncio.gather(*(app.reload() for _ in range(4)))

    try:
        asyncio.run(run())
    finally:
        app.queue.close()
    assert models.most == 1


@pytest.mark.parametrize("first", ["answer", "client"])
def test_a_client_that_leaves_as_its_answer_comes_cancels_nothing_afterwards(first: str, tiny_scorer: Scorer) -> None:
    app = App(ServeConfig(watch_seconds=0), Registry([Served("tiny", tiny_scorer)]))
    log: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        gone, done = loop.create_future(), loop.create_future()

        async def wait_for(future: Any) -> Any:
            return await future

        exchange = Exchange({"headers": []}, lambda: wait_for(gone), "r1", 0.0)

        async def handle() -> None:
            try:
                log.append(await app._unless_gone(exchange, wait_for(done)))
            except ClientGone:
                log.append("gone")
            await asyncio.sleep(0.01)  # whatever comes next has to wait, as for a full socket
            log.append("went on")

        task = loop.create_task(handle())
        await asyncio.sleep(0.01)
        gone.set_result({"type": "http.disconnect"})
        if first == "client":
            await asyncio.sleep(0)
        done.set_result("answer")
        await task
        assert not task.cancelling()

    try:
        asyncio.run(run())
    finally:
        app.queue.close()
    assert log == (["answer", "went on"] if first == "answer" else ["gone", "went on"])
