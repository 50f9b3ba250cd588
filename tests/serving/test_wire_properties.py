"""Laws of every dialect, on requests and scores that nobody thought of."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pertinent.serving.wire import DIALECTS, Answer, WireError, error_body, find_route, parse, rank_order

# Path, name of the documents, name of the count, where the results are, name of the score.
SORTED: dict[str, tuple[str, str, str | None, str | None, str]] = {
    "cohere": ("/v2/rerank", "documents", "top_n", "results", "relevance_score"),
    "cohere-v1": ("/cohere/v1/rerank", "documents", "top_n", "results", "relevance_score"),
    "jina": ("/jina/v1/rerank", "documents", "top_n", "results", "relevance_score"),
    "union": ("/v1/rerank", "documents", "top_n", "results", "relevance_score"),
    "vllm": ("/rerank", "documents", "top_n", "results", "relevance_score"),
    "infinity": ("/infinity/rerank", "documents", "top_n", "results", "relevance_score"),
    "voyage": ("/voyage/v1/rerank", "documents", "top_k", "data", "relevance_score"),
    "mixedbread": ("/v1/reranking", "input", "top_k", "data", "score"),
    "nim": ("/v1/ranking", "passages", None, "rankings", "logit"),
    "tei": ("/rerank", "texts", None, None, "score"),
}
# fmt: off
FIELDS = (
    "query", "queries", "documents", "texts", "input", "inputs", "passages", "items", "text_1", "text_2", "data_1",
    "data_2", "model", "top_n", "top_k", "truncate", "truncation", "rank_fields", "return_documents", "return_text",
    "return_input", "raw_scores", "max_tokens_per_doc", "priority",
)
# fmt: on
PATHS = (
    "/v2/rerank",
    "/v1/rerank",
    "/rerank",
    "/infinity/rerank",
    "/v1/reranking",
    "/v1/ranking",
    "/score",
    "/predict",
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
probabilities = st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0, 0.5])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def rendered(dialect: str, documents: list[str], scores: list[float], top: int | None) -> list[dict[str, Any]]:
    path, name, count, place, _ = SORTED[dialect]
    route = find_route("POST", path)
    assert route is not None
    body: dict[str, Any] = {"query": "cup", name: documents}
    if count is not None:
        body[count] = top
    request = parse(route, json.dumps(body).encode(), path)
    array = np.array(scores, dtype=np.float32)
    answer = Answer(scores=array, order=rank_order(array, request.top), request_id="r1", model="shop")
    text = DIALECTS[request.dialect].render(request, answer)
    reply = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    return list(reply if place is None else reply[place])


@pytest.mark.parametrize("dialect", SORTED)
@given(pairs=st.lists(st.tuples(texts, probabilities), min_size=1, max_size=12), top=st.none() | st.integers(1, 15))
@example(pairs=[("a", 1.0), ("a", 0.0), ("a", 1.0)], top=None)
@example(pairs=[("a", 0.5)] * 4, top=2)
@settings(max_examples=60, deadline=None)
def test_one_result_a_document_best_first_and_floats(
    dialect: str, pairs: list[tuple[str, float]], top: int | None
) -> None:
    documents, scores = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    results = rendered(dialect, documents, scores, top)
    name = SORTED[dialect][4]
    wanted = len(pairs) if top is None or SORTED[dialect][2] is None else min(top, len(pairs))
    assert len(results) == wanted
    indexes = [result["index"] for result in results]
    assert all(type(index) is int for index in indexes)
    assert len(set(indexes)) == len(indexes) and set(indexes) <= set(range(len(pairs)))
    assert all(type(result[name]) is float and np.isfinite(result[name]) for result in results)
    keys = [(-np.float32(scores[index]), index) for index in indexes]
    assert keys == sorted((-np.float32(score), index) for index, score in enumerate(scores))[:wanted]
    if name != "logit":
        assert all(0 <= result[name] <= 1 for result in results)
        assert [result[name] for result in results] == [float(np.float32(scores[index])) for index in indexes]


@pytest.mark.parametrize("path", PATHS)
@given(body=st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_request_or_an_error_of_the_client(path: str, body: bytes) -> None:
    only_errors_of_the_client(path, body)


@pytest.mark.parametrize("path", PATHS)
@given(body=st.dictionaries(st.sampled_from(FIELDS), anything | st.lists(texts, max_size=3), max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_values_of_known_fields_are_a_request_or_an_error_of_the_client(path: str, body: Any) -> None:
    only_errors_of_the_client(path, json.dumps(body).encode())


def only_errors_of_the_client(path: str, body: bytes) -> None:
    route = find_route("POST", path)
    assert route is not None
    error: WireError | None = None
    try:
        request = parse(route, body, path)
    except WireError as caught:
        error = caught
    if error is not None:
        assert error.status in (400, 422)
        assert error.shape is not None and error.message
        json.loads(error_body(error, error.shape, "r1"))
        return
    assert request.documents and all(isinstance(document, str) for document in request.documents)
    assert len(request.pairs()) == len(request.documents)
    assert request.top is None or request.top >= 1
    scores = np.linspace(0, 1, len(request.documents), dtype=np.float32)
    answer = Answer(scores=scores, order=rank_order(scores, request.top))
    json.loads(DIALECTS[request.dialect].render(request, answer))


@given(documents=st.lists(st.text(max_size=10), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_texts_come_through_unchanged_but_for_lone_surrogates(documents: list[str]) -> None:
    route = find_route("POST", "/v2/rerank")
    assert route is not None
    request = parse(route, json.dumps({"query": "cup", "documents": documents}).encode(), "/v2/rerank")
    expected = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in documents]
    assert request.documents == expected
    assert (request.repaired > 0) == (expected != documents)


@given(scores=st.lists(st.floats(0, 1, width=32), max_size=50), top=st.none() | st.integers(1, 60))
def test_rank_order_is_by_score_then_row(scores: list[float], top: int | None) -> None:
    order = rank_order(np.array(scores, dtype=np.float32), top).tolist()
    assert order == sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:top]
