"""The payloads of docs/engines.md, filled in and read back as each engine does it, as strictly as it does it.

The rules are those of the engines' sources: what is cast to which type, what is refused, what is counted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.serving.wire import DIALECTS, Answer, WireError, error_body, error_status, find_route, parse, rank_order

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
BLOCKS = dict(re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
QUERY = 'trail "shoe" \\ 42\n'
TEXTS = ["Garden hose", "Trail shoe", "", 'Trail "shoe" \\ 42', "Trail shoe", "Laufschuh ☂"]
Ask = Callable[[str, str], tuple[int, str]]


def block(name: str) -> Any:
    return json.loads(BLOCKS[name])


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def overlap(query: str, text: str) -> float:
    """A relevance that is easy to know: 1.0 for the same words, 0.0 for none in common."""
    both = words(query) | words(text)
    return len(words(query) & words(text)) / len(both) if both else 0.0


def ask(path: str, body: str) -> tuple[int, str]:
    """What the server does with a body, without the network in between."""
    path = path.removeprefix("http://ranker.example:8080")
    route = find_route("POST", path)
    assert route is not None, path
    try:
        request = parse(route, body.encode(), path)
        scores = np.array([overlap(*pair) for pair in request.pairs()], dtype=np.float32)
        answer = Answer(scores=scores, order=rank_order(scores, request.top), model="shop-small", request_id="r1")
        return 200, DIALECTS[request.dialect].render(request, answer).decode()
    except WireError as error:
        shape = error.shape or "detail"
        return error_status(error, shape), error_body(error, shape, "r1").decode()


def substitute(template: str, values: dict[str, str], prefix: str = "") -> str:
    """Placeholders filled in; one without a value is an error."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"no value for {match[0]}")
        return values[match[1]]

    return re.sub(r"\$\{" + re.escape(prefix) + r"([^}]+)\}", value, template)


def only(given: dict[str, Any], known: set[str], required: set[str]) -> None:
    assert set(given) <= known, f"unknown: {set(given) - known}"
    assert set(given) >= required, f"missing: {required - set(given)}"


# --- OpenSearch -----------------------------------------------------------------------------------


def opensearch_connector(connector: dict[str, Any]) -> dict[str, Any]:
    """The predict action of a connector, checked as the plug-in checks it."""
    known = {"name", "description", "version", "protocol", "parameters", "credential", "client_config", "actions"}
    only(connector, known, {"name", "version", "protocol", "actions"})
    assert connector["protocol"] in ("http", "aws_sigv4")
    limits = {"max_connection", "connection_timeout", "read_timeout", "retry_backoff_millis", "retry_timeout_seconds"}
    only(connector["client_config"], limits | {"max_retry_times", "retry_backoff_policy"}, set())
    assert all(isinstance(value, int) for value in connector["client_config"].values())
    (action,) = connector["actions"]
    functions = {"pre_process_function", "post_process_function"}
    only(
        action,
        {"action_type", "method", "url", "headers", "request_body"} | functions,
        {"action_type", "method", "url"},
    )
    assert (action["action_type"], action["method"]) == ("predict", "POST")
    assert action["pre_process_function"] in (
        "connector.pre_process.cohere.rerank",
        "connector.pre_process.default.rerank",
    )
    assert action["post_process_function"] == "connector.post_process.cohere.rerank"
    for header in action["headers"].values():
        substitute(header, connector["credential"], "credential.")
    return dict(action)


def opensearch_payload(connector: dict[str, Any], query: str, texts: list[str]) -> str:
    """What the plug-in sends: texts go into the template escaped, lists as JSON."""
    filled = {
        **connector["parameters"],
        "query": json.dumps(query)[1:-1],
        "documents": json.dumps(texts),
        "top_n": str(len(texts)),
    }
    payload = substitute(opensearch_connector(connector)["request_body"], filled, "parameters.")
    json.loads(payload)
    return payload


def opensearch_scores(reply: str) -> list[float]:
    """The post-processor of rerank connectors: ``scores[(Integer) index] = (Double) relevance_score``."""
    results = json.loads(reply)["results"]
    assert isinstance(results, list)
    if not results:
        return []
    assert {"index", "relevance_score"} <= set(results[0])
    scores: list[float | None] = [None] * len(results)
    for result in results:
        if type(result["index"]) is not int or type(result["relevance_score"]) is not float:
            raise TypeError(f"ClassCastException: {result}")
        scores[result["index"]] = result["relevance_score"]  # an index beyond the end raises here as it does there
    if any(score is None for score in scores):
        raise TypeError("NullPointerException: a score is missing")
    return [score for score in scores if score is not None]


def test_opensearch_scores_every_document_at_its_place() -> None:
    connector = block("opensearch-connector")
    status, reply = ask(connector["actions"][0]["url"], opensearch_payload(connector, QUERY, TEXTS))
    assert status == 200
    scores = opensearch_scores(reply)
    assert scores == [float(np.float32(overlap(QUERY, text))) for text in TEXTS]
    assert scores[3] == 1.0 and scores[0] == 0.0


def test_opensearch_trusts_the_address_of_the_connector() -> None:
    settings = block("opensearch-settings")["persistent"]
    url = block("opensearch-connector")["actions"][0]["url"]
    patterns = settings["plugins.ml_commons.trusted_connector_endpoints_regex"]
    assert any(re.fullmatch(pattern, url) for pattern in patterns)
    assert not any(re.fullmatch(pattern, "http://rankerxexample:8080/v2/rerank") for pattern in patterns)
    assert settings["plugins.ml_commons.connector.private_ip_enabled"] is True
    only(
        block("opensearch-model"), {"name", "function_name", "connector_id"}, {"name", "function_name", "connector_id"}
    )
    assert block("opensearch-model")["function_name"] == "remote"


def test_opensearch_pipeline_reranks_the_hits_of_a_search() -> None:
    (processor,) = block("opensearch-pipeline")["response_processors"]
    config = processor["rerank"]
    only(config, {"ml_opensearch", "context", "ignore_failure", "tag", "description"}, {"ml_opensearch", "context"})
    only(config["ml_opensearch"], {"model_id"}, {"model_id"})
    only(config["context"], {"document_fields"}, {"document_fields"})
    fields = config["context"]["document_fields"]
    assert 0 < len(fields) <= 50 and all(isinstance(field, str) for field in fields)

    search = block("opensearch-search")
    context = search["ext"]["rerank"]["query_context"]
    assert len(context) == 1 and set(context) <= {"query_text", "query_text_path"}
    query: Any = search
    for name in context["query_text_path"].split("."):
        query = query[name]
    assert isinstance(query, str)

    hits = [{"_id": str(row), "_source": {"title": text}} for row, text in enumerate(TEXTS)]
    texts = ["".join(str(hit["_source"][field]) for field in fields) for hit in hits]  # type: ignore[index]
    _, reply = ask("/v2/rerank", opensearch_payload(block("opensearch-connector"), query, texts))
    scores = opensearch_scores(reply)
    assert len(scores) == len(hits) <= search["size"]
    ranked = [hit["_id"] for _, hit in sorted(zip(scores, hits, strict=True), key=lambda pair: -pair[0])]
    assert ranked[:3] == ["3", "1", "4"]


@pytest.mark.parametrize(
    "reply",
    [
        {"results": [{"index": 0, "relevance_score": 1}]},
        {"results": [{"index": 0.0, "relevance_score": 1.0}]},
        {"results": [{"index": 1, "relevance_score": 1.0}]},
        {"results": [{"index": 0, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.5}]},
        {"results": [{"index": 0, "score": 0.5}]},
        {"data": [{"index": 0, "relevance_score": 0.5}]},
    ],
)
def test_the_opensearch_reader_is_as_strict_as_the_engine(reply: Any) -> None:
    with pytest.raises((TypeError, IndexError, AssertionError, KeyError)):
        opensearch_scores(json.dumps(reply))


# --- Elasticsearch --------------------------------------------------------------------------------


def elasticsearch_custom(endpoint: dict[str, Any], query: str, texts: list[str]) -> tuple[str, str]:
    """Address and body that the custom service sends."""
    only(endpoint, {"service", "service_settings", "task_settings"}, {"service", "service_settings"})
    settings = endpoint["service_settings"]
    known = {
        "secret_parameters",
        "url",
        "query_parameters",
        "headers",
        "request",
        "response",
        "rate_limit",
        "batch_size",
    }
    only(settings, known, {"url", "request", "response"})
    secrets = settings["secret_parameters"]
    for header in settings["headers"].values():
        substitute(header, secrets)
    values = {name: json.dumps(value) for name, value in secrets.items()}
    values |= {"query": json.dumps(query), "input": json.dumps(texts)}
    return settings["url"], substitute(settings["request"], values)


def elasticsearch_custom_ranks(endpoint: dict[str, Any], reply: str) -> list[tuple[int, float]]:
    """Index and score, read by the paths of the endpoint; they have to be equally many."""
    only(endpoint["service_settings"]["response"], {"json_parser"}, {"json_parser"})
    paths = endpoint["service_settings"]["response"]["json_parser"]
    only(paths, {"relevance_score", "reranked_index", "document_text"}, {"relevance_score"})
    found = {name: at_path(json.loads(reply), path) for name, path in paths.items()}
    scores, indexes = found["relevance_score"], found["reranked_index"]
    assert len(scores) == len(indexes)
    assert all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in [*scores, *indexes])
    return [(int(index), float(score)) for index, score in zip(indexes, scores, strict=True)]


def at_path(value: Any, path: str) -> list[Any]:
    """``$.results[*].index`` of a reply; a step that is not there is an error."""
    found = [value]
    for name, every in re.findall(r"\.(\w+)(\[\*\])?", path.removeprefix("$")):
        found = [each[name] for each in found]
        found = [inner for each in found for inner in each] if every else found
    return found


def elasticsearch_strict_items(items: Any, known: set[str]) -> list[tuple[int, float]]:
    """The parsers of the built-in services: an unknown field of an item is an error."""
    assert isinstance(items, list)
    ranks = []
    for item in items:
        only(item, known, {"index"})
        if "document" in item:
            assert isinstance(item["document"], dict)
            assert all(isinstance(value, str) for value in item["document"].values())
        score = item.get("relevance_score", item.get("score"))
        assert type(item["index"]) is int and isinstance(score, (int, float)) and math.isfinite(score)
        ranks.append((item["index"], float(score)))
    return ranks


def text_similarity_reranker(retriever: dict[str, Any], size: int) -> dict[str, Any]:
    """The retriever's own settings, checked as its parser checks them."""
    settings = dict(retriever["text_similarity_reranker"])
    required = {"retriever": dict, "field": str, "inference_text": str}
    optional = {"inference_id": str, "rank_window_size": int, "min_score": float, "allow_rerank_failures": bool}
    only(settings, {*required, *optional, "filter", "_name", "chunk_rescorer"}, set(required))
    for name, kind in {**required, **optional}.items():
        assert name not in settings or type(settings[name]) is kind, name
    assert len(settings["retriever"]) == 1
    assert settings.get("rank_window_size", 10) >= size
    return settings


def reranked(ranks: list[tuple[int, float]], texts: list[str]) -> list[tuple[int, float]]:
    """What the retriever makes of ranks: as many as documents, scores moved above 0, best first."""
    assert len(ranks) == len(texts), "[text_similarity_reranker] number of scores differs"
    assert sorted(index for index, _ in ranks) == list(range(len(texts)))
    moved = [(index, max(score, 0.0) + min(math.exp(score), 1.0)) for index, score in ranks]
    return sorted(moved, key=lambda pair: -pair[1])


def test_elasticsearch_custom_endpoint() -> None:
    endpoint = block("elasticsearch-custom")
    url, body = elasticsearch_custom(endpoint, QUERY, TEXTS)
    status, reply = ask(url, body)
    assert status == 200
    shown = reranked(elasticsearch_custom_ranks(endpoint, reply), TEXTS)
    assert [index for index, _ in shown][:3] == [3, 1, 4]
    assert all(1 <= score <= 2 for _, score in shown)
    assert elasticsearch_strict_items(json.loads(reply)["results"], {"index", "relevance_score", "document"})


def test_elasticsearch_hugging_face_endpoint() -> None:
    endpoint = block("elasticsearch-hugging-face")
    only(endpoint, {"service", "service_settings", "task_settings"}, {"service", "service_settings"})
    only(endpoint["service_settings"], {"api_key", "url", "rate_limit"}, {"api_key", "url"})
    only(endpoint["task_settings"], {"return_documents", "top_n"}, set())
    known = {"index", "score", "relevance_score", "text", "document"}
    for sent in ({"return_text": False}, {"return_text": True}, {"return_text": False, "top_n": 2}, {}):
        body = {"texts": TEXTS, "query": QUERY, **sent}
        status, reply = ask(endpoint["service_settings"]["url"], json.dumps(body))
        assert status == 200
        shown = reranked(elasticsearch_strict_items(json.loads(reply), known), TEXTS)
        assert [index for index, _ in shown][:3] == [3, 1, 4]
        assert all(("text" in item) == sent.get("return_text", False) for item in json.loads(reply))


def test_elasticsearch_search() -> None:
    search = block("elasticsearch-search")
    settings = text_similarity_reranker(search["retriever"], search["size"])
    assert settings["inference_text"] == settings["retriever"]["standard"]["query"]["match"][settings["field"]]
    assert f"/{settings['inference_id']}`" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("returned", [True, False, None])
def test_items_of_the_cohere_parser_have_no_field_that_it_does_not_know(returned: bool | None) -> None:
    for path in ("/v2/rerank", "/v1/rerank", "/cohere/v1/rerank", "/rerank", "/vllm/rerank"):
        documents = [{"text": "Mug", "size": "5", "price": 9}, "Pan", {"text": "Cup", "tags": ["a"], "more": None}]
        body = {"model": "m", "query": "cup", "documents": documents, "return_documents": returned}
        results = json.loads(ask(path, json.dumps(body))[1])["results"]
        ranks = elasticsearch_strict_items(results, {"index", "relevance_score", "document"})
        assert len(ranks) == 3
        assert all(("document" in result) == bool(returned) for result in results)


def test_a_placeholder_without_a_value_is_an_error_as_in_the_engine() -> None:
    endpoint = block("elasticsearch-custom")
    endpoint["service_settings"]["request"] = '{"query": ${query}, "documents": ${input}, "top_n": ${top_n}}'
    with pytest.raises(ValueError, match="top_n"):
        elasticsearch_custom(endpoint, QUERY, TEXTS)


# --- Vespa and Solr -------------------------------------------------------------------------------


def function(name: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {}
    exec(BLOCKS[f"{name}-rerank"], namespace)
    return namespace[f"rerank_{name}"]  # type: ignore[no-any-return]


def asked(path: str, body: Any) -> Any:
    status, reply = ask(path, json.dumps(body))
    assert status == 200, reply
    return json.loads(reply)


def test_vespa() -> None:
    search = block("vespa-search")
    assert re.fullmatch(r"select [\w, *]+ from \w+ where .+", search["yql"])
    assert 0 < search["hits"] <= 400
    hits = function("vespa")(asked, search["query"], block("vespa-answer"))
    assert [hit["fields"]["id"] for hit in hits] == ["b2", "a1"]
    assert hits[0]["relevance"] > hits[1]["relevance"] == 0.0
    assert function("vespa")(asked, "cup", {"root": {"fields": {"totalCount": 0}}}) == []


def test_solr() -> None:
    search = block("solr-search")
    known = {"query", "filter", "fields", "limit", "offset", "sort", "facet", "params"}
    only(search, known, {"query"})
    answer = block("solr-answer")
    assert set(answer["response"]["docs"][0]) <= set(search["fields"])
    documents = function("solr")(asked, search["query"], answer)
    assert [document["id"] for document in documents] == ["b2", "a1"]
    answer["response"]["docs"] = []
    assert function("solr")(asked, "cup", answer) == []


def test_vespa_scores_inside_with_the_profile_of_the_export() -> None:
    from pertinent.engine.vespa import PACKED_INPUTS, SCHEMA_FILE, SERVICES, SERVICES_FILE

    search = block("vespa-onnx-search")
    assert re.fullmatch(r"select [\w, *]+ from items where userQuery\(\)", search["yql"])
    assert search["input.query(q_tokens)"] == "embed(tokenizer, @query)" and '<component id="tokenizer"' in SERVICES
    page = PAGE.read_text(encoding="utf-8")
    for named in (
        search["ranking"],
        *PACKED_INPUTS,
        *(name.partition("/")[2] for name in (SCHEMA_FILE, SERVICES_FILE)),
    ):
        assert f"`{named}`" in page


def solr_local_params(text: str, opening: str, params: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Name and arguments of ``{!name a=1 b=$c}`` or ``[name a=1]``; ``$c`` is read from the request."""
    found = re.fullmatch(re.escape(opening) + r"(\w+)((?: [\w.]+=\S+?)*)[\]}]", text)
    assert found is not None, text
    given = dict(each.split("=") for each in found[2].split())
    return found[1], {name: params[value[1:]] if value.startswith("$") else value for name, value in given.items()}


def test_solr_logs_and_ranks_with_what_the_features_need() -> None:
    from pertinent.engine.stand_in import DEFINITIONS, NAME

    needed = set(re.findall(r"\$\{(\w+)\}", json.dumps(DEFINITIONS["solr"])))
    log, search = block("solr-ltr-log"), block("solr-ltr-search")
    transformer = next(field for field in log["fields"] if field.startswith("["))
    name, logged = solr_local_params(transformer, "[", log["params"])
    assert (name, logged["store"]) == ("features", NAME) and "score" in log["fields"]
    name, ranked = solr_local_params(search["params"]["rq"], "{!", search["params"])
    assert (name, ranked["model"]) == ("ltr", NAME) and int(ranked["reRankDocs"]) >= search["limit"]
    for body, given in ((log, logged), (search, ranked)):
        assert {each.removeprefix("efi.") for each in given if each.startswith("efi.")} == needed
        assert given["efi.text"] == body["query"]
        only(body, {"query", "filter", "fields", "limit", "offset", "sort", "facet", "params"}, {"query"})


def test_what_engines_log_becomes_the_table_that_is_read(tmp_path: Path) -> None:
    from pertinent.commands import _read_logged
    from pertinent.engine.stand_in import DEFINITIONS

    namespace: dict[str, Any] = {}
    for name in ("solr", "opensearch"):
        exec(BLOCKS[f"{name}-ltr-rows"], namespace)
    names = {engine: [feature["name"] for feature in features] for engine, features in DEFINITIONS.items()}
    csv = ",".join(f"{name}={place}.5" for place, name in enumerate(names["solr"]))
    documents = [
        {"id": "a", "title": "Mug", "[features]": csv},
        {"id": "b", "title": ["Tea", "pot"], "[features]": csv},
    ]
    lines = namespace["logged_by_solr"]("cup", {"response": {"docs": documents}})
    (tmp_path / "solr.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = _read_logged(str(tmp_path / "solr.jsonl"), names["solr"])
    assert (table.queries, table.titles) == (["cup", "cup"], ["Mug", "Tea pot"])
    assert table.values.tolist() == [[0.5, 1.5, 2.5, 3.5, 4.5]] * 2

    spec = block("opensearch-ltr-log")["ext"]["ltr_log"]["log_specs"]
    assert spec["missing_as_zero"] is True
    values = [{"name": name, "value": 2.0} for name in names["opensearch"][:-1]] + [{"name": names["opensearch"][-1]}]
    hit = {"_source": {"title": "Mug"}, "fields": {"_ltrlog": [{spec["name"]: values}]}}
    lines = namespace["logged_by_opensearch"]("cup", {"hits": {"hits": [hit]}})
    (tmp_path / "opensearch.jsonl").write_text(json.dumps(lines[0]))
    table = _read_logged(str(tmp_path / "opensearch.jsonl"), names["opensearch"])
    assert (table.titles, table.values.tolist()) == (["Mug"], [[2.0, 2.0, 0.0]])


def test_opensearch_logs_and_ranks_with_what_the_features_need() -> None:
    from pertinent.engine.stand_in import DEFINITIONS, NAME

    needed = {name for feature in DEFINITIONS["opensearch"] for name in feature["params"]}
    log, search = block("opensearch-ltr-log"), block("opensearch-ltr-search")
    logged = log["query"]["bool"]["filter"]["sltr"]
    only(logged, {"_name", "featureset", "params", "store"}, {"_name", "featureset", "params"})
    assert logged["featureset"] == NAME and logged["_name"] == log["ext"]["ltr_log"]["log_specs"]["named_query"]
    only(search["rescore"], {"window_size", "query"}, {"query"})
    rescore = search["rescore"]["query"]
    only(rescore, {"query_weight", "rescore_query_weight", "rescore_query", "score_mode"}, {"rescore_query"})
    ranked = rescore["rescore_query"]["sltr"]
    only(ranked, {"model", "params", "store", "active_features"}, {"model", "params"})
    assert ranked["model"] == NAME and search["rescore"]["window_size"] >= search["size"]
    assert set(logged["params"]) == set(ranked["params"]) == needed
    assert {"title"} == set(log["_source"])


# --- LiteLLM, LlamaIndex, Haystack: readers that fail hard ------------------------------------------


def test_litellm_reads_documents_as_each_of_its_providers_does() -> None:
    body = {"model": "m", "query": QUERY, "documents": TEXTS, "return_documents": True, "top_n": 3}
    results = asked("/rerank", body)["results"]  # hosted_vllm: an object, or nothing
    assert all({"index", "relevance_score"} <= set(r) and isinstance(r["document"]["text"], str) for r in results)
    results = asked("/infinity/rerank", body)["results"]  # infinity puts the value under text itself
    assert [r["document"] for r in results] == [TEXTS[r["index"]] for r in results]


def test_llama_index_tei_asserts_one_score_a_text() -> None:
    scores = asked("/rerank", {"query": QUERY, "texts": TEXTS, "truncate": True})
    assert isinstance(scores, list) and len(scores) == len(TEXTS)
    assert all(isinstance(each["index"], int) and isinstance(each["score"], float) for each in scores)


def test_haystack_jina_reads_model_and_usage() -> None:
    reply = asked("/v1/rerank", {"model": "m", "query": QUERY, "documents": TEXTS, "top_n": 2})
    assert reply["model"] and reply["usage"]
    assert [type(each["index"]) for each in reply["results"]] == [int, int]


def test_jina_clients_find_the_detail_of_an_error() -> None:
    for path in ("/v1/rerank", "/v2/rerank", "/jina/v1/rerank", "/voyage/v1/rerank", "/v1/reranking", "/v1/ranking"):
        status, reply = ask(path, '{"query": 5}')
        body = json.loads(reply)
        assert status == 422 and isinstance(body["detail"], str) and body["message"] == body["detail"]


def test_infinity_clients_read_a_list_of_details_on_422_and_only_there() -> None:
    status, reply = ask("/infinity/rerank", '{"query": "cup"}')
    (detail,) = json.loads(reply)["detail"]
    assert status == 422 and detail["loc"] == ["body", "documents"] and set(detail) == {"loc", "msg", "type"}
    status, reply = ask("/infinity/rerank", '{"query": "cup", "documents": []}')
    assert status == 400 and "detail" not in json.loads(reply)
