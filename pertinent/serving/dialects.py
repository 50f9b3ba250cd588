"""Every dialect as two pure functions: bytes to a Request, a Request and its Answer to bytes.

Names of fields, limits and shapes are those of the vendors' own clients. What holds for all of
them: one result for each document unless fewer are asked for, best first, equal scores by index;
scores are JSON floats and finite; no extra fields in a result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from pertinent.serving.bodies import (
    InfinityBody,
    InfinityReply,
    MixedbreadBody,
    MixedbreadReply,
    MixedbreadResult,
    NimBody,
    NimReply,
    Passage,
    PredictBody,
    Prediction,
    Rank,
    Ranking,
    RerankBody,
    RerankReply,
    Result,
    ScoreBody,
    ScoreReply,
    ScoreResult,
    TeiBody,
    Texts,
    TotalUsage,
    Usage,
    VllmBody,
    VoyageBody,
    VoyageReply,
)
from pertinent.serving.messages import Answer, ErrorShape, Request, WireError, log_odds
from pertinent.serving.reading import Document, blank_rows, one_text, read, required, texts, whole

# --- what comes -------------------------------------------------------------------------------


_RERANK_UNUSED = ("max_chunks_per_doc", "relevant_spans", "instruction", "overlap_tokens")
# Priorities of vLLM may be negative.
_LEAST_PRIORITY = -(2**31)
_ACTIVATION = ("use_activation", "activation", "softmax")
_VLLM_UNUSED = ("max_tokens_per_query", "truncate_prompt_tokens", "truncation_side")


def _parse_cohere(dialect: str) -> Callable[[bytes, str], Request]:
    """Parser of Cohere v1, v2 and Jina; scores are always probabilities there."""

    def parse(body: bytes, path: str) -> Request:
        given, repaired = read(body, RerankBody)
        return _rerank(dialect, given, repaired, least_top=1)

    return parse


def _parse_vllm(dialect: str) -> Callable[[bytes, str], Request]:
    """Parser of vLLM and of the shared route, where ``top_n: 0`` asks for all."""

    def parse(body: bytes, path: str) -> Request:
        given, repaired = read(body, VllmBody)
        request = _rerank(dialect, given, repaired, least_top=0)
        request.request_id = given.request_id
        request.unused += _given(given, _VLLM_UNUSED)
        if dialect == "vllm":
            request.logits = False in (given.use_activation, given.activation, given.softmax)
        else:  # scores of the shared route are in [0, 1], or thresholds would change their meaning
            request.unused += _given(given, _ACTIVATION)
        return request

    return parse


def _parse_infinity(body: bytes, path: str) -> Request:
    given, repaired = read(body, InfinityBody)
    request = _rerank("infinity", given, repaired, least_top=1)
    request.logits = bool(given.raw_scores)
    return request


def _request(dialect: str, given: Any, documents: list[str], repaired: int, **more: Any) -> Request:
    """A request of one query, of a body that has ``query`` and ``model``; ``more`` is what its dialect adds."""
    own = {"dialect": dialect, "documents": documents, "bad": blank_rows(documents), "repaired": repaired}
    return Request(**{**own, "query": one_text(given.query, "query"), "model": given.model, **more})


def _rerank(dialect: str, given: RerankBody, repaired: int, least_top: int) -> Request:
    documents = texts(given.documents, "documents", given.rank_fields)
    return _request(
        dialect,
        given,
        documents,
        repaired,
        top=whole(given.top_n, "top_n", least_top) or None,
        return_documents=bool(given.return_documents),
        raw_documents=_raw(given.documents, given.return_documents),
        unused=_given(given, _RERANK_UNUSED),
        # 0 switches it off, as in vLLM.
        max_tokens=whole(given.max_tokens_per_doc, "max_tokens_per_doc", 0) or None,
        priority=whole(given.priority, "priority", _LEAST_PRIORITY) or 0,
    )


def _parse_voyage(body: bytes, path: str) -> Request:
    given, repaired = read(body, VoyageBody)
    documents = texts(given.documents, "documents")
    return _request(
        "voyage",
        given,
        documents,
        repaired,
        top=whole(given.top_k, "top_k", 1),
        return_documents=bool(given.return_documents),
        truncate=given.truncation is not False,
    )


def _parse_mixedbread(body: bytes, path: str) -> Request:
    given, repaired = read(body, MixedbreadBody)
    documents = texts(given.input, "input", given.rank_fields)
    return _request(
        "mixedbread",
        given,
        documents,
        repaired,
        top=whole(given.top_k, "top_k", 1),
        return_documents=bool(given.return_input),
        raw_documents=_raw(given.input, given.return_input),
        unused=_given(given, ("rewrite_query",)),
    )


def _parse_nim(body: bytes, path: str) -> Request:
    given, repaired = read(body, NimBody)
    passages = None if given.passages is None else [_passage(each) for each in given.passages]
    documents = texts(passages, "passages")
    hosted = re.search(r"/v1/retrieval/(.+)/reranking/?$", path)
    return _request(
        "nim",
        given,
        documents,
        repaired,
        model=given.model or (hosted[1] if hosted else None),
        logits=True,
        truncate=given.truncate != "NONE",
    )


def _passage(given: str | Passage | None) -> Document:
    if not isinstance(given, Passage):
        return given
    return {} if given.text is UNSET else given.text


def _parse_tei(body: bytes, path: str) -> Request:
    given, repaired = read(body, TeiBody)
    documents = texts(given.texts, "texts")
    return _request(
        "tei",
        given,
        documents,
        repaired,
        return_documents=bool(given.return_text),
        logits=bool(given.raw_scores),
        truncate=given.truncate is not False,
        unused=_left(given.truncation_direction),
    )


def _parse_predict(body: bytes, path: str) -> Request:
    given, repaired = read(body, PredictBody)
    shape, pairs = _predict_pairs(given.inputs)
    documents = [pair[1] for pair in pairs]
    return Request(
        dialect="tei-predict",
        query=pairs[0][0],
        documents=documents,
        queries=[pair[0] for pair in pairs],
        model=given.model,
        logits=bool(given.raw_scores),
        truncate=given.truncate is not False,
        bad=blank_rows(documents),
        repaired=repaired,
        unused=_left(given.truncation_direction),
        extra={"shape": shape},
    )


def _predict_pairs(inputs: str | list[Any] | dict[str, Any] | None) -> tuple[str, list[tuple[str, str]]]:
    """What ``inputs`` holds, and its pairs: one pair, a batch of pairs, or objects in a list.

    >>> _predict_pairs(["cup", "Mug"])
    ('one', [('cup', 'Mug')])
    >>> _predict_pairs([["cup", "Mug"]])
    ('batch', [('cup', 'Mug')])
    >>> _predict_pairs([{"text": "cup", "text_pair": "Mug"}])
    ('objects', [('cup', 'Mug')])
    """
    inputs = required(inputs, "inputs", "a pair of texts, or a list of pairs")
    if isinstance(inputs, dict):
        return "objects", [_pair(inputs, "inputs")]
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], str)):
        return "one", [_pair(inputs, "inputs")]
    if not inputs:
        raise WireError(400, "inputs is an empty list: give at least one pair", "empty_documents", "inputs")
    shape = "objects" if isinstance(inputs[0], dict) else "batch"
    return shape, [_pair(pair, f"inputs[{row}]") for row, pair in enumerate(inputs)]


def _pair(value: Any, place: str) -> tuple[str, str]:
    if isinstance(value, dict):
        value = [value.get("text"), value.get("text_pair")]
    if isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value):
        return value[0], value[1]
    message = f"{place} is not a pair of texts: this model reads a query and a document, give [query, document]"
    raise WireError(422, message, "invalid_field", "inputs")


_SCORE_NAMES = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


def _parse_score(body: bytes, path: str) -> Request:
    given, repaired = read(body, ScoreBody)
    names = next((pair for pair in _SCORE_NAMES if all(getattr(given, name) is not None for name in pair)), None)
    if names is None:
        choices = ", ".join(" and ".join(pair) for pair in _SCORE_NAMES)
        raise WireError(422, f"the texts are missing: give {choices}", "missing_field", "queries")
    queries, documents = (_list(getattr(given, name), name) for name in names)
    if len(queries) not in (1, len(documents)):
        raise WireError(
            400,
            f"{names[0]} has {len(queries)} texts and {names[1]} {len(documents)}: give one query, or one for each",
            "invalid_field",
            names[0],
        )
    return Request(
        dialect="vllm-score",
        query=queries[0],
        documents=documents,
        queries=queries if len(queries) == len(documents) > 1 else None,
        model=given.model,
        logits=given.use_activation is False,
        request_id=given.request_id,
        bad=blank_rows(documents),
        repaired=repaired,
        unused=_given(given, ("truncate_prompt_tokens",)),
        priority=whole(given.priority, "priority", _LEAST_PRIORITY) or 0,
    )


def _list(value: Texts, field: str) -> list[str]:
    return texts(value if isinstance(value, list) else [value], field)


def _given(body: msgspec.Struct, names: Sequence[str]) -> list[str]:
    """Those of the fields that the client set."""
    return [name for name in names if getattr(body, name) is not None]


def _left(direction: str | None) -> list[str]:
    return ["truncation_direction"] if direction in ("Left", "left") else []


def _raw(documents: list[Document] | None, wanted: bool | None) -> list[Any] | None:
    """The documents as they came, where they have to be given back and are not plain texts."""
    if not wanted or documents is None or all(isinstance(document, str) for document in documents):
        return None
    return list(documents)


# --- what goes --------------------------------------------------------------------------------


def values(request: Request, answer: Answer) -> NDArray[np.float64]:
    """The numbers to show, in the order of the documents, float64 ``[n]``; never NaN or infinite."""
    shown = answer.scores
    if request.logits:
        shown = answer.logits if answer.logits is not None else log_odds(answer.scores)
    return finite(shown)


def finite(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores as doubles; an error that is ours where one is NaN or infinite."""
    broken = int(np.count_nonzero(~np.isfinite(scores)))
    if broken:
        raise WireError(500, f"{broken} of {scores.size} scores are not finite: the model is at fault", "backend")
    return scores.astype(np.float64)


def _ranked(request: Request, answer: Answer) -> tuple[list[int], list[float]]:
    order = answer.order
    return order.tolist(), values(request, answer)[order].tolist()


def _usage(answer: Answer) -> Usage:
    return Usage(answer.tokens, answer.tokens)


def _render_rerank(version: str) -> Callable[[Request, Answer], bytes]:
    def render(request: Request, answer: Answer) -> bytes:
        meta = {
            "api_version": {"version": version},
            "billed_units": {"search_units": -(-len(request.documents) // 100)},
        }
        results = _results(request, answer, _text_object)
        return _encode(RerankReply(answer.request_id, answer.model, results, _usage(answer), meta))

    return render


def _results(request: Request, answer: Answer, shown: Callable[[Request, int], dict[str, str] | str]) -> list[Result]:
    rows, scores = _ranked(request, answer)
    if not request.return_documents:
        return list(map(Result, rows, scores))
    return [Result(row, score, shown(request, row)) for row, score in zip(rows, scores, strict=True)]


def _text_object(request: Request, row: int) -> dict[str, str]:
    """The document given back: its text, and of an object all that is text."""
    text = request.documents[row]
    raw = None if request.raw_documents is None else request.raw_documents[row]
    if not isinstance(raw, dict):
        return {"text": text}
    return {"text": text} | {name: value for name, value in raw.items() if isinstance(value, str)}


def _text(request: Request, row: int) -> str:
    return request.documents[row]


def _render_infinity(request: Request, answer: Answer) -> bytes:
    results = _results(request, answer, _text)
    return _encode(InfinityReply(answer.request_id, "rerank", answer.model, results, _usage(answer), answer.created))


def _render_voyage(request: Request, answer: Answer) -> bytes:
    return _encode(VoyageReply("list", answer.model, TotalUsage(answer.tokens), _results(request, answer, _text)))


def _render_mixedbread(request: Request, answer: Answer) -> bytes:
    rows, scores = _ranked(request, answer)
    kept = request.raw_documents or request.documents
    data = [
        MixedbreadResult(row, score, "rank_result", kept[row] if request.return_documents else UNSET)
        for row, score in zip(rows, scores, strict=True)
    ]
    top = request.top or len(data)
    return _encode(MixedbreadReply(answer.model, _usage(answer), "list", top, request.return_documents, data))


def _render_nim(request: Request, answer: Answer) -> bytes:
    return _encode(NimReply(list(map(Ranking, *_ranked(request, answer))), _usage(answer)))


def _render_tei(request: Request, answer: Answer) -> bytes:
    rows, scores = _ranked(request, answer)
    if not request.return_documents:
        return _encode(list(map(Rank, rows, scores)))
    return _encode([Rank(row, score, request.documents[row]) for row, score in zip(rows, scores, strict=True)])


def _render_predict(request: Request, answer: Answer) -> bytes:
    classes = _classes(request, answer)
    if request.extra["shape"] == "objects":
        return _encode([each[0] for each in classes])
    return _encode(classes[0] if request.extra["shape"] == "one" else classes)


def _classes(request: Request, answer: Answer) -> list[list[Prediction]]:
    """Classes of each pair, best first; a model with one score has the one class LABEL_0."""
    if answer.class_scores is None or answer.classes is None:
        return [[Prediction(score, "LABEL_0")] for score in values(request, answer).tolist()]
    scores = finite(answer.class_scores)
    orders = np.argsort(-scores, axis=1, kind="stable").tolist()
    labels = answer.classes
    return [[Prediction(row[k], labels[k]) for k in order] for row, order in zip(scores.tolist(), orders, strict=True)]


def _render_score(request: Request, answer: Answer) -> bytes:
    scores = values(request, answer).tolist()
    data = [ScoreResult(row, "score", score) for row, score in enumerate(scores)]
    name = f"score-{answer.request_id}"
    return _encode(ScoreReply(name, "list", answer.created, answer.model, data, _usage(answer)))


def _encode(reply: Any) -> bytes:
    return msgspec.json.encode(reply)


# --- the table --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dialect:
    """One vendor's way to ask and answer.

    ``parse(body, path)`` gives the Request or raises WireError; ``render(request, answer)`` the
    body of the reply. ``errors`` is the shape of its error bodies. ``body`` and ``reply`` are the
    types on the wire, for a schema.
    """

    name: str
    title: str
    errors: ErrorShape
    parse: Callable[[bytes, str], Request]
    render: Callable[[Request, Answer], bytes]
    body: type[msgspec.Struct]
    reply: Any


_PREDICTIONS = list[Prediction] | list[list[Prediction]]
_V1, _V2 = _render_rerank("1"), _render_rerank("2")
_ALL = (
    Dialect("cohere", "Cohere v2", "detail", _parse_cohere("cohere"), _V2, RerankBody, RerankReply),
    Dialect("cohere-v1", "Cohere v1", "detail", _parse_cohere("cohere-v1"), _V1, RerankBody, RerankReply),
    Dialect("jina", "Jina", "detail", _parse_cohere("jina"), _V1, RerankBody, RerankReply),
    Dialect("union", "Cohere v1, Jina and relatives", "detail", _parse_vllm("union"), _V1, VllmBody, RerankReply),
    Dialect("vllm", "vLLM rerank", "openai", _parse_vllm("vllm"), _V1, VllmBody, RerankReply),
    Dialect("vllm-score", "vLLM score", "openai", _parse_score, _render_score, ScoreBody, ScoreReply),
    Dialect("infinity", "Infinity", "infinity", _parse_infinity, _render_infinity, InfinityBody, InfinityReply),
    Dialect("voyage", "Voyage", "detail", _parse_voyage, _render_voyage, VoyageBody, VoyageReply),
    Dialect(
        "mixedbread", "Mixedbread", "detail", _parse_mixedbread, _render_mixedbread, MixedbreadBody, MixedbreadReply
    ),
    Dialect("nim", "NVIDIA NIM", "detail", _parse_nim, _render_nim, NimBody, NimReply),
    Dialect("tei", "Text Embeddings Inference", "tei", _parse_tei, _render_tei, TeiBody, list[Rank]),
    Dialect(
        "tei-predict",
        "Text Embeddings Inference, classes",
        "tei",
        _parse_predict,
        _render_predict,
        PredictBody,
        _PREDICTIONS,
    ),
)
DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in _ALL}
