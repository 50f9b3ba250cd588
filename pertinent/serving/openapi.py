"""The OpenAPI document, made from the types on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, get_args

import msgspec

from pertinent.serving import candidates, native, wire

_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "400": "malformed JSON, an empty list, or a broken body",
    "401": "an API key is needed",
    "404": "the model is not served here",
    "408": "the body came too slowly",
    "413": "too many bytes, characters or documents",
    "415": "not JSON in UTF-8, or an unknown encoding",
    "422": "a field is missing or wrong",
    "429": "too much waits already; come again after Retry-After",
    "500": "scoring failed (424 for TEI clients)",
    "503": "starting or shutting down",
    "504": "the deadline passed",
}
_READS: dict[str, str] = {
    "models": "The served models",
    "info": "The default model and the limits",
    "health": "200 when requests may come",
    "metrics": "Prometheus metrics",
    "nim_live": "200 while the process works",
    "nim_ready": "200 when requests may come",
    "oip_live": "200 while the process works",
    "oip_ready": "200 when requests may come",
    "model_ready": "200 when the model answers",
}
_OWN_POSTS: dict[str, tuple[str, str, Any, Any]] = {
    "/v1/relevance": (
        "Relevance of items by id, row or text, with filter and fusion",
        "relevance",
        native.RelevanceBody,
        native.RelevanceReply,
    ),
    "/v1/candidates": (
        "Items of the index for a query by BM25, to try things out",
        "candidates",
        candidates.CandidatesBody,
        candidates.CandidatesReply,
    ),
}
_OWN = {
    "/livez": "200 while the scoring threads go on",
    "/readyz": "200 when requests may come",
    "/v1/config": "The settings in use, without secrets",
}
_TEXTS = ["Trail shoe, men, size 42", "Garden hose 20 m", "Shoe laces, 3 pairs"]
_RERANK = {"query": "trail shoe men 42", "documents": _TEXTS, "top_n": 2}
# A body for each dialect that any served model answers.
EXAMPLES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("cohere", "cohere-v1", "jina", "union", "vllm", "infinity"), _RERANK),
    "voyage": {"query": "trail shoe men 42", "documents": _TEXTS, "top_k": 2, "truncation": True},
    "mixedbread": {"query": "trail shoe men 42", "input": _TEXTS, "top_k": 2},
    "nim": {"query": {"text": "trail shoe men 42"}, "passages": [{"text": text} for text in _TEXTS]},
    "tei": {"query": "trail shoe men 42", "texts": _TEXTS, "raw_scores": False},
    "tei-predict": {"inputs": [["trail shoe men 42", text] for text in _TEXTS]},
    "vllm-score": {"text_1": "trail shoe men 42", "text_2": _TEXTS},
    "relevance": {"query": "trail shoe men 42", "texts": _TEXTS, "top": 2, "explain": True},
    "candidates": {"query": "shoe", "top": 5},
}


@cache
def openapi_document(version: str, secured: bool) -> bytes:
    """The document as JSON, OpenAPI 3.1."""
    kinds: list[Any] = [own for row in _OWN_POSTS.values() for own in row[2:]]
    for dialect in wire.DIALECTS.values():
        kinds += [*_members(dialect.body), *_members(dialect.reply)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    known = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {
        path: {"post": _operation(title, name, "pertinent", known[repr(body)], known[repr(reply)], {name: title})}
        for path, (title, name, body, reply) in _OWN_POSTS.items()
    }
    for route in wire.ROUTES:
        path = route.path.replace(":path}", "}")
        method, name = route.method.lower(), f"{route.method.lower()}{route.path}"
        tag = route.path.split("/")[1] if route.path.split("/")[1] in _PREFIXES else "at the root"
        if route.serves == "score":
            dialects = [wire.DIALECTS[each] for each in route.dialects]
            title = " or ".join(each.title for each in dialects)
            bodies = [known[repr(member)] for each in dialects for member in _members(each.body)]
            replies = [known[repr(member)] for each in dialects for member in _members(each.reply)]
            shown = {each.name: each.title for each in dialects}
            operation = _operation(title, name, tag, _one_of(bodies), _one_of(replies), shown)
        else:
            operation = _reading(_READS[route.serves], name, tag)
        if "{" in path:
            operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths.setdefault(path, {})[method] = operation
    for path, words in _OWN.items():
        paths[path] = {"get": _reading(words, f"get{path}", "pertinent")}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "pertinent", "version": version, "description": "Relevance of items for a query."},
        "paths": paths,
        "components": {"schemas": components},
    }
    if secured:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return msgspec.json.encode(document)


_PREFIXES = {route.path.split("/")[1] for route in wire.ROUTES if route.path.count("/") > 1} - {"v1", "v2"}


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _one_of(schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _operation(title: str, name: str, tag: str, body: Any, reply: Any, dialects: Mapping[str, str]) -> dict[str, Any]:
    examples = {each: {"summary": words, "value": EXAMPLES[each]} for each, words in dialects.items()}
    return {
        "summary": title,
        "operationId": _identifier(name),
        "tags": [tag],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body, "examples": examples}}},
        "responses": {"200": _content("the scores", reply), **{code: _error(words) for code, words in _ERRORS.items()}},
    }


def _reading(title: str, name: str, tag: str) -> dict[str, Any]:
    responses = {"200": {"description": "as said"}, "401": _error(_ERRORS["401"]), "503": _error("not ready")}
    return {"summary": title, "operationId": _identifier(name), "tags": [tag], "responses": responses}


def _content(words: str, schema: Any) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": schema}}}


def _error(words: str) -> dict[str, Any]:
    return _content(words, {"type": "object"})


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")
