"""What is accepted, what is refused and how it is said: one test for each rule of the wire."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from pertinent.serving.messages import ErrorShape
from pertinent.serving.reading import mend_surrogates
from pertinent.serving.wire import (
    DIALECTS,
    ROUTES,
    Answer,
    Request,
    WireError,
    choose,
    clean_path,
    error_body,
    error_status,
    find_route,
    log_odds,
    parse,
    rank_order,
    tei_headers,
    tei_info,
)

# For every dialect: a path, its names of the query, of the documents and of the count, and a body around them.
FORMS: dict[str, tuple[str, str, str, str | None]] = {
    "cohere": ("/v2/rerank", "query", "documents", "top_n"),
    "cohere-v1": ("/cohere/v1/rerank", "query", "documents", "top_n"),
    "jina": ("/jina/v1/rerank", "query", "documents", "top_n"),
    "union": ("/v1/rerank", "query", "documents", "top_n"),
    "vllm": ("/vllm/rerank", "query", "documents", "top_n"),
    "infinity": ("/infinity/rerank", "query", "documents", "top_n"),
    "voyage": ("/voyage/v1/rerank", "query", "documents", "top_k"),
    "mixedbread": ("/v1/reranking", "query", "input", "top_k"),
    "nim": ("/v1/ranking", "query", "passages", None),
    "tei": ("/tei/rerank", "query", "texts", None),
    "vllm-score": ("/score", "queries", "documents", None),
}
COUNTED = [name for name, form in FORMS.items() if form[3] is not None]


def body_of(dialect: str, documents: Any = ("Mug", "Pan"), query: Any = "cup", **more: Any) -> bytes:
    _, query_name, documents_name, _ = FORMS[dialect]
    return json.dumps({query_name: query, documents_name: documents, **more}).encode()


def parsed(dialect: str, body: bytes) -> Request:
    path = FORMS[dialect][0]
    route = find_route("POST", path)
    assert route is not None
    return parse(route, body, path)


def refused(path: str, body: bytes) -> WireError:
    route = find_route("POST", path)
    assert route is not None
    with pytest.raises(WireError) as caught:
        parse(route, body, path)
    error = caught.value
    assert error.shape is not None
    assert "Traceback" not in error.message and "msgspec" not in error.message
    json.loads(error_body(error, error.shape, "r1"))
    return error


@pytest.mark.parametrize("dialect", FORMS)
class TestEveryDialect:
    def test_reads_query_and_documents(self, dialect: str) -> None:
        request = parsed(dialect, body_of(dialect))
        assert (request.dialect, request.query, request.documents) == (dialect, "cup", ["Mug", "Pan"])
        assert (request.top, request.model, request.bad, request.repaired) == (None, None, [], 0)

    def test_no_documents_are_a_400(self, dialect: str) -> None:
        error = refused(FORMS[dialect][0], body_of(dialect, documents=[]))
        assert (error.status, error.code, error.param) == (400, "empty_documents", FORMS[dialect][2])

    @pytest.mark.parametrize(
        "documents", [{}, 7, True, [["Mug"]], ["Mug", 3], ["Mug", True], [{"text": 5}], [{"title": "Mug"}]]
    )
    def test_documents_of_another_kind_are_a_422_that_names_them(self, dialect: str, documents: Any) -> None:
        error = refused(FORMS[dialect][0], body_of(dialect, documents=documents))
        assert (error.status, error.param) in ((422, FORMS[dialect][2]), (400, FORMS[dialect][2]))
        assert FORMS[dialect][2] in error.message
        if isinstance(documents, list):
            assert error.status == 422
            assert f"[{len(documents) - 1}]" in error.message

    @pytest.mark.parametrize("missing", ["query", "documents"])
    @pytest.mark.parametrize("how", ["absent", "null"])
    def test_what_must_be_there_is_named_when_it_is_missing(self, dialect: str, missing: str, how: str) -> None:
        path, query_name, documents_name, _ = FORMS[dialect]
        name = query_name if missing == "query" else documents_name
        given = json.loads(body_of(dialect))
        if how == "null":
            given[name] = None
        else:
            del given[name]
        error = refused(path, json.dumps(given).encode())
        assert error.status == 422
        assert name in error.message

    def test_null_and_blank_documents_are_marked_and_the_others_stand(self, dialect: str) -> None:
        request = parsed(dialect, body_of(dialect, documents=["Mug", None, "", " \n", "Pan"]))
        assert request.documents == ["Mug", "", "", " \n", "Pan"]
        assert request.bad == [1, 2, 3]

    @pytest.mark.parametrize("query", ["", "  ", "the of and", "?!", "☂" * 3000])
    def test_any_text_is_a_query(self, dialect: str, query: str) -> None:
        assert parsed(dialect, body_of(dialect, query=query)).query == query

    @pytest.mark.parametrize("query", [7, True, ["a", 3], {"image": "https://shop.example/a.png"}])
    def test_a_query_that_is_no_text_is_a_422(self, dialect: str, query: Any) -> None:
        error = refused(FORMS[dialect][0], body_of(dialect, query=query))
        assert error.status == 422
        assert FORMS[dialect][1] in error.message

    def test_control_characters_and_invisible_ones_pass(self, dialect: str) -> None:
        texts = ["a\x00b", "\u202eabc", "z\u200bw", "\ue000", "[SEP] best match", "👩\u200d🚀"]
        assert parsed(dialect, body_of(dialect, documents=texts)).documents == texts

    def test_a_lone_surrogate_in_one_document_does_not_cost_the_others(self, dialect: str) -> None:
        body = body_of(dialect, documents=["Mug", "XX", "👩 Pan"]).replace(b"XX", rb"a\ud83d\\ud83d")
        request = parsed(dialect, body)
        assert request.documents == ["Mug", "a\ufffd\\ud83d", "👩 Pan"]
        assert request.repaired == 1

    def test_of_two_equal_keys_the_last_one_counts(self, dialect: str) -> None:
        name = FORMS[dialect][2].encode()
        body = body_of(dialect).removesuffix(b"}") + b', "' + name + b'": ["Cup"]}'
        assert parsed(dialect, body).documents == ["Cup"]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" \n",
            b"[]",
            b'"text"',
            b"null",
            b"3",
            b'{"query": "cup", "documents": ["Mug"',
            b'{"query": "cup"} trailing',
            b"{'query': 'cup'}",
            b'{"query": "\xff", "queries": "\xff"}',
            '{"query": "cup"}'.encode("utf-16"),
            b'{"other": ' + b"[" * 200_000,
            b'{"other": "' + b"x" * 1_000_000,
        ],
        ids=lambda body: repr(body[:20]),
    )
    def test_what_is_not_a_json_object_is_a_400(self, dialect: str, body: bytes) -> None:
        start = time.thread_time()
        error = refused(FORMS[dialect][0], body)
        assert (error.status, error.code) == (400, "malformed_json")
        assert time.thread_time() - start < 0.5
        assert len(error.message) < 300
        assert "recursion" not in error.message

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_what_is_no_number_in_json_is_a_422_that_names_the_field(self, dialect: str, number: str) -> None:
        body = body_of(dialect).removesuffix(b"}") + b', "size": ' + number.encode() + b"}"
        error = refused(FORMS[dialect][0], body)
        assert (error.status, error.param) == (422, "size")

    def test_fields_that_nobody_knows_are_ignored(self, dialect: str) -> None:
        more = {"kwargs": "{}", "return_len": None, "user": 5, "x": [1e300, {"deep": [[]]}], "size": 10**40}
        assert parsed(dialect, body_of(dialect, **more)).documents == ["Mug", "Pan"]

    def test_model_is_read_and_must_be_a_text(self, dialect: str) -> None:
        assert parsed(dialect, body_of(dialect, model="shop")).model == "shop"
        assert parsed(dialect, body_of(dialect, model=None)).model is None
        assert refused(FORMS[dialect][0], body_of(dialect, model=5)).param == "model"

    def test_duplicates_stay(self, dialect: str) -> None:
        assert parsed(dialect, body_of(dialect, documents=["Mug"] * 5)).documents == ["Mug"] * 5


def test_bytes_that_are_not_utf8_are_placed() -> None:
    for text in (b"\xff", b"\xc3", b"\xed\xa0\x80", "é".encode("latin-1")):
        for body in (
            b'{"query": "caf' + text + b'", "documents": ["Mug"]}',
            b'{"query": "a", "documents": ["' + text + b'"]}',
        ):
            error = refused("/v2/rerank", body)
            assert (error.status, error.code) == (400, "malformed_json")
            assert f"byte {body.index(text)}:" in error.message


@pytest.mark.parametrize("dialect", COUNTED)
class TestHowMany:
    @pytest.mark.parametrize(
        ("value", "top"),
        [("1", 1), ("2", 2), ("1.0", 1), ("99", 99), ("1e2", 100), ("null", None), ("1" * 25, int("1" * 25))],
    )
    def test_whole_numbers_however_they_are_written(self, dialect: str, value: str, top: int | None) -> None:
        name = str(FORMS[dialect][3])
        body = body_of(dialect).removesuffix(b"}") + f', "{name}": {value}}}'.encode()
        assert parsed(dialect, body).top == top

    @pytest.mark.parametrize("value", ["-1", "1.5", '"3"', "true", "false", "NaN", "[]", "{}", "1e400", "9" * 5000])
    def test_anything_else_is_a_422_that_names_the_field(self, dialect: str, value: str) -> None:
        name = str(FORMS[dialect][3])
        body = body_of(dialect).removesuffix(b"}") + f', "{name}": {value}}}'.encode()
        error = refused(FORMS[dialect][0], body)
        assert (error.status, error.param) == (422, name)
        assert len(error.message) < 200

    def test_zero_is_all_for_vllm_and_refused_by_the_others(self, dialect: str) -> None:
        body = body_of(dialect, **{str(FORMS[dialect][3]): 0})
        if dialect in ("vllm", "union"):
            assert parsed(dialect, body).top is None
        else:
            assert refused(FORMS[dialect][0], body).status == 422


@pytest.mark.parametrize("field", ["return_documents", "rank_fields"])
@pytest.mark.parametrize("dialect", ["cohere", "cohere-v1", "jina", "union", "vllm", "infinity"])
def test_settings_of_the_wrong_kind_are_named(dialect: str, field: str) -> None:
    error = refused(FORMS[dialect][0], body_of(dialect, **{field: "yes"}))
    assert (error.status, error.param) == (422, field)


@pytest.mark.parametrize(
    "more",
    [{"truncate": "END"}, {"truncation": 5}, {"texts": 7}, {"top_k": "x"}, {"raw_scores": "x"}, {"use_activation": 3}],
)
def test_fields_of_another_dialect_are_unknown_fields(more: dict[str, Any]) -> None:
    assert parsed("cohere", body_of("cohere", **more)).documents == ["Mug", "Pan"]


def test_documents_as_objects() -> None:
    documents = [{"text": "Mug", "id": 5}, "Pan", {"text": None}, {"text": ""}]
    request = parsed("cohere", body_of("cohere", documents=documents))
    assert request.documents == ["Mug", "Pan", "", ""]
    assert request.bad == [2, 3]
    assert request.raw_documents is None
    error = refused("/v2/rerank", body_of("cohere", documents=["Mug", {"title": "Pan"}]))
    assert (error.status, error.param) == (422, "documents")
    assert "documents[1]" in error.message and "'text'" in error.message


def test_rank_fields_are_read_in_their_order() -> None:
    documents = [{"title": "Mug", "brand": "Ode", "year": 2024}, {"brand": None}, {"title": ["a"]}, "Pan"]
    fields = ["year", "brand", "title"]
    request = parsed("cohere", body_of("cohere", documents=[*documents[:2], documents[3]], rank_fields=fields))
    assert request.documents == ["2024 Ode Mug", "", "Pan"]
    assert request.bad == [1]
    error = refused("/v2/rerank", body_of("cohere", documents=documents, rank_fields=fields))
    assert "documents[2].title" in error.message
    error = refused("/v2/rerank", body_of("cohere", documents=[{"year": True}], rank_fields=fields))
    assert "documents[0].year" in error.message


def test_settings_that_nothing_acts_on_are_listed() -> None:
    more = {
        "max_chunks_per_doc": 10,
        "relevant_spans": {"mode": "enabled"},
        "instruction": None,
    }
    request = parsed("cohere", body_of("cohere", **more))
    assert request.unused == ["max_chunks_per_doc", "relevant_spans"]
    assert parsed("union", body_of("union", truncation_side="left", softmax=False)).unused == [
        "truncation_side",
        "softmax",
    ]
    assert parsed("tei", body_of("tei", truncation_direction="left")).unused == ["truncation_direction"]
    assert parsed("tei", body_of("tei", truncation_direction="Right")).unused == []
    assert parsed("mixedbread", body_of("mixedbread", rewrite_query=True)).unused == ["rewrite_query"]
    assert parsed("vllm-score", body_of("vllm-score", truncate_prompt_tokens=-1)).unused == ["truncate_prompt_tokens"]


def test_priority_and_the_limit_of_tokens_are_acted_on() -> None:
    request = parsed("cohere", body_of("cohere", priority=3, max_tokens_per_doc=64.0))
    assert (request.priority, request.max_tokens, request.unused) == (3, 64, [])
    nothing = parsed("cohere", body_of("cohere", priority=None, max_tokens_per_doc=None))
    assert (nothing.priority, nothing.max_tokens) == (0, None)
    assert parsed("vllm", body_of("vllm", priority=-2, max_tokens_per_doc=0)).max_tokens is None
    assert parsed("vllm-score", body_of("vllm-score", priority=-2)).priority == -2
    for wrong in ({"priority": "first"}, {"priority": 1.5}, {"max_tokens_per_doc": -1}, {"max_tokens_per_doc": True}):
        assert refused("/v2/rerank", body_of("cohere", **wrong)).status == 422


@pytest.mark.parametrize(
    ("dialect", "more", "truncate"),
    [
        ("tei", {}, True),
        ("tei", {"truncate": None}, True),
        ("tei", {"truncate": False}, False),
        ("voyage", {"truncation": None}, True),
        ("voyage", {"truncation": False}, False),
        ("nim", {}, True),
        ("nim", {"truncate": "END"}, True),
        ("nim", {"truncate": "NONE"}, False),
    ],
)
def test_only_a_client_that_says_so_wants_an_error_for_long_texts(
    dialect: str, more: dict[str, Any], truncate: bool
) -> None:
    assert parsed(dialect, body_of(dialect, **more)).truncate is truncate


@pytest.mark.parametrize(
    ("dialect", "more", "logits"),
    [
        ("nim", {}, True),
        ("tei", {}, False),
        ("tei", {"raw_scores": True}, True),
        ("vllm", {"use_activation": False}, True),
        ("vllm", {"activation": False}, True),
        ("vllm", {"use_activation": True}, False),
        ("vllm", {"use_activation": None}, False),
        ("vllm-score", {"use_activation": False}, True),
        ("infinity", {"raw_scores": True}, True),
        ("infinity", {}, False),
        ("union", {"use_activation": False}, False),
        ("cohere", {"raw_scores": True}, False),
        ("voyage", {"raw_scores": True}, False),
    ],
)
def test_scores_are_probabilities_unless_the_dialect_or_the_client_says_log_odds(
    dialect: str, more: dict[str, Any], logits: bool
) -> None:
    assert parsed(dialect, body_of(dialect, **more)).logits is logits


# --- routes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        ("/rerank", {"texts": []}, "tei"),
        ("/rerank", {"texts": ["a"], "documents": None}, "tei"),
        ("/rerank", {"documents": ["a"], "texts": None}, "vllm"),
        ("/v1/rerank", {}, "union"),
        ("/v1/rerank", {"top_k": 3}, "voyage"),
        ("/v1/rerank", {"truncation": False}, "voyage"),
        ("/v1/rerank", {"top_k": None, "truncation": None}, "union"),
        ("/v2/rerank", {"top_k": 3}, "cohere"),
        ("/jina/v1/rerank", {"top_k": 3}, "jina"),
        ("/voyage/v1/rerank", {}, "voyage"),
        ("/vllm/rerank", {"texts": ["a"]}, "vllm"),
        ("/tei/rerank", {"documents": ["a"]}, "tei"),
        ("/infinity/rerank", {"texts": ["a"]}, "infinity"),
    ],
)
def test_the_body_chooses_on_shared_paths_and_the_prefix_everywhere_else(path: str, body: Any, dialect: str) -> None:
    route = find_route("POST", path)
    assert route is not None
    assert choose(route, json.dumps(body).encode()).name == dialect


@pytest.mark.parametrize("body", [{"texts": ["a"], "documents": ["a"]}, {"query": "a"}, {"texts": None}])
def test_both_shapes_or_none_on_rerank_is_a_422_that_names_both(body: Any) -> None:
    error = refused("/rerank", json.dumps({"query": "cup", **body}).encode())
    assert error.status == 422
    assert "texts" in error.message and "documents" in error.message
    assert error.shape == "tei"


def test_errors_of_a_shared_path_have_the_shape_of_the_dialect_that_the_body_chose() -> None:
    assert refused("/rerank", b'{"texts": []}').shape == "tei"
    assert refused("/rerank", b'{"documents": []}').shape == "openai"
    assert refused("/rerank", b"{").shape == "tei"
    assert refused("/v1/rerank", b"{").shape == "detail"


def test_no_method_and_path_is_listed_twice() -> None:
    pairs = [(route.method, route.path) for route in ROUTES]
    assert len(pairs) == len(set(pairs))
    assert all(route.path == clean_path(route.path) for route in ROUTES)


@pytest.mark.parametrize("mount", ["cohere", "jina", "voyage", "tei", "vllm", "infinity", "nim", "mixedbread"])
def test_every_mount_scores_and_lists_models_and_says_its_health(mount: str) -> None:
    routes = [route for route in ROUTES if route.path.startswith(f"/{mount}/")]
    assert {route.serves for route in routes} >= {"score", "models", "health", "metrics", "info", "nim_ready"}
    assert all(len(route.dialects) == 1 for route in routes if route.serves == "score")


@pytest.mark.parametrize(
    "path", ["/", "/Rerank", "/v3/rerank", "/rerank/x", "/v1/retrieval//reranking", "/cohere/rerank/.."]
)
def test_other_paths_have_no_route(path: str) -> None:
    assert find_route("POST", clean_path(path)) is None


def test_a_method_has_its_own_routes() -> None:
    assert find_route("GET", "/rerank") is None
    assert find_route("GET", "/v2/models/shop/ready") is not None
    assert find_route("POST", "/v1/models") is None


@pytest.mark.parametrize(
    ("path", "model"), [("/v1/retrieval/shop/reranking", "shop"), ("/nim/v1/retrieval/a/b/reranking", "a/b")]
)
def test_nim_takes_the_model_from_the_path_unless_the_body_has_one(path: str, model: str) -> None:
    route = find_route("POST", path)
    assert route is not None
    assert parse(route, body_of("nim"), path).model == model
    assert parse(route, body_of("nim", model="other"), path).model == "other"


# --- vLLM's and TEI's own shapes -----------------------------------------------------------------


def test_score_pairs_texts_one_to_one_or_one_to_many_and_nothing_else() -> None:
    one = parsed("vllm-score", body_of("vllm-score", documents="Mug"))
    assert (one.pairs(), one.queries) == ([("cup", "Mug")], None)
    many = parsed("vllm-score", body_of("vllm-score", query=["cup"], documents=["Mug", "Pan"]))
    assert many.pairs() == [("cup", "Mug"), ("cup", "Pan")]
    both = parsed("vllm-score", body_of("vllm-score", query=["cup", "pan"]))
    assert both.pairs() == [("cup", "Mug"), ("pan", "Pan")]
    for queries, documents in ((["a", "b"], ["a"]), (["a", "b"], ["a", "b", "c"])):
        error = refused("/score", body_of("vllm-score", query=queries, documents=documents))
        assert error.status == 400
    for body in (b"{}", b'{"text_1": "a"}', b'{"text_1": "a", "data_2": "b"}', b'{"queries": "a", "documents": null}'):
        error = refused("/score", body)
        assert error.status == 422
        assert "text_1 and text_2" in error.message


@pytest.mark.parametrize(
    "inputs",
    [
        "cup",
        ["cup"],
        ["a", "b", "c"],
        [["cup"]],
        [["a", "b", "c"]],
        [["a", 3]],
        {"text": "a"},
        [{"text": "a"}],
        [3],
        [["a", "b"], "c"],
    ],
)
def test_predict_wants_pairs(inputs: Any) -> None:
    error = refused("/predict", json.dumps({"inputs": inputs}).encode())
    assert (error.status, error.param) == (422, "inputs")
    assert "pair" in error.message


@pytest.mark.parametrize(("inputs", "status"), [([], 400), (None, 422), (3, 422)])
def test_predict_without_inputs(inputs: Any, status: int) -> None:
    assert refused("/predict", json.dumps({"inputs": inputs}).encode()).status == status


def test_predict_in_objects_answers_in_input_order() -> None:
    route = find_route("POST", "/predict")
    assert route is not None
    request = parse(route, b'{"inputs": {"text": "cup", "text_pair": "Mug"}}', "/predict")
    assert request.pairs() == [("cup", "Mug")]
    assert json.loads(DIALECTS["tei-predict"].render(request, answer([0.5]))) == [{"score": 0.5, "label": "LABEL_0"}]


# --- replies ------------------------------------------------------------------------------------


def answer(scores: list[float], top: int | None = None) -> Answer:
    array = np.array(scores, dtype=np.float32)
    return Answer(scores=array, order=rank_order(array, top), request_id="r1", model="shop")


@pytest.mark.parametrize("dialect", FORMS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_never_written(dialect: str, broken: float) -> None:
    request = parsed(dialect, body_of(dialect))
    given = answer([0.5, broken])
    given.logits = given.scores
    with pytest.raises(WireError, match="not finite") as caught:
        DIALECTS[dialect].render(request, given)
    assert error_status(caught.value, DIALECTS[dialect].errors) == (424 if dialect == "tei" else 500)


def test_log_odds_are_given_from_the_model_or_from_the_probabilities() -> None:
    request = parsed("nim", body_of("nim"))
    given = answer([0.5, 1.0])
    rankings = json.loads(DIALECTS["nim"].render(request, given))["rankings"]
    assert rankings == [{"index": 1, "logit": pytest.approx(16.6, abs=0.1)}, {"index": 0, "logit": 0.0}]
    given.logits = np.array([0.25, 2.0], dtype=np.float32)
    rankings = json.loads(DIALECTS["nim"].render(request, given))["rankings"]
    assert rankings == [{"index": 1, "logit": 2.0}, {"index": 0, "logit": 0.25}]


def test_log_odds_are_finite_and_keep_the_order() -> None:
    scores = np.array([0.0, 1e-30, 1e-5, 0.3, 0.5, 0.999, 1.0], dtype=np.float32)
    odds = log_odds(scores)
    assert odds.dtype == np.float32
    assert np.isfinite(odds).all() and (np.diff(odds) >= 0).all()
    assert log_odds(scores[:0]).shape == (0,)


@pytest.mark.parametrize("dialect", FORMS)
def test_ten_thousand_documents_take_milliseconds(dialect: str) -> None:
    body = body_of(dialect, documents=[f"Trail shoe, men, size {row}" for row in range(10_000)])
    given = answer([0.5] * 10_000)
    spent = []
    for _ in range(5):
        start = time.thread_time()
        DIALECTS[dialect].render(parsed(dialect, body), given)
        spent.append(time.thread_time() - start)
    assert min(spent) < 0.1  # some 10 ms on the machines we know; the slow ways take seconds


def test_search_units_count_hundreds_of_documents() -> None:
    for documents, units in ((1, 1), (100, 1), (101, 2), (10_000, 100)):
        request = parsed("cohere", body_of("cohere", documents=["Mug"] * documents))
        meta = json.loads(DIALECTS["cohere"].render(request, answer([0.5] * documents)))["meta"]
        assert meta == {"api_version": {"version": "2"}, "billed_units": {"search_units": units}}


def test_info_has_every_field_that_clients_read() -> None:
    common: dict[str, Any] = {
        "model": "shop-small",
        "version": "4f1c",
        "max_input_length": 128,
        "max_batch_tokens": 16384,
        "max_documents": 10_000,
        "max_concurrent_requests": 512,
        "threads": 2,
    }
    info = json.loads(tei_info(**common))
    assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    # fmt: off
    assert set(info) == {
        "model_id", "model_sha", "model_dtype", "served_model_name", "model_type", "max_concurrent_requests",
        "max_input_length", "max_batch_tokens", "max_batch_requests", "max_client_batch_size", "auto_truncate",
        "tokenization_workers", "version", "sha", "docker_label",
    }
    # fmt: on
    classes = json.loads(tei_info(**common, labels=("exact", "irrelevant")))
    assert classes["model_type"]["classifier"]["id2label"] == {"0": "exact", "1": "irrelevant"}


def test_headers_of_a_scoring_reply_are_whole_milliseconds() -> None:
    given = answer([0.5])
    given.timings = {"total": 0.0126, "tokenize": 0.001, "queue": 0.0, "compute": 0.0109}
    headers = tei_headers(parsed("tei", body_of("tei")), given)
    assert headers["x-total-time"] == "13" and headers["x-queue-time"] == "0"
    assert all(value.isdigit() for name, value in headers.items() if name != "x-compute-type")


# --- errors -------------------------------------------------------------------------------------

SHAPES: tuple[ErrorShape, ...] = ("detail", "tei", "openai", "infinity")
STATUSES = [400, 401, 403, 404, 405, 408, 413, 415, 422, 424, 429, 431, 500, 503, 504]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_error_body_reads_as_its_clients_read_it(shape: ErrorShape, status: int) -> None:
    error = WireError(status, 'a "message" – with 2 lines\n', "some_code", "documents")
    body = json.loads(error_body(error, shape, "r1"))
    assert body["request_id"] == "r1"
    message = error.message
    if shape == "detail":
        assert body == {"message": message, "detail": message, "code": "some_code", "request_id": "r1"}
    elif shape == "tei":
        assert body["error"] == body["message"] == message
        assert body["error_type"] in ("Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty")
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert (body["error"]["message"], body["error"]["code"]) == (message, status)
        assert body["error"]["type"].endswith("Error")
        assert ("detail" in body) == (shape == "infinity" and status == 422)


def test_infinity_gets_a_list_of_details_on_422() -> None:
    error = refused("/infinity/rerank", b'{"documents": ["Mug"]}')
    detail = json.loads(error_body(error, "infinity", "r1"))["detail"]
    assert detail == [{"loc": ["body", "query"], "msg": error.message, "type": "missing_field"}]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "empty_documents", "Empty"),
        (400, "malformed_json", "Validation"),
        (413, "too_many_documents", "Validation"),
        (422, "invalid_field", "Validation"),
        (500, "backend", "Backend"),
        (429, "overloaded", "Overloaded"),
        (503, "starting", "Unhealthy"),
    ],
)
def test_tei_error_types_are_capitalized_and_known(status: int, code: str, kind: str) -> None:
    error = WireError(status, "m", code)
    assert json.loads(error_body(error, "tei"))["error_type"] == kind
    assert error_status(error, "tei") == (424 if code == "backend" else status)


# --- repairing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "mended", "count"),
    [
        (rb'"plain"', rb'"plain"', 0),
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"', 0),
        (rb'"\uD83D"', rb'"\ufffd"', 1),
        (rb'"\ude00"', rb'"\ufffd"', 1),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"', 2),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"', 1),
        (rb'"\\ud83d"', rb'"\\ud83d"', 0),
        (rb'"\\\ud83d"', rb'"\\\ufffd"', 1),
        (rb'"\\\\ud83d\n\udc00"', rb'"\\\\ud83d\n\ufffd"', 1),
        (rb'"\ud83d\u0041"', rb'"\ufffd\u0041"', 1),
        (rb'"\ud83d\\ude00"', rb'"\ufffd\\ude00"', 1),
    ],
)
def test_only_lone_surrogates_are_mended(given: bytes, mended: bytes, count: int) -> None:
    assert mend_surrogates(given) == (mended, count)


def test_mending_a_hostile_body_stays_fast() -> None:
    for filler in (rb"\\" * 1_000_000, rb"\n" * 1_000_000, b"\\" * 1_999_999):
        start = time.thread_time()
        mend_surrogates(b'"' + filler + rb'\ud800"')
        assert time.thread_time() - start < 1
