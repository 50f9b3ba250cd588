"""The clients that people use, each against the real server: same order and scores as a plain call.

Each test runs where its package is installed. Most of these packages pin what ours do not go with, so they
have an environment of their own, made from requirements/clients.txt; the server runs outside of it, and
PERTINENT_TEST_URL says where:

    PERTINENT_TEST_URL=http://127.0.0.1:8080 pytest tests/serving/test_real_clients.py --noconftest -c /dev/null
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

URL_VARIABLE = "PERTINENT_TEST_URL"
QUERY = "trail shoe men 42"
TEXTS = ["Garden hose 20 m", "Trail shoe, men", "Trail shoe, men", "Shoe laces, 3 pairs ☂", "Laufschuh für Herren"]

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks for a list of prices elsewhere
pytestmark = [
    # These packages warn about themselves; the law here is what they get from us.
    pytest.mark.filterwarnings("ignore"),
]


def package(name: str) -> Any:
    """A package that this environment may lack; one that is broken in itself counts as lacking."""
    return pytest.importorskip(name, exc_type=ImportError)


def call(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest) -> str:
    given = os.environ.get(URL_VARIABLE)
    if given:
        return given.rstrip("/")
    return str(request.getfixturevalue("start")(request.getfixturevalue("tiny_scorer")).url)


@pytest.fixture(scope="module")
def model(url: str) -> str:
    return str(call(url, "/v1/models")["data"][0]["id"])


@pytest.fixture(scope="module")
def expected(url: str, model: str) -> list[tuple[int, float]]:
    """Index and score of the texts, best first, by a plain call."""
    results = call(url, "/v2/rerank", {"model": model, "query": QUERY, "documents": TEXTS})["results"]
    return [(result["index"], result["relevance_score"]) for result in results]


def same(got: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [index for index, _ in got] == [index for index, _ in expected[: len(got)]]
    assert [score for _, score in got] == pytest.approx([score for _, score in expected[: len(got)]], abs=1e-6)


# --- Cohere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/cohere", "/"])
def test_cohere_v2(prefix: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    cohere = package("cohere")
    client = cohere.ClientV2("key", base_url=url + prefix)
    reply = client.rerank(model=model, query=QUERY, documents=TEXTS, top_n=3)
    assert len(reply.results) == 3
    same([(r.index, r.relevance_score) for r in reply.results], expected)
    assert reply.meta.api_version.version == "2"
    assert reply.id


def test_cohere_v2_without_waiting(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    cohere = package("cohere")

    async def ask() -> Any:
        # Its connection is closed with it; left open, some later test gets the warning.
        async with cohere.AsyncClientV2("key", base_url=url) as client:
            return await client.rerank(model=model, query=QUERY, documents=TEXTS)

    same([(r.index, r.relevance_score) for r in asyncio.run(ask()).results], expected)


def test_cohere_v1_gives_documents_back(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    cohere = package("cohere")
    client = cohere.Client("key", base_url=url)
    if not hasattr(client, "rerank"):
        pytest.skip("this version has no v1 rerank")
    documents = [{"title": text, "sku": str(row)} for row, text in enumerate(TEXTS)]
    reply = client.rerank(
        model=model,
        query=QUERY,
        documents=documents,
        rank_fields=["title"],
        return_documents=True,
        max_chunks_per_doc=10,
    )
    same([(r.index, r.relevance_score) for r in reply.results], expected)
    assert [r.document.text for r in reply.results] == [TEXTS[r.index] for r in reply.results]


def test_cohere_errors_are_its_own(url: str, model: str) -> None:
    cohere = package("cohere")
    client = cohere.ClientV2("key", base_url=url)
    with pytest.raises(cohere.UnprocessableEntityError) as wrong:
        client.rerank(model=model, query=QUERY, documents=TEXTS, top_n=-1)
    assert "top_n" in wrong.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as empty:
        client.rerank(model=model, query=QUERY, documents=[])
    assert "documents" in empty.value.body["message"]
    with pytest.raises(cohere.NotFoundError) as unknown:
        client.rerank(model="nobody", query=QUERY, documents=TEXTS)
    assert model in unknown.value.body["message"]


# --- LangChain ------------------------------------------------------------------------------------


def test_langchain_cohere(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    langchain = package("langchain_cohere")
    ranker = langchain.CohereRerank(base_url=url, cohere_api_key="key", model=model, top_n=3)
    same([(r["index"], r["relevance_score"]) for r in ranker.rerank(TEXTS, QUERY)], expected)


@pytest.mark.parametrize("prefix", ["/v1", "/nim/v1"])
def test_langchain_nvidia(prefix: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    langchain = package("langchain_nvidia_ai_endpoints")
    document = package("langchain_core.documents").Document
    ranker = langchain.NVIDIARerank(base_url=url + prefix, model=model, nvidia_api_key="key", top_n=5)
    found = ranker.compress_documents([document(page_content=text) for text in TEXTS], QUERY)
    assert [found_one.page_content for found_one in found] == [TEXTS[index] for index, _ in expected]
    assert all(isinstance(found_one.metadata["relevance_score"], float) for found_one in found)


@pytest.mark.parametrize("prefix", ["/v1", "/voyage/v1"])
def test_langchain_voyage(prefix: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    langchain = package("langchain_voyageai")
    document = package("langchain_core.documents").Document
    ranker = langchain.VoyageAIRerank(base_url=url + prefix, api_key="key", model=model, top_k=None)
    found = ranker.compress_documents([document(page_content=text) for text in TEXTS], QUERY)
    assert [found_one.page_content for found_one in found] == [TEXTS[index] for index, _ in expected]


@pytest.mark.parametrize("prefix", ["", "/infinity"])
def test_langchain_infinity(prefix: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    infinity = package("infinity_client")
    compressors = package("langchain_community.document_compressors")
    document = package("langchain_core.documents").Document
    ranker = compressors.InfinityRerank(client=infinity.Client(base_url=url + prefix), model=model, top_n=4)
    found = ranker.compress_documents([document(page_content=text) for text in TEXTS], QUERY)
    assert [found_one.page_content for found_one in found] == [TEXTS[index] for index, _ in expected[:4]]


def test_langchain_jina(
    monkeypatch: pytest.MonkeyPatch, url: str, model: str, expected: list[tuple[int, float]]
) -> None:
    package("langchain_community.document_compressors")
    jina = importlib.import_module("langchain_community.document_compressors.jina_rerank")
    monkeypatch.setattr(jina, "JINA_API_URL", url + "/v1/rerank")
    ranker = jina.JinaRerank(jina_api_key="key", model=model, top_n=3)
    same([(r["index"], r["relevance_score"]) for r in ranker.rerank(TEXTS, QUERY)], expected)
    wrong = jina.JinaRerank(jina_api_key="key", model="nobody", top_n=3)
    with pytest.raises(RuntimeError, match=model):
        wrong.rerank(TEXTS, QUERY)


# --- LlamaIndex -----------------------------------------------------------------------------------


def nodes() -> list[Any]:
    schema = package("llama_index.core.schema")
    return [schema.NodeWithScore(node=schema.TextNode(text=text, id_=str(row))) for row, text in enumerate(TEXTS)]


def by_llama_index(ranker: Any) -> list[tuple[int, float]]:
    return [(int(node.node.id_), node.score) for node in ranker.postprocess_nodes(nodes(), query_str=QUERY)]


def test_llama_index_cohere(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("llama_index.postprocessor.cohere_rerank")
    same(by_llama_index(module.CohereRerank(base_url=url, api_key="key", model=model, top_n=3)), expected)


@pytest.mark.parametrize("prefix", ["/v1", "/jina/v1"])
def test_llama_index_jina(prefix: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("llama_index.postprocessor.jinaai_rerank")
    same(by_llama_index(module.JinaRerank(base_url=url + prefix, api_key="key", model=model, top_n=3)), expected)


@pytest.mark.parametrize("prefix", ["", "/tei"])
def test_llama_index_tei(prefix: str, url: str, expected: list[tuple[int, float]]) -> None:
    module = package("llama_index.postprocessor.tei_rerank")
    same(by_llama_index(module.TextEmbeddingInference(base_url=url + prefix, top_n=4)), expected)


def test_llama_index_nvidia(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("llama_index.postprocessor.nvidia_rerank")
    got = by_llama_index(module.NVIDIARerank(base_url=url + "/v1", api_key="key", model=model, top_n=5))
    assert [index for index, _ in got] == [index for index, _ in expected]


def test_llama_index_siliconflow(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("llama_index.postprocessor.siliconflow_rerank")
    ranker = module.SiliconFlowRerank(base_url=url + "/v1/rerank", api_key="key", model=model, top_n=4)
    same(by_llama_index(ranker), expected)


# --- Haystack -------------------------------------------------------------------------------------


def by_haystack(ranker: Any) -> list[tuple[int, float]]:
    document = package("haystack").Document
    if hasattr(ranker, "warm_up"):
        ranker.warm_up()
    found = ranker.run(query=QUERY, documents=[document(content=t, meta={"row": r}) for r, t in enumerate(TEXTS)])
    return [(found_one.meta["row"], found_one.score) for found_one in found["documents"]]


def test_haystack_cohere(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("haystack_integrations.components.rankers.cohere")
    secret = package("haystack.utils").Secret.from_token("key")
    same(by_haystack(module.CohereRanker(api_base_url=url, api_key=secret, model=model, top_k=3)), expected)


def test_haystack_jina(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("haystack_integrations.components.rankers.jina")
    secret = package("haystack.utils").Secret.from_token("key")
    same(by_haystack(module.JinaRanker(base_url=url + "/v1/rerank", api_key=secret, model=model, top_k=3)), expected)


def test_haystack_nvidia(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("haystack_integrations.components.rankers.nvidia")
    secret = package("haystack.utils").Secret.from_token("key")
    got = by_haystack(module.NvidiaRanker(api_url=url + "/v1", api_key=secret, model=model, top_k=5))
    assert [index for index, _ in got] == [index for index, _ in expected]


# --- others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "path"),
    [
        ("cohere", "/v1/rerank"),
        ("cohere", "/cohere/v1/rerank"),
        ("jina", "/v1/rerank"),
        ("jina", "/jina/v1/rerank"),
        ("voyage", "/v1/rerank"),
        ("mixedbread.ai", "/v1/reranking"),
        ("text-embeddings-inference", "/rerank"),
        ("text-embeddings-inference", "/tei/rerank"),
    ],
)
def test_rerankers(provider: str, path: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    module = package("rerankers.models.api_rankers")
    ranked = module.APIRanker(model, "key", provider, url=url + path).rank(
        QUERY, TEXTS, doc_ids=list(range(len(TEXTS)))
    )
    same([(result.document.doc_id, result.score) for result in ranked.results], expected)


@pytest.mark.parametrize("prefix", ["/v1", "/voyage/v1"])
def test_voyage(prefix: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    voyage = package("voyageai")
    client = voyage.Client(api_key="key", base_url=url + prefix)
    reply = client.rerank(QUERY, TEXTS, model, top_k=3)
    same([(r.index, r.relevance_score) for r in reply.results], expected)
    assert [r.document for r in reply.results] == [TEXTS[r.index] for r in reply.results]
    assert reply.total_tokens > 0
    with pytest.raises(voyage.error.VoyageError, match="top_k"):
        client.rerank(QUERY, TEXTS, model, top_k=-1)


def test_mixedbread(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    mixedbread = package("mixedbread")
    client = mixedbread.Mixedbread(api_key="key", base_url=url, max_retries=0)
    reply = client.rerank(model=model, query=QUERY, input=TEXTS, top_k=3, return_input=True)
    same([(r.index, r.score) for r in reply.data], expected)
    assert [r.input for r in reply.data] == [TEXTS[r.index] for r in reply.data]
    with pytest.raises(mixedbread.UnprocessableEntityError, match="top_k"):
        client.rerank(model=model, query=QUERY, input=TEXTS, top_k=-1)


@pytest.mark.parametrize("prefix", ["", "/infinity"])
def test_infinity(prefix: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    infinity = package("infinity_client")
    rerank = importlib.import_module("infinity_client.api.default.rerank")
    given = importlib.import_module("infinity_client.models").RerankInput
    client = infinity.Client(base_url=url + prefix)
    reply = rerank.sync(client=client, body=given(query=QUERY, documents=TEXTS, model=model))
    same([(r.index, r.relevance_score) for r in reply.results], expected)
    wrong = rerank.sync_detailed(client=client, body=given(query=QUERY, documents=TEXTS, model=model, top_n=-1))
    assert wrong.status_code == 422


@pytest.mark.parametrize("prefix", ["", "/tei"])
def test_tei(prefix: str, url: str, expected: list[tuple[int, float]]) -> None:
    tei = package("tei_client")
    client = tei.HttpClient(url + prefix)
    try:
        info = client.info()
        short = client.rerank(QUERY, TEXTS, return_text=True, truncate=True)
    finally:
        client.client.close()
    assert info.server_model_type.value == "reranker"
    same([(rank.index, rank.score) for rank in short.ranks], expected)
    assert [rank.text for rank in short.ranks] == [TEXTS[rank.index] for rank in short.ranks]


def test_xinference(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    package("xinference_client")
    module = importlib.import_module("xinference_client.client.restful.restful_client")
    handle = module.RESTfulRerankModelHandle(model, url, {})
    reply = handle.rerank(TEXTS, QUERY, top_n=3)
    same([(r["index"], r["relevance_score"]) for r in reply["results"]], expected)
    with pytest.raises(RuntimeError, match="top_n"):
        handle.rerank(TEXTS, QUERY, top_n=-1)


LANCEDB = """
import json, sys
import pyarrow
from lancedb.rerankers import CohereReranker
model, query, texts = json.loads(sys.argv[1])
table = pyarrow.table({"text": texts, "row": list(range(len(texts))), "_score": [1.0] * len(texts)})
ranked = CohereReranker(model_name=model, api_key="key").rerank_fts(query, table)
print(json.dumps([ranked["row"].to_pylist(), ranked["_relevance_score"].to_pylist()]))
"""


def test_lancedb(url: str, model: str, expected: list[tuple[int, float]]) -> None:
    package("lancedb.rerankers")
    package("cohere")
    # The address is read when cohere is imported.
    command = [sys.executable, "-W", "ignore", "-c", LANCEDB, json.dumps([model, QUERY, TEXTS])]
    done = subprocess.run(command, env={**os.environ, "CO_API_URL": url}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, scores = json.loads(done.stdout)
    same(list(zip(rows, scores, strict=True)), expected)


# --- the snippets of the docs -----------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs" / "server-api.md"
SNIPPETS = re.findall(r"<!-- client: (\S+) -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[snippet[0] for snippet in SNIPPETS])
def test_the_snippets_of_the_docs_run(name: str, code: str, url: str, model: str) -> None:
    package(name)
    namespace: dict[str, Any] = {}
    exec(code.replace("http://ranker.example:8080", url).replace("shop-small", model), namespace)
    texts = ["Garden hose 20 m", "Trail shoe, men", "Tea pot"]
    body = {"model": model, "query": "trail shoe men 42", "documents": texts}
    results = call(url, "/v2/rerank", body)["results"]
    assert namespace["ranked"] == [texts[result["index"]] for result in results[:2]]


# --- LiteLLM --------------------------------------------------------------------------------------

# What comes after the server's address for each provider.
LITELLM = {
    **dict.fromkeys(("cohere", "jina_ai", "hosted_vllm", "huggingface", "voyage", "nvidia_nim"), ""),
    **dict.fromkeys(("nvidia_nim/ranking", "together_ai", "azure_ai", "scaleway"), ""),
    "fireworks_ai": "/v1",  # it puts its own name before the model's: needs a server with --any-model
    "infinity": "/infinity",  # only there is a document a text, as it wants
}


@pytest.mark.parametrize("provider", LITELLM)
def test_litellm(provider: str, url: str, model: str, expected: list[tuple[int, float]]) -> None:
    litellm = package("litellm")
    if provider == "fireworks_ai":
        try:
            call(url, "/v2/rerank", {"model": "fireworks/any", "query": QUERY, "documents": TEXTS})
        except urllib.error.HTTPError:
            pytest.skip("the server takes no other names of models: start it with --any-model")
    base = url + LITELLM[provider]
    answer = litellm.rerank(
        model=f"{provider}/{model}", query=QUERY, documents=TEXTS, top_n=len(TEXTS), api_base=base, api_key="key"
    )
    got = [(result["index"], result["relevance_score"]) for result in answer.results]
    if provider.startswith("nvidia_nim"):  # logits there
        got = [(index, 1 / (1 + math.exp(-score))) for index, score in got]
        assert [index for index, _ in got] == [index for index, _ in expected]
    else:
        same(got, expected)
